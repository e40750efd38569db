// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The closed list of reasons why a block was not served or not stored. The numbers are those of
// terrace_reason in terrace.h and of terrace.v1.Reason; a test holds the three together.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace terrace {

enum class Reason : uint8_t {
  kNone = 0,
  kCold,
  kEvicted,
  kCorrupt,
  kFlushed,
  kKeySpaceEmpty,
  kModelDiffers,
  kLayoutDiffers,
  kHashDiffers,
  kAfterMiss,
  kPending,
  kLeaseLimit,
  kStale,
  kUnavailable,
  kDuplicate,
  kBudget,
  kBadChecksum,
  kOverload,
  kCancelled,
  kRecompute,
  kDeadline,
  kTierOffline,
  kIoError,
};
inline constexpr int kReasonCount = 23;

// Names as they stand in metric labels, JSON and terrace_reason_name().
inline constexpr std::array<std::string_view, kReasonCount> kReasonNames = {
    "none",          "cold",           "evicted",         "corrupt",      "flushed",
    "key_space_empty", "model_differs", "layout_differs", "hash_differs", "after_miss",
    "pending",       "lease_limit",    "stale",           "unavailable",  "duplicate",
    "budget",        "bad_checksum",   "overload",        "cancelled",    "recompute",
    "deadline",      "tier_offline",   "io_error"};

constexpr std::string_view ReasonName(Reason reason) {
  const auto i = static_cast<size_t>(reason);
  return i < kReasonNames.size() ? kReasonNames[i] : "unknown";
}

}  // namespace terrace
