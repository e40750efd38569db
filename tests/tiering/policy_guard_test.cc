// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/policy/guarded_policy.h"

#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <memory>

#include "testing/payload.h"

namespace terrace::tiering {
namespace {

constexpr uint64_t kRoom = 1000;

// Gives up what was used last, as long as it is told to; else what was used longest ago.
class MoodyPolicy final : public EvictionPolicy {
 public:
  explicit MoodyPolicy(const bool* is_bad) : is_bad_(is_bad), lru_(4 * kRoom) {}
  void OnInsert(BlockId block, const Insert& insert, int64_t now_ns) override {
    lru_.OnInsert(block, insert, now_ns);
    latest_.push_back(block);
  }
  void OnAccess(BlockId block, int64_t now_ns) override {
    lru_.OnAccess(block, now_ns);
    latest_.push_back(block);
  }
  void OnHint(BlockId, const RetentionHint&, int64_t) override {}
  void OnErase(BlockId block, bool evicted) override { lru_.OnErase(block, evicted); }
  bool IsStale(BlockId) const override { return false; }
  BlockId Victim(absl::FunctionRef<bool(BlockId)> allowed, int64_t now_ns) override {
    while (*is_bad_ && !latest_.empty()) {
      const BlockId block = latest_.back();
      latest_.pop_back();
      if (allowed(block)) return block;
    }
    return lru_.Victim(allowed, now_ns);
  }
  uint32_t Uses(BlockId) const override { return 0; }
  Stats GetStats() const override { return {.name = "moody"}; }

 private:
  const bool* is_bad_;
  LruPolicy lru_;
  std::deque<BlockId> latest_;
};

// A cache of kRoom blocks under a moving window of keys, which suits LRU and nothing that keeps old ones.
class GuardTest : public ::testing::Test {
 protected:
  GuardTest() : policy_(std::make_unique<MoodyPolicy>(&is_bad_), 4 * kRoom, kRoom) {
    for (BlockId block = kRoom; block-- > 0;) free_.push_back(block);
  }
  void Use(uint64_t key) {
    ++now_ns_;
    if (const auto at = blocks_.find(key); at != blocks_.end()) {
      ++hits_;
      policy_.OnAccess(at->second, now_ns_);
      return;
    }
    if (free_.empty()) {
      const BlockId victim = policy_.Victim([&](BlockId b) { return key_of_.contains(b); }, now_ns_);
      ASSERT_NE(victim, kNoBlock);
      policy_.OnErase(victim, true);
      blocks_.erase(key_of_[victim]);
      key_of_.erase(victim);
      free_.push_back(victim);
    }
    const BlockId block = free_.back();
    free_.pop_back();
    policy_.OnInsert(block, {.fingerprint = (key + 1) * 0x9E3779B97F4A7C15ull}, now_ns_);
    blocks_[key] = block;
    key_of_[block] = key;
  }
  double HitRatio(int references) {
    hits_ = 0;
    for (int i = 0; i < references; ++i) Use(position_++ / 10 + random_.Below(800));
    return static_cast<double>(hits_) / references;
  }

  bool is_bad_ = false;
  GuardedPolicy policy_;
  testing::Random random_{1};
  uint64_t position_ = 0;
  int64_t now_ns_ = 0;
  std::vector<BlockId> free_;
  std::map<uint64_t, BlockId> blocks_;
  std::map<BlockId, uint64_t> key_of_;
  int hits_ = 0;
};

TEST_F(GuardTest, AGoodPolicyDecides) {
  const double good = HitRatio(50'000);
  EXPECT_GT(good, 0.8);
  EXPECT_EQ(policy_.GetStats().name, "moody");
  EXPECT_EQ(policy_.GetStats().fallbacks, 0u);
  EXPECT_NEAR(policy_.GetStats().shadow_lru_delta, 0, 0.01);
}

TEST_F(GuardTest, ABadOneIsReplacedByLruAndTriedAgain) {
  const double good = HitRatio(20'000);
  is_bad_ = true;
  HitRatio(10'000);
  EXPECT_EQ(policy_.GetStats().name, "lru");
  EXPECT_EQ(policy_.GetStats().fallbacks, 1u);
  // Tried again and given up again, at longer and longer intervals: it costs little.
  EXPECT_GT(HitRatio(400'000), good - 0.05);
  EXPECT_GE(policy_.GetStats().fallbacks, 3u);
  EXPECT_LE(policy_.GetStats().fallbacks, 7u);
  is_bad_ = false;
  for (int i = 0; i < 400 && policy_.GetStats().name == "lru"; ++i) HitRatio(4096);
  EXPECT_EQ(policy_.GetStats().name, "moody") << "it may come back";
}

}  // namespace
}  // namespace terrace::tiering
