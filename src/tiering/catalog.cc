// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/catalog.h"

#include <algorithm>

#include "kvstore/base/check.h"
#include "kvstore/base/log.h"

namespace terrace::tiering {

using kv::BlockId;
using kv::BlockKey;
using kv::FrameId;
using kv::kNoBlock;
using kv::kNoFrame;
using kv::KeySpace;
using kv::PrefixIndex;

Catalog::Catalog(uint64_t capacity, uint64_t hash_seed, std::unique_ptr<EvictionPolicy> policy,
                 HostTier* tier, const kv::KeySpaceTable* key_spaces, const Counters& counters)
    : tier_(tier),
      key_spaces_(key_spaces),
      counters_(counters),
      index_(capacity, hash_seed),
      misses_(std::clamp<uint64_t>(capacity * 2, 1 << 12, 1 << 20), hash_seed + 1),
      links_(index_.capacity()),
      policy_(std::move(policy)) {
  MutexLock lock(&touch_mu_);
  touches_.reserve(kMaxTouches);
}

uint32_t Catalog::Find(const KeySpace& key_space, std::span<const BlockKey> keys, bool stop_at_miss,
                       bool pin, absl::FunctionRef<bool(uint64_t)> may_pin,
                       std::span<PrefixIndex::Found> found, bool* refused) {
  const uint32_t n =
      index_.FindChain(key_space.id, keys, stop_at_miss, pin ? &tier_->pool() : nullptr, may_pin, found, refused);
  if (n == 0) return 0;
  bool crowded;
  {
    MutexLock lock(&touch_mu_);
    const size_t room = kMaxTouches - touches_.size();
    size_t left = std::min<size_t>(n, room);
    // Tail first, so that parents end up hotter than their children.
    for (size_t i = found.size(); i-- > 0 && left > 0;) {
      if (found[i].block == kNoBlock) continue;
      touches_.push_back(found[i].block);
      --left;
    }
    if (n > room) dropped_touches_.fetch_add(n - room, std::memory_order_relaxed);
    crowded = touches_.size() > kMaxTouches / 2;
  }
  if (crowded && mu_.TryLock()) {
    DrainTouchesLocked();
    mu_.Unlock();
  }
  return n;
}

Reason Catalog::WhyMissing(const KeySpace& key_space, const BlockKey& key) const {
  if (key_space.blocks_stored.load(std::memory_order_relaxed) == 0) return key_spaces_->WhyEmpty(key_space);
  return misses_.Recall(key_space.id, key);
}

void Catalog::DrainTouches() {
  MutexLock lock(&mu_);
  DrainTouchesLocked();
}

void Catalog::DrainTouchesLocked() {
  draining_.clear();
  {
    MutexLock lock(&touch_mu_);
    draining_.swap(touches_);
    touches_.reserve(kMaxTouches);
  }
  for (const BlockId block : draining_) policy_->OnAccess(block, 0);
}

std::optional<FrameId> Catalog::PinIfHere(const KeySpace& key_space, const BlockKey& key) {
  PrefixIndex::Found found;
  bool refused;
  index_.FindChain(key_space.id, {&key, 1}, true, &tier_->pool(), [](uint64_t) { return true; }, {&found, 1},
                   &refused);
  if (found.block == kNoBlock) return std::nullopt;
  return found.frame;
}

std::optional<FrameId> Catalog::Allocate(kv::TenantId tenant, uint64_t block_bytes, bool may_evict) {
  if (const auto frame = tier_->TryAllocate(tenant, block_bytes)) return frame;
  if (!may_evict) return std::nullopt;
  if (!tier_->MayFit(block_bytes)) return std::nullopt;
  DrainTouches();
  for (int evicted = 0; evicted < kMaxEvictionsPerStore; ++evicted) {
    const std::optional<Evicted> victim = EvictOne(tenant, block_bytes);
    if (!victim.has_value()) return std::nullopt;
    if (!victim->same_shape) {
      // Room of another size: make whole slabs of it, and segments where they are another tenant's.
      Evacuate(victim->frame);
      for (int n = 0; n < kMaxSegmentsPerStore && tier_->GiveUpEmptySegment(tenant); ++n) {
        if (const auto frame = tier_->TryAllocate(tenant, block_bytes)) return frame;
      }
    }
    if (const auto frame = tier_->TryAllocate(tenant, block_bytes)) return frame;
  }
  return std::nullopt;
}

std::optional<Catalog::Evicted> Catalog::EvictOne(kv::TenantId tenant, uint64_t block_bytes) {
  MutexLock lock(&mu_);
  while (true) {
    const BlockId victim = policy_->Victim([this](BlockId block) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      if (links_.HasChildren(block)) return false;
      const FrameId frame = index_.Get(block).frame;
      return frame != kNoFrame && !tier_->pool().IsPinned(frame);
    }, 0);
    if (victim == kNoBlock) return std::nullopt;
    const FrameId frame = index_.Get(victim).frame;
    const bool same_shape = tier_->pool().SameShape(frame, tenant, block_bytes);
    if (EvictLocked(victim)) return Evicted{frame, same_shape};  // else pinned a moment ago: the next
  }
}

bool Catalog::EvictLocked(BlockId victim) {
  const PrefixIndex::Entry entry = index_.Get(victim);
  const KeySpace* key_space = nullptr;
  if (entry.frame != kNoFrame) {
    key_space = key_spaces_->Find(tier_->pool().TenantOf(entry.frame), entry.key_space);
  }
  if (key_space == nullptr || !RemoveLocked(*key_space, victim, entry.frame, false, Reason::kEvicted)) {
    return false;
  }
  counters_.evictions->Add();
  counters_.evicted_bytes->Add(key_space->identity.block_bytes);
  return true;
}

bool Catalog::RemoveLocked(const KeySpace& key_space, BlockId block, FrameId frame, bool even_pinned,
                           Reason why) {
  const PrefixIndex::Entry entry = index_.Get(block);
  const bool removed = index_.Remove(block, frame, [&](FrameId f) {
    return even_pinned || !tier_->pool().IsPinned(f);
  });
  if (!removed) return false;
  misses_.Remember(entry.key_space, entry.key, why);
  key_space.blocks_resident.fetch_sub(1, std::memory_order_relaxed);
  ForgetLocked(block);
  tier_->Retire(frame);
  return true;
}

// Frees the entry, and those of parents that were removed before their last child.
void Catalog::ForgetLocked(BlockId block) {
  policy_->OnErase(block, true);
  while (block != kNoBlock && !links_.HasChildren(block) && index_.Get(block).frame == kNoFrame) {
    const BlockId parent = links_.Remove(block);
    index_.FreeEntry(block);
    block = parent;
  }
}

void Catalog::Evacuate(FrameId like) {
  kv::FramePool& pool = tier_->pool();
  struct Step {
    BlockId block;
    const KeySpace* key_space;
    BlockKey key;
    FrameId source;
    std::optional<FrameId> target;
    bool intact = false;
  };
  std::vector<Step> steps;
  std::optional<kv::FramePool::Evacuation> evacuation;
  {
    MutexLock lock(&mu_);
    evacuation = pool.BeginEvacuation(like);
    if (!evacuation.has_value()) return;
    for (const FrameId source : evacuation->frames) {
      const BlockId block = pool.PlaceOf(source).block;
      if (block == kNoBlock) continue;
      const PrefixIndex::Entry entry = index_.Get(block);
      const KeySpace* key_space = key_spaces_->Find(pool.TenantOf(source), entry.key_space);
      if (entry.frame != source || key_space == nullptr) continue;
      pool.Pin(source);  // nobody evicts it while it is copied
      steps.push_back({block, key_space, entry.key, source, std::nullopt});
    }
  }
  for (Step& step : steps) {
    bool no_metadata;
    step.target = pool.Allocate(step.key_space->tenant, step.key_space->identity.block_bytes, &no_metadata);
    step.intact = step.target.has_value() &&
                  tier_->CopyFrame(step.source, *step.target, *step.key_space, step.key);
  }
  for (const Step& step : steps) {
    if (step.target.has_value() && !step.intact) {
      tier_->Abandon(*step.target);
      Drop(*step.key_space, step.key, step.source, Reason::kCorrupt);
    } else if (step.target.has_value()) {
      MutexLock lock(&mu_);
      if (index_.Move(step.block, step.source, *step.target,
                      [&](FrameId f) { return pool.Pins(f) == 1; })) {
        pool.SetBlock(*step.target, step.block);
        counters_.moved_bytes->Add(step.key_space->identity.block_bytes);
        tier_->Retire(step.source);
      } else {
        tier_->Retire(*step.target);  // leased or flushed while it was copied
      }
    }
    tier_->Unpin(step.source);
  }
  pool.EndEvacuation(*evacuation);
}

Reason Catalog::Publish(const KeySpace& key_space, const BlockKey& key,
                        const std::optional<BlockKey>& parent, FrameId frame) {
  MutexLock lock(&mu_);
  BlockId block;
  const PrefixIndex::Inserted inserted = index_.Insert(key_space.id, key, frame, &block);
  if (inserted != PrefixIndex::Inserted::kYes) {
    tier_->Retire(frame);
    return inserted == PrefixIndex::Inserted::kPresent ? Reason::kDuplicate : Reason::kBudget;
  }
  BlockId parent_block = kNoBlock;
  if (parent.has_value() && *parent != key) {
    if (const auto found = index_.Find(key_space.id, *parent)) parent_block = found->block;
  }
  if (parent_block != kNoBlock && policy_->IsStale(parent_block)) {
    for (BlockId b = parent_block; b != kNoBlock; b = links_.Parent(b)) policy_->OnAccess(b, 0);
  }
  links_.Add(block, parent_block);
  policy_->OnInsert(block, {.parent = parent_block}, 0);
  tier_->pool().SetBlock(frame, block);
  key_space.blocks_stored.fetch_add(1, std::memory_order_relaxed);
  key_space.blocks_resident.fetch_add(1, std::memory_order_relaxed);
  return Reason::kNone;
}

bool Catalog::Drop(const KeySpace& key_space, const BlockKey& key, FrameId frame, Reason why) {
  {
    MutexLock lock(&mu_);
    const auto found = index_.Find(key_space.id, key);
    if (!found.has_value() || found->frame != frame ||
        !RemoveLocked(key_space, found->block, frame, true, why)) {
      return false;
    }
  }
  if (why == Reason::kCorrupt) {
    counters_.integrity_failures->Add();
    Log(LogLevel::kError, "block_corrupt", {{"key", key.ToShortHex()}, {"tier", "host"}});
  }
  return true;
}

uint64_t Catalog::Flush(const KeySpace* key_space) {
  uint64_t flushed = 0;
  // Children first would be right; order does not matter here because all of a key space go.
  index_.ForEach([&](BlockId block, const PrefixIndex::Entry& entry) {
    if (key_space != nullptr && entry.key_space != key_space->id) return true;
    MutexLock lock(&mu_);
    const PrefixIndex::Entry now = index_.Get(block);
    if (now.frame == kNoFrame || now.key != entry.key || now.key_space != entry.key_space) return true;
    const KeySpace* of = key_spaces_->Find(tier_->pool().TenantOf(now.frame), now.key_space);
    flushed += of != nullptr && RemoveLocked(*of, block, now.frame, true, Reason::kFlushed);
    return true;
  });
  return flushed;
}

bool Catalog::HasChildren(BlockId block) const {
  MutexLock lock(&mu_);
  return links_.HasChildren(block);
}

uint64_t Catalog::TableBytes() const {
  return index_.TouchedBytes() + index_.size() * (kBytesPerBlock - 45);
}

}  // namespace terrace::tiering
