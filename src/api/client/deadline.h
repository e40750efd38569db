// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Deadline: a point on the monotonic clock by which a call must have answered. libterrace reads the
// clock itself (not through kvstore/base/clock.h) because its waits are the kernel's own.
#pragma once

#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace terrace::client {

inline int64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

// A plain value.
struct Deadline {
  int64_t at_ns = 0;

  static Deadline AfterNs(int64_t ns) { return {NowNs() + ns}; }
  static Deadline AfterUs(uint64_t us) { return AfterNs(static_cast<int64_t>(us) * 1000); }
  static Deadline AfterMs(uint64_t ms) { return AfterNs(static_cast<int64_t>(ms) * 1'000'000); }

  int64_t LeftNs() const { return std::max<int64_t>(0, at_ns - NowNs()); }
  bool Passed() const { return NowNs() >= at_ns; }
  // For std::condition_variable::wait_until: steady_clock is CLOCK_MONOTONIC here.
  std::chrono::steady_clock::time_point AsTimePoint() const {
    return std::chrono::steady_clock::time_point(std::chrono::nanoseconds(at_ns));
  }
};

}  // namespace terrace::client
