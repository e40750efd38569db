// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// OpenBlockDevice: the one place that chooses between io_uring and POSIX.
#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"
#include "tiering/io/block_device.h"
#include "tiering/io/device_file.h"
#include "tiering/io/posix_device.h"
#include "tiering/io/uring_device.h"

namespace terrace::tiering {
namespace {
constexpr uint32_t kMaxDepth = 4096;
}

absl::StatusOr<std::unique_ptr<BlockDevice>> OpenBlockDevice(const BlockDeviceOptions& options) {
  if (options.depth == 0 || options.depth > kMaxDepth) {
    return absl::InvalidArgumentError(absl::StrCat(options.path, ": depth is 1 to ", kMaxDepth));
  }
  ASSIGN_OR_RETURN(DeviceFile file, DeviceFile::Open(options));
  if (options.backend != BlockDeviceOptions::Backend::kPosix) {
    absl::StatusOr<std::unique_ptr<BlockDevice>> device = MakeUringDevice(&file, options.depth);
    if (device.ok() || options.backend == BlockDeviceOptions::Backend::kIoUring) return device;
    static std::atomic<bool> was_said{false};
    if (!was_said.exchange(true)) {
      Log(LogLevel::kWarning, "io_uring_refused",
          {{"path", options.path}, {"reason", device.status().message()}, {"instead", "posix threads, slower"}});
    }
  }
  return std::unique_ptr<BlockDevice>(std::make_unique<PosixDevice>(std::move(file), options.depth));
}

}  // namespace terrace::tiering
