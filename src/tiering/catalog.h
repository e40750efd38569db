// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Catalog: which block is in which frame, and which goes when room is needed. Ties the index, the chain
// links, the eviction policy and the memory of misses together, so that they never disagree.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/metrics.h"
#include "kvstore/base/mutex.h"
#include "kvstore/base/reason.h"
#include "kvstore/chain_links.h"
#include "kvstore/key_space.h"
#include "kvstore/miss_memory.h"
#include "kvstore/prefix_index.h"
#include "tiering/host_tier.h"
#include "tiering/policy/eviction_policy.h"

namespace terrace::tiering {

// Owner: TierStack. Threads: any. Locks: mu_ before an index shard's before the pool's. Find takes
// shards only; publishing and removing are serialised by mu_.
// Limits: capacity blocks; kMaxTouches access records wait for the policy, more are dropped; pins by hints
// take at most max_pin_bytes a tenant.
class Catalog {
 public:
  struct Counters {  // all made by the caller, outlive the catalogue
    Counter* evictions = nullptr;
    Counter* evicted_bytes = nullptr;
    Counter* demote_evictions = nullptr;  // those that left for a lower tier
    Counter* demote_evicted_bytes = nullptr;
    Counter* moved_bytes = nullptr;
    Counter* integrity_failures = nullptr;
  };
  // One policy for each class of blocks.
  using Policies = std::array<std::unique_ptr<EvictionPolicy>, kBlockClasses>;
  struct Options {
    uint64_t capacity = 0;  // blocks
    uint64_t hash_seed = 0;
    std::array<uint64_t, kBlockClasses> floor_bytes{};  // the other class evicts nothing below it
    uint64_t max_pin_bytes = 0;
  };
  Catalog(const Options& options, Policies policies, HostTier* tier, const kv::KeySpaceTable* key_spaces,
          const Clock* clock, const Counters& counters);

  // Finds and (pin) pins; see PrefixIndex::FindChain. What was found counts as used now.
  uint32_t Find(const kv::KeySpace& key_space, std::span<const kv::BlockKey> keys, bool stop_at_miss,
                bool pin, absl::FunctionRef<bool(uint64_t)> may_pin,
                std::span<kv::PrefixIndex::Found> found, bool* refused);
  // why_empty: for several keys in a row; what was found out about the key space as a whole, which is costly.
  Reason WhyMissing(const kv::KeySpace& key_space, const kv::BlockKey& key, Reason* why_empty = nullptr) const;
  // Whether a lower tier may hold blocks of a key space: then it is not empty. Set before the first call.
  void SetIsBelow(std::function<bool(const kv::KeySpace&)> is_below) { is_below_ = std::move(is_below); }
  // Why the next asker will not find it.
  void RememberMiss(const kv::KeySpace& key_space, const kv::BlockKey& key, Reason why) {
    misses_.Remember(key_space.id, key, why);
  }

  // A frame to fill, evicting what has to go if may_evict. nullopt: nothing may go.
  std::optional<kv::FrameId> Allocate(const kv::KeySpace& key_space, bool may_evict = true);
  // Keeps a block that is here from being evicted, until HostTier::Unpin of the frame.
  std::optional<kv::FrameId> PinIfHere(const kv::KeySpace& key_space, const kv::BlockKey& key) const;
  // Of a block that is here, if it was published behind a block that was.
  std::optional<kv::BlockKey> ParentOf(const kv::KeySpace& key_space, const kv::BlockKey& key) const;
  // Makes a filled frame (header written, MakeReady done) visible. kNone, kDuplicate (the frame is given
  // back), kBudget (table full, given back), or kFlushed: the key space was flushed since its count of
  // flushes was as_of_flushes (given back).
  Reason Publish(const kv::KeySpace& key_space, const kv::BlockKey& key,
                 const std::optional<kv::BlockKey>& parent, kv::FrameId frame, const RetentionHint& hint,
                 std::optional<uint32_t> as_of_flushes = std::nullopt);

  // Takes the block out of sight if it is still in this frame; its memory goes with its last pin.
  // Counts and logs a kCorrupt one.
  bool Drop(const kv::KeySpace& key_space, const kv::BlockKey& key, kv::FrameId frame, Reason why);
  uint64_t Flush(const kv::KeySpace* key_space);  // nullptr: all

  // Gives a hint to what is here of these blocks; a pin that the tenant's share has no room for is left
  // out. Returns how many blocks are here.
  uint32_t Hint(const kv::KeySpace& key_space, std::span<const kv::BlockKey> keys, const RetentionHint& hint);
  // Hands waiting access records to the policies and ends pins whose time is up.
  void Step();

  // A block that is about to leave for a lower tier. Its frame is pinned until EndCopy.
  struct Departure {
    kv::BlockId block = kv::kNoBlock;
    kv::FrameId frame = kv::kNoFrame;
    const kv::KeySpace* key_space = nullptr;
    kv::BlockKey key;
    std::optional<kv::BlockKey> parent;
    uint64_t fingerprint = 0;
    uint32_t uses = 0;
    double reuse_chance = -1;  // EvictionPolicy::ReuseChance within the asked time
    uint32_t depth = 0;        // blocks before it in its chain, up to max_depth
    uint32_t as_of_flushes = 0;
    bool done = false;  // a client said that it will not be used again
  };
  // The block that would go next, children before parents: a parent follows as soon as all its children
  // are on their way. nullopt: nothing may go.
  // horizon_ns: for reuse_chance.
  std::optional<Departure> BeginDeparture(int64_t horizon_ns, uint32_t max_depth);
  // The blocks before it in its chain, nearest first, at most max: up to the first for which stop() holds
  // (under the catalogue's lock: it may take leaf locks only). They stay here; nothing is pinned.
  std::vector<Departure> Before(const Departure& departure, int64_t horizon_ns, uint32_t max,
                                absl::FunctionRef<bool(const kv::BlockKey&)> stop);
  // A block that is to be copied and stays. Its frame is pinned until EndCopy. nullopt: it is not here.
  std::optional<Departure> BeginCopy(const kv::KeySpace& key_space, const kv::BlockKey& key);
  void EndCopy(const Departure& departure) { tier_->Unpin(departure.frame); }
  // After EndCopy. leave: take it out of sight if nobody holds it meanwhile; else it stays.
  void EndDeparture(const Departure& departure, bool leave);

  // A block of an earlier process, found in this (ready) frame. False: it is here already or there is no
  // room in the tables; the frame is the caller's. Tags: of the first 24 bytes of the block's and its
  // parent's key, see TagOf; 0: no parent.
  bool Adopt(const kv::KeySpace& key_space, const kv::BlockKey& key, kv::FrameId frame, uint64_t own_tag,
             uint64_t parent_tag);
  static uint64_t TagOf(kv::KeySpaceId key_space, const uint8_t* first_24_bytes);
  // After the last Adopt: ties children to their parents.
  void LinkAdopted();

  static uint64_t Fingerprint(const kv::KeySpace& key_space, const kv::BlockKey& key);

  const kv::PrefixIndex& index() const { return index_; }
  bool HasChildren(kv::BlockId block) const;
  uint64_t TableBytes() const;
  uint64_t dropped_touches() const { return dropped_touches_.load(std::memory_order_relaxed); }
  struct ClassStats {
    uint64_t used_bytes = 0, blocks = 0, floor_bytes = 0;
    EvictionPolicy::Stats policy;
  };
  ClassStats GetClassStats(BlockClass block_class) const;
  // Times that a store had to evict on its own because nothing was free.
  uint64_t forced_evictions() const { return forced_evictions_.load(std::memory_order_relaxed); }
  // Payload bytes in use when the last allocation found no room: what this tier really holds of the
  // present mix of block sizes. 0: it was never full.
  uint64_t full_at_bytes() const { return full_at_bytes_.load(std::memory_order_relaxed); }

  // What index, links, class marks and policy (the default one, with its history and guard) spend on a block.
  static constexpr uint64_t kBytesPerBlock = 40 + 5 + 8 + 1 + 74;

 private:
  static constexpr size_t kMaxTouches = 1 << 16;
  static constexpr int kMaxEvictionsPerStore = 4096;
  static constexpr int kMaxSegmentsPerStore = 1024;

  struct Evicted {
    kv::FrameId frame;
    bool same_shape;  // its frame serves the block that needs room
  };
  // nullopt: nothing may go.
  std::optional<Evicted> EvictOne(const kv::KeySpace& wanted);
  // Classes to take from, the one that has borrowed most first. wanted may always take from its own.
  std::vector<int> ClassesToTakeFromLocked(std::optional<int> wanted) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Departure DescribeLocked(kv::BlockId block, const kv::KeySpace* key_space, int64_t horizon_ns)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool MayGoLocked(kv::BlockId block, int64_t now_ns) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  const kv::KeySpace* KeySpaceOf(const kv::PrefixIndex::Entry& entry) const;
  EvictionPolicy* PolicyOf(kv::BlockId block) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return policies_[block < state_.size() ? state_[block] & kClassBit : 0].get();
  }
  void PinByHintLocked(kv::BlockId block, const kv::KeySpace& key_space, int64_t until_ns)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void UnpinByHintLocked(kv::BlockId block) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Moves the blocks of one slab into free frames of others, so that the slab can change its size.
  void Evacuate(kv::FrameId like);
  bool EvictLocked(kv::BlockId victim, bool demoted) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool RemoveLocked(const kv::KeySpace& key_space, kv::BlockId block, kv::FrameId frame, bool even_pinned,
                    Reason why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ForgetLocked(kv::BlockId block) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DrainTouchesLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  static constexpr uint8_t kClassBit = 1, kLeavingBit = 2, kDoneBit = 4;
  struct HintPin {
    int64_t until_ns;
    uint64_t bytes;
    kv::TenantId tenant;
  };
  struct Orphan {  // adopted, parent not yet known
    kv::BlockId block;
    kv::BlockKey key;
    kv::KeySpaceId key_space;
    uint64_t parent_tag;
  };

  HostTier* const tier_;
  const kv::KeySpaceTable* const key_spaces_;
  const Clock* const clock_;
  const Counters counters_;
  const Options options_;
  kv::PrefixIndex index_;
  mutable kv::MissMemory misses_;
  std::function<bool(const kv::KeySpace&)> is_below_;  // empty: there is no lower tier
  std::atomic<uint64_t> dropped_touches_{0}, forced_evictions_{0}, full_at_bytes_{0};

  mutable Mutex mu_;
  kv::ChainLinks links_ ABSL_GUARDED_BY(mu_);
  const Policies policies_ ABSL_GUARDED_BY(mu_);
  LazyArray<uint8_t> state_ ABSL_GUARDED_BY(mu_);  // class and marks of a block
  std::array<uint64_t, kBlockClasses> used_bytes_ ABSL_GUARDED_BY(mu_){}, used_blocks_ ABSL_GUARDED_BY(mu_){};
  // By parent: children that are on their way out.
  absl::flat_hash_map<kv::BlockId, uint32_t> leaving_children_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<kv::BlockId, HintPin> hint_pins_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<kv::TenantId, uint64_t> hint_pinned_bytes_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<uint64_t, kv::BlockId> adopted_by_tag_ ABSL_GUARDED_BY(mu_);
  std::vector<Orphan> orphans_ ABSL_GUARDED_BY(mu_);
  std::vector<kv::BlockId> draining_ ABSL_GUARDED_BY(mu_);

  Mutex touch_mu_ ABSL_ACQUIRED_AFTER(mu_);
  std::vector<kv::BlockId> touches_ ABSL_GUARDED_BY(touch_mu_);
};

}  // namespace terrace::tiering
