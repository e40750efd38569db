// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What policies reach on the committed trace and on generated ones. Virtual time: the same numbers on
// every machine. A change that makes the default worse fails here.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <string>
#include <vector>

#include "testing/trials.h"
#include "tiering/replay/belady.h"
#include "tiering/replay/replayer.h"
#include "tiering/replay_workloads.h"

namespace terrace::tiering {
namespace {

// Arithmetic of one thread: a sanitizer sees the same code in a single size.
constexpr uint64_t kSizes[] = {1000, 2000, 5000, 10000, 20000, 50000};
constexpr size_t kSizeCount = testing::Trials<size_t>(std::size(kSizes), 1);

const Trace& Conversation() {
  static const Trace trace = [] {
    auto read = ReadTraceFile(TERRACE_TRACE);
    EXPECT_TRUE(read.ok()) << read.status();
    return read.ok() ? *std::move(read) : Trace();
  }();
  return trace;
}

ReplayResult RunReplay(const Trace& trace, const ReplayOptions& options) {
  const auto result = Replay(trace, options);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *result : ReplayResult();
}
double HitPercent(const Trace& trace, const std::string& policy, uint64_t blocks) {
  return 100 * RunReplay(trace, {.policy = policy, .capacity_blocks = blocks}).block_hit_rate();
}

TEST(ReplayConversationTest, BoundsAndLruAreThoseKnown) {
  const Trace& trace = Conversation();
  ASSERT_EQ(trace.references.size(), 288'500u);
  EXPECT_EQ(trace.distinct_blocks, 182'790u);
  EXPECT_NEAR(100 * ReplayInfinite(trace, {}).block_hit_rate(), 36.64, 0.005);
  EXPECT_NEAR(HitPercent(trace, "lru", 1 << 18), 36.64, 0.005) << "room for all of it";
  const double lru[] = {4.5, 5.4, 11.2, 21.2, 28.8, 35.5}, belady[] = {19.1, 25.5, 34.1, 36.6, 36.6, 36.6};
  for (size_t i = 0; i < kSizeCount; ++i) {
    EXPECT_NEAR(HitPercent(trace, "lru", kSizes[i]), lru[i], 0.2) << kSizes[i];
    EXPECT_NEAR(100 * ReplayBelady(trace, {}, kSizes[i]).block_hit_rate(), belady[i], 0.1) << kSizes[i];
  }
}

// One setting for all sizes. The published best are of the policies' own papers' forms, which bypass the
// cache where ours must hold what it stores for a moment.
TEST(ReplayConversationTest, TheDefaultIsAsGoodAsTheBestAtEachSize) {
  const double published_best[] = {8.3, 11.3, 16.6, 22.3, 28.9, 35.5};
  for (size_t i = 0; i < kSizeCount; ++i) {
    double best = published_best[i];
    for (const char* other : {"lru", "arc", "s3fifo", "lru2"}) {
      best = std::max(best, HitPercent(Conversation(), other, kSizes[i]));
    }
    EXPECT_GE(HitPercent(Conversation(), "terrace", kSizes[i]), best - 0.5) << kSizes[i];
  }
}

TEST(ReplayConversationTest, HintsHelp) {
  ReplayOptions options{.capacity_blocks = 5000, .hints = {.share = 0.5, .sigma = 0.5}};
  EXPECT_GE(100 * RunReplay(Conversation(), options).block_hit_rate(), 23.5);
  if (testing::kSanitized) return;
  options.hints.sigma = 3;  // worth next to nothing, and found out to be
  EXPECT_GE(100 * RunReplay(Conversation(), options).block_hit_rate(), 16.0);
}

TEST(ReplayConversationTest, TwoTiersReachTheirGoalWithinTheWrites) {
  const ReplayOptions options{.capacity_blocks = 2000, .nvme_blocks = 20000};
  const ReplayResult result = RunReplay(Conversation(), options);
  EXPECT_GE(100 * result.block_hit_rate(), 27.0);
  EXPECT_LE(result.nvme_writes_per_100_hits(), 135.0);
  EXPECT_GT(result.nvme_hits, 0u);
  ReplayOptions all = options;
  all.admission = "all";
  EXPECT_GT(RunReplay(Conversation(), all).nvme_writes, 2 * result.nvme_writes) << "the filter does something";
}

TEST(ReplayConversationTest, ADiskThatIsNotFullTakesEverythingThatComes) {
  const ReplayOptions options{.capacity_blocks = 2000, .nvme_blocks = 150'000};
  const ReplayResult result = RunReplay(Conversation(), options);
  EXPECT_EQ(result.nvme_blocks_at_end, options.nvme_blocks);
  EXPECT_GE(100 * result.block_hit_rate(), 35.0) << "of 36.6 that any cache can hit";
  ReplayOptions all = options;
  all.admission = "all";
  EXPECT_EQ(RunReplay(Conversation(), all).host_hits, result.host_hits);
  // What a client is done with is not written for the sake of room, either.
  ReplayOptions hinted = options;
  hinted.hints = {.share = 0.5, .sigma = 0};
  EXPECT_LT(RunReplay(Conversation(), hinted).nvme_blocks_at_end, 130'000u);
}

TEST(ReplayConversationTest, FillingADiskLeavesHalfOfTheWriteBudget) {
  ReplayOptions options{.capacity_blocks = 2000, .nvme_blocks = 150'000, .blocks = {.bytes = 1 << 20}};
  options.write_bytes_per_day = 24 * (20'000ull << 20);
  const ReplayResult ours = RunReplay(Conversation(), options);
  options.admission = "all";
  const ReplayResult all = RunReplay(Conversation(), options);
  EXPECT_GT(ours.nvme_writes, 20'000u);
  EXPECT_LE(ours.nvme_writes, 2 * 20'000u) << "an hour's share, and one more that was saved up";
  EXPECT_GE(100 * ours.block_hit_rate(), 100 * all.block_hit_rate() + 1) << "what was used again found none left";
}

TEST(ReplayConversationTest, AWriteBudgetHolds) {
  ReplayOptions options{.capacity_blocks = 2000, .nvme_blocks = 20000, .blocks = {.bytes = 1 << 20}};
  std::vector<const char*> admissions = {"adaptive", "all", "second_use"};
  if (testing::kSanitized) admissions.resize(1);
  for (const char* const admission : admissions) {
    options.admission = admission;
    options.write_bytes_per_day = 24 * (20'000ull << 20);
    const ReplayResult result = RunReplay(Conversation(), options);
    // An hour's share, and one more that may have been saved up.
    EXPECT_LE(result.nvme_writes - result.nvme_reinsertions, 2 * 20'000u) << admission;
    EXPECT_GT(result.nvme_hits, 0u) << admission;
  }
}

TEST(ReplayConversationTest, EqualOptionsGiveEqualResults) {
  for (const uint64_t nvme : {20000, 0}) {
    if (testing::kSanitized && nvme == 0) break;
    const ReplayOptions options{.capacity_blocks = 2000, .nvme_blocks = nvme, .hints = {.share = 0.5, .sigma = 0.5}};
    const ReplayResult a = RunReplay(Conversation(), options), b = RunReplay(Conversation(), options);
    EXPECT_EQ(a.host_hits, b.host_hits);
    EXPECT_EQ(a.nvme_hits, b.nvme_hits);
    EXPECT_EQ(a.nvme_writes, b.nvme_writes);
    EXPECT_EQ(a.evictions, b.evictions);
    EXPECT_EQ(a.eviction_age_p50_ns, b.eviction_age_p50_ns);
  }
}

// Workloads that no constant was chosen for.
TEST(ReplayGeneratedTest, TheDefaultIsNearTheBestEverywhere) {
  double sum = 0;
  int n = 0;
  for (const testing::Workload& workload : testing::Workloads()) {
    if (testing::kSanitized && n > 0) break;
    const Trace trace = workload.make(1);
    for (const uint64_t size : {500, 2000, 10000}) {
      double best = 0;
      for (const char* other : {"lru", "arc", "s3fifo", "lru2"}) best = std::max(best, HitPercent(trace, other, size));
      const double ours = HitPercent(trace, "terrace", size);
      std::cout << workload.name << " " << size << ": lru " << HitPercent(trace, "lru", size) << ", best of others "
                << best << ", terrace " << ours << "\n";
      EXPECT_GE(ours, best - 1.5) << workload.name << " " << size;
      EXPECT_LE(ours, 100 * ReplayBelady(trace, {}, size).block_hit_rate()) << workload.name << " " << size;
      sum += ours - best;
      ++n;
    }
  }
  if (!testing::kSanitized) EXPECT_GE(sum / n, 2.0) << "points above the best of the others, on average";
}

// Host memory may be lost at any time: what is on disk must be of use without it.
TEST(ReplayGeneratedTest, ChainsOnDiskAreWhole) {
  const auto look = [](const std::string& name, const Trace& trace, uint64_t host, uint64_t nvme) {
    const ReplayResult result = RunReplay(trace, {.capacity_blocks = host, .nvme_blocks = nvme});
    const double whole = 100.0 * static_cast<double>(result.nvme_reachable_at_end) /
                         static_cast<double>(std::max<uint64_t>(result.nvme_blocks_at_end, 1));
    std::cout << name << " " << host << " + " << nvme << ": hits " << 100 * result.block_hit_rate()
              << ", writes per 100 hits " << result.nvme_writes_per_100_hits() << ", found without host memory "
              << whole << "\n";
    EXPECT_GT(result.nvme_blocks_at_end, 0u) << name;
    EXPECT_GE(whole, 85.0) << name << " " << nvme;
  };
  look("conversation", Conversation(), 2000, 5000);
  if (testing::kSanitized) return;
  for (const uint64_t nvme : {20'000, 60'000}) look("conversation", Conversation(), 2000, nvme);
  for (const testing::Workload& workload : testing::Workloads()) {
    const Trace trace = workload.make(1);
    look(workload.name, trace, 500, 5000);
    look(workload.name, trace, 2000, 20'000);
  }
}

TEST(ReplayTest, ARequestHitsItsLeadingRunOnly) {
  TraceBuilder builder;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(builder.Add(i, 4 * 512 - 100, 1, std::vector<uint64_t>{1, 2, 3, 4}).ok());
  const Trace trace = builder.Finish();
  // Three blocks fit: the chain keeps its head.
  const ReplayResult small = RunReplay(trace, {.policy = "lru", .capacity_blocks = 3});
  EXPECT_EQ(small.host_hits, 6u);
  EXPECT_EQ(small.refused_stores, 3u) << "nothing may go for the fourth";
  const ReplayResult large = RunReplay(trace, {.policy = "lru", .capacity_blocks = 4});
  EXPECT_EQ(large.host_hits, 8u);
  EXPECT_EQ(large.host_hit_tokens, 2u * (4 * 512 - 100)) << "no more tokens than there were";
  EXPECT_EQ(large.stores, 4u);
}

TEST(ReplayTest, WhatCannotBeIsRefused) {
  const Trace trace = testing::Workloads()[0].make(1);
  EXPECT_TRUE(absl::IsInvalidArgument(Replay(trace, {.capacity_blocks = 0}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Replay(trace, {.policy = "fifo9", .capacity_blocks = 1}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      Replay(trace, {.capacity_blocks = 1, .nvme_blocks = 1, .admission = "none"}).status()));
  for (const char* hints : {"noisy", "noisy:2,1", "noisy:0.5", "noisy:0.5,-1", "exact"}) {
    EXPECT_FALSE(HintOptions::Parse(hints).ok()) << hints;
  }
}

}  // namespace
}  // namespace terrace::tiering
