// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Random mutations of valid packets, seeded: the daemon lives, leaks nothing, grows by nothing, and a good
// client beside it gets its bytes. TERRACE_FUZZ_SEED replays a run.
#include <gtest/gtest.h>

#include <sys/socket.h>

#include <cstdlib>
#include <cstring>
#include <utility>

#include "testing/engine_rig.h"
#include "testing/packet_mutation.h"
#include "testing/raw_client.h"

namespace terrace::testing {
namespace {

constexpr uint64_t kBlock = 8 << 10;
constexpr int kMutations = 100'000;

TEST(EngineFuzzTest, MutatedPacketsNeitherKillNorLeak) {
  uint64_t seed = 20240117;
  if (const char* given = std::getenv("TERRACE_FUZZ_SEED")) seed = std::strtoull(given, nullptr, 0);
  SCOPED_TRACE("TERRACE_FUZZ_SEED=" + std::to_string(seed));
  MutationRandom random(seed);
  EngineRig rig([](api::Config* config) {
    config->stack.budget_bytes = 128 << 20;
    config->staging_bytes_max = 8 << 20;
  });

  auto good = rig.Client();
  const auto space = good->Open(kBlock, {.model = "good"});
  ASSERT_TRUE(space.ok() && good->GetStaging(kBlock).ok());
  const std::vector<kv::BlockKey> keys = KeysOf(1, 32);
  for (const kv::BlockKey& key : keys) ASSERT_EQ(*good->Put(*space, key, PayloadOf(key, 0, kBlock)), Reason::kNone);
  const auto held = good->Lookup(*space, keys);
  ASSERT_EQ(held->done.n_here, keys.size());

  // Valid messages to start from.
  const auto payload = PayloadOf(keys[0], 0, kBlock);
  std::vector<std::byte> lookup(sizeof(wire::Lookup) + keys.size() * 32);
  const wire::Lookup ask{space->id, static_cast<uint32_t>(keys.size()), 0, 0, 0};
  std::memcpy(lookup.data(), &ask, sizeof(ask));
  std::memcpy(lookup.data() + sizeof(ask), keys.data(), keys.size() * 32);
  const auto encode = [&](wire::Type type, std::span<const std::byte> body) {
    return RawClient::Encode(type, static_cast<uint32_t>(random.Next()), body);
  };
  const wire::Hello hello = RawClient::HelloFor("default");
  const std::vector<std::byte> valid[] = {
      encode(wire::Type::kHello, BytesOf(hello)),
      encode(wire::Type::kOpenKeySpace, RawClient::OpenBody(kBlock, {})),
      encode(wire::Type::kLookup, lookup),
      encode(wire::Type::kRelease, BytesOf(wire::Release{held->done.lease_id})),
      encode(wire::Type::kGetSegment, BytesOf(wire::GetSegment{held->refs[0].segment_id, 0})),
      encode(wire::Type::kGetStaging, BytesOf(wire::GetStaging{kBlock})),
      encode(wire::Type::kPut, RawClient::PutBody(*space, keys[0], 0, RawClient::Checksums(*space, keys[0], payload))),
      encode(wire::Type::kReport, BytesOf(wire::Report{space->id, 0, held->refs[0].generation, {}})),
      encode(wire::Type::kPing, {}),
      encode(wire::Type::kLocate, RawClient::LocateBody(*space, keys, 1000)),
      encode(wire::Type::kHint, RawClient::HintBody(*space, keys, {.pin_ms = 1, .priority = 3})),
  };

  uint64_t answers = 0, refusals = 0, connections = 0;
  size_t descriptors = 0;
  uint64_t resident = 0;
  std::unique_ptr<RawClient> bad;
  for (int i = 0; i < kMutations; ++i) {
    if (bad == nullptr) {
      bad = std::make_unique<RawClient>(rig.path());
      ASSERT_TRUE(bad->is_connected()) << "mutation " << i;
      ++connections;
      // Some start with a mutated Hello, most with a right one.
      if (random.Below(16) != 0) {
        ASSERT_TRUE(bad->Hello().ok()) << "mutation " << i;
        if (random.Below(2) == 0) {
          ASSERT_TRUE(bad->GetStaging(kBlock).ok()) << "mutation " << i;
        }
      }
    }
    std::vector<std::byte> packet = valid[random.Below(std::size(valid))];
    Mutate(&random, &packet);
    const bool sent = bad->SendBytes(packet);
    // Take what is there; now and then wait, so that the daemon is not only shouted at.
    bool open = sent;
    while (open) {
      const auto answer = bad->Receive(random.Below(4) == 0 ? 1 : 0);
      if (!answer.has_value()) break;
      ++answers;
      refusals += answer->header.status != 0;
    }
    char probe;
    if (!sent || recv(bad->fd(), &probe, 1, MSG_PEEK | MSG_DONTWAIT) == 0) bad.reset();
    if (i % 10'000 == 9'999) {
      // The good client has lost nothing.
      for (size_t k = 0; k < keys.size(); ++k) {
        std::vector<std::byte> bytes;
        ASSERT_EQ(good->Read(*space, keys[k], held->refs[k], &bytes), Verdict::kGood) << "mutation " << i;
        ASSERT_EQ(bytes, PayloadOf(keys[k], 0, kBlock)) << "mutation " << i;
      }
    }
    if (i % 50'000 == 9'999) {
      bad.reset();
      ASSERT_TRUE(Eventually([&] { return rig.Metric("terrace_engines_connected") == 1; }));
      if (descriptors == 0) {
        // A connection's descriptor may outlive it by a store that is just ending.
        ASSERT_TRUE(Eventually([&] { return std::exchange(descriptors, OpenDescriptors()) == OpenDescriptors(); }));
      } else {
        EXPECT_TRUE(Eventually([&] { return OpenDescriptors() <= descriptors; }))
            << OpenDescriptors() << " descriptors, " << descriptors << " before; mutation " << i;
        EXPECT_LT(ResidentBytes(), resident + (48 << 20)) << "mutation " << i;
      }
      resident = ResidentBytes();
    }
  }
  bad.reset();
  EXPECT_TRUE(good->Release(held->done.lease_id).ok());
  good.reset();
  EXPECT_EQ(rig.WhatIsLeft(), "");
  EXPECT_EQ(rig.Metric("terrace_corrupt_reports_total"), 0);
  EXPECT_EQ(rig.stack()->Verify().corrupt, 0u);
  // The fuzzer did its work.
  EXPECT_GT(connections, 100u);
  EXPECT_GT(refusals, 5'000u);
  EXPECT_GT(answers - refusals, 1'000u);
}

}  // namespace
}  // namespace terrace::testing
