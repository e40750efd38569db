// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/region_worker.h"

#include <pthread.h>

#include <utility>

namespace terrace::tiering {

RegionWorker::RegionWorker(bool has_thread) : is_running_(has_thread) {
  if (!has_thread) return;
  thread_ = std::thread([this] { Run(true); });
  pthread_setname_np(thread_.native_handle(), "terrace-region");
}

void RegionWorker::Stop() {
  {
    MutexLock lock(&mu_);
    closing_ = true;
  }
  work_.SignalAll();
  if (thread_.joinable()) thread_.join();
}

void RegionWorker::Post(std::function<void()> job, bool is_urgent) {
  {
    MutexLock lock(&mu_);
    (is_urgent ? urgent_ : others_).push_back(std::move(job));
    if (is_running_) {
      work_.SignalOne();
      return;
    }
    is_running_ = true;
  }
  Run(false);
}

void RegionWorker::Run(bool wait) {
  MutexLock lock(&mu_);
  while (true) {
    while (wait && urgent_.empty() && others_.empty() && !closing_) work_.Wait(&mu_);
    auto& queue = urgent_.empty() ? others_ : urgent_;
    if (queue.empty()) break;
    std::function<void()> job = std::move(queue.front());
    queue.pop_front();
    mu_.Unlock();
    job();
    job = nullptr;  // what it held goes without the lock
    mu_.Lock();
  }
  is_running_ = false;
}

}  // namespace terrace::tiering
