// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// PosixDevice: BlockDevice for machines that refuse io_uring: a few threads with pread and pwrite.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <string_view>
#include <thread>
#include <vector>

#include "kvstore/base/mutex.h"
#include "tiering/io/block_device.h"
#include "tiering/io/device_file.h"

namespace terrace::tiering {

// Owner and threads: as BlockDevice. Has at most eight threads of its own, which hold no lock during I/O.
// Limits: depth requests, taken up in the order of the calls. Failure: errno in the result. The destructor
// drops what no thread has begun and waits for what one has: as long as the disk takes.
class PosixDevice final : public BlockDevice {
 public:
  PosixDevice(DeviceFile file, uint32_t depth);
  ~PosixDevice() override;
  uint64_t bytes() const override { return file_.bytes(); }
  uint32_t depth() const override { return depth_; }
  std::string_view backend() const override { return file_.is_direct() ? "posix" : "posix, buffered"; }
  void RegisterBuffers(std::span<std::byte> /*memory*/) override {}  // of no use here
  bool Submit(const IoRequest& request) override;
  size_t Poll(std::span<IoResult> results, int64_t wait_ns) override;
  bool IsInPlace() const override { return file_.IsInPlace(); }
  bool RemoveIfNew() override { return file_.RemoveIfNew(); }
  void Wake() override;

 private:
  void Run();
  int Execute(const IoRequest& request) const;  // errno

  const DeviceFile file_;
  const uint32_t depth_;
  Mutex mu_;
  CondVar work_, changed_;
  std::deque<IoRequest> queue_ ABSL_GUARDED_BY(mu_);
  std::deque<IoResult> finished_ ABSL_GUARDED_BY(mu_);
  uint32_t in_flight_ ABSL_GUARDED_BY(mu_) = 0;  // submitted and not polled
  bool is_woken_ ABSL_GUARDED_BY(mu_) = false;
  bool is_closing_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace terrace::tiering
