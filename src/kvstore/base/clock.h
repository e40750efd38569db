// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Clock seam: time comes from here and nowhere else, so that leases and time limits can be tested and
// simulated. Monotonic nanoseconds; wall time is for logs only.
#pragma once

#include <cstdint>

namespace terrace {

class Clock {
 public:
  virtual ~Clock() = default;
  // Nanoseconds since an arbitrary start; never goes back. Any thread.
  virtual int64_t NowNs() const = 0;

  static const Clock* Real();  // lives for ever
  // Unix time, for people and dashboards: nothing is decided by it.
  static int64_t WallSeconds();
};

}  // namespace terrace
