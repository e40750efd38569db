// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// TerracePolicy: what goes is the leaf of least worth, and worth is learned. See ReuseModel for how, and
// docs/decisions/0008-eviction-and-admission-defaults.md for why.
#pragma once

#include <cstdint>
#include <vector>

#include "kvstore/base/lazy_array.h"
#include "tiering/policy/eviction_policy.h"
#include "tiering/policy/reuse_model.h"
#include "tiering/policy/use_history.h"

namespace terrace::tiering {

// Blocks are told apart by how they came to be used: new or used again, after what rest, in which turn of
// a conversation, behind a prefix that others continue, too, or not, with what hint.
// Threads: one at a time. Limits: 44 bytes a block and 24 for each of four times as many that left.
// A victim is the worst of kFresh leaves taken at random and of the kBest worst seen before, so its cost
// does not grow with the cache; with few leaves all are looked at.
class TerracePolicy final : public EvictionPolicy {
 public:
  TerracePolicy(uint64_t max_blocks, uint64_t expected_blocks);

  void OnInsert(BlockId block, const Insert& insert, int64_t now_ns) override;
  void OnAccess(BlockId block, int64_t now_ns) override;
  void OnHint(BlockId block, const RetentionHint& hint, int64_t now_ns) override;
  void OnErase(BlockId block, bool evicted) override;
  // A chain's order does not hang on when its blocks were used.
  bool IsStale(BlockId) const override { return false; }
  BlockId Victim(absl::FunctionRef<bool(BlockId)> allowed, int64_t now_ns) override;
  uint32_t Uses(BlockId block) const override;
  double ReuseChance(BlockId block, int64_t now_ns, int64_t horizon_ns) const override;
  Stats GetStats() const override;

 private:
  static constexpr int kFresh = 8;
  static constexpr int kBest = 12;
  static constexpr size_t kLookAtAll = 64;  // with so few leaves there is no chance in it
  struct Block {
    uint64_t fingerprint;
    uint32_t rest;         // place in history_
    uint32_t start;        // ticks, of the present rest
    uint32_t order;        // of the last use among all uses
    uint32_t parent;       // + 1; 0: none
    uint32_t children;     // known ones
    uint32_t leaf;         // + 1: index in leaves_ or parked_; 0: neither
    uint8_t kind;
    uint8_t uses;          // ever, as far as known, saturating
    uint8_t turn;          // of the conversation it was made in
    uint8_t forks;         // children it ever had, saturating
    uint8_t accesses;      // since the insertion, saturating
    uint8_t priority;
    bool is_known;
    bool is_parked;        // leaf is an index of parked_
  };

  static uint32_t Ticks(int64_t now_ns) { return static_cast<uint32_t>(now_ns >> 20); }
  bool Known(BlockId block) const { return block < blocks_.size() && blocks_[block].is_known; }
  void Advance(uint32_t now);
  // A block was used after `rest` ticks.
  void Reuse(Block& block, uint32_t rest, uint32_t now);
  void BeginRest(Block& block, uint32_t now);
  void SetKind(Block& block, uint8_t kind);
  void SetHint(Block& block, const RetentionHint& hint, int64_t now_ns);
  uint8_t KindOfNew(const Block& block, const Block* parent);

  void AddLeaf(BlockId block);
  void RemoveLeaf(BlockId block);
  void Park(BlockId leaf);
  void Unpark(BlockId leaf);
  struct Candidate {
    BlockId block = kNoBlock;
    float worth = 0;
    uint32_t order = 0;
  };
  Candidate Rate(BlockId block, uint32_t now);
  static bool Worse(const Candidate& a, const Candidate& b);
  void Consider(BlockId block, uint32_t now);
  uint64_t NextRandom();

  LazyArray<Block> blocks_;
  UseHistory history_;
  ReuseModel model_;
  std::vector<BlockId> leaves_;  // blocks without children that may be victims
  std::vector<BlockId> parked_;  // those that were not allowed a while ago
  std::vector<Candidate> best_;  // worst first, then unrated ones; some may be no leaves any more
  std::vector<Candidate> before_;
  uint32_t order_ = 0;
  uint32_t aged_ = 0;            // ticks up to which rests were aged
  uint64_t uses_until_refresh_ = 0, uses_until_fade_ = 0;
  uint64_t random_ = 0x9E3779B97F4A7C15ull;
  uint64_t ghost_hits_ = 0;
};

}  // namespace terrace::tiering
