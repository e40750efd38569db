// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The small values and tables of kvstore: BlockKey, MemoryBudget, LazyArray, Reason, Histogram.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <set>
#include <thread>

#include "kvstore/base/lazy_array.h"
#include "kvstore/base/memory_budget.h"
#include "kvstore/base/metrics.h"
#include "kvstore/base/reason.h"
#include "kvstore/block_key.h"
#include "testing/payload.h"

namespace terrace {
namespace {

TEST(BlockKeyTest, HexIsAllOfIt) {
  const kv::BlockKey key = testing::KeyOf(1);
  const std::string hex = key.ToHex();
  EXPECT_EQ(hex.size(), 64u);
  EXPECT_EQ(*kv::BlockKey::Parse(hex), key);
  EXPECT_EQ(key.ToShortHex(), hex.substr(0, 8));
  kv::BlockKey ordered;
  for (size_t i = 0; i < 32; ++i) ordered.bytes[i] = static_cast<uint8_t>(i);
  EXPECT_EQ(ordered.ToHex(), "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f");
  for (const std::string& bad : {std::string(), hex.substr(1), hex + "0", "g" + hex.substr(1),
                                 " " + hex.substr(1), std::string(64, '\0'), "0x" + hex.substr(2)}) {
    EXPECT_TRUE(absl::IsInvalidArgument(kv::BlockKey::Parse(bad).status())) << bad;
  }
}

TEST(MemoryBudgetTest, NeverExceedsItsLimit) {
  MemoryBudget budget(100);
  EXPECT_FALSE(budget.TryCharge(101));
  EXPECT_TRUE(budget.TryCharge(60));
  EXPECT_FALSE(budget.TryCharge(41));
  EXPECT_FALSE(budget.TryCharge(~0ull)) << "no overflow";
  EXPECT_TRUE(budget.TryCharge(40));
  EXPECT_TRUE(budget.TryCharge(0));
  EXPECT_EQ(budget.used(), 100u);
  budget.Release(100);
  EXPECT_DEATH(budget.Release(1), "check_failed");
}

TEST(MemoryBudgetTest, HoldsWithManyThreads) {
  MemoryBudget budget(1000);
  std::vector<std::thread> threads;
  std::atomic<bool> exceeded{false};
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      testing::Random random(t);
      for (int i = 0; i < 20000; ++i) {
        const uint64_t n = random.Below(400);
        if (!budget.TryCharge(n)) continue;
        if (budget.used() > budget.limit()) exceeded.store(true);
        budget.Release(n);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(exceeded.load());
  EXPECT_EQ(budget.used(), 0u);
}

TEST(LazyArrayTest, IsZeroAndCostsWhatIsTouched) {
  constexpr size_t kSize = uint64_t{1} << 30;  // 8 GiB of addresses
  LazyArray<uint64_t> array(kSize);
  // Not a constant: clang 14 takes stores 8 GiB less 8 bytes apart for neighbours.
  volatile size_t last = kSize - 1;
  array[0] = 1;
  array[last] = 2;
  EXPECT_EQ(array[kSize / 2], 0u);
  EXPECT_EQ(array[0] + array[last], 3u);
  unsigned char resident = 1;
  ASSERT_EQ(mincore(&array[kSize / 4], 4096, &resident), 0);
  EXPECT_EQ(resident & 1, 0) << "never touched";
  LazyArray<int> none(0);
  EXPECT_EQ(none.size(), 0u);
}

TEST(ReasonTest, NamesAreDistinctAndComplete) {
  std::set<std::string_view> names(kReasonNames.begin(), kReasonNames.end());
  EXPECT_EQ(names.size(), static_cast<size_t>(kReasonCount));
  EXPECT_FALSE(names.contains(""));
  EXPECT_EQ(ReasonName(Reason::kCancelled), "cancelled");
  EXPECT_EQ(ReasonName(Reason::kIoError), "io_error");
  EXPECT_EQ(static_cast<int>(Reason::kIoError), kReasonCount - 1);
  EXPECT_EQ(ReasonName(static_cast<Reason>(200)), "unknown");
}

TEST(HistogramTest, ValuesFallIntoTheFirstBucketThatHoldsThem) {
  Histogram histogram;
  for (int i = 0; i < Histogram::kBuckets; ++i) {
    if (i > 0) EXPECT_GT(Histogram::kBoundsNs[i], Histogram::kBoundsNs[i - 1]);
    histogram.ObserveNs(Histogram::kBoundsNs[i]);
    EXPECT_EQ(histogram.BucketCount(i), 1u) << "a bound belongs to its bucket";
  }
  histogram.ObserveNs(Histogram::kBoundsNs[Histogram::kBuckets - 1] + 1);
  EXPECT_EQ(histogram.BucketCount(Histogram::kBuckets), 1u);
  histogram.ObserveNs(0);
  EXPECT_EQ(histogram.BucketCount(0), 2u);
}

TEST(MetricRegistryTest, OneFamilyHasManySeriesAndSnapshotsAreCopies) {
  MetricRegistry registry;
  Counter* a = registry.AddCounter("c_total", "help", {{"reason", "a"}});
  Counter* b = registry.AddCounter("c_total", "help", {{"reason", "b"}});
  ASSERT_NE(a, b);
  a->Add(3);
  b->Add();
  registry.AddReader("g", "help", MetricRegistry::Type::kGauge, {}, [] { return 1.5; });
  const auto families = registry.Snapshot();
  ASSERT_EQ(families.size(), 2u);
  ASSERT_EQ(families[0].series.size(), 2u);
  EXPECT_EQ(families[0].series[0].counter->Value(), 3u);
  EXPECT_EQ(families[0].series[1].counter->Value(), 1u);
  EXPECT_EQ(families[1].series[0].read(), 1.5);
}

}  // namespace
}  // namespace terrace
