// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// CudaDevice: one GPU of this process: its primary context, whether it is in service, and regions of its memory.
// Internal to src/gpu/cuda.
#pragma once

#include <cuda.h>

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu/cuda/driver.h"
#include "gpu/gpus.h"
#include "kvstore/base/mutex.h"

namespace terrace::gpu {

// Allocations of other processes that are open here, each once however many regions use it: not every driver opens a
// handle twice, and closing a handle that another region still uses must not unmap it.
// Owner: CudaDevice. Threads: any, with the device's context current; who wants a handle that another thread opens or
// closes at the moment waits for it. No CUDA call is made with the lock held.
class OpenedHandles {
 public:
  using Handle = std::array<std::byte, 64>;
  CUresult Open(const Driver& driver, const Handle& handle, CUdeviceptr* base);
  void Close(const Driver& driver, const Handle& handle);

 private:
  struct Entry {
    bool is_changing = true;  // being opened or closed
    CUdeviceptr base = 0;
    uint32_t uses = 0;
  };
  Mutex mu_;
  CondVar changed_;
  std::map<Handle, Entry> handles_ ABSL_GUARDED_BY(mu_);
};

// Owner: shared by Gpus, its engine, regions and memory. Threads: any. Failure: Fence() puts it out of service for
// good; the first reason stands. Who gives things back asks fenced() first: a driver whose GPU hangs or is broken may
// never return, and the process has to be restarted anyway.
class CudaDevice {
 public:
  // Retains the primary context. Threads that wait for the GPU sleep instead of spinning.
  static absl::StatusOr<std::shared_ptr<CudaDevice>> Open(std::shared_ptr<const Driver> driver, int ordinal);
  ~CudaDevice();
  CudaDevice(const CudaDevice&) = delete;

  const Driver& driver() const { return *driver_; }
  CUdevice device() const { return device_; }
  CUcontext context() const { return context_; }
  const GpuInfo& info() const { return info_; }
  int sm_count() const { return sm_count_; }
  OpenedHandles& opened() { return opened_; }

  // result as a status that names the call; a sticky one fences the device. CUDA_ERROR_OUT_OF_MEMORY is
  // ResourceExhausted, an invalid handle or value InvalidArgument.
  absl::Status Check(CUresult result, const char* call);
  // For calls whose argument came from another process: whatever the driver answers to nonsense is the caller's fault
  // unless the device itself says that it is broken. REQUIRES: the context is current.
  absl::Status CheckForeign(CUresult result, const char* call);
  void Fence(absl::Status why);
  bool fenced() const { return fenced_.load(std::memory_order_acquire); }
  absl::Status health() const;  // OK, or why and how to recover

 private:
  CudaDevice(std::shared_ptr<const Driver> driver, CUdevice device) : driver_(std::move(driver)), device_(device) {}
  absl::Status Describe();
  const std::shared_ptr<const Driver> driver_;
  const CUdevice device_;
  CUcontext context_ = nullptr;
  GpuInfo info_;
  int sm_count_ = 0;
  OpenedHandles opened_;
  std::atomic<bool> fenced_{false};
  mutable Mutex mu_;
  absl::Status why_ ABSL_GUARDED_BY(mu_);
};

// Owner, threads: as Region. Closes its handles when the last owner lets go.
class CudaRegion final : public Region {
 public:
  static constexpr size_t kMaxEvents = 64;
  // Another process's memory. InvalidArgument: a handle that cannot be opened, that is another device's, smaller than
  // said or than the layout needs.
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
  struct Opened {  // an allocation and how it is given back
    CUdeviceptr base = 0;
    uint64_t bytes = 0;
    HandleKind kind = HandleKind::kCudaIpc;
    OpenedHandles::Handle ipc{};
    CUmemGenericAllocationHandle vmm = 0;
    bool is_mapped = false;
    uint64_t reserved_bytes = 0;  // addresses from base on that go with it: for those that continue it, too
  };
  class Opener;
  CudaRegion(std::shared_ptr<CudaDevice> device, RegionLayout layout, std::vector<std::byte*> bases,
             std::vector<Opened> opened, std::vector<CUevent> events, bool owns_events);
  static void Close(CudaDevice& device, std::span<const Opened> opened, std::span<const CUevent> events);
  const std::shared_ptr<CudaDevice> device_;
  const std::vector<Opened> opened_;
  const std::vector<CUevent> events_;
  const bool owns_events_;
};

// The CudaCopyEngine of a device. staging memory and streams are made here: an error leaves nothing behind.
absl::StatusOr<std::unique_ptr<CopyEngine>> MakeCudaCopyEngine(std::shared_ptr<CudaDevice> device,
                                                               const GpuOptions& options);

}  // namespace terrace::gpu
