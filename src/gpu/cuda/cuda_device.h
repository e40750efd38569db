// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// CudaDevice: one GPU of this process: its primary context and whether it is in service. Internal to src/gpu/cuda.
#pragma once

#include <cuda.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu/cuda/driver.h"
#include "gpu/gpus.h"
#include "kvstore/base/mutex.h"

namespace terrace::gpu {

// Owner: shared by Gpus, its engine, regions and memory. Threads: any. Failure: Fence() puts it out of service for
// good; the first reason stands.
class CudaDevice {
 public:
  // Retains the primary context.
  static absl::StatusOr<std::shared_ptr<CudaDevice>> Open(std::shared_ptr<const Driver> driver, int ordinal);
  ~CudaDevice();
  CudaDevice(const CudaDevice&) = delete;

  const Driver& driver() const { return *driver_; }
  CUdevice device() const { return device_; }
  CUcontext context() const { return context_; }
  const GpuInfo& info() const { return info_; }
  int sm_count() const { return sm_count_; }

  // result as a status that names the call; a sticky one fences the device. CUDA_ERROR_OUT_OF_MEMORY is
  // ResourceExhausted, an invalid handle or value InvalidArgument.
  absl::Status Check(CUresult result, const char* call);
  void Fence(absl::Status why);
  bool fenced() const { return fenced_.load(std::memory_order_acquire); }
  absl::Status health() const;  // OK, or why and how to recover

 private:
  CudaDevice(std::shared_ptr<const Driver> driver, CUdevice device) : driver_(std::move(driver)), device_(device) {}
  const std::shared_ptr<const Driver> driver_;
  const CUdevice device_;
  CUcontext context_ = nullptr;
  GpuInfo info_;
  int sm_count_ = 0;
  std::atomic<bool> fenced_{false};
  mutable Mutex mu_;
  absl::Status why_ ABSL_GUARDED_BY(mu_);
};

// Owner, threads: as Region. Closes its handles when the last owner lets go.
class CudaRegion final : public Region {
 public:
  // Another process's memory.
  static absl::StatusOr<std::shared_ptr<CudaRegion>> Open(std::shared_ptr<CudaDevice> device, RegionLayout layout,
                                                          std::span<const AllocationHandle> allocations,
                                                          std::span<const EventHandle> events);
  // This process's memory: (address, bytes); tests, bench. It stays the caller's.
  static absl::StatusOr<std::shared_ptr<CudaRegion>> Wrap(
      std::shared_ptr<CudaDevice> device, RegionLayout layout,
      std::span<const std::pair<CUdeviceptr, uint64_t>> allocations, std::vector<CUevent> events);
  ~CudaRegion() override;
  CUevent event(uint32_t i) const { return events_[i]; }
  const std::shared_ptr<CudaDevice>& device() const { return device_; }

 private:
  struct Opened {  // how an allocation is given back
    CUdeviceptr base = 0;
    uint64_t bytes = 0;
    HandleKind kind = HandleKind::kCudaIpc;
    CUmemGenericAllocationHandle vmm = 0;
  };
  CudaRegion(std::shared_ptr<CudaDevice> device, RegionLayout layout, std::vector<std::byte*> bases,
             std::vector<Opened> opened, std::vector<CUevent> events, bool owns_events);
  const std::shared_ptr<CudaDevice> device_;
  const std::vector<Opened> opened_;
  const std::vector<CUevent> events_;
  const bool owns_events_;
};

// The CudaCopyEngine of a device. staging memory and streams are made here: an error leaves nothing behind.
absl::StatusOr<std::unique_ptr<CopyEngine>> MakeCudaCopyEngine(std::shared_ptr<CudaDevice> device,
                                                               const GpuOptions& options);

}  // namespace terrace::gpu
