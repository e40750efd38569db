// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// FakeClock: a Clock that stands still until a test moves it.
#pragma once

#include <atomic>
#include <cstdint>

#include "kvstore/base/clock.h"

namespace terrace::testing {

// Threads: any. Starts at one second, so that "0" is never a valid time by accident.
class FakeClock final : public Clock {
 public:
  int64_t NowNs() const override { return now_ns_.load(std::memory_order_relaxed); }
  void AdvanceNs(int64_t ns) { now_ns_.fetch_add(ns, std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> now_ns_{1'000'000'000};
};

}  // namespace terrace::testing
