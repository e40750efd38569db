// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// MemoryBudget: how much memory the process may use and how much is spoken for. Whoever is about to
// take memory that grows with the load (arena, tables, staging) charges it first and goes without when
// the answer is no.
#pragma once

#include <atomic>
#include <cstdint>

#include "kvstore/base/check.h"

namespace terrace {

// Owner: TierStack. Threads: any. Counts bytes; never exceeds its limit.
class MemoryBudget {
 public:
  explicit MemoryBudget(uint64_t limit_bytes) : limit_(limit_bytes) {}

  // False, and nothing charged, when it does not fit.
  bool TryCharge(uint64_t bytes) {
    uint64_t used = used_.load(std::memory_order_relaxed);
    do {
      if (bytes > limit_ - used) return false;
    } while (!used_.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
    return true;
  }
  void Release(uint64_t bytes) {
    const uint64_t before = used_.fetch_sub(bytes, std::memory_order_relaxed);
    TERRACE_CHECK(before >= bytes);
  }
  uint64_t limit() const { return limit_; }
  uint64_t used() const { return used_.load(std::memory_order_relaxed); }

 private:
  const uint64_t limit_;
  std::atomic<uint64_t> used_{0};
};

}  // namespace terrace
