// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// GpuRig: one GPU, its CopyEngine and memory for the GPU cases, with plain copies of the driver beside them.
#pragma once

#include <cuda.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu/cuda/cuda_device.h"
#include "gpu/cuda/driver.h"

namespace terrace::bench {

// Owner: RunGpuCases. Threads: one. Failure: a call that the driver refuses is an error with its name.
class GpuRig {
 public:
  static absl::StatusOr<std::unique_ptr<GpuRig>> Open(const std::string& library, int ordinal);
  ~GpuRig();
  GpuRig(const GpuRig&) = delete;

  const gpu::Driver& driver() const { return device_->driver(); }
  const std::shared_ptr<gpu::CudaDevice>& device() const { return device_; }
  gpu::CopyEngine& engine() { return *engine_; }
  CUstream stream(int i) const { return streams_[i]; }

  // Memory that lives until Free() or the rig's end.
  absl::StatusOr<CUdeviceptr> Device(uint64_t bytes);
  absl::StatusOr<std::byte*> Pinned(uint64_t bytes);
  void Free();

  absl::Status Check(CUresult result, const char* call) const { return device_->Check(result, call); }
  // Plain copies, either way: the driver tells from the addresses.
  absl::Status CopyNow(void* target, const void* source, uint64_t bytes);
  struct PlainCopy {
    CUdeviceptr target, source;
    uint64_t bytes;
  };
  // Seconds of plain copies, each on a stream of its own, until all have ended.
  absl::StatusOr<double> TimeCopies(const std::vector<PlainCopy>& copies);
  // Milliseconds between what the first and the second event recorded on stream 0 around `launch`.
  template <typename Launch>
  absl::StatusOr<double> TimeKernels(const Launch& launch) {
    absl::Status status = Check(driver().cuEventRecord(events_[0], streams_[0]), "cuEventRecord");
    if (status.ok()) status = launch();
    if (status.ok()) status = Check(driver().cuEventRecord(events_[1], streams_[0]), "cuEventRecord");
    if (!status.ok()) return status;
    return TimeBetweenEvents();
  }

 private:
  GpuRig() = default;
  absl::StatusOr<double> TimeBetweenEvents();

  std::shared_ptr<gpu::CudaDevice> device_;
  std::unique_ptr<gpu::ScopedContext> context_;
  std::unique_ptr<gpu::CopyEngine> engine_;
  CUstream streams_[2] = {};
  CUevent events_[2] = {};
  std::vector<CUdeviceptr> device_memory_;
  std::vector<void*> pinned_memory_;
};

// Blocks whose pieces lie scattered in GPU memory, and their frames in pinned memory.
struct PageShape {
  uint32_t planes = 1;
  uint64_t piece_bytes = 0;
  uint64_t blocks = 0;

  uint64_t page_bytes() const { return planes * piece_bytes; }
  uint64_t total_bytes() const { return page_bytes() * blocks; }
};

// Owner: a case. Threads: one. Its memory is the rig's.
class PageSet {
 public:
  static absl::StatusOr<std::unique_ptr<PageSet>> Make(GpuRig* rig, const PageShape& shape);

  const PageShape& shape() const { return shape_; }
  CUdeviceptr pages() const { return pages_; }
  std::byte* frames() const { return frames_; }
  const std::shared_ptr<gpu::CudaRegion>& region() const { return region_; }
  const std::vector<uint64_t>& page_numbers() const { return numbers_; }

  // Both ways once, every byte compared. Before anything is timed.
  absl::Status Prove();
  // A batch of the first n blocks; n = 0: all. After Prove().
  gpu::CopyBatch MakeBatch(gpu::Direction direction, uint64_t n = 0) const;

 private:
  PageSet(GpuRig* rig, const PageShape& shape) : rig_(*rig), shape_(shape) {}
  GpuRig& rig_;
  const PageShape shape_;
  CUdeviceptr pages_ = 0;
  std::byte* frames_ = nullptr;
  std::byte* plain_ = nullptr;  // pinned, as large
  std::vector<uint64_t> numbers_;
  std::vector<std::vector<uint64_t>> checksums_;
  std::shared_ptr<gpu::CudaRegion> region_;
};

// Seconds from the first submit until all batches have ended, or what went wrong.
absl::StatusOr<double> RunBatches(gpu::CopyEngine& engine, std::vector<gpu::CopyBatch> batches);

}  // namespace terrace::bench
