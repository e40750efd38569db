// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/host_pinner.h"

#include <linux/mempolicy.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <bit>

namespace terrace::tiering {

HostPinner::HostPinner(gpu::Gpus* gpus) : gpus_(gpus) {
  for (const gpu::GpuInfo& device : gpus->devices()) {
    if (device.numa_node >= 0 && device.numa_node < 64) numa_nodes_ |= 1ull << device.numa_node;
  }
  thread_ = std::thread([this] { Run(); });
  pthread_setname_np(thread_.native_handle(), "terrace-pin");
}

void HostPinner::Stop() {
  {
    MutexLock lock(&mu_);
    closing_ = true;
    queue_.clear();
  }
  changed_.SignalAll();
  if (thread_.joinable()) thread_.join();
  std::set<Range> pinned;
  {
    MutexLock lock(&mu_);
    pinned.swap(pinned_);
    pinned_bytes_ = 0;
  }
  for (const auto& [base, bytes] : pinned) gpus_->UnpinHost(base);
}

void HostPinner::OnInUse(std::byte* base, uint64_t bytes) {
  {
    MutexLock lock(&mu_);
    const auto is_it = [base](const Range& range) { return range.first == base; };
    if (closing_ || working_on_ == base || std::any_of(queue_.begin(), queue_.end(), is_it) ||
        pinned_.contains({base, bytes})) {
      return;
    }
    queue_.emplace_back(base, bytes);
  }
  changed_.SignalAll();
}

void HostPinner::OnMapped(std::byte* base, uint64_t bytes) {
  if (numa_nodes_ == 0) return;
  // Refused in some containers: then it lies where the kernel likes.
  const int policy = std::has_single_bit(numa_nodes_) ? MPOL_PREFERRED : MPOL_INTERLEAVE;
  syscall(SYS_mbind, base, bytes, policy, &numa_nodes_, 64ul, 0u);
}

void HostPinner::OnUnmapping(std::byte* base) {
  {
    MutexLock lock(&mu_);
    while (working_on_ == base) changed_.Wait(&mu_);
    std::erase_if(queue_, [base](const Range& range) { return range.first == base; });
    const auto it = pinned_.lower_bound({base, 0});
    if (it == pinned_.end() || it->first != base) return;
    pinned_bytes_ -= it->second;
    pinned_.erase(it);
  }
  gpus_->UnpinHost(base);
}

uint64_t HostPinner::pinned_bytes() const {
  MutexLock lock(&mu_);
  return pinned_bytes_;
}

void HostPinner::Run() {
  MutexLock lock(&mu_);
  while (true) {
    while (queue_.empty() && !closing_) changed_.Wait(&mu_);
    if (closing_) return;
    const Range range = queue_.front();
    queue_.pop_front();
    working_on_ = range.first;
    mu_.Unlock();
    const absl::Status pinned = gpus_->PinHost(range.first, range.second);
    mu_.Lock();
    working_on_ = nullptr;
    changed_.SignalAll();
    if (pinned.ok()) {
      pinned_.insert(range);
      pinned_bytes_ += range.second;
    }
  }
}

}  // namespace terrace::tiering
