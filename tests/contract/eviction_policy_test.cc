// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What every EvictionPolicy owes its caller. A new policy is added by its name at the end of the file.
#include "tiering/policy/eviction_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>

#include "testing/payload.h"

namespace terrace::tiering {
namespace {

using testing::Random;

constexpr uint64_t kCapacity = 4096;

class EvictionPolicyContract : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto policy = MakeEvictionPolicy(GetParam(), kCapacity, kCapacity);
    ASSERT_TRUE(policy.ok()) << policy.status();
    policy_ = *std::move(policy);
  }
  // Takes all blocks out in the policy's order; what has children is not allowed, as in the catalogue.
  std::vector<BlockId> EvictAll(std::map<BlockId, BlockId> parent_of, const std::set<BlockId>& pinned = {}) {
    std::vector<BlockId> order;
    while (true) {
      const BlockId victim = Victim([&](BlockId block) {
        EXPECT_TRUE(parent_of.contains(block)) << "asks about a block it was not told of: " << block;
        return !pinned.contains(block) && std::none_of(parent_of.begin(), parent_of.end(), [&](const auto& link) {
          return link.second == block;
        });
      });
      if (victim == kNoBlock) return order;
      order.push_back(victim);
      Erase(victim);
      parent_of.erase(victim);
    }
  }
  // The first block the policy would give up if everything were allowed.
  BlockId FirstChoice() {
    return Victim([](BlockId) { return true; });
  }
  // A millisecond passes with each call.
  void Insert(BlockId block, BlockId parent, const RetentionHint& hint = {}) {
    now_ns_ += 1'000'000;
    policy_->OnInsert(block, {.parent = parent, .fingerprint = FingerprintOf(block), .hint = hint}, now_ns_);
  }
  void Access(BlockId block) { policy_->OnAccess(block, now_ns_ += 1'000'000); }
  void Erase(BlockId block, bool evicted = true) { policy_->OnErase(block, evicted); }
  BlockId Victim(absl::FunctionRef<bool(BlockId)> allowed) { return policy_->Victim(allowed, now_ns_); }
  static uint64_t FingerprintOf(BlockId block) { return (block + 1) * 0x9E3779B97F4A7C15ull; }

  std::unique_ptr<EvictionPolicy> policy_;
  int64_t now_ns_ = 0;
};

TEST_P(EvictionPolicyContract, EmptyHasNoVictim) {
  EXPECT_EQ(FirstChoice(), kNoBlock);
  Insert(5, kNoBlock);
  Erase(5);
  EXPECT_EQ(FirstChoice(), kNoBlock);
}

TEST_P(EvictionPolicyContract, FirstAndLastNumbersAreBlocksLikeOthers) {
  for (const BlockId block : {BlockId{0}, BlockId{kCapacity - 1}}) {
    Insert(block, kNoBlock);
    EXPECT_EQ(FirstChoice(), block);
    Erase(block);
    EXPECT_EQ(FirstChoice(), kNoBlock);
  }
}

TEST_P(EvictionPolicyContract, UnknownBlocksAreIgnored) {
  Access(7);
  Access(kNoBlock);
  Access(static_cast<BlockId>(kCapacity + 100));
  Erase(7);
  EXPECT_EQ(FirstChoice(), kNoBlock);
  Insert(1, 9);  // a parent it does not know
  EXPECT_EQ(FirstChoice(), 1u);
  Erase(1);
  Access(1);  // a late touch record
  EXPECT_EQ(FirstChoice(), kNoBlock);
}

TEST_P(EvictionPolicyContract, AVictimStaysUntilItIsErased) {
  Insert(1, kNoBlock);
  const BlockId victim = FirstChoice();
  EXPECT_EQ(FirstChoice(), victim);
  EXPECT_EQ(Victim([](BlockId) { return false; }), kNoBlock);
  EXPECT_EQ(FirstChoice(), victim);
}

TEST_P(EvictionPolicyContract, AChainGoesTailFirst) {
  std::map<BlockId, BlockId> links;
  for (BlockId b = 0; b < 100; ++b) {
    links[b] = b == 0 ? kNoBlock : b - 1;
    Insert(b, links[b]);
  }
  EXPECT_EQ(FirstChoice(), 99u) << "without asking for children, too";
  std::vector<BlockId> expected;
  for (BlockId b = 100; b-- > 0;) expected.push_back(b);
  EXPECT_EQ(EvictAll(links), expected);
}

TEST_P(EvictionPolicyContract, AChainUsedAgainStillGoesTailFirst) {
  std::map<BlockId, BlockId> links;
  for (BlockId b = 0; b < 50; ++b) {
    links[b] = b == 0 ? kNoBlock : b - 1;
    Insert(b, links[b]);
  }
  for (BlockId b = 50; b < 60; ++b) {  // others in between
    links[b] = kNoBlock;
    Insert(b, kNoBlock);
  }
  for (BlockId b = 50; b-- > 0;) Access(b);  // tail first, as the caller reports it
  const auto order = EvictAll(links);
  ASSERT_EQ(order.size(), 60u);
  const auto at = [&](BlockId block) { return std::find(order.begin(), order.end(), block) - order.begin(); };
  for (BlockId b = 1; b < 50; ++b) EXPECT_LT(at(b), at(b - 1));
  if (GetParam() == "s3fifo" || GetParam() == "lru2") return;  // first seen or not counts for more
  for (size_t i = 0; i < 10; ++i) EXPECT_GE(order[i], 50u) << "what was not used goes first";
}

// A long prompt is stored in pieces; other chains come in between.
TEST_P(EvictionPolicyContract, AChainStoredInPiecesGoesTailFirst) {
  std::map<BlockId, BlockId> links;
  const auto insert = [&](BlockId block, BlockId parent) {
    links[block] = parent;
    Insert(block, parent);
  };
  for (BlockId b = 0; b < 10; ++b) insert(b, b == 0 ? kNoBlock : b - 1);
  for (BlockId b = 100; b < 120; ++b) insert(b, b == 100 ? kNoBlock : b - 1);
  for (BlockId b = 10; b < 20; ++b) insert(b, b - 1);
  const auto order = EvictAll(links);
  const auto at = [&](BlockId block) { return std::find(order.begin(), order.end(), block) - order.begin(); };
  for (BlockId b = 1; b < 20; ++b) EXPECT_LT(at(b), at(b - 1));
  for (BlockId b = 101; b < 120; ++b) EXPECT_LT(at(b), at(b - 1));
}

TEST_P(EvictionPolicyContract, ASharedPrefixOutlivesItsForks) {
  std::map<BlockId, BlockId> links;
  for (BlockId b = 0; b < 10; ++b) {  // the shared prefix
    links[b] = b == 0 ? kNoBlock : b - 1;
    Insert(b, links[b]);
  }
  for (BlockId fork = 1; fork <= 5; ++fork) {
    for (BlockId i = 0; i < 10; ++i) {
      const BlockId b = fork * 100 + i;
      links[b] = i == 0 ? 9 : b - 1;
      Insert(b, links[b]);
    }
  }
  const auto order = EvictAll(links);
  ASSERT_EQ(order.size(), 60u);
  for (size_t i = 50; i < 60; ++i) EXPECT_LT(order[i], 10u) << "prefix blocks are the last to go";
}

TEST_P(EvictionPolicyContract, PinnedLeavesAreStepsOverNotEnds) {
  std::map<BlockId, BlockId> links;
  std::set<BlockId> pinned;
  for (BlockId chain = 0; chain < 20; ++chain) {
    for (BlockId i = 0; i < 5; ++i) {
      const BlockId b = chain * 5 + i;
      links[b] = i == 0 ? kNoBlock : b - 1;
      Insert(b, links[b]);
    }
    if (chain % 2 == 0) pinned.insert(chain * 5 + 4);
  }
  const auto order = EvictAll(links, pinned);
  EXPECT_EQ(order.size(), 50u) << "all of the chains that are not pinned, none of those that are";
  for (const BlockId b : order) EXPECT_EQ(b / 5 % 2, 1u);
}

TEST_P(EvictionPolicyContract, WhatIsLetGoOfAsAWholeIsFoundAtOnce) {
  for (BlockId b = 0; b < 200; ++b) Insert(b, kNoBlock);
  // All but the hottest two are leased for a while, and one goes that had better stayed.
  ASSERT_EQ(Victim([&](BlockId b) { return b == 198; }), 198u);
  Erase(198);
  // The leases have ended.
  for (int i = 0; i < 20; ++i) {
    const BlockId victim = FirstChoice();
    EXPECT_LT(victim, 190u) << "the cold end comes first again";
    Erase(victim);
  }
}

TEST_P(EvictionPolicyContract, AScanDoesNotStarveRecentBlocks) {
  std::map<BlockId, BlockId> links;
  for (BlockId b = 0; b < 100; ++b) {
    links[b] = kNoBlock;
    Insert(b, kNoBlock);
  }
  // The first ten are used again and again while others pass through.
  for (BlockId hot = 0; hot < 10; ++hot) Access(hot);
  for (BlockId b = 100; b < 1000; ++b) {
    for (BlockId hot = 0; hot < 10; ++hot) Access(hot);
    const BlockId victim = Victim([&](BlockId v) { return links.contains(v); });
    ASSERT_GE(victim, 10u) << "a block in constant use was given up";
    Erase(victim);
    links.erase(victim);
    links[b] = kNoBlock;
    Insert(b, kNoBlock);
  }
}

TEST_P(EvictionPolicyContract, StaleMeansLongUnused) {
  Insert(0, kNoBlock);
  EXPECT_FALSE(policy_->IsStale(0));
  for (BlockId b = 1; b < kCapacity; ++b) Insert(b, kNoBlock);
  for (int round = 0; round < 2; ++round) {
    for (BlockId b = 1; b < kCapacity; ++b) Access(b);
  }
  // Where the order does not hang on when a block was used, nothing is ever stale.
  EXPECT_EQ(policy_->IsStale(0), GetParam() != "terrace");
  Access(0);
  EXPECT_FALSE(policy_->IsStale(0));
}

// Any mix of calls: each known block is offered exactly once, no unknown one ever, and leaves-first
// eviction always gets through.
TEST_P(EvictionPolicyContract, RandomOperationsLoseNothing) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    SetUp();
    Random random(seed);
    std::map<BlockId, BlockId> links;
    std::map<BlockId, int> children;
    for (int step = 0; step < 4000; ++step) {
      const auto block = static_cast<BlockId>(random.Below(300));
      const uint64_t what = random.Below(10);
      if (what < 4 && !links.contains(block)) {
        BlockId parent = kNoBlock;
        if (!links.empty() && !random.OneIn(4)) {
          parent = std::next(links.begin(), static_cast<long>(random.Below(links.size())))->first;
        }
        links[block] = parent;
        if (parent != kNoBlock) ++children[parent];
        Insert(block, parent);
      } else if (what < 7) {
        Access(block);
      } else if (what < 9 && links.contains(block) && children[block] == 0) {
        if (links[block] != kNoBlock) --children[links[block]];
        links.erase(block);
        Erase(block);
      } else if (what == 9) {
        const BlockId victim = Victim([&](BlockId b) {
          EXPECT_TRUE(links.contains(b));
          return children[b] == 0;
        });
        ASSERT_EQ(victim == kNoBlock, links.empty()) << "a forest always has a leaf";
      }
    }
    const size_t known = links.size();
    std::set<BlockId> gone;
    for (const BlockId b : EvictAll(links)) EXPECT_TRUE(gone.insert(b).second);
    EXPECT_EQ(gone.size(), known);
  }
}

TEST(EvictionPolicyNamesTest, AnUnknownNameIsRefusedWithTheChoices) {
  const auto policy = MakeEvictionPolicy("lfu2", 10, 10);
  EXPECT_TRUE(absl::IsInvalidArgument(policy.status()));
  EXPECT_NE(policy.status().message().find("lru"), absl::string_view::npos);
}

INSTANTIATE_TEST_SUITE_P(Policies, EvictionPolicyContract, ::testing::ValuesIn(EvictionPolicyNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace terrace::tiering
