// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Thread: a named background thread inside somebody else's process.
#pragma once

#include <pthread.h>

#include <functional>

namespace terrace::client {

// Takes no signals (they belong to the engine's own threads). Joined by its owner, never detached.
// Threads: Start and Join on one thread at a time.
class Thread {
 public:
  Thread() = default;
  Thread(const Thread&) = delete;
  ~Thread() { Join(); }

  // name: at most 15 characters. False: the system has no room for another thread.
  bool Start(const char* name, std::function<void()> body);
  void Join();  // does nothing when not started
  bool started() const { return started_; }

 private:
  static void* Main(void* self);
  std::function<void()> body_;
  pthread_t thread_{};
  bool started_ = false;
};

}  // namespace terrace::client
