// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What leaves the tier when it is full, in which order, and what stays: the catalogue, its links and its
// policy under a real TierStack.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "kvstore/frame_pool.h"
#include "testing/test_stack.h"

namespace terrace::tiering {
namespace {

using testing::KeyOf;
using testing::KeysOf;
using testing::Random;
using testing::SmallStackOptions;
using testing::TestStack;

class EvictionTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kBlock = 1 << 20;

  // Stat, unlike a lookup, does not count as a use.
  bool Here(uint64_t number) { return stack_->Stat(space_, KeyOf(number)).has_value(); }
  Reason Why(uint64_t number) { return TestStack::Ask(session_.get(), space_, KeyOf(number)); }
  Reason Store(uint64_t number, std::optional<uint64_t> parent = std::nullopt) {
    std::optional<kv::BlockKey> parent_key;
    if (parent.has_value()) parent_key = KeyOf(*parent);
    return TestStack::Store(session_.get(), space_, KeyOf(number), parent_key);
  }
  uint64_t Lease(uint64_t number) {
    const auto key = KeyOf(number);
    return session_->Lookup(space_.id, {&key, 1}, LookupMode::kPrefix, Session::kNewLease)->lease_id;
  }
  // Stores single blocks until one is evicted; returns how many fitted.
  uint64_t FillWithSingles(uint64_t first) {
    const double before = stack_.Metric("terrace_evictions_total");
    uint64_t n = 0;
    while (stack_.Metric("terrace_evictions_total") == before) {
      EXPECT_EQ(Store(first + n++), Reason::kNone);
    }
    return n - 1;
  }

  TestStack stack_{SmallStackOptions(32 << 20)};
  std::unique_ptr<Session> session_ = stack_->OpenSession(0);
  const kv::KeySpace& space_ = TestStack::Open(session_.get(), kBlock);
};

TEST_F(EvictionTest, TheLeastRecentlyUsedGoesWithAReason) {
  const uint64_t n = FillWithSingles(0);
  EXPECT_GE(n, 30u);
  EXPECT_EQ(Why(0), Reason::kEvicted);
  EXPECT_TRUE(Here(1));
  EXPECT_TRUE(stack_.Serves(session_.get(), space_, KeyOf(2)));
  EXPECT_EQ(Store(1000), Reason::kNone);
  EXPECT_EQ(Store(1001), Reason::kNone);
  EXPECT_TRUE(Here(2)) << "used a moment ago";
  EXPECT_EQ(Why(3), Reason::kEvicted);
  EXPECT_EQ(stack_.Metric("terrace_evicted_bytes_total"),
            stack_.Metric("terrace_evictions_total") * static_cast<double>(kBlock));
}

TEST_F(EvictionTest, WhatWasUsedBeforeAStoreIsNotTakenForUsedAfterIt) {
  for (uint64_t i = 0; i < 20; ++i) ASSERT_EQ(Store(i), Reason::kNone);
  for (uint64_t i = 0; i < 20; ++i) ASSERT_EQ(Why(i), Reason::kNone);
  const uint64_t n = FillWithSingles(1000);
  ASSERT_GE(n, 5u);
  EXPECT_TRUE(Here(1000)) << "stored after all the uses";
  EXPECT_FALSE(Here(0));
}

TEST_F(EvictionTest, AChainGoesTailFirstAParentNeverBeforeItsChild) {
  TestStack::StoreChain(session_.get(), space_, 0, 20);
  uint64_t next = 1000;
  uint64_t left = 20;
  while (left > 0) {
    ASSERT_EQ(Store(next++), Reason::kNone);
    ASSERT_LT(next, 1100u);
    while (left > 0 && !Here(left - 1)) --left;
    for (uint64_t i = 0; i < left; ++i) ASSERT_TRUE(Here(i)) << "block " << i << " went before block " << left - 1;
  }
}

TEST_F(EvictionTest, AChainStoredInPiecesGoesTailFirst) {
  TestStack::StoreChain(session_.get(), space_, 0, 8);
  TestStack::StoreChain(session_.get(), space_, 100, 8);
  TestStack::StoreChain(session_.get(), space_, 8, 8, KeyOf(7));
  TestStack::StoreChain(session_.get(), space_, 108, 4, KeyOf(107));
  for (uint64_t next = 1000; next < 1040; ++next) {
    ASSERT_EQ(Store(next), Reason::kNone);
    for (uint64_t i = 1; i < 16; ++i) ASSERT_TRUE(Here(i - 1) || !Here(i)) << i;
    for (uint64_t i = 101; i < 112; ++i) ASSERT_TRUE(Here(i - 1) || !Here(i)) << i;
  }
}

TEST_F(EvictionTest, ASharedPrefixOutlivesItsForks) {
  TestStack::StoreChain(session_.get(), space_, 0, 5);
  for (uint64_t fork = 0; fork < 4; ++fork) TestStack::StoreChain(session_.get(), space_, 100 + fork * 10, 6, KeyOf(4));
  uint64_t forks_left = 24;
  for (uint64_t next = 1000; forks_left > 0 && next < 1100; ++next) {
    ASSERT_EQ(Store(next), Reason::kNone);
    forks_left = 0;
    for (uint64_t fork = 0; fork < 4; ++fork) {
      for (uint64_t i = 0; i < 6; ++i) forks_left += Here(100 + fork * 10 + i);
    }
    for (uint64_t i = 0; i < 5; ++i) {
      if (forks_left > 0) ASSERT_TRUE(Here(i)) << "the prefix went before its forks";
    }
  }
  EXPECT_EQ(forks_left, 0u);
}

TEST_F(EvictionTest, LeasedBlocksAndTheirParentsStay) {
  TestStack::StoreChain(session_.get(), space_, 0, 5);
  const uint64_t lease = Lease(4);
  for (uint64_t next = 1000; next < 1060; ++next) ASSERT_EQ(Store(next), Reason::kNone);
  for (uint64_t i = 0; i < 5; ++i) EXPECT_TRUE(Here(i)) << i;
  EXPECT_TRUE(session_->Release(lease).ok());
  for (uint64_t next = 2000; next < 2060; ++next) ASSERT_EQ(Store(next), Reason::kNone);
  for (uint64_t i = 0; i < 5; ++i) EXPECT_FALSE(Here(i)) << i;
}

TEST_F(EvictionTest, AllUnderLeaseIsARefusalNotGrowth) {
  auto options = SmallStackOptions(32 << 20);
  options.max_leased_ratio = 1;
  TestStack stack(options);
  auto session = stack->OpenSession(0);
  const auto& space = TestStack::Open(session.get(), kBlock);
  std::vector<uint64_t> leases;
  Reason last = Reason::kNone;
  for (uint64_t i = 0; i < 100; ++i) {
    last = TestStack::Store(session.get(), space, KeyOf(i));
    if (last != Reason::kNone) break;
    const auto key = KeyOf(i);
    leases.push_back(session->Lookup(space.id, {&key, 1}, LookupMode::kPrefix, 0)->lease_id);
  }
  EXPECT_EQ(last, Reason::kBudget);
  const TierStackStats stats = stack->Stats();
  EXPECT_LE(stats.budget_used_bytes, stats.budget_bytes);
  EXPECT_EQ(stats.tiers[0].blocks, leases.size());
  EXPECT_EQ(stack.Metric("terrace_evictions_total"), 0);
  EXPECT_TRUE(session->Release(leases[3]).ok());
  EXPECT_EQ(TestStack::Store(session.get(), space, KeyOf(1000)), Reason::kNone);
  EXPECT_EQ(TestStack::Ask(session.get(), space, KeyOf(3)), Reason::kEvicted) << "the only one that may go";
}

TEST_F(EvictionTest, AFlushedParentWithChildrenIsForgottenWithTheLastOfThem) {
  // A parent can go before its children only by being dropped: here by a flush, child after child.
  for (int round = 0; round < 10; ++round) {
    TestStack::StoreChain(session_.get(), space_, 0, 20);
    ASSERT_EQ(stack_->Flush(&space_), 20u);
    ASSERT_EQ(stack_->Stats().tiers[0].used_bytes, 0u);
  }
  // Entries of the index that are never freed would fill it: see CorruptParentsDoNotLeak in bit_flip_test.
  TestStack::StoreChain(session_.get(), space_, 0, 20);
  EXPECT_TRUE(stack_.Serves(session_.get(), space_, KeyOf(19)));
}

TEST_F(EvictionTest, ABlockThatIsItsOwnParentOrHasAnUnknownOne) {
  EXPECT_EQ(Store(1, 1), Reason::kNone);
  EXPECT_EQ(Store(2, 99), Reason::kNone);
  for (uint64_t next = 1000; next < 1060; ++next) ASSERT_EQ(Store(next, next), Reason::kNone);
  EXPECT_FALSE(Here(1));
  EXPECT_FALSE(Here(2));
}

// What no longer fits is refused: evicting a parent for its child would leave a tail that no prefix reaches.
TEST_F(EvictionTest, AChainLongerThanTheCacheKeepsItsPrefix) {
  ASSERT_EQ(Store(0), Reason::kNone);
  uint64_t n = 1;
  Reason reason = Reason::kNone;
  while (n < 5000 && (reason = Store(n, n - 1)) == Reason::kNone) ++n;
  EXPECT_EQ(reason, Reason::kBudget);
  EXPECT_EQ(Store(n + 1, n), Reason::kBudget) << "its parent is not here";
  for (uint64_t i = 0; i < n; ++i) ASSERT_TRUE(Here(i)) << "block " << i << " of " << n;
  // Another chain is as good as this one: its tail makes room.
  EXPECT_EQ(Store(10'000), Reason::kNone);
  EXPECT_FALSE(Here(n - 1));
  EXPECT_TRUE(Here(n - 2));
}

TEST_F(EvictionTest, LookupsOfPartOfAChainKeepTheOrder) {
  TestStack::StoreChain(session_.get(), space_, 0, 20);
  Random random(5);
  for (int step = 0; step < 200; ++step) {
    const uint64_t first = random.Below(20), n = 1 + random.Below(20 - first);
    auto keys = KeysOf(first, n);
    if (random.OneIn(3)) std::reverse(keys.begin(), keys.end());
    const auto answer = session_->Lookup(space_.id, keys, LookupMode::kAll, Session::kNewLease);
    if (answer->lease_id != 0) EXPECT_TRUE(session_->Release(answer->lease_id).ok());
    ASSERT_EQ(Store(1000 + step), Reason::kNone);
    for (uint64_t i = 1; i < 20; ++i) ASSERT_TRUE(Here(i - 1) || !Here(i)) << "block " << i - 1 << " went first";
  }
}

TEST_F(EvictionTest, ABlockThatCanNeverFitEvictsNothing) {
  FillWithSingles(0);
  const double before = stack_.Metric("terrace_evictions_total");
  const auto& giant = TestStack::Open(session_.get(), 1 << 30);
  PutRequest request;
  request.key_space = &giant;
  request.key = KeyOf(1);
  const std::byte* nothing = nullptr;
  request.source = {nothing, giant.identity.block_bytes};  // never read: there is no room
  request.checksums.resize(ChecksumCount(giant.identity.block_bytes));
  EXPECT_EQ(TestStack::Put(session_.get(), std::move(request)), Reason::kBudget);
  EXPECT_EQ(stack_.Metric("terrace_evictions_total"), before);
}

TEST_F(EvictionTest, SizesShareOneBudgetInTurns) {
  constexpr uint64_t kSizes[] = {4096, 2 << 20, 65536, 300'000, 8 << 20, 4096};
  uint64_t first = 0;
  for (const uint64_t bytes : kSizes) {
    SCOPED_TRACE(bytes);
    first += 1'000'000;
    const auto& space = TestStack::Open(session_.get(), bytes);
    const uint64_t n = std::max<uint64_t>((50 << 20) / bytes, 4);
    uint64_t stored = 0;
    for (uint64_t i = 0; i < n; ++i) {
      stored += TestStack::Store(session_.get(), space, KeyOf(first + i)) == Reason::kNone;
      const TierStackStats stats = stack_->Stats();
      ASSERT_LE(stats.budget_used_bytes, stats.budget_bytes);
    }
    // A large block may take several tries where it displaces thousands of small ones.
    EXPECT_GE(stored + 2, n);
    uint64_t resident = 0;
    for (uint64_t i = 0; i < n; ++i) resident += stack_->Stat(space, KeyOf(first + i)).has_value();
    EXPECT_GE(resident * kv::ShapeFor(bytes).stride, 24u << 20) << "most of the budget is this size's now";
    EXPECT_TRUE(stack_.Serves(session_.get(), space, KeyOf(first + n - 1)));
  }
}

// Small blocks are scattered over all slabs when a large one comes: they are moved, not thrown out.
TEST_F(EvictionTest, RoomForALargeBlockIsMadeByMovingSmallOnes) {
  const auto& small = TestStack::Open(session_.get(), 65536);
  const auto& large = TestStack::Open(session_.get(), 4 << 20);
  std::vector<uint64_t> numbers;
  const double before = stack_.Metric("terrace_evictions_total");
  for (uint64_t i = 0; stack_.Metric("terrace_evictions_total") == before; ++i) {
    ASSERT_EQ(TestStack::Store(session_.get(), small, KeyOf(i)), Reason::kNone);
    numbers.push_back(i);
  }
  // Every second one was used lately, so that what is evicted lies scattered.
  for (uint64_t i = 1; i < numbers.size(); i += 2) EXPECT_TRUE(stack_.Serves(session_.get(), small, KeyOf(i)));
  ASSERT_EQ(TestStack::Store(session_.get(), large, KeyOf(1)), Reason::kNone);
  EXPECT_TRUE(stack_.Serves(session_.get(), large, KeyOf(1)));
  EXPECT_GT(stack_.Metric("terrace_compaction_bytes_total"), 0);
  uint64_t lost = 0;
  for (uint64_t i = 1; i < numbers.size(); i += 2) lost += !stack_.Serves(session_.get(), small, KeyOf(i));
  EXPECT_EQ(lost, 0u) << "blocks in use were thrown out although others could go";
  EXPECT_EQ(stack_->Verify().corrupt, 0u);
}

TEST_F(EvictionTest, SegmentsMoveBetweenTenants) {
  auto options = SmallStackOptions(48 << 20);
  options.tenants = {{"a"}, {"b"}};
  TestStack stack(options);
  std::vector<std::pair<kv::TenantId, uint32_t>> gone;
  stack->SetSegmentGoneCallback([&](kv::TenantId tenant, uint32_t id) {
    gone.emplace_back(tenant, id);
    // Called under no lock of the stack: it may be asked anything.
    EXPECT_FALSE(stack->FindSegment(tenant, id).ok());
    stack->Stats();
    stack->List(nullptr, 1);
    stack->Step();
  });
  auto a = stack->OpenSession(0), b = stack->OpenSession(1);
  const auto& of_a = TestStack::Open(a.get(), 65536);
  const auto& of_b = TestStack::Open(b.get(), 65536);
  for (uint64_t i = 0; i < 800; ++i) ASSERT_EQ(TestStack::Store(a.get(), of_a, KeyOf(i)), Reason::kNone);
  for (uint64_t i = 0; i < 800; ++i) ASSERT_EQ(TestStack::Store(b.get(), of_b, KeyOf(i)), Reason::kNone);
  EXPECT_TRUE(stack.Serves(b.get(), of_b, KeyOf(799)));
  uint64_t resident_b = 0;
  for (uint64_t i = 0; i < 800; ++i) resident_b += TestStack::Ask(b.get(), of_b, KeyOf(i)) == Reason::kNone;
  EXPECT_GE(resident_b, 400u);
  EXPECT_FALSE(gone.empty());
  for (const auto& [tenant, id] : gone) EXPECT_EQ(tenant, 0);
  for (uint64_t i = 0; i < 800; ++i) ASSERT_EQ(TestStack::Store(a.get(), of_a, KeyOf(5000 + i)), Reason::kNone);
  EXPECT_TRUE(stack.Serves(a.get(), of_a, KeyOf(5799)));
  EXPECT_EQ(gone.back().first, 1);
  stack->SetSegmentGoneCallback(nullptr);
}

}  // namespace
}  // namespace terrace::tiering
