// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Catalog: how blocks come from an earlier process, are held by hints, and leave for a lower tier.
#include <algorithm>
#include <cstring>

#include "kvstore/base/block_copy.h"
#include "kvstore/base/check.h"
#include "tiering/catalog.h"

namespace terrace::tiering {

using kv::BlockId;
using kv::BlockKey;
using kv::FrameId;
using kv::kNoBlock;
using kv::kNoFrame;
using kv::KeySpace;
using kv::PrefixIndex;

void Catalog::Step() {
  MutexLock lock(&mu_);
  DrainTouchesLocked();
  const int64_t now_ns = clock_->NowNs();
  std::vector<BlockId> over;
  for (const auto& [block, pin] : hint_pins_) {
    if (pin.until_ns <= now_ns) over.push_back(block);
  }
  for (const BlockId block : over) UnpinByHintLocked(block);
}

uint32_t Catalog::Hint(const KeySpace& key_space, std::span<const BlockKey> keys, const RetentionHint& hint) {
  uint32_t here = 0;
  MutexLock lock(&mu_);
  const int64_t now_ns = clock_->NowNs();
  for (size_t i = keys.size(); i-- > 0;) {  // tail first, like accesses
    const auto found = index_.Find(key_space.id, keys[i]);
    if (!found.has_value()) continue;
    ++here;
    PolicyOf(found->block)->OnHint(found->block, hint, now_ns);
    state_[found->block] = static_cast<uint8_t>((state_[found->block] & ~kDoneBit) | (hint.done ? kDoneBit : 0));
    if (hint.pin_until_ns > now_ns) {
      PinByHintLocked(found->block, key_space, hint.pin_until_ns);
    } else {
      UnpinByHintLocked(found->block);
    }
  }
  return here;
}

void Catalog::PinByHintLocked(BlockId block, const KeySpace& key_space, int64_t until_ns) {
  const auto it = hint_pins_.find(block);
  if (it != hint_pins_.end()) {
    it->second.until_ns = until_ns;
    return;
  }
  uint64_t& pinned = hint_pinned_bytes_[key_space.tenant];
  const uint64_t bytes = key_space.identity.block_bytes;
  if (pinned + bytes > options_.max_pin_bytes) return;
  pinned += bytes;
  hint_pins_[block] = {until_ns, bytes, key_space.tenant};
}

void Catalog::UnpinByHintLocked(BlockId block) {
  const auto it = hint_pins_.find(block);
  if (it == hint_pins_.end()) return;
  hint_pinned_bytes_[it->second.tenant] -= it->second.bytes;
  hint_pins_.erase(it);
}

Catalog::Departure Catalog::DescribeLocked(BlockId block, const KeySpace* key_space, int64_t horizon_ns) {
  Departure departure;
  departure.block = block;
  departure.key_space = key_space;
  departure.key = index_.Get(block).key;
  departure.fingerprint = Fingerprint(*key_space, departure.key);
  departure.uses = PolicyOf(block)->Uses(block);
  departure.reuse_chance = PolicyOf(block)->ReuseChance(block, clock_->NowNs(), horizon_ns);
  departure.as_of_flushes = key_space->flushes.load(std::memory_order_relaxed);
  departure.done = (state_[block] & kDoneBit) != 0;
  if (const BlockId parent = links_.Parent(block); parent != kNoBlock) departure.parent = index_.Get(parent).key;
  return departure;
}

std::vector<Catalog::Departure> Catalog::Before(const Departure& departure, int64_t horizon_ns, uint32_t max,
                                                absl::FunctionRef<bool(const BlockKey&)> stop) {
  std::vector<Departure> before;
  MutexLock lock(&mu_);
  const PrefixIndex::Entry entry = index_.Get(departure.block);
  if (entry.frame == kNoFrame || entry.key != departure.key) return before;  // gone meanwhile
  for (BlockId above = links_.Parent(departure.block); above != kNoBlock && before.size() < max;
       above = links_.Parent(above)) {
    const PrefixIndex::Entry one = index_.Get(above);
    if (one.frame == kNoFrame || stop(one.key)) break;
    before.push_back(DescribeLocked(above, departure.key_space, horizon_ns));
  }
  return before;
}

std::optional<Catalog::Departure> Catalog::BeginCopy(const KeySpace& key_space, const BlockKey& key) {
  MutexLock lock(&mu_);
  const auto frame = PinIfHere(key_space, key);
  if (!frame.has_value()) return std::nullopt;
  const auto found = index_.Find(key_space.id, key);
  if (!found.has_value() || found->frame != *frame) {
    tier_->Unpin(*frame);
    return std::nullopt;
  }
  Departure departure = DescribeLocked(found->block, &key_space, 0);
  departure.frame = *frame;
  return departure;
}

std::optional<Catalog::Departure> Catalog::BeginDeparture(int64_t horizon_ns, uint32_t max_depth) {
  MutexLock lock(&mu_);
  DrainTouchesLocked();
  const int64_t now_ns = clock_->NowNs();
  for (const int from : ClassesToTakeFromLocked(std::nullopt)) {
    const BlockId block = policies_[from]->Victim(
        [this, now_ns](BlockId b) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
          if ((state_[b] & kLeavingBit) != 0) return false;
          if (const uint32_t children = links_.ChildCount(b); children != 0) {
            const auto it = leaving_children_.find(b);
            if (it == leaving_children_.end() || it->second != children) return false;
          }
          return MayGoLocked(b, now_ns);
        },
        now_ns);
    if (block == kNoBlock) continue;
    const PrefixIndex::Entry entry = index_.Get(block);
    const KeySpace* key_space = KeySpaceOf(entry);
    if (key_space == nullptr) continue;
    const auto frame = PinIfHere(*key_space, entry.key);
    if (!frame.has_value()) continue;
    Departure departure = DescribeLocked(block, key_space, horizon_ns);
    departure.frame = *frame;
    for (BlockId above = links_.Parent(block); above != kNoBlock && departure.depth < max_depth;
         above = links_.Parent(above)) {
      ++departure.depth;
    }
    state_[block] |= kLeavingBit;
    if (const BlockId parent = links_.Parent(block); parent != kNoBlock) ++leaving_children_[parent];
    return departure;
  }
  return std::nullopt;
}

std::optional<BlockKey> Catalog::ParentOf(const KeySpace& key_space, const BlockKey& key) const {
  MutexLock lock(&mu_);
  const auto found = index_.Find(key_space.id, key);
  if (!found.has_value() || found->block == kNoBlock) return std::nullopt;
  const BlockId parent = links_.Parent(found->block);
  if (parent == kNoBlock) return std::nullopt;
  return index_.Get(parent).key;
}

void Catalog::EndDeparture(const Departure& departure, bool leave) {
  MutexLock lock(&mu_);
  const BlockId block = departure.block;
  const PrefixIndex::Entry entry = index_.Get(block);
  // Evicted by need or flushed meanwhile, and its number perhaps another block's by now.
  if (entry.frame == kNoFrame || entry.key != departure.key || entry.key_space != departure.key_space->id ||
      (state_[block] & kLeavingBit) == 0) {
    return;
  }
  if (leave && !links_.HasChildren(block) && MayGoLocked(block, clock_->NowNs()) &&
      EvictLocked(block, true)) {
    return;
  }
  state_[block] = state_[block] & static_cast<uint8_t>(~kLeavingBit);
  if (const BlockId parent = links_.Parent(block); parent != kNoBlock) {
    const auto it = leaving_children_.find(parent);
    if (it != leaving_children_.end() && --it->second == 0) leaving_children_.erase(it);
  }
}

uint64_t Catalog::TagOf(kv::KeySpaceId key_space, const uint8_t* first_24_bytes) {
  const uint64_t tag = Checksum64(first_24_bytes, 24, key_space);
  return tag == 0 ? 1 : tag;
}

bool Catalog::Adopt(const KeySpace& key_space, const BlockKey& key, FrameId frame, uint64_t own_tag,
                    uint64_t parent_tag) {
  MutexLock lock(&mu_);
  BlockId block;
  if (index_.Insert(key_space.id, key, frame, &block) != PrefixIndex::Inserted::kYes) return false;
  const int of_class = key_space.identity.block_class;
  state_[block] = static_cast<uint8_t>(of_class);
  used_bytes_[of_class] += key_space.identity.block_bytes;
  ++used_blocks_[of_class];
  links_.Add(block, kNoBlock);
  policies_[of_class]->OnInsert(block, {.fingerprint = Fingerprint(key_space, key), .hint = {}},
                                clock_->NowNs());
  tier_->pool().SetBlock(frame, block);
  key_space.blocks_stored.fetch_add(1, std::memory_order_relaxed);
  key_space.blocks_resident.fetch_add(1, std::memory_order_relaxed);
  adopted_by_tag_[own_tag] = block;
  if (parent_tag != 0) orphans_.push_back({block, key, key_space.id, parent_tag});
  return true;
}

void Catalog::LinkAdopted() {
  constexpr size_t kPerLock = 4096;
  while (true) {
    MutexLock lock(&mu_);
    for (size_t n = 0; n < kPerLock && !orphans_.empty(); ++n) {
      const Orphan orphan = orphans_.back();
      orphans_.pop_back();
      const PrefixIndex::Entry entry = index_.Get(orphan.block);
      if (entry.frame == kNoFrame || entry.key != orphan.key || entry.key_space != orphan.key_space) continue;
      const auto parent = adopted_by_tag_.find(orphan.parent_tag);
      if (parent == adopted_by_tag_.end() || parent->second == orphan.block) continue;
      const PrefixIndex::Entry parent_entry = index_.Get(parent->second);
      if (parent_entry.frame == kNoFrame || parent_entry.key_space != orphan.key_space ||
          TagOf(parent_entry.key_space, parent_entry.key.bytes.data()) != orphan.parent_tag ||
          links_.Parent(orphan.block) != kNoBlock) {
        continue;
      }
      // Never a ring, whatever the headers say (a client chooses parents): along a chain the generation
      // only rises. A parent that was moved or stored again later stays without this child.
      const kv::FramePool& pool = tier_->pool();
      if (pool.PlaceOf(parent_entry.frame).generation < pool.PlaceOf(entry.frame).generation) {
        links_.SetParent(orphan.block, parent->second);
      }
    }
    if (!orphans_.empty()) continue;
    orphans_ = {};
    adopted_by_tag_ = {};
    return;
  }
}

Catalog::ClassStats Catalog::GetClassStats(BlockClass block_class) const {
  const int c = static_cast<int>(block_class);
  MutexLock lock(&mu_);
  return {used_bytes_[c], used_blocks_[c], options_.floor_bytes[c], policies_[c]->GetStats()};
}

}  // namespace terrace::tiering
