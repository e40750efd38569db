// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>

#include "kvstore/base/clock.h"

namespace terrace::gpu {

// Which foreign call a thread is in, and since when, so that another thread can tell that it does not come back and
// give it up. Exactly one of the two gets the work: after GiveUp() the thread finds End() false when its call does
// return, and touches nothing any more that was taken over from it. Owner: the link. Threads: Begin() and End() from
// the one that calls, the rest from the one that watches.
class CallWatch {
 public:
  void Begin(const char* call) {
    call_.store(call, std::memory_order_relaxed);
    int64_t idle = kIdle;  // stays given up once it was
    since_ns_.compare_exchange_strong(idle, Clock::Real()->NowNs(), std::memory_order_acq_rel);
  }
  // False: given up meanwhile.
  bool End() {
    int64_t since = since_ns_.load(std::memory_order_acquire);
    while (since != kGivenUp) {
      if (since_ns_.compare_exchange_weak(since, kIdle, std::memory_order_acq_rel)) return true;
    }
    return false;
  }
  bool given_up() const { return since_ns_.load(std::memory_order_acquire) == kGivenUp; }

  // Gives the thread up if it is in one call for longer than limit_ns: the call's name, else null.
  const char* GiveUpAfter(int64_t limit_ns) {
    int64_t since = since_ns_.load(std::memory_order_acquire);
    const char* const call = call_.load(std::memory_order_relaxed);
    if (since == kIdle || since == kGivenUp || Clock::Real()->NowNs() - since <= limit_ns) return nullptr;
    // Fails where the call returned or another one began.
    return since_ns_.compare_exchange_strong(since, kGivenUp, std::memory_order_acq_rel) ? call : nullptr;
  }

 private:
  static constexpr int64_t kIdle = INT64_MIN, kGivenUp = INT64_MIN + 1;
  std::atomic<int64_t> since_ns_{kIdle};
  std::atomic<const char*> call_{""};
};

}  // namespace terrace::gpu
