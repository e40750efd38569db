// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Stats: the counters behind terrace_get_stats.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "kvstore/base/reason.h"

namespace terrace::client {

// Owner: shared by the client and its operations. Threads: any. Relaxed: a reader may see two counters a
// moment apart.
struct Stats {
  using Count = std::atomic<uint64_t>;
  Count connects{0};
  Count lookups{0}, lookup_blocks{0}, hit_blocks{0};
  Count load_blocks{0}, load_bytes{0}, load_failed_blocks{0};
  Count store_blocks{0}, store_bytes{0}, store_duplicate_blocks{0}, store_failed_blocks{0};
  std::array<Count, 32> reasons{};

  static void Add(Count& count, uint64_t n) { count.fetch_add(n, std::memory_order_relaxed); }
  void AddReason(Reason reason, uint64_t n = 1) {
    if (reason != Reason::kNone) Add(reasons[static_cast<size_t>(reason) % reasons.size()], n);
  }
};

}  // namespace terrace::client
