// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/copy_pool.h"

#include <algorithm>
#include <utility>

namespace terrace::client {

Result CopyPool::Submit(std::shared_ptr<LoadOp> op) {
  const uint32_t blocks = op->n();
  {
    std::lock_guard lock(mu_);
    if (stopping_) return Fail(TERRACE_FAILED_PRECONDITION, "the client is closed");
    if (queue_.size() >= kMaxQueued) {
      return Fail(TERRACE_RESOURCE_EXHAUSTED, "%zu loads are waiting already; wait for some of them",
                  queue_.size());
    }
    if (!StartLocked()) {
      return Fail(TERRACE_RESOURCE_EXHAUSTED, "no thread can be started; raise the process limit");
    }
    EnqueueLocked(std::move(op));
  }
  for (uint32_t i = 0; i < std::min(blocks, thread_count_); ++i) work_.notify_one();
  return {};
}

void CopyPool::EnqueueLocked(std::shared_ptr<LoadOp> op) {
  if (op->queued || !op->HasWork()) return;
  op->queued = true;
  queue_.push_back(std::move(op));
}

void CopyPool::Resume(const std::shared_ptr<LoadOp>& op) {
  {
    std::lock_guard lock(mu_);
    if (!stopping_) EnqueueLocked(op);
  }
  work_.notify_all();
}

bool CopyPool::StartLocked() {
  while (threads_.size() < thread_count_) {
    auto thread = std::make_unique<Thread>();
    if (!thread->Start("terrace-copy", [this] { Run(); })) return !threads_.empty();
    threads_.push_back(std::move(thread));
  }
  return true;
}

void CopyPool::Run() {
  CopyScratch scratch;
  std::unique_lock lock(mu_);
  for (;;) {
    work_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (stopping_) return;
    const std::shared_ptr<LoadOp> op = queue_.front();
    lock.unlock();
    op->CopySome(&scratch);
    lock.lock();
    // Looked at under the lock: what arrives from now on finds the load not queued.
    if (!op->HasWork() && !queue_.empty() && queue_.front() == op) {
      op->queued = false;
      queue_.pop_front();
    }
  }
}

void CopyPool::Stop() {
  std::deque<std::shared_ptr<LoadOp>> rest;
  std::vector<std::unique_ptr<Thread>> threads;
  {
    std::lock_guard lock(mu_);
    stopping_ = true;
    rest.swap(queue_);
    threads.swap(threads_);
  }
  work_.notify_all();
  for (const auto& op : rest) op->EndRest(Reason::kCancelled);
  for (const auto& thread : threads) thread->Join();
}

}  // namespace terrace::client
