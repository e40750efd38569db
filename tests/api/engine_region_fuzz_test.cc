// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Random mutations of messages about regions, with any number of descriptors, seeded: the daemon lives, leaks
// nothing, writes to no memory but the pages of the region that was named, and a good client beside it gets its
// bytes. TERRACE_FUZZ_SEED replays a run.
#include <gtest/gtest.h>

#include <sys/socket.h>

#include <cstdlib>
#include <cstring>

#include "testing/engine_rig.h"
#include "testing/packet_mutation.h"
#include "testing/region_client.h"

namespace terrace::testing {
namespace {

constexpr int kMutations = kSanitized ? 10'000 : 40'000;
constexpr size_t kBlocks = 8;

RegionMemory::Shape SmallShape() {
  RegionMemory::Shape shape;
  shape.layers = 1;
  shape.piece_bytes = 4096;
  shape.n_pages = kBlocks;
  return shape;
}

TEST(EngineRegionFuzzTest, MutatedPacketsNeitherKillNorLeak) {
  uint64_t seed = 20240118;
  if (const char* given = std::getenv("TERRACE_FUZZ_SEED")) seed = std::strtoull(given, nullptr, 0);
  SCOPED_TRACE("TERRACE_FUZZ_SEED=" + std::to_string(seed));
  MutationRandom random(seed);
  EngineRig rig([](api::Config* config) { config->max_regions = 3; });
  auto good = rig.Client();
  RegionMemory good_memory(SmallShape());
  const RegionMemory bad_memory(SmallShape());
  const auto space = good->Open(good_memory.page_bytes());
  ASSERT_TRUE(space.ok());
  RegionClient regions(good.get());
  const auto good_region = regions.Register(good_memory);
  ASSERT_TRUE(good_region.ok()) << good_region.status();
  const auto keys = KeysOf(1, kBlocks);
  const auto payload = [&](size_t i) { return PayloadOf(keys[i], 0, good_memory.page_bytes()); };
  for (size_t i = 0; i < kBlocks; ++i) good_memory.Write(i, payload(i));
  ASSERT_TRUE(regions.Run(wire::Type::kRegionStore, RegionStoreBody(good_region->id, *space, keys, 0)).ok());

  const auto encode = [&](wire::Type type, std::span<const std::byte> body) {
    return RawClient::Encode(type, static_cast<uint32_t>(random.Next()), body);
  };
  const std::vector<std::byte> valid[] = {
      encode(wire::Type::kRegisterRegion, RegisterBody(bad_memory)),
      encode(wire::Type::kRegionStore, RegionStoreBody(1, *space, keys, 0)),
      encode(wire::Type::kRegionLoad, RegionLoadBody(1, *space, keys, 0, 0, 1000)),
      encode(wire::Type::kUnregisterRegion, BytesOf(wire::UnregisterRegion{1, 0})),
  };
  const std::vector<int> fds(253, bad_memory.fd());
  uint64_t answers = 0, refusals = 0, connections = 0;
  size_t descriptors = 0;
  std::unique_ptr<RawClient> bad;
  for (int i = 0; i < kMutations; ++i) {
    if (bad == nullptr || random.Below(500) == 0) {
      bad = std::make_unique<RawClient>(rig.path());
      ASSERT_TRUE(bad->is_connected() && bad->Hello().ok()) << "mutation " << i;
      ++connections;
      if (random.Below(4) != 0) {
        ASSERT_TRUE(RegionClient(bad.get()).Register(bad_memory).ok()) << "mutation " << i;
      }
    }
    std::vector<std::byte> packet = valid[random.Below(std::size(valid))];
    if (random.Below(4) != 0) Mutate(&random, &packet);
    const size_t n_fds = random.Below(3) == 0 ? random.Below(fds.size() + 1) : random.Below(2);
    const bool sent = bad->SendBytes(packet, std::span(fds).first(n_fds));
    while (sent) {
      const auto answer = bad->Receive(random.Below(4) == 0 ? 1 : 0);
      if (!answer.has_value()) break;
      ++answers;
      refusals += answer->header.status != 0;
    }
    char probe;
    if (!sent || recv(bad->fd(), &probe, 1, MSG_PEEK | MSG_DONTWAIT) == 0) bad.reset();
    if (i % (kMutations / 4) != kMutations / 8) continue;
    bad.reset();
    // The good client has lost nothing.
    for (size_t k = 0; k < kBlocks; ++k) ASSERT_EQ(good_memory.Read(k), payload(k)) << "mutation " << i;
    good_memory.Clear();
    const auto loaded = regions.Run(wire::Type::kRegionLoad, RegionLoadBody(good_region->id, *space, keys, 0));
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    for (size_t k = 0; k < kBlocks; ++k) ASSERT_EQ(good_memory.Read(k), payload(k)) << "mutation " << i;
    ASSERT_TRUE(Eventually([&] {
      return rig.Metric("terrace_engines_connected") == 1 && rig.Metric("terrace_regions") == 1;
    })) << "mutation " << i;
    const size_t now = OpenDescriptors();
    if (descriptors != 0) EXPECT_EQ(now, descriptors) << "mutation " << i;
    descriptors = now;
  }
  bad.reset();
  good.reset();
  EXPECT_EQ(rig.WhatIsLeft(), "");
  EXPECT_EQ(rig.stack()->Verify().corrupt, 0u);
  // The fuzzer did its work.
  EXPECT_GT(connections, 20u);
  EXPECT_GT(refusals, 1'000u);
  EXPECT_GT(answers - refusals, 200u);
}

}  // namespace
}  // namespace terrace::testing
