// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Taking over beside serving: other threads store, free and give up segments meanwhile, as the daemon does.
#include <atomic>
#include <mutex>
#include <thread>

#include "testing/warm_fixture.h"

namespace terrace::testing {
namespace {

using kv::FrameId;

class WarmRaceTest : public WarmTest {
 protected:
  // Ready blocks by frame, and who frees them.
  struct Shared {
    std::mutex mu;
    std::map<FrameId, uint64_t> held;
    std::map<kv::BlockKey, uint64_t> numbers;
  };
  // Stores and frees until stop; every block is read through its checks before it goes.
  void Churn(Shared* shared, uint64_t seed, kv::TenantId tenant, uint64_t block_bytes, const std::atomic<bool>& stop) {
    const auto& space = Space(block_bytes, tenant);
    Random random(seed);
    std::vector<std::pair<FrameId, uint64_t>> mine;
    for (uint64_t n = 0; !stop.load(); ++n) {
      if (!mine.empty() && random.Below(3) == 0) {
        const size_t at = random.Below(mine.size());
        EXPECT_TRUE(Holds(mine[at].first, space, KeyOf(mine[at].second)));
        tier_->Retire(mine[at].first);
        mine[at] = mine.back();
        mine.pop_back();
        continue;
      }
      const uint64_t number = seed * 1'000'000 + n;
      const FrameId frame = Store(space, number);
      if (frame != kv::kNoFrame) {
        mine.emplace_back(frame, number);
        continue;
      }
      // Full: some of what was taken over goes, and segments that are empty.
      for (int i = 0; i < 20; ++i) {
        FrameId victim = kv::kNoFrame;
        {
          std::lock_guard lock(shared->mu);
          if (shared->held.empty()) break;
          victim = shared->held.begin()->first;
          shared->held.erase(shared->held.begin());
        }
        tier_->Retire(victim);
      }
      tier_->GiveUpEmptySegment(tenant);
    }
    for (const auto& [frame, number] : mine) {
      EXPECT_TRUE(Holds(frame, space, KeyOf(number)));
      tier_->Retire(frame);
    }
  }
};

TEST_F(WarmRaceTest, TakingOverBesideServing) {
  options_.segment_bytes = 4 << 20;
  options_.arena_bytes = 48 << 20;
  for (uint64_t round = 0; round < 4; ++round) {
    SCOPED_TRACE(round);
    Start();
    while (tier_->AdoptStep([](const Block&) { return false; })) {
    }
    ASSERT_EQ(Fill(Space(65536, 0), 0, 300).size(), 300u);
    ASSERT_GE(Fill(Space(30'000, 1), 1000, 300).size(), 250u);
    options_.prefault = round % 2 == 1;
    Start();
    Shared shared;
    for (uint64_t i = 0; i < 300; ++i) shared.numbers[KeyOf(i)] = i;
    for (uint64_t i = 1000; i < 1300; ++i) shared.numbers[KeyOf(i)] = i;
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    threads.emplace_back([&] { Churn(&shared, 11, 0, 65536, stop); });
    threads.emplace_back([&] { Churn(&shared, 12, 1, 100'000, stop); });
    uint64_t n = 0;
    while (tier_->AdoptStep([&](const Block& block) {
      // Not retired yet by anybody: it is ours until it is published.
      EXPECT_TRUE(shared.numbers.contains(block.key));
      EXPECT_TRUE(Holds(block.frame, *block.key_space, block.key));
      if (++n % 5 == 0) return false;
      std::lock_guard lock(shared.mu);
      shared.held[block.frame] = shared.numbers.at(block.key);
      return true;
    })) {
    }
    stop = true;
    for (auto& thread : threads) thread.join();
    EXPECT_GE(n, 550u);
    for (const auto& [frame, number] : shared.held) tier_->Retire(frame);
    EXPECT_EQ(tier_->pool().GetUsage().frames_in_use, 0u);
    while (tier_->GiveUpEmptySegment(0)) {
    }
    while (tier_->GiveUpSpare()) {
    }
    options_.prefault = false;
  }
}

}  // namespace
}  // namespace terrace::testing
