// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/io/posix_device.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include "kvstore/base/clock.h"

namespace terrace::tiering {
namespace {
constexpr uint32_t kMaxThreads = 8;  // enough for a disk to be busy with 64 KiB reads, few enough to own
}

PosixDevice::PosixDevice(DeviceFile file, uint32_t depth) : file_(std::move(file)), depth_(depth) {
  for (uint32_t i = 0; i < std::min(depth, kMaxThreads); ++i) {
    threads_.emplace_back([this] { Run(); });
    pthread_setname_np(threads_.back().native_handle(), "terrace-disk-io");
  }
}

PosixDevice::~PosixDevice() {
  {
    MutexLock lock(&mu_);
    is_closing_ = true;
  }
  work_.SignalAll();
  for (std::thread& thread : threads_) thread.join();
}

bool PosixDevice::Submit(const IoRequest& request) {
  {
    MutexLock lock(&mu_);
    if (in_flight_ == depth_) return false;
    ++in_flight_;
    queue_.push_back(request);
  }
  work_.SignalOne();
  return true;
}

size_t PosixDevice::Poll(std::span<IoResult> results, int64_t wait_ns) {
  const int64_t deadline_ns = Clock::Real()->NowNs() + wait_ns;
  MutexLock lock(&mu_);
  while (wait_ns > 0 && finished_.empty() && !is_woken_) {
    const int64_t left_ns = deadline_ns - Clock::Real()->NowNs();
    if (left_ns <= 0) break;
    changed_.WaitFor(&mu_, std::chrono::nanoseconds(left_ns));
  }
  is_woken_ = false;
  const size_t n = std::min(results.size(), finished_.size());
  for (size_t i = 0; i < n; ++i) {
    results[i] = finished_.front();
    finished_.pop_front();
  }
  in_flight_ -= static_cast<uint32_t>(n);
  return n;
}

void PosixDevice::Wake() {
  {
    MutexLock lock(&mu_);
    is_woken_ = true;
  }
  changed_.SignalAll();
}

void PosixDevice::Run() {
  while (true) {
    IoRequest request;
    {
      MutexLock lock(&mu_);
      while (queue_.empty() && !is_closing_) work_.Wait(&mu_);
      if (is_closing_) return;
      request = queue_.front();
      queue_.pop_front();
    }
    const int error = Execute(request);
    {
      MutexLock lock(&mu_);
      finished_.push_back({request.tag, error});
    }
    changed_.SignalAll();
  }
}

int PosixDevice::Execute(const IoRequest& request) const {
  if (request.op == IoOp::kSync) return fdatasync(file_.fd()) == 0 ? 0 : errno;
  for (size_t done = 0; done < request.buffer.size();) {
    std::byte* const at = request.buffer.data() + done;
    const size_t left = request.buffer.size() - done;
    const auto offset = static_cast<off_t>(request.offset + done);
    const ssize_t n = request.op == IoOp::kRead ? pread(file_.fd(), at, left, offset)
                                                : pwrite(file_.fd(), at, left, offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    // A transfer goes on where it stopped, at a boundary; one that gets nowhere met the end of the file.
    const size_t whole = static_cast<size_t>(n) == left ? left : static_cast<size_t>(n) / kIoAlign * kIoAlign;
    if (whole == 0) return EIO;
    done += whole;
  }
  return 0;
}

}  // namespace terrace::tiering
