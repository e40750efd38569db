// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Retention hints: what a client knows about a block's future. Advice only, always with an end; the same
// fields stand in terrace.h, kv.proto and the engine socket's messages. And the two classes of blocks
// that share one budget.
#pragma once

#include <cstdint>

namespace terrace::tiering {

// Plain value. Times are of the daemon's Clock; the doors turn clients' durations into them and cut what
// is too far away (kMaxHintNs).
struct RetentionHint {
  int64_t reuse_at_ns = 0;   // when it will be used next, as far as the client can tell; 0: unknown
  int64_t pin_until_ns = 0;  // not to be evicted before; 0: no pin. Counts against the tenant's share
  bool done = false;         // will not be used again
  uint8_t priority = 0;      // 0: ordinary; up to 7: rather keep it than others
  bool empty() const { return reuse_at_ns == 0 && pin_until_ns == 0 && !done && priority == 0; }
};
inline constexpr int64_t kMaxHintNs = 3'600'000'000'000;  // an hour ahead
inline constexpr uint8_t kMaxPriority = 7;

// Whose bytes: each class has a floor that the other cannot push it below.
enum class BlockClass : uint8_t { kKv = 0, kShard = 1 };
inline constexpr int kBlockClasses = 2;

}  // namespace terrace::tiering
