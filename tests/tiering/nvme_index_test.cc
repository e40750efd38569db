// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The index of an NVMe device: who is found, who replaces whom, what it costs, and many threads at once.
#include "tiering/nvme/nvme_index.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "testing/payload.h"

namespace terrace::tiering {
namespace {

using testing::Random;

constexpr auto kAlways = [] { return true; };

class NvmeIndexTest : public ::testing::Test {
 protected:
  uint32_t Add(uint32_t segment, uint64_t fingerprint, uint16_t page, uint32_t replaces = NvmeIndex::kNone,
               uint32_t tag = 1) {
    const uint32_t id = index_.Reserve(segment);
    EXPECT_NE(id, NvmeIndex::kNone);
    const NvmeEntry entry = {.fingerprint = fingerprint, .space_tag = tag, .page = page, .pages = 2};
    return index_.Publish(id, entry, replaces, kAlways) ? id : NvmeIndex::kNone;
  }
  const NvmeGeometry geometry_ = NvmeGeometry::Make(1ull << 30, 16 << 20);
  MemoryBudget budget_{1ull << 30};
  NvmeIndex index_{geometry_, &budget_};
};

TEST_F(NvmeIndexTest, TheYoungerEntryStays) {
  index_.ResetSegment(0, 1);
  index_.ResetSegment(1, 2);
  const uint32_t old = Add(0, 77, 0);
  ASSERT_NE(old, NvmeIndex::kNone);
  EXPECT_NE(Add(1, 77, 10), NvmeIndex::kNone);
  EXPECT_EQ(index_.blocks(), 1u);
  EXPECT_EQ(index_.Find(77, false)->place.segment, 1u);
  EXPECT_EQ(Add(0, 77, 4), NvmeIndex::kNone) << "an older one does not come back";
  EXPECT_FALSE(index_.At(0, 0).has_value());
  EXPECT_FALSE(index_.Drop(77, old)) << "it is another entry by now";
  EXPECT_TRUE(index_.Contains(77));
}

TEST_F(NvmeIndexTest, AMoveOfWhatWasDroppedDoesNotBringItBack) {
  index_.ResetSegment(0, 1);
  index_.ResetSegment(1, 2);
  const uint32_t old = Add(0, 77, 0);
  EXPECT_TRUE(index_.Drop(77, NvmeIndex::kNone));
  EXPECT_EQ(Add(1, 77, 0, old), NvmeIndex::kNone);
  EXPECT_FALSE(index_.Contains(77));
}

TEST_F(NvmeIndexTest, ReuseDropsASegmentAndNothingElse) {
  index_.ResetSegment(0, 1);
  index_.ResetSegment(1, 2);
  for (uint64_t i = 0; i < 500; ++i) Add(i % 2, i * 0x9E3779B97F4A7C15ull, static_cast<uint16_t>(i));
  const uint64_t charged = budget_.used();
  EXPECT_GT(charged, 0u);
  index_.ResetSegment(0, 3);
  EXPECT_EQ(index_.blocks(), 250u);
  EXPECT_EQ(index_.used_bytes(), 250u * 2 * kNvmePage);
  EXPECT_LT(budget_.used(), charged);
  for (uint64_t i = 0; i < 500; ++i) EXPECT_EQ(index_.Contains(i * 0x9E3779B97F4A7C15ull), i % 2 == 1);
  index_.ResetSegment(1, 4);
  EXPECT_EQ(budget_.used(), 0u);
}

TEST_F(NvmeIndexTest, HitsAreRemembered) {
  index_.ResetSegment(0, 1);
  Add(0, 5, 0);
  EXPECT_FALSE(index_.At(0, 0)->was_hit);
  index_.Find(5, false);
  EXPECT_FALSE(index_.At(0, 0)->was_hit);
  index_.Find(5, true);
  EXPECT_TRUE(index_.At(0, 0)->was_hit);
}

TEST_F(NvmeIndexTest, SegmentsAreBoundedAndCostIsCharged) {
  index_.ResetSegment(0, 1);
  for (uint32_t i = 0; i < geometry_.max_entries; ++i) {
    ASSERT_NE(index_.Reserve(0), NvmeIndex::kNone);
  }
  EXPECT_EQ(index_.Reserve(0), NvmeIndex::kNone);
  EXPECT_EQ(budget_.used(), geometry_.max_entries * NvmeIndex::kChargedPerEntry);
  EXPECT_LE(NvmeIndex::kChargedPerEntry, 32u);
}

TEST_F(NvmeIndexTest, DropSpaceTakesItsBlocksOnly) {
  index_.ResetSegment(0, 1);
  for (uint64_t i = 1; i <= 300; ++i) {
    Add(0, i * 0x9E3779B97F4A7C15ull, static_cast<uint16_t>(2 * i), NvmeIndex::kNone, static_cast<uint32_t>(i % 3));
  }
  EXPECT_EQ(index_.DropSpace(1), 100u);
  EXPECT_EQ(index_.DropSpace(1), 0u);
  EXPECT_EQ(index_.blocks(), 200u);
  EXPECT_EQ(index_.DropSpace(std::nullopt), 200u);
}

TEST_F(NvmeIndexTest, ManyThreadsReadAndDropWhileSegmentsComeAndGo) {
  constexpr uint64_t kFingerprints = 2000;
  const auto fingerprint = [](uint64_t i) { return (i + 1) * 0x9E3779B97F4A7C15ull; };
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> found{0};
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      Random random(t);
      while (!stop.load()) {
        const uint64_t f = fingerprint(random.Below(kFingerprints));
        if (const auto entry = index_.Find(f, true)) {
          ++found;
          EXPECT_EQ(entry->fingerprint, f);
          EXPECT_EQ(entry->pages, 2u);
        }
        if (random.OneIn(10)) index_.Drop(f, NvmeIndex::kNone);
        if (random.OneIn(5000)) index_.DropSpace(2);
      }
    });
  }
  Random random(99);
  for (uint64_t sequence = 1; sequence <= 300 || (found.load() == 0 && sequence < 100'000); ++sequence) {
    const auto segment = static_cast<uint32_t>(sequence % 4);
    index_.ResetSegment(segment, sequence);
    for (uint16_t i = 0; i < 200; ++i) {
      Add(segment, fingerprint(random.Below(kFingerprints)), static_cast<uint16_t>(2 * i), NvmeIndex::kNone,
          static_cast<uint32_t>(1 + i % 2));
    }
  }
  stop = true;
  for (auto& thread : threads) thread.join();
  EXPECT_GT(found.load(), 0u);
  for (uint32_t segment = 0; segment < 4; ++segment) index_.ResetSegment(segment, 0);
  EXPECT_EQ(index_.blocks(), 0u);
  EXPECT_EQ(index_.used_bytes(), 0u);
  EXPECT_EQ(budget_.used(), 0u);
}

}  // namespace
}  // namespace terrace::tiering
