// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/host_block_copier.h"

#include <pthread.h>

#include <utility>

#include "absl/strings/str_cat.h"

namespace terrace::gpu {

HostBlockCopier::HostBlockCopier(uint32_t threads, uint32_t queue_depth) : queue_depth_(queue_depth) {
  for (uint32_t i = 0; i < threads; ++i) {
    threads_.emplace_back([this] { Run(); });
    pthread_setname_np(threads_.back().native_handle(), "terrace-copy");
  }
}

HostBlockCopier::~HostBlockCopier() {
  {
    MutexLock lock(&mu_);
    closing_ = true;
  }
  work_.SignalAll();
  for (std::thread& thread : threads_) thread.join();
}

void HostBlockCopier::Copy(CopyJob& job) {
  const bool intact = CopyBlock({&job.source, 1}, {&job.target, 1}, job.identity_seed, job.check,
                                job.checksums, CopyStores::kStreaming);
  job.done(job, intact);
}

absl::Status HostBlockCopier::Submit(CopyJob& job) {
  if (threads_.empty()) {
    CopyJob now = std::move(job);
    Copy(now);
    return absl::OkStatus();
  }
  {
    MutexLock lock(&mu_);
    if (closing_) return absl::UnavailableError("the copy engine is closing");
    if (queue_.size() >= queue_depth_) {
      return absl::ResourceExhaustedError(absl::StrCat(queue_depth_, " blocks are waiting already"));
    }
    queue_.push_back(std::move(job));
  }
  work_.SignalOne();
  return absl::OkStatus();
}

void HostBlockCopier::Drain() {
  MutexLock lock(&mu_);
  while (!queue_.empty() || running_ > 0) idle_.Wait(&mu_);
}

void HostBlockCopier::Run() {
  mu_.Lock();
  while (true) {
    while (queue_.empty() && !closing_) work_.Wait(&mu_);
    if (queue_.empty()) break;  // closing and drained
    CopyJob job = std::move(queue_.front());
    queue_.pop_front();
    ++running_;
    mu_.Unlock();
    Copy(job);
    job = CopyJob();  // what done holds is let go before the job counts as finished
    mu_.Lock();
    if (--running_ == 0 && queue_.empty()) idle_.SignalAll();
  }
  mu_.Unlock();
}

}  // namespace terrace::gpu
