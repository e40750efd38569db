// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/catalog.h"

#include <algorithm>
#include <cstring>

#include "kvstore/base/block_copy.h"
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

Catalog::Catalog(const Options& options, Policies policies, HostTier* tier,
                 const kv::KeySpaceTable* key_spaces, const Clock* clock, const Counters& counters)
    : tier_(tier),
      key_spaces_(key_spaces),
      clock_(clock),
      counters_(counters),
      options_(options),
      index_(options.capacity, options.hash_seed),
      misses_(std::clamp<uint64_t>(options.capacity * 2, 1 << 12, 1 << 20), options.hash_seed + 1),
      links_(index_.capacity()),
      policies_(std::move(policies)),
      state_(index_.capacity()) {
  MutexLock lock(&touch_mu_);
  touches_.reserve(kMaxTouches);
}

uint64_t Catalog::Fingerprint(const KeySpace& key_space, const BlockKey& key) {
  uint64_t seed;
  std::memcpy(&seed, key_space.digest.data(), sizeof(seed));
  return Checksum64(key.bytes.data(), key.bytes.size(), seed);
}

const KeySpace* Catalog::KeySpaceOf(const PrefixIndex::Entry& entry) const {
  if (entry.frame == kNoFrame) return nullptr;
  return key_spaces_->Find(tier_->pool().TenantOf(entry.frame), entry.key_space);
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

Reason Catalog::WhyMissing(const KeySpace& key_space, const BlockKey& key, Reason* why_empty) const {
  const Reason known = misses_.Recall(key_space.id, key);
  if (known != Reason::kCold || key_space.blocks_stored.load(std::memory_order_relaxed) > 0) return known;
  if (why_empty != nullptr && *why_empty != Reason::kNone) return *why_empty;
  const Reason why = is_below_ && is_below_(key_space) ? Reason::kCold : key_spaces_->WhyEmpty(key_space);
  if (why_empty != nullptr) *why_empty = why;
  return why;
}

void Catalog::DrainTouchesLocked() {
  draining_.clear();
  {
    MutexLock lock(&touch_mu_);
    if (touches_.empty()) return;
    draining_.swap(touches_);
    touches_.reserve(kMaxTouches);
  }
  const int64_t now_ns = clock_->NowNs();
  for (const BlockId block : draining_) PolicyOf(block)->OnAccess(block, now_ns);
}

std::optional<FrameId> Catalog::PinIfHere(const KeySpace& key_space, const BlockKey& key) const {
  PrefixIndex::Found found;
  bool refused;
  index_.FindChain(key_space.id, {&key, 1}, true, &tier_->pool(), [](uint64_t) { return true; }, {&found, 1},
                   &refused);
  if (found.block == kNoBlock) return std::nullopt;
  return found.frame;
}

std::optional<FrameId> Catalog::Allocate(const KeySpace& wanted, bool may_evict) {
  const kv::TenantId tenant = wanted.tenant;
  const uint64_t block_bytes = wanted.identity.block_bytes;
  if (const auto frame = tier_->TryAllocate(tenant, block_bytes)) return frame;
  full_at_bytes_.store(std::max<uint64_t>(1, tier_->pool().GetUsage().used_bytes), std::memory_order_relaxed);
  if (!may_evict) return std::nullopt;
  if (!tier_->MayFit(block_bytes)) return std::nullopt;
  forced_evictions_.fetch_add(1, std::memory_order_relaxed);
  {
    MutexLock lock(&mu_);
    DrainTouchesLocked();
  }
  for (int evicted = 0; evicted < kMaxEvictionsPerStore; ++evicted) {
    const std::optional<Evicted> victim = EvictOne(wanted);
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

std::vector<int> Catalog::ClassesToTakeFromLocked(std::optional<int> wanted) const {
  const auto borrowed = [this](int c) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return static_cast<int64_t>(used_bytes_[c]) - static_cast<int64_t>(options_.floor_bytes[c]);
  };
  std::vector<int> classes;
  for (int c = 0; c < kBlockClasses; ++c) {
    if (used_blocks_[c] > 0 && (c == wanted || borrowed(c) > 0)) classes.push_back(c);
  }
  std::sort(classes.begin(), classes.end(), [&](int a, int b) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return borrowed(a) > borrowed(b);
  });
  return classes;
}

bool Catalog::MayGoLocked(BlockId block, int64_t now_ns) const {
  const FrameId frame = index_.Get(block).frame;
  if (frame == kNoFrame || tier_->pool().IsPinned(frame)) return false;
  if (hint_pins_.empty()) return true;
  const auto pin = hint_pins_.find(block);
  return pin == hint_pins_.end() || pin->second.until_ns <= now_ns;
}

std::optional<Catalog::Evicted> Catalog::EvictOne(const KeySpace& wanted) {
  MutexLock lock(&mu_);
  const int64_t now_ns = clock_->NowNs();
  const int own = wanted.identity.block_class;
  for (const int from : ClassesToTakeFromLocked(own)) {
    while (true) {
      const BlockId victim = policies_[from]->Victim(
          [this, now_ns](BlockId block) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
            return !links_.HasChildren(block) && MayGoLocked(block, now_ns);
          },
          now_ns);
      if (victim == kNoBlock) break;
      const PrefixIndex::Entry entry = index_.Get(victim);
      const KeySpace* of = KeySpaceOf(entry);
      if (from != own && of != nullptr &&
          used_bytes_[from] < options_.floor_bytes[from] + of->identity.block_bytes) {
        break;  // it would fall below its floor
      }
      const bool same_shape =
          tier_->pool().SameShape(entry.frame, wanted.tenant, wanted.identity.block_bytes);
      if (EvictLocked(victim, false)) return Evicted{entry.frame, same_shape};  // else pinned a moment ago
    }
  }
  return std::nullopt;
}

bool Catalog::EvictLocked(BlockId victim, bool demoted) {
  const PrefixIndex::Entry entry = index_.Get(victim);
  const KeySpace* key_space = KeySpaceOf(entry);
  if (key_space == nullptr || !RemoveLocked(*key_space, victim, entry.frame, false, Reason::kEvicted)) {
    return false;
  }
  (demoted ? counters_.demote_evictions : counters_.evictions)->Add();
  (demoted ? counters_.demote_evicted_bytes : counters_.evicted_bytes)->Add(key_space->identity.block_bytes);
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
  used_bytes_[key_space.identity.block_class] -= key_space.identity.block_bytes;
  --used_blocks_[key_space.identity.block_class];
  UnpinByHintLocked(block);
  PolicyOf(block)->OnErase(block, why == Reason::kEvicted);
  ForgetLocked(block);
  tier_->Retire(frame);
  return true;
}

// Frees the entry, and those of parents that were removed before their last child.
void Catalog::ForgetLocked(BlockId block) {
  while (block != kNoBlock && !links_.HasChildren(block) && index_.Get(block).frame == kNoFrame) {
    const BlockId parent = links_.Remove(block);
    if ((state_[block] & kLeavingBit) != 0 && parent != kNoBlock) {
      const auto it = leaving_children_.find(parent);
      if (it != leaving_children_.end() && --it->second == 0) leaving_children_.erase(it);
    }
    state_[block] = 0;
    leaving_children_.erase(block);
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
                        const std::optional<BlockKey>& parent, FrameId frame, const RetentionHint& hint,
                        std::optional<uint32_t> as_of_flushes) {
  MutexLock lock(&mu_);
  if (as_of_flushes.has_value() && key_space.flushes.load(std::memory_order_relaxed) != *as_of_flushes) {
    tier_->Retire(frame);
    return Reason::kFlushed;
  }
  // What was used before this block came must not seem used after it, nor be taken for its use.
  DrainTouchesLocked();
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
  const int64_t now_ns = clock_->NowNs();
  if (parent_block != kNoBlock && PolicyOf(parent_block)->IsStale(parent_block)) {
    for (BlockId b = parent_block; b != kNoBlock; b = links_.Parent(b)) PolicyOf(b)->OnAccess(b, now_ns);
  }
  const int of_class = key_space.identity.block_class;
  state_[block] = static_cast<uint8_t>(of_class | (hint.done ? kDoneBit : 0));
  used_bytes_[of_class] += key_space.identity.block_bytes;
  ++used_blocks_[of_class];
  links_.Add(block, parent_block);
  policies_[of_class]->OnInsert(
      block, {.parent = parent_block, .fingerprint = Fingerprint(key_space, key), .hint = hint}, now_ns);
  if (hint.pin_until_ns > now_ns) PinByHintLocked(block, key_space, hint.pin_until_ns);
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
  {
    MutexLock lock(&mu_);  // who publishes later sees it, what was published before is found below
    for (const KeySpace* of : key_spaces_->List()) {
      if (key_space == nullptr || of == key_space) of->flushes.fetch_add(1, std::memory_order_relaxed);
    }
  }
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
  if (block == kNoBlock) return false;  // found in the moment between its insertion and its frame's knowing
  MutexLock lock(&mu_);
  return links_.HasChildren(block);
}

uint64_t Catalog::TableBytes() const {
  return index_.TouchedBytes() + index_.size() * (kBytesPerBlock - 45);
}

}  // namespace terrace::tiering
