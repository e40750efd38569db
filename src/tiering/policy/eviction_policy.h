// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// EvictionPolicy: in which order blocks leave a tier. Knows blocks by number only: no keys, no bytes, no
// clock, so that the daemon and a simulator use the same code.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvstore/frame_pool.h"

namespace terrace::tiering {

using kv::BlockId;
using kv::kNoBlock;

// Contract: a block is known from OnInsert to OnErase. Calls about unknown blocks are ignored (touch
// records arrive late). The order must keep a parent at least as recent as its children; the caller
// reports accesses of a chain tail first, and names the parent at insertion.
// Threads: one at a time (under the catalogue's mutex).
class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  virtual void OnInsert(BlockId block, BlockId parent) = 0;  // parent: known block or kNoBlock
  virtual void OnAccess(BlockId block) = 0;
  virtual void OnErase(BlockId block) = 0;
  // True if the block was inserted or accessed so long ago that its chain should be accessed again
  // before a child is inserted under it.
  virtual bool IsStale(BlockId block) const = 0;
  // The block to go next for which allowed() holds, or kNoBlock. It stays known until OnErase.
  virtual BlockId Victim(absl::FunctionRef<bool(BlockId)> allowed) = 0;
};

// name: "lru". InvalidArgument names the choices. capacity: largest BlockId + 1.
absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakeEvictionPolicy(absl::string_view name,
                                                                   uint64_t capacity);

}  // namespace terrace::tiering
