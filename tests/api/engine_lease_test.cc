// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Leases over the engine socket: foreign, forged, released and expired ids, limits, and clients that
// outlive their lease. What is counted as held must be what is held.
#include <gtest/gtest.h>

#include "testing/engine_rig.h"
#include "testing/raw_client.h"

namespace terrace::testing {
namespace {

constexpr uint64_t kBlock = 64 << 10;
constexpr int64_t kSecond = 1'000'000'000;

// A client with n blocks stored.
struct Stored {
  std::unique_ptr<RawClient> client;
  OpenSpace space;
  std::vector<kv::BlockKey> keys;
};

Stored Store(EngineRig* rig, size_t n, uint64_t first_key = 1, uint64_t block_bytes = kBlock,
             const std::string& tenant = "default") {
  Stored s{rig->Client(tenant), {}, KeysOf(first_key, n)};
  const auto space = s.client->Open(block_bytes);
  EXPECT_TRUE(space.ok()) << space.status();
  s.space = *space;
  EXPECT_TRUE(s.client->GetStaging(std::max<uint64_t>(block_bytes, 4096)).ok());
  for (const kv::BlockKey& key : s.keys) {
    EXPECT_EQ(*s.client->Put(s.space, key, PayloadOf(key, 0, block_bytes)), Reason::kNone);
  }
  return s;
}

TEST(EngineLeaseTest, ForeignForgedAndReleasedIdsAreNotFound) {
  EngineRig rig;
  Stored s = Store(&rig, 4);
  const auto mine = s.client->Lookup(s.space, s.keys);
  ASSERT_TRUE(mine.ok()) << mine.status();
  ASSERT_NE(mine->done.lease_id, 0u);
  const uint64_t pinned = rig.stack()->Stats().tiers[0].pinned_bytes;
  EXPECT_EQ(pinned, 4 * kBlock);

  // Another client of the same tenant, and one of another.
  for (const char* tenant : {"default", "other"}) {
    auto thief = rig.Client(tenant);
    EXPECT_EQ(thief->Release(mine->done.lease_id).code(), absl::StatusCode::kNotFound);
    const auto space = thief->Open(kBlock);
    EXPECT_EQ(thief->Lookup(*space, s.keys, 0, mine->done.lease_id).status().code(), absl::StatusCode::kNotFound);
  }
  // 100,000 forgeries: near the real id, small numbers, random. None may end or extend the lease.
  constexpr uint64_t kBatch = 100;
  for (uint64_t first = 0; first < 100'000; first += kBatch) {
    for (uint64_t i = first; i < first + kBatch; ++i) {
      uint64_t forged = i < 1000    ? mine->done.lease_id + i + 1
                        : i < 2000  ? mine->done.lease_id - (i - 999)
                        : i < 2064  ? mine->done.lease_id ^ (uint64_t{1} << (i - 2000))
                        : i < 10000 ? i
                                    : Mix(i);
      if (forged == mine->done.lease_id) ++forged;
      const wire::Release release{forged};
      ASSERT_TRUE(s.client->SendBytes(
          RawClient::Encode(wire::Type::kRelease, static_cast<uint32_t>(i), BytesOf(release))));
    }
    for (uint64_t i = 0; i < kBatch; ++i) {
      const auto answer = s.client->Receive();
      ASSERT_TRUE(answer.has_value());
      ASSERT_EQ(answer->header.status, static_cast<uint16_t>(absl::StatusCode::kNotFound)) << first + i;
    }
  }
  EXPECT_EQ(rig.stack()->Stats().leases, 1u);
  EXPECT_EQ(rig.stack()->Stats().tiers[0].pinned_bytes, pinned);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(s.client->Read(s.space, s.keys[i], mine->refs[i], nullptr), Verdict::kGood);
  }
  EXPECT_TRUE(s.client->Release(mine->done.lease_id).ok());
  EXPECT_EQ(s.client->Release(mine->done.lease_id).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(s.client->Lookup(s.space, s.keys, 0, mine->done.lease_id).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(rig.stack()->Stats().leases, 0u);
  EXPECT_EQ(rig.stack()->Stats().tiers[0].pinned_bytes, 0u);
}

TEST(EngineLeaseTest, ReservedIdsAreNoLeases) {
  EngineRig rig;
  Stored s = Store(&rig, 1);
  EXPECT_EQ(s.client->Release(0).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(s.client->Release(~uint64_t{0}).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(s.client->Lookup(s.space, s.keys, 0, ~uint64_t{0}).status().code(), absl::StatusCode::kInvalidArgument);
  // Asking without a lease gives no place to read from.
  const auto asked = s.client->Lookup(s.space, s.keys, wire::kLookupNoLease, 12345);
  ASSERT_TRUE(asked.ok()) << asked.status();
  EXPECT_EQ(asked->done.lease_id, 0u);
  EXPECT_EQ(asked->done.n_here, 1u);
  EXPECT_EQ(asked->refs[0].generation, 0u);
  EXPECT_EQ(rig.stack()->Stats().leases, 0u);
}

TEST(EngineLeaseTest, LeaseEndsWithItsAge) {
  ManualClock clock;
  EngineRig rig([](api::Config* config) { config->stack.lease_max_age_ns = 10 * kSecond; }, &clock);
  Stored s = Store(&rig, 2);
  const auto first = s.client->Lookup(s.space, s.keys);
  const auto second = s.client->Lookup(s.space, {s.keys.data(), 1});
  clock.Advance(9 * kSecond);
  rig.stack()->Step();
  ASSERT_EQ(rig.stack()->Stats().leases, 2u);
  // Adding to a lease renews it.
  ASSERT_TRUE(s.client->Lookup(s.space, s.keys, 0, second->done.lease_id).ok());
  clock.Advance(2 * kSecond);
  rig.stack()->Step();
  EXPECT_EQ(rig.stack()->Stats().leases, 1u);
  EXPECT_EQ(s.client->Release(first->done.lease_id).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(s.client->Lookup(s.space, s.keys, 0, first->done.lease_id).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(rig.Metric("terrace_leases_expired_total"), 1);
  EXPECT_TRUE(s.client->Release(second->done.lease_id).ok());
  EXPECT_EQ(rig.stack()->Stats().tiers[0].pinned_bytes, 0u);
}

// A client that slept past its lease, while others filled the cache: every one of its refs is stale or
// still the right block. Never other bytes.
TEST(EngineLeaseTest, SleeperSeesStaleNeverOtherBytes) {
  ManualClock clock;
  EngineRig rig(
      [](api::Config* config) {
        config->stack.lease_max_age_ns = 10 * kSecond;
        config->stack.budget_bytes = 96 << 20;
      },
      &clock);
  constexpr size_t kBlocks = 256;  // 16 MiB of some 46
  Stored sleeper = Store(&rig, kBlocks);
  const auto leased = sleeper.client->Lookup(sleeper.space, sleeper.keys);
  ASSERT_EQ(leased->done.n_here, kBlocks);
  // It has mapped everything and has read once before it falls asleep.
  for (size_t i = 0; i < kBlocks; ++i) {
    ASSERT_EQ(sleeper.client->Read(sleeper.space, sleeper.keys[i], leased->refs[i], nullptr), Verdict::kGood);
  }
  // While it holds the lease, nothing of it may go, however much others store.
  Store(&rig, 1500, 10'000);
  for (size_t i = 0; i < kBlocks; ++i) {
    ASSERT_EQ(sleeper.client->Read(sleeper.space, sleeper.keys[i], leased->refs[i], nullptr), Verdict::kGood);
  }
  clock.Advance(11 * kSecond);
  rig.stack()->Step();
  ASSERT_EQ(rig.stack()->Stats().leases, 0u);
  Store(&rig, 1500, 20'000);
  size_t stale = 0;
  for (size_t i = 0; i < kBlocks; ++i) {
    std::vector<std::byte> bytes;
    const Verdict verdict = sleeper.client->Read(sleeper.space, sleeper.keys[i], leased->refs[i], &bytes);
    EXPECT_TRUE(verdict == Verdict::kGood || verdict == Verdict::kStale) << static_cast<int>(verdict);
    if (verdict == Verdict::kGood) {
      EXPECT_EQ(bytes, PayloadOf(sleeper.keys[i], 0, kBlock));
    }
    stale += verdict == Verdict::kStale;
  }
  EXPECT_EQ(stale, kBlocks) << "all of it was the coldest: its frames must have been used again";
  EXPECT_EQ(sleeper.client->Release(leased->done.lease_id).code(), absl::StatusCode::kNotFound);
}

TEST(EngineLeaseTest, LeasesOfOneClientAreLimited) {
  EngineRig rig([](api::Config* config) { config->stack.max_leases_per_session = 10; });
  Stored s = Store(&rig, 1);
  std::vector<uint64_t> ids;
  for (int i = 0; i < 10; ++i) ids.push_back(s.client->Lookup(s.space, s.keys)->done.lease_id);
  EXPECT_EQ(s.client->Lookup(s.space, s.keys).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(s.client->Lookup(s.space, s.keys, 0, ids[0]).ok());
  EXPECT_TRUE(s.client->Release(ids[1]).ok());
  EXPECT_TRUE(s.client->Lookup(s.space, s.keys).ok());
  s.client.reset();
  EXPECT_EQ(rig.WhatIsLeft(), "");
}

// One client asks for the same block again and again under one lease: neither the daemon's memory nor
// the block's pin count may grow without an end.
TEST(EngineLeaseTest, PinsOfOneLeaseAreLimited) {
  EngineRig rig;
  Stored s = Store(&rig, 1, 1, 4096);
  const std::vector<kv::BlockKey> same(wire::kMaxKeysPerMessage, s.keys[0]);
  uint64_t lease_id = 0;
  bool refused = false;
  uint64_t pins = 0;
  for (int i = 0; i < 1000 && !refused; ++i) {  // 4 M pins
    const auto found = s.client->Lookup(s.space, same, 0, lease_id);
    ASSERT_TRUE(found.ok() || absl::IsResourceExhausted(found.status())) << found.status();
    refused = !found.ok() || found->done.n_here < same.size();
    if (found.ok()) {
      lease_id = found->done.lease_id;
      pins += found->done.n_here;
      if (refused) EXPECT_EQ(found->refs.back().reason, static_cast<uint32_t>(Reason::kLeaseLimit));
    }
  }
  EXPECT_TRUE(refused) << pins << " pins are held by one client";
  EXPECT_TRUE(s.client->Release(lease_id).ok());
  EXPECT_EQ(rig.WhatIsLeft(0).find("lease"), std::string::npos);
  EXPECT_EQ(s.client->Lookup(s.space, s.keys)->done.n_here, 1u) << "what was released is free again";
}

TEST(EngineLeaseTest, TooMuchUnderLeaseIsRefusedWithItsReason) {
  EngineRig rig([](api::Config* config) {
    config->stack.budget_bytes = 96 << 20;
    config->stack.max_leased_ratio = 0.25;
  });
  constexpr size_t kBlocks = 400;
  Stored s = Store(&rig, kBlocks);
  const auto found = s.client->Lookup(s.space, s.keys);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_GT(found->done.n_prefix, 0u);
  EXPECT_LT(found->done.n_prefix, kBlocks);
  EXPECT_EQ(found->refs.back().reason, static_cast<uint32_t>(Reason::kLeaseLimit));
  const auto stats = rig.stack()->Stats();
  EXPECT_LE(static_cast<double>(stats.tiers[0].pinned_bytes),
            0.25 * static_cast<double>(stats.tiers[0].capacity_bytes) + kBlock);
  // Others can still store: what is not leased makes room.
  Store(&rig, 1000, 50'000);
  for (size_t i = 0; i < found->done.n_prefix; ++i) {
    EXPECT_EQ(s.client->Read(s.space, s.keys[i], found->refs[i], nullptr), Verdict::kGood);
  }
}

TEST(EngineLeaseTest, ConnectionEndFreesEverything) {
  EngineRig rig;
  for (int round = 0; round < 50; ++round) {
    Stored s = Store(&rig, 3, static_cast<uint64_t>(round) * 10 + 1);
    for (int i = 0; i < 5; ++i) ASSERT_TRUE(s.client->Lookup(s.space, s.keys).ok());
    // Stores whose answers nobody waits for.
    for (uint64_t i = 0; i < 20; ++i) {
      const kv::BlockKey key = KeyOf(100'000 + static_cast<uint64_t>(round) * 100 + i);
      const auto payload = PayloadOf(key, 0, kBlock);
      ASSERT_TRUE(s.client->SendBytes(
          RawClient::Encode(wire::Type::kPut, s.client->next_id(),
                            RawClient::PutBody(s.space, key, 0, RawClient::Checksums(s.space, key, payload)))));
    }
    s.client.reset();
    ASSERT_EQ(rig.WhatIsLeft(), "") << "round " << round;
  }
  EXPECT_EQ(rig.Metric("terrace_leases_reclaimed_total"), 250);
}

}  // namespace
}  // namespace terrace::testing
