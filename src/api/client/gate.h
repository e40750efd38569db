// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Gate: lets copies into a piece of the caller's memory until it is closed, and closing waits for those
// inside. So a caller who has freed pages or an operation knows that nobody touches its memory.
#pragma once

#include <condition_variable>
#include <mutex>

namespace terrace::client {

// Owner: the thing whose memory it guards. Threads: any.
class Gate {
 public:
  // False once the gate is closed: stay out.
  bool Enter() {
    std::lock_guard lock(mu_);
    if (closed_) return false;
    ++inside_;
    return true;
  }
  void Leave() {
    std::lock_guard lock(mu_);
    if (--inside_ == 0 && closed_) empty_.notify_all();
  }
  // Waits for those inside, at most for the copying of one block each. May be called again.
  void Close() {
    std::unique_lock lock(mu_);
    closed_ = true;
    empty_.wait(lock, [this] { return inside_ == 0; });
  }

 private:
  std::mutex mu_;
  std::condition_variable empty_;
  int inside_ = 0;       // guarded by mu_
  bool closed_ = false;  // guarded by mu_
};

}  // namespace terrace::client
