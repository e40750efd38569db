// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// RegionWorker: does what regions need beside the copying, so that neither the threads that serve lookups nor those
// that drive a GPU do it.
#pragma once

#include <deque>
#include <functional>
#include <thread>

#include "kvstore/base/mutex.h"

namespace terrace::tiering {

// Owner: RegionMover; the engine socket's server has another one, for opening. Threads: any may post; jobs run one
// at a time, urgent ones first, on its own thread, or (has_thread false: simulation; stopped) on that of whoever
// posts. Limits: whoever posts bounds what it posts.
class RegionWorker {
 public:
  explicit RegionWorker(bool has_thread);
  ~RegionWorker() { Stop(); }
  RegionWorker(const RegionWorker&) = delete;

  void Post(std::function<void()> job, bool is_urgent);
  // Does what is left and joins the thread. Not from a job.
  void Stop();

 private:
  // Until nothing is left, and (wait) it is closing.
  void Run(bool wait);

  Mutex mu_;
  CondVar work_;
  std::deque<std::function<void()>> urgent_ ABSL_GUARDED_BY(mu_), others_ ABSL_GUARDED_BY(mu_);
  bool is_running_ ABSL_GUARDED_BY(mu_);  // somebody runs jobs, who looks for new ones before leaving
  bool closing_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace terrace::tiering
