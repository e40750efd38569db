// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// CopyPool: the library's copy threads and the loads that wait for them.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "api/client/load_op.h"
#include "api/client/result.h"
#include "api/client/thread.h"

namespace terrace::client {

// Owner: Core. Threads: any. Limits: kMaxQueued loads not yet taken up, then ResourceExhausted; a load
// whose blocks are still on their way stands in no queue here.
// The threads start with the first load: a client that only asks never has them.
class CopyPool {
 public:
  static constexpr size_t kMaxQueued = 1024;
  explicit CopyPool(uint32_t threads) : thread_count_(threads) {}
  ~CopyPool() { Stop(); }

  Result Submit(std::shared_ptr<LoadOp> op);
  // A load that was submitted has more blocks to be copied. Never refused: it counts since its start.
  void Resume(const std::shared_ptr<LoadOp>& op);
  // Ends all loads: blocks not yet copied are cancelled. Joins the threads.
  void Stop();

 private:
  bool StartLocked();
  void EnqueueLocked(std::shared_ptr<LoadOp> op);
  void Run();

  const uint32_t thread_count_;
  std::mutex mu_;  // all below
  std::condition_variable work_;
  std::deque<std::shared_ptr<LoadOp>> queue_;
  bool stopping_ = false;
  std::vector<std::unique_ptr<Thread>> threads_;
};

}  // namespace terrace::client
