// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// FramePlaces: where the GPU finds the frames of a batch.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu/copy_engine.h"
#include "gpu/cuda/driver.h"

namespace terrace::gpu {

struct FramePlaces {
  std::vector<uint64_t> addresses;  // the GPU's, one a page; empty where bounced
  bool bounced = false;             // some frame is not pinned: the batch goes through buffers of the engine
};

// Asks the driver about each range of memory once a batch, and keeps nothing: memory may be unpinned between batches,
// and a kernel that touches what is not pinned costs the whole device. Threads: any; the context is current.
// InvalidArgument: frames of another kind of memory than frames_on_device says.
absl::StatusOr<FramePlaces> FindFrames(const Driver& driver, CUdevice device, const CopyBatch& batch);

}  // namespace terrace::gpu
