// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// CudaMemory: GPU memory of this process (the GPU tier's).
#pragma once

#include <cuda.h>

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu/cuda/cuda_device.h"
#include "gpu/gpus.h"

namespace terrace::gpu {

// Owner, threads: as DeviceMemory. Failure: zeros that do not arrive within the deadline put the device out of
// service; of such a device nothing is given back.
class CudaMemory final : public DeviceMemory {
 public:
  static absl::StatusOr<std::unique_ptr<CudaMemory>> Make(std::shared_ptr<CudaDevice> device, uint64_t bytes,
                                                          int64_t deadline_ns);
  ~CudaMemory() override;
  std::byte* data() const override { return reinterpret_cast<std::byte*>(base_); }
  uint64_t bytes() const override { return bytes_; }
  absl::Status Zero(uint64_t offset, uint64_t bytes) override;
  const std::shared_ptr<CudaDevice>& device() const { return device_; }

 private:
  CudaMemory(std::shared_ptr<CudaDevice> device, uint64_t bytes, int64_t deadline_ns)
      : device_(std::move(device)), bytes_(bytes), deadline_ns_(deadline_ns) {}
  absl::Status Allocate();
  const std::shared_ptr<CudaDevice> device_;
  const uint64_t bytes_;
  const int64_t deadline_ns_;
  CUdeviceptr base_ = 0;
  CUstream stream_ = nullptr;
};

}  // namespace terrace::gpu
