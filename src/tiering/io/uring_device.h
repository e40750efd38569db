// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// UringDevice: BlockDevice over io_uring (liburing, https://github.com/axboe/liburing): one ring, the
// file and the buffers registered with the kernel, one system call for a batch of requests.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "tiering/io/block_device.h"
#include "tiering/io/device_file.h"

namespace terrace::tiering {

// Takes the file only when it succeeds. Unavailable: this machine has no io_uring for us (old kernel,
// seccomp, sysctl kernel.io_uring_disabled); the message has the mending line.
// The device's destructor waits for everything in flight: as long as the disk takes.
absl::StatusOr<std::unique_ptr<BlockDevice>> MakeUringDevice(DeviceFile* file, uint32_t depth);

}  // namespace terrace::tiering
