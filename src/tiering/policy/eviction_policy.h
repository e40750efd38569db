// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// EvictionPolicy: in which order blocks leave a tier. Knows blocks by number and fingerprint only: no
// keys, no bytes, no clock of its own, so that the daemon and the replayer use the same code.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvstore/frame_pool.h"
#include "tiering/policy/retention.h"

namespace terrace::tiering {

using kv::BlockId;
using kv::kNoBlock;

// Contract: a block is known from OnInsert to OnErase. Calls about unknown blocks are ignored (access
// records arrive late). A parent must never be named before its children by Victim's order alone: the
// caller reports accesses of a chain tail first, names the parent at insertion, and allows no block that
// has children.
// Every miss of an engine is followed by a store: OnInsert of a fingerprint that left before is how a
// policy learns that it was missed (ghosts).
// Threads: one at a time (under the catalogue's mutex). Times: any monotonic nanoseconds.
class EvictionPolicy {
 public:
  struct Insert {
    BlockId parent = kNoBlock;  // known block or kNoBlock
    uint64_t fingerprint = 0;   // of key space and key: equal for the same block's next life
    RetentionHint hint;
  };
  virtual ~EvictionPolicy() = default;
  virtual void OnInsert(BlockId block, const Insert& insert, int64_t now_ns) = 0;
  virtual void OnAccess(BlockId block, int64_t now_ns) = 0;
  virtual void OnHint(BlockId block, const RetentionHint& hint, int64_t now_ns) = 0;
  // evicted: it went to make room (worth a ghost); else it was dropped, flushed or moved elsewhere.
  virtual void OnErase(BlockId block, bool evicted) = 0;
  // True if the block was inserted or accessed so long ago that its chain should be accessed again
  // before a child is inserted under it.
  virtual bool IsStale(BlockId block) const = 0;
  // The block to go next for which allowed() holds, or kNoBlock. It stays known until OnErase; asked
  // again without an OnErase between it names the same or another one.
  virtual BlockId Victim(absl::FunctionRef<bool(BlockId)> allowed, int64_t now_ns) = 0;
  // Accesses since it was inserted, saturating at 3 or more. 0 for unknown blocks.
  virtual uint32_t Uses(BlockId block) const = 0;
  // Chance that the block is used within horizon_ns from now; below 0: this policy cannot tell.
  virtual double ReuseChance(BlockId /*block*/, int64_t /*now_ns*/, int64_t /*horizon_ns*/) const { return -1; }

  struct Stats {
    std::string name;        // what decides now: "terrace", or "lru" after a fall-back
    uint64_t ghost_hits = 0; // inserted again soon after it went: more room would have hit
    uint64_t fallbacks = 0;  // times the guard found the chosen policy worse than LRU
    double shadow_lru_delta = 0;  // hit ratio of the chosen policy minus that of LRU, last window
  };
  virtual Stats GetStats() const = 0;
};

// The names that MakeEvictionPolicy takes: "lru", "s3fifo", "arc", "terrace", ...
const std::vector<std::string>& EvictionPolicyNames();

// InvalidArgument names the choices. max_blocks: largest BlockId + 1 there can ever be.
// expected_blocks: how many there will be at a time, as far as known (sizes of ghost lists, queues);
// a policy goes by what it holds where that is more or less. All but "lru" come with a guard: LRU decides
// while they do worse (GuardedPolicy).
absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakeEvictionPolicy(absl::string_view name,
                                                                   uint64_t max_blocks,
                                                                   uint64_t expected_blocks);

// The same without the guard: to compare policies.
absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakeBarePolicy(absl::string_view name, uint64_t max_blocks,
                                                               uint64_t expected_blocks);

}  // namespace terrace::tiering
