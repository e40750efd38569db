// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// DeviceFile: the descriptor under a BlockDevice. Finds out what lies at the path, takes the lock,
// reserves the space and switches O_DIRECT on. Submits no I/O but one probing read.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "tiering/io/block_device.h"

namespace terrace::tiering {

// An open and locked file or block device. Owner: one BlockDevice; the lock ends with it, and with the
// process in any case. Threads: one. Failure: see OpenBlockDevice.
class DeviceFile {
 public:
  static absl::StatusOr<DeviceFile> Open(const BlockDeviceOptions& options);
  DeviceFile() = default;  // holds nothing
  DeviceFile(DeviceFile&& other) noexcept { *this = std::move(other); }
  DeviceFile& operator=(DeviceFile&& other) noexcept;
  ~DeviceFile();

  // Whether its path still leads to it.
  bool IsInPlace() const;
  // See BlockDevice.
  bool RemoveIfNew() const;
  int fd() const { return fd_; }
  uint64_t bytes() const { return bytes_; }
  const std::string& path() const { return path_; }
  bool is_direct() const { return is_direct_; }

 private:
  int fd_ = -1;
  uint64_t bytes_ = 0;
  bool is_direct_ = false, is_new_ = false;
  std::string path_;
};

}  // namespace terrace::tiering
