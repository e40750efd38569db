// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/op.h"

#include <algorithm>
#include <utility>

namespace terrace::client {

Op::Op(Work op_work) : work(std::move(op_work)), reasons_(work.keys.size(), 0) {}

bool Op::WaitDone(Deadline deadline) {
  if (done()) return true;
  std::unique_lock lock(mu_);
  return changed_.wait_until(lock, deadline.AsTimePoint(), [this] { return done(); });
}

bool Op::WaitSourcesRead(Deadline deadline) {
  if (sources_read()) return true;
  std::unique_lock lock(mu_);
  while (!sources_read()) {
    if (deadline.Passed()) return false;
    WaitChange(lock, deadline);
  }
  return true;
}

bool Op::WaitPlanes(uint32_t n_planes, Deadline deadline) {
  std::unique_lock lock(mu_);
  for (;;) {
    const bool ended = done();  // before its planes are looked at: they do not grow afterwards
    if (PlanesDone() >= n_planes) return true;
    if (ended || deadline.Passed()) return false;
    WaitChange(lock, deadline);
  }
}

void Op::WaitChange(std::unique_lock<std::mutex>& lock, Deadline deadline) {
  const int64_t poll_ns = PollNs();
  if (poll_ns > 0) deadline.at_ns = std::min(deadline.at_ns, NowNs() + poll_ns);
  changed_.wait_until(lock, deadline.AsTimePoint());
}

bool Op::all_fine() const {
  return std::all_of(reasons_.begin(), reasons_.end(), [](uint8_t reason) {
    return reason == static_cast<uint8_t>(Reason::kNone) ||
           reason == static_cast<uint8_t>(Reason::kDuplicate);
  });
}

bool Op::EnterMemory() {
  if (!gate_.Enter()) return false;
  if (work.memory.Enter()) return true;
  gate_.Leave();
  return false;
}

void Op::LeaveMemory() {
  work.memory.Leave();
  gate_.Leave();
}

void Op::Finish(uint32_t count) {
  std::lock_guard lock(mu_);
  finished_ += count;
  if (finished_ < n()) return;
  sources_read_.store(true, std::memory_order_release);
  done_.store(true, std::memory_order_release);
  changed_.notify_all();
}

void Op::SetSourcesRead() {
  std::lock_guard lock(mu_);
  sources_read_.store(true, std::memory_order_release);
  changed_.notify_all();
}

}  // namespace terrace::client
