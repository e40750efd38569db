// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Catalog: which block is in which frame, and which goes when room is needed. Ties the index, the chain
// links, the eviction policy and the memory of misses together, so that they never disagree.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
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
// Limits: capacity blocks; kMaxTouches access records wait for the policy, more are dropped.
class Catalog {
 public:
  struct Counters {  // all made by the caller, outlive the catalogue
    Counter* evictions = nullptr;
    Counter* evicted_bytes = nullptr;
    Counter* moved_bytes = nullptr;
    Counter* integrity_failures = nullptr;
  };
  Catalog(uint64_t capacity, uint64_t hash_seed, std::unique_ptr<EvictionPolicy> policy, HostTier* tier,
          const kv::KeySpaceTable* key_spaces, const Counters& counters);

  // Finds and (pin) pins; see PrefixIndex::FindChain. What was found counts as used now.
  uint32_t Find(const kv::KeySpace& key_space, std::span<const kv::BlockKey> keys, bool stop_at_miss,
                bool pin, absl::FunctionRef<bool(uint64_t)> may_pin,
                std::span<kv::PrefixIndex::Found> found, bool* refused);
  Reason WhyMissing(const kv::KeySpace& key_space, const kv::BlockKey& key) const;

  // A frame to fill, evicting what has to go if may_evict. nullopt: nothing may go.
  std::optional<kv::FrameId> Allocate(kv::TenantId tenant, uint64_t block_bytes, bool may_evict = true);
  // Keeps a block that is here from being evicted, until HostTier::Unpin of the frame.
  std::optional<kv::FrameId> PinIfHere(const kv::KeySpace& key_space, const kv::BlockKey& key);
  // Makes a filled frame (header written, MakeReady done) visible. kNone, kDuplicate (the frame is given
  // back) or kBudget (table full, given back).
  Reason Publish(const kv::KeySpace& key_space, const kv::BlockKey& key,
                 const std::optional<kv::BlockKey>& parent, kv::FrameId frame);

  // Takes the block out of sight if it is still in this frame; its memory goes with its last pin.
  // Counts and logs a kCorrupt one.
  bool Drop(const kv::KeySpace& key_space, const kv::BlockKey& key, kv::FrameId frame, Reason why);
  uint64_t Flush(const kv::KeySpace* key_space);  // nullptr: all

  // Hands waiting access records to the policy.
  void DrainTouches();

  const kv::PrefixIndex& index() const { return index_; }
  bool HasChildren(kv::BlockId block) const;
  uint64_t TableBytes() const;
  uint64_t dropped_touches() const { return dropped_touches_.load(std::memory_order_relaxed); }

  // What index, links and policy spend on one block.
  static constexpr uint64_t kBytesPerBlock = 40 + 5 + 8 + 12;

 private:
  static constexpr size_t kMaxTouches = 1 << 16;
  static constexpr int kMaxEvictionsPerStore = 4096;
  static constexpr int kMaxSegmentsPerStore = 1024;

  struct Evicted {
    kv::FrameId frame;
    bool same_shape;  // its frame serves the block that needs room
  };
  // nullopt: nothing may go.
  std::optional<Evicted> EvictOne(kv::TenantId tenant, uint64_t block_bytes);
  // Moves the blocks of one slab into free frames of others, so that the slab can change its size.
  void Evacuate(kv::FrameId like);
  bool EvictLocked(kv::BlockId victim) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool RemoveLocked(const kv::KeySpace& key_space, kv::BlockId block, kv::FrameId frame, bool even_pinned,
                    Reason why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ForgetLocked(kv::BlockId block) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DrainTouchesLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  HostTier* const tier_;
  const kv::KeySpaceTable* const key_spaces_;
  const Counters counters_;
  kv::PrefixIndex index_;
  kv::MissMemory misses_;
  std::atomic<uint64_t> dropped_touches_{0};

  mutable Mutex mu_;
  kv::ChainLinks links_ ABSL_GUARDED_BY(mu_);
  const std::unique_ptr<EvictionPolicy> policy_ ABSL_PT_GUARDED_BY(mu_);
  std::vector<kv::BlockId> draining_ ABSL_GUARDED_BY(mu_);

  Mutex touch_mu_ ABSL_ACQUIRED_AFTER(mu_);
  std::vector<kv::BlockId> touches_ ABSL_GUARDED_BY(touch_mu_);
};

}  // namespace terrace::tiering
