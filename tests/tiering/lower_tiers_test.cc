// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Host memory and a disk together: what leaves, what comes back, who waits for it, and what it costs. On a
// disk in memory and in virtual time; nothing runs but what the test steps.
#include <gtest/gtest.h>

#include <map>

#include "testing/fault_device.h"
#include "testing/memory_device.h"
#include "testing/test_stack.h"

namespace terrace::tiering {
namespace {

using testing::FaultKind;
using testing::IsPayloadOf;
using testing::KeyOf;
using testing::KeysOf;
using testing::SmallStackOptions;
using testing::TestStack;

constexpr uint64_t kBlockBytes = 256 << 10;

class LowerTiersTest : public ::testing::Test {
 protected:
  explicit LowerTiersTest(double kv_floor = 0.5) {
    auto options = SmallStackOptions(48 << 20);
    options.nvme.devices = {{.path = "/disk", .bytes = 256 << 20}};
    options.nvme.io_memory_bytes = 8 << 20;
    options.nvme.read_deadline_ns = 50'000'000;
    options.budget_bytes += (8 << 20) + (4 << 20);
    options.admission_policy = "all";
    options.eviction_policy = "lru";
    options.threads = false;
    options.class_floor[0] = kv_floor;
    options.device_factory = testing::FaultyFactory(disks_.Factory(), faults_, &clock_);
    auto made = TierStack::Create(options, &clock_, &metrics_);
    TERRACE_CHECK(made.ok());
    stack_ = *std::move(made);
    session_ = stack_->OpenSession(0);
    space_ = &TestStack::Open(session_.get(), kBlockBytes);
    Step(50);
  }
  ~LowerTiersTest() override {
    const TierStackStats stats = stack_->Stats();
    EXPECT_EQ(stats.tiers[0].pinned_bytes, 0u) << "something is still held";
  }

  void Step(int times) {
    for (int i = 0; i < times; ++i) {
      stack_->Step();
      clock_.AdvanceNs(1'000'000);
    }
  }
  Reason Store(uint64_t number, std::optional<uint64_t> parent, const kv::KeySpace& space) {
    std::optional<kv::BlockKey> parent_key;
    if (parent.has_value()) parent_key = KeyOf(*parent);
    const Reason reason = TestStack::Store(session_.get(), space, KeyOf(number), parent_key);
    Step(1);
    return reason;
  }
  // Chains of ten blocks each; all stores must succeed.
  void StoreChains(uint64_t first, uint64_t n) {
    for (uint64_t i = first; i < first + n; ++i) {
      ASSERT_EQ(Store(i, i % 10 == 0 ? std::nullopt : std::optional(i - 1), *space_), Reason::kNone) << i;
    }
    Step(100);
  }
  LookupAnswer Lookup(Session* session, uint64_t first, size_t n, LookupOptions options = {.may_wait = true}) {
    const auto keys = KeysOf(first, n);
    auto answer = session->Lookup(space_->id, keys, options);
    EXPECT_TRUE(answer.ok()) << answer.status();
    return *std::move(answer);
  }
  // Waits (virtually) for the first of the keys; the places of those that are settled.
  std::vector<BlockPlace> Locate(uint64_t first, size_t n, int64_t timeout_ns = 1'000'000'000) {
    const auto keys = KeysOf(first, n);
    std::optional<std::vector<BlockPlace>> places;
    EXPECT_TRUE(session_->Locate(space_->id, keys, timeout_ns, [&](std::vector<BlockPlace> p) {
                          EXPECT_FALSE(places.has_value()) << "answered twice";
                          places = std::move(p);
                        }).ok());
    for (int i = 0; i < 5000 && !places.has_value(); ++i) Step(1);
    EXPECT_TRUE(places.has_value()) << "never answered";
    return places.value_or(std::vector<BlockPlace>());
  }
  bool Reads(uint64_t number, const BlockPlace& place) {
    std::vector<std::byte> out(kBlockBytes);
    return stack_->ReadLeased(*space_, KeyOf(number), place, out).ok() && IsPayloadOf(KeyOf(number), out);
  }
  bool IsInHost(uint64_t number) {
    const auto info = stack_->Stat(*space_, KeyOf(number));
    return info.has_value() && info->tier == "host";
  }
  bool IsOnDiskOnly(uint64_t number) {
    const auto info = stack_->Stat(*space_, KeyOf(number));
    return info.has_value() && info->tier == "nvme";
  }
  // First block of a chain of which nothing is in host memory.
  uint64_t ChainOnDisk(uint64_t n_blocks) {
    for (uint64_t first = 0; first < n_blocks; first += 10) {
      bool all = true;
      for (uint64_t i = first; i < first + 10; ++i) all &= IsOnDiskOnly(i);
      if (all) return first;
    }
    ADD_FAILURE() << "no chain lies on disk alone";
    return 0;
  }

  testing::FakeClock clock_;
  testing::MemoryDisks disks_{&clock_};
  std::shared_ptr<testing::FaultScript> faults_ = std::make_shared<testing::FaultScript>(1);
  MetricRegistry metrics_;
  std::unique_ptr<TierStack> stack_;
  std::unique_ptr<Session> session_;
  const kv::KeySpace* space_ = nullptr;
};

TEST_F(LowerTiersTest, WhatHostMemoryCannotHoldLeavesForTheDiskAndNothingIsLost) {
  StoreChains(0, 400);  // 100 MiB into 48
  uint64_t in_host = 0, on_disk = 0;
  for (uint64_t i = 0; i < 400; ++i) {
    in_host += IsInHost(i);
    on_disk += IsOnDiskOnly(i);
  }
  EXPECT_EQ(in_host + on_disk, 400u);
  EXPECT_GT(in_host, 150u);
  EXPECT_GT(on_disk, 150u);
}

TEST_F(LowerTiersTest, SomeHostMemoryIsKeptFreeAheadOfNeed) {
  StoreChains(0, 400);
  const TierUsage host = stack_->Stats().tiers[0];
  EXPECT_LT(host.used_bytes, host.capacity_bytes * 98 / 100);
}

TEST_F(LowerTiersTest, AChainOnDiskComesBackInOrderAndWhole) {
  StoreChains(0, 400);
  const uint64_t first = ChainOnDisk(400);
  const LookupAnswer answer = Lookup(session_.get(), first, 10);
  EXPECT_EQ(answer.n_prefix, 10u);
  EXPECT_EQ(answer.n_here, 10u);
  EXPECT_EQ(answer.n_pending, 10u);
  for (const BlockPlace& place : answer.places) EXPECT_EQ(place.reason, Reason::kPending);
  size_t have = 0;
  while (have < 10) {
    const auto places = Locate(first + have, 10 - have);
    ASSERT_FALSE(places.empty());
    for (size_t i = 0; i < places.size(); ++i) {
      ASSERT_EQ(places[i].reason, Reason::kNone) << ReasonName(places[i].reason);
      EXPECT_TRUE(Reads(first + have + i, places[i]));
    }
    have += places.size();
  }
  // Under lease: more stores do not take them away.
  StoreChains(1000, 100);
  for (uint64_t i = first; i < first + 10; ++i) EXPECT_TRUE(IsInHost(i));
  EXPECT_TRUE(session_->Release(answer.lease_id).ok());
}

TEST_F(LowerTiersTest, AHitInHostMemoryThenOnDiskIsOnePrefix) {
  StoreChains(0, 400);
  const uint64_t first = ChainOnDisk(400);
  const LookupAnswer head = Lookup(session_.get(), first, 4);
  ASSERT_EQ(head.n_pending, 4u);
  Step(50);
  const LookupAnswer all = Lookup(session_.get(), first, 10);
  EXPECT_EQ(all.n_prefix, 10u);
  EXPECT_EQ(all.n_pending, 6u);
  for (size_t i = 0; i < 4; ++i) EXPECT_TRUE(Reads(first + i, all.places[i]));
  Step(50);
  EXPECT_TRUE(session_->Release(head.lease_id).ok());
  EXPECT_TRUE(session_->Release(all.lease_id).ok());
}

TEST_F(LowerTiersTest, WhoDoesNotWaitGetsAMissAndStartsNothing) {
  StoreChains(0, 400);
  const uint64_t first = ChainOnDisk(400);
  const LookupAnswer answer = Lookup(session_.get(), first, 10, {});
  EXPECT_EQ(answer.n_here, 0u);
  EXPECT_EQ(answer.lease_id, 0u);
  EXPECT_EQ(answer.places[0].reason, Reason::kPending);
  Step(50);
  EXPECT_TRUE(IsOnDiskOnly(first));
}

TEST_F(LowerTiersTest, TwoAskersCauseOneRead) {
  StoreChains(0, 400);
  const uint64_t first = ChainOnDisk(400);
  auto other = stack_->OpenSession(0);
  const uint64_t before = stack_->Stats().nvme->devices[0].read_bytes;
  const LookupAnswer a = Lookup(session_.get(), first, 10), b = Lookup(other.get(), first, 10);
  EXPECT_EQ(a.n_pending, 10u);
  EXPECT_EQ(b.n_pending, 10u);
  Step(100);
  const uint64_t read = stack_->Stats().nvme->devices[0].read_bytes - before;
  EXPECT_GE(read, 10 * kBlockBytes);
  EXPECT_LT(read, 11 * kBlockBytes);
  // Each lease holds the blocks by itself.
  EXPECT_TRUE(session_->Release(a.lease_id).ok());
  StoreChains(1000, 200);
  for (uint64_t i = first; i < first + 10; ++i) EXPECT_TRUE(IsInHost(i));
}

TEST_F(LowerTiersTest, ALeaseGivenUpInTheMiddleHoldsNothing) {
  StoreChains(0, 400);
  const uint64_t first = ChainOnDisk(400);
  const LookupAnswer answer = Lookup(session_.get(), first, 10);
  EXPECT_TRUE(session_->Release(answer.lease_id).ok());
  Step(100);
  EXPECT_EQ(stack_->Stats().tiers[0].pinned_bytes, 0u);
}

TEST_F(LowerTiersTest, ADiskThatHangsIsAMissAtTheDeadlineAndHostHitsGoOn) {
  StoreChains(0, 400);
  const uint64_t first = ChainOnDisk(400);
  const int hang = faults_->Add({.kind = FaultKind::kHang, .op = IoOp::kRead});
  const LookupAnswer answer = Lookup(session_.get(), first, 10);
  ASSERT_EQ(answer.n_pending, 10u);
  // Time passes only as Locate steps; the deadline is 50 ms.
  const int64_t before_ns = clock_.NowNs();
  const auto places = Locate(first, 10, 10'000'000'000);
  EXPECT_LT(clock_.NowNs() - before_ns, 200'000'000);
  ASSERT_FALSE(places.empty());
  EXPECT_EQ(places[0].reason, Reason::kDeadline) << ReasonName(places[0].reason);
  EXPECT_GT(faults_->Fired(hang), 0u);
  // What is in host memory is served as ever, and stores go on.
  ASSERT_EQ(Store(5000, std::nullopt, *space_), Reason::kNone);
  EXPECT_EQ(Lookup(session_.get(), 5000, 1).n_prefix, 1u);
  EXPECT_TRUE(session_->Release(answer.lease_id).ok());
  session_ = nullptr;
  faults_->AllOff();
  faults_->ReleaseHung();
  Step(100);
}

TEST_F(LowerTiersTest, LocateGivesUpWhenItsTimeIsUp) {
  StoreChains(0, 400);
  const uint64_t first = ChainOnDisk(400);
  faults_->Add({.kind = FaultKind::kDelay, .op = IoOp::kRead, .delay_ns = 40'000'000});
  const LookupAnswer answer = Lookup(session_.get(), first, 10);
  ASSERT_EQ(answer.n_pending, 10u);
  const auto places = Locate(first, 10, 3'000'000);
  ASSERT_EQ(places.size(), 1u);
  EXPECT_EQ(places[0].reason, Reason::kPending);
  const auto later = Locate(first, 1);
  ASSERT_EQ(later.size(), 1u);
  EXPECT_TRUE(Reads(first, later[0]));
  Step(100);
  EXPECT_TRUE(session_->Release(answer.lease_id).ok());
}

TEST_F(LowerTiersTest, ABadBlockOnDiskIsAMissWithItsReason) {
  StoreChains(0, 400);
  const uint64_t first = ChainOnDisk(400);
  const int flip = faults_->Add({.kind = FaultKind::kFlipOnRead, .op = IoOp::kRead, .min_bytes = kBlockBytes});
  const LookupAnswer answer = Lookup(session_.get(), first, 10);
  ASSERT_EQ(answer.n_pending, 10u);
  size_t bad = 0;
  for (uint64_t i = first; i < first + 10; ++i) {
    const auto places = Locate(i, 1);
    ASSERT_EQ(places.size(), 1u);
    // A flip in the padding does no harm.
    if (places[0].reason == Reason::kNone) {
      EXPECT_TRUE(Reads(i, places[0]));
    } else {
      EXPECT_EQ(places[0].reason, Reason::kCorrupt) << ReasonName(places[0].reason);
      ++bad;
    }
  }
  EXPECT_GT(faults_->Fired(flip), 0u);
  EXPECT_GT(bad, 5u);
  EXPECT_TRUE(session_->Release(answer.lease_id).ok());
}

TEST_F(LowerTiersTest, WhatIsComputedFasterThanLoadedIsAMiss) {
  StoreChains(0, 400);
  // The rate is known after a first load.
  const uint64_t first = ChainOnDisk(400);
  const LookupAnswer loaded = Lookup(session_.get(), first, 10);
  Step(100);
  EXPECT_TRUE(session_->Release(loaded.lease_id).ok());
  const uint64_t second = ChainOnDisk(400);
  const LookupAnswer cheap =
      Lookup(session_.get(), second, 10, {.may_wait = true, .recompute_ns_per_token = 1});
  EXPECT_EQ(cheap.n_prefix, 0u);
  EXPECT_EQ(cheap.places[0].reason, Reason::kRecompute);
  const LookupAnswer dear =
      Lookup(session_.get(), second, 10, {.may_wait = true, .recompute_ns_per_token = 1'000'000});
  EXPECT_EQ(dear.n_prefix, 10u);
  Step(100);
  EXPECT_TRUE(session_->Release(dear.lease_id).ok());
}

TEST_F(LowerTiersTest, BlocksOnDiskBeyondTheLeaseLimitAreSaidToBeHere) {
  StoreChains(0, 400);
  const LookupAnswer answer =
      Lookup(session_.get(), 0, 400, {.mode = LookupMode::kAll, .may_wait = true});
  EXPECT_LT(answer.n_here, 400u);
  for (const BlockPlace& place : answer.places) {
    EXPECT_TRUE(place.reason == Reason::kNone || place.reason == Reason::kPending ||
                place.reason == Reason::kLeaseLimit || place.reason == Reason::kOverload)
        << ReasonName(place.reason);
  }
  Step(200);
  EXPECT_TRUE(session_->Release(answer.lease_id).ok());
}

TEST_F(LowerTiersTest, FlushTakesBothTiers) {
  StoreChains(0, 400);
  EXPECT_GE(stack_->Flush(space_), 400u);
  for (uint64_t i = 0; i < 400; ++i) EXPECT_FALSE(stack_->Stat(*space_, KeyOf(i)).has_value());
}

TEST_F(LowerTiersTest, ADiskOutOfServiceLeavesACacheInHostMemory) {
  StoreChains(0, 200);
  faults_->Add({.kind = FaultKind::kError, .error = EIO});
  for (uint64_t i = 1000; i < 1400; ++i) {
    ASSERT_EQ(Store(i, i % 10 == 0 ? std::nullopt : std::optional(i - 1), *space_), Reason::kNone) << i;
  }
  EXPECT_NE(stack_->Stats().nvme->state, TierState::kOnline);
  EXPECT_EQ(Lookup(session_.get(), 1390, 10).n_prefix, 10u);
  session_ = nullptr;
}

class ClassFloorTest : public LowerTiersTest {};

TEST_F(ClassFloorTest, AScanOfShardsLeavesKvItsFloor) {
  auto identity = TestStack::Identity(kBlockBytes, "shards");
  identity.block_class = static_cast<uint8_t>(BlockClass::kShard);
  const auto shards = session_->OpenKeySpace(identity);
  ASSERT_TRUE(shards.ok());
  StoreChains(0, 200);
  for (uint64_t i = 0; i < 1000; ++i) {
    ASSERT_EQ(Store(10'000 + i, std::nullopt, **shards), Reason::kNone);
    const TierStackStats stats = stack_->Stats();
    const uint64_t kv_had = 180 * kBlockBytes;
    ASSERT_GE(stats.classes[0].used_bytes, std::min(stats.classes[0].floor_bytes, kv_had)) << "after " << i;
  }
  const TierStackStats stats = stack_->Stats();
  EXPECT_GT(stats.classes[1].used_bytes, stats.classes[1].floor_bytes) << "the middle is lent";
}

TEST_F(LowerTiersTest, APinnedBlockOutlastsAFloodUntilItsTimeIsUp) {
  StoreChains(0, 10);
  RetentionHint hint;
  hint.pin_until_ns = clock_.NowNs() + 3'000'000'000;
  const auto keys = KeysOf(0, 10);
  EXPECT_EQ(*session_->Hint(space_->id, keys, hint), 10u);
  StoreChains(1000, 400);
  for (uint64_t i = 0; i < 10; ++i) EXPECT_TRUE(IsInHost(i)) << i;
  clock_.AdvanceNs(4'000'000'000);
  StoreChains(2000, 400);
  for (uint64_t i = 0; i < 10; ++i) EXPECT_FALSE(IsInHost(i)) << i;
}

TEST_F(LowerTiersTest, PinsEndAtTheTenantsShare) {
  RetentionHint hint;
  hint.pin_until_ns = clock_.NowNs() + 60'000'000'000;
  StoreChains(0, 100);  // 25 MiB; a tenth of 48 may be pinned
  const auto keys = KeysOf(0, 100);
  EXPECT_EQ(*session_->Hint(space_->id, keys, hint), 100u);
  StoreChains(1000, 400);
  uint64_t kept = 0;
  for (uint64_t i = 0; i < 100; ++i) kept += IsInHost(i);
  EXPECT_GE(kept, 15u);
  EXPECT_LE(kept, 25u);
}

}  // namespace
}  // namespace terrace::tiering
