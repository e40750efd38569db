// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// StagingShare: the part of the budget that is kept for the staging memory of storing clients, so that a
// cache that has filled up still lets a new engine store.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kvstore/base/check.h"
#include "kvstore/base/memory_budget.h"
#include "kvstore/base/mutex.h"

namespace terrace::tiering {

// Owner: TierStack, which charges the share to the budget when it starts. What does not fit into the
// share is charged to the budget as it comes. Threads: any. Counts bytes.
class StagingShare {
 public:
  StagingShare(uint64_t share_bytes, MemoryBudget* budget) : share_(share_bytes), budget_(budget) {}

  // A 16th of the memory for blocks: dozens of clients of a large daemon. Where that is less than one client
  // asks for, up to an 8th, so that one can store whatever else the budget is full of.
  static uint64_t BytesFor(uint64_t block_memory_bytes, uint64_t client_bytes) {
    const uint64_t usual = std::min<uint64_t>(block_memory_bytes / 16, 1ull << 30);
    return std::max(usual, std::min(client_bytes, block_memory_bytes / kLeastPart));
  }
  // The memory for blocks in which a client gets all that it asks for.
  static uint64_t BlockMemoryFor(uint64_t client_bytes) { return client_bytes * kLeastPart; }

  // False, and nothing charged, when neither share nor budget have room.
  bool TryCharge(uint64_t bytes) {
    MutexLock lock(&mu_);
    const uint64_t of_share = std::min(bytes, share_ - in_share_);
    if (bytes > of_share && !budget_->TryCharge(bytes - of_share)) return false;
    in_share_ += of_share;
    beyond_ += bytes - of_share;
    return true;
  }
  void Release(uint64_t bytes) {
    MutexLock lock(&mu_);
    const uint64_t of_beyond = std::min(bytes, beyond_);
    if (of_beyond > 0) budget_->Release(of_beyond);
    beyond_ -= of_beyond;
    TERRACE_CHECK(in_share_ >= bytes - of_beyond);
    in_share_ -= bytes - of_beyond;
  }

 private:
  static constexpr uint64_t kLeastPart = 8;

  const uint64_t share_;
  MemoryBudget* const budget_;
  Mutex mu_;
  uint64_t in_share_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t beyond_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace terrace::tiering
