// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/policy/terrace_policy.h"

#include <algorithm>
#include <bit>

#include "tiering/policy/block_kind.h"

namespace terrace::tiering {
namespace {

constexpr uint64_t kMinHistory = 1 << 16, kMaxHistory = 1 << 24;
constexpr uint64_t kRefreshUses = 4096;
constexpr uint32_t kAgeTicks = 32;  // 34 ms: half of the shortest span
constexpr size_t kMaxLooks = 65536;

uint64_t HistoryOf(uint64_t expected_blocks) {
  // Four times what is held tells who comes back. In a very large cache a quarter does: what matters there is
  // how long rests are, and for that a part of them is enough; all of them would cost 100 bytes a block.
  const uint64_t wanted = std::min(expected_blocks * 4, std::max<uint64_t>(1 << 20, expected_blocks / 4));
  return std::bit_ceil(std::clamp(wanted, kMinHistory, kMaxHistory));
}
uint8_t Saturate(uint32_t n) { return static_cast<uint8_t>(std::min<uint32_t>(n, 255)); }

}  // namespace

TerracePolicy::TerracePolicy(uint64_t max_blocks, uint64_t expected_blocks)
    : blocks_(max_blocks),
      history_(HistoryOf(expected_blocks), static_cast<uint32_t>(ReuseModel::Boundaries().size())),
      model_(BlockKind::Groups(), BlockKind::kGroups),
      uses_until_refresh_(kRefreshUses / 4),
      uses_until_fade_(history_.capacity() / 2) {
  best_.reserve(2 * kBest);
  before_.reserve(2 * kBest);
}

void TerracePolicy::Advance(uint32_t now) {
  if (now - aged_ >= kAgeTicks) {
    history_.Age(now, ReuseModel::Boundaries(),
                 [this](uint8_t kind, uint32_t span) { model_.CountPassed(kind, span); });
    aged_ = now;
  }
  if (--uses_until_fade_ == 0) {
    model_.Fade();
    uses_until_fade_ = history_.capacity() / 2;
  }
  if (--uses_until_refresh_ == 0) {
    model_.Refresh();
    uses_until_refresh_ = kRefreshUses;
  }
}

void TerracePolicy::BeginRest(Block& block, uint32_t now) {
  block.start = now;
  block.order = ++order_;
  block.rest = history_.Begin({.fingerprint = block.fingerprint, .start = now, .kind = block.kind,
                               .uses = block.uses, .turn = block.turn});
}

void TerracePolicy::SetKind(Block& block, uint8_t kind) {
  block.kind = kind;
  if (history_.IsOpen(block.rest, block.fingerprint)) history_.At(block.rest).kind = kind;
}

void TerracePolicy::Reuse(Block& block, uint32_t rest, uint32_t now) {
  block.uses = Saturate(block.uses + 1u);
  block.kind = BlockKind::Used(block.uses, BlockKind::RestOf(rest));
  BeginRest(block, now);
}

uint8_t TerracePolicy::KindOfNew(const Block& block, const Block* parent) {
  if (parent == nullptr) return BlockKind::New(0, 0, false, false);
  // Made in the same request as its parent, or behind something older?
  if (BlockKind::IsNew(parent->kind)) return BlockKind::NotContinued(parent->kind);
  const uint32_t rest = parent->kind % BlockKind::kRests;
  return BlockKind::New(block.turn, rest, parent->forks > 2, false);
}

void TerracePolicy::OnInsert(BlockId id, const Insert& insert, int64_t now_ns) {
  const uint32_t now = Ticks(now_ns);
  Advance(now);
  if (Known(id)) OnErase(id, false);
  Block& block = blocks_[id];
  block = {.fingerprint = insert.fingerprint, .is_known = true};
  Block* parent = nullptr;
  if (insert.parent != kNoBlock && insert.parent != id && Known(insert.parent)) parent = &blocks_[insert.parent];
  if (parent != nullptr) {
    block.parent = insert.parent + 1;
    if (parent->children++ == 0) RemoveLeaf(insert.parent);
    if (parent->forks == 0) SetKind(*parent, BlockKind::Continued(parent->kind));
    parent->forks = Saturate(parent->forks + 1u);
    block.turn = Saturate(parent->turn + (BlockKind::IsNew(parent->kind) ? 0u : 1u));
  }
  const uint32_t place = history_.Find(insert.fingerprint);
  if (place != UseHistory::kNone) {
    ++ghost_hits_;
    const UseHistory::Rest rest = history_.At(place);
    model_.CountUse(rest.kind, now - rest.start);
    history_.Close(place);
    block.uses = rest.uses;
    block.turn = rest.turn;
    Reuse(block, now - rest.start, now);
  } else {
    block.kind = KindOfNew(block, parent);
    BeginRest(block, now);
  }
  SetHint(block, insert.hint, now_ns);
  AddLeaf(id);
}

void TerracePolicy::OnAccess(BlockId id, int64_t now_ns) {
  if (!Known(id)) return;
  const uint32_t now = Ticks(now_ns);
  Advance(now);
  Block& block = blocks_[id];
  const uint32_t rest = now - block.start;
  if (history_.IsOpen(block.rest, block.fingerprint)) {
    model_.CountUse(history_.At(block.rest).kind, rest);
    history_.Close(block.rest);
  }
  block.accesses = Saturate(block.accesses + 1u);
  block.priority = 0;
  Reuse(block, rest, now);
}

void TerracePolicy::OnHint(BlockId id, const RetentionHint& hint, int64_t now_ns) {
  if (Known(id)) SetHint(blocks_[id], hint, now_ns);
}

void TerracePolicy::SetHint(Block& block, const RetentionHint& hint, int64_t now_ns) {
  if (hint.empty()) return;
  block.priority = std::min(hint.priority, kMaxPriority);
  if (hint.done) {
    SetKind(block, BlockKind::kDone);
  } else if (hint.reuse_at_ns > now_ns) {
    const uint32_t ahead = Ticks(hint.reuse_at_ns) - block.start;
    SetKind(block, BlockKind::Hinted(ReuseModel::SpanOf(ahead)));
  }
}

void TerracePolicy::OnErase(BlockId id, bool /*evicted*/) {
  if (!Known(id)) return;
  Block& block = blocks_[id];
  RemoveLeaf(id);
  block.is_known = false;
  if (block.parent == 0) return;
  const BlockId parent_id = block.parent - 1;
  Block& parent = blocks_[parent_id];
  if (!parent.is_known || parent.children == 0) return;
  if (--parent.children == 0) {
    AddLeaf(parent_id);
    // It is most likely worth as little as what went: rated when a victim is asked for.
    if (best_.size() < 2 * kBest) best_.push_back({.block = parent_id});
  }
}

uint32_t TerracePolicy::Uses(BlockId id) const {
  return Known(id) ? std::min<uint32_t>(blocks_[id].accesses, 3) : 0;
}

double TerracePolicy::ReuseChance(BlockId id, int64_t now_ns, int64_t horizon_ns) const {
  if (!Known(id)) return -1;
  const uint32_t age = Ticks(now_ns) - blocks_[id].start;
  const uint64_t until = age + static_cast<uint64_t>(std::max<int64_t>(horizon_ns, 0) >> 20);
  return model_.ChanceUntil(blocks_[id].kind, age, static_cast<uint32_t>(std::min<uint64_t>(until, ~0u)));
}

EvictionPolicy::Stats TerracePolicy::GetStats() const { return {.name = "terrace", .ghost_hits = ghost_hits_}; }

void TerracePolicy::AddLeaf(BlockId id) {
  leaves_.push_back(id);
  blocks_[id].leaf = static_cast<uint32_t>(leaves_.size());
  blocks_[id].is_parked = false;
}

void TerracePolicy::RemoveLeaf(BlockId id) {
  Block& block = blocks_[id];
  if (block.leaf == 0) return;
  std::vector<BlockId>& list = block.is_parked ? parked_ : leaves_;
  list[block.leaf - 1] = list.back();
  blocks_[list.back()].leaf = block.leaf;
  list.pop_back();
  block.leaf = 0;
}

void TerracePolicy::Park(BlockId id) {
  RemoveLeaf(id);
  parked_.push_back(id);
  blocks_[id].leaf = static_cast<uint32_t>(parked_.size());
  blocks_[id].is_parked = true;
}

void TerracePolicy::Unpark(BlockId id) {
  RemoveLeaf(id);
  AddLeaf(id);
}

TerracePolicy::Candidate TerracePolicy::Rate(BlockId id, uint32_t now) {
  const Block& block = blocks_[id];
  const uint32_t age = now - block.start;
  const float factor = static_cast<float>(1u << block.priority);
  return {id, model_.Worth(block.kind, age) * factor, block.order};
}

bool TerracePolicy::Worse(const Candidate& a, const Candidate& b) {
  if (a.worth != b.worth) return a.worth < b.worth;
  return static_cast<int32_t>(a.order - b.order) < 0;
}

// Keeps the kBest worst ones in best_, the worst first.
void TerracePolicy::Consider(BlockId id, uint32_t now) {
  const Candidate candidate = Rate(id, now);
  if (best_.size() >= kBest && !Worse(candidate, best_.back())) return;
  for (const Candidate& known : best_) {
    if (known.block == id) return;
  }
  best_.insert(std::upper_bound(best_.begin(), best_.end(), candidate, Worse), candidate);
  if (best_.size() > kBest) best_.pop_back();
}

uint64_t TerracePolicy::NextRandom() {
  uint64_t x = random_ += 0x9E3779B97F4A7C15ull;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ x >> 27) * 0x94D049BB133111EBull;
  return x ^ x >> 31;
}

BlockId TerracePolicy::Victim(absl::FunctionRef<bool(BlockId)> allowed, int64_t now_ns) {
  const uint32_t now = Ticks(now_ns);
  // Those that were not allowed once come back little by little, or all if there are no others.
  for (int n = 0; n < 2 && !parked_.empty(); ++n) Unpark(parked_[NextRandom() % parked_.size()]);
  size_t looks = 0;
  bool is_last_round = false;
  while (looks < kMaxLooks) {
    // What was seen before is rated anew: it may have been used, or have aged.
    before_.swap(best_);
    best_.clear();
    for (const Candidate& candidate : before_) {
      const Block& block = blocks_[candidate.block];
      if (block.is_known && block.leaf != 0 && !block.is_parked) Consider(candidate.block, now);
    }
    if (leaves_.size() <= kLookAtAll) {
      for (const BlockId id : leaves_) Consider(id, now);
    } else {
      for (int n = 0; n < kFresh; ++n) Consider(leaves_[NextRandom() % leaves_.size()], now);
    }
    before_ = best_;
    for (const Candidate& candidate : before_) {
      ++looks;
      if (allowed(candidate.block)) return candidate.block;
      Park(candidate.block);
    }
    best_.clear();
    if (!leaves_.empty()) continue;
    if (is_last_round) break;
    is_last_round = true;
    while (!parked_.empty()) Unpark(parked_.back());
  }
  return kNoBlock;
}

}  // namespace terrace::tiering
