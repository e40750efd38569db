// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Gpus: all that the rest of the daemon sees of GPUs. No CUDA type in it; the driver is opened at run time,
// so one binary serves machines with and without GPUs. Built with TERRACE_CUDA=OFF it has no device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu/copy_engine.h"
#include "gpu/region.h"

namespace terrace::gpu {

struct GpuOptions {
  std::string driver = "libcuda.so.1";  // what dlopen() is given
  uint32_t queue_depth = 1024;          // batches waiting, each device
  uint64_t staging_bytes = 64ull << 20; // GPU memory of each device for gathering small pages
  uint32_t max_sms = 8;                 // multiprocessors that copy kernels may use at a time; 0: no kernels
  int64_t batch_deadline_ns = 10'000'000'000;  // a batch on the GPU for longer puts the device out of service
};

struct GpuInfo {
  DeviceUuid uuid{};
  std::string name;      // "NVIDIA H100 80GB HBM3"
  std::string pci_bus;   // "0000:17:00.0"
  int numa_node = -1;    // -1: unknown
  uint64_t total_bytes = 0;
  int compute_major = 0, compute_minor = 0;
};

// GPU memory of this process. Owner: whoever asked for it. Zeroed before it is handed out.
// Must end before the Gpus it came from.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  virtual std::byte* data() const = 0;  // device address
  virtual uint64_t bytes() const = 0;
  // Waits until [offset, offset + bytes) is zeros: before it changes tenant.
  virtual absl::Status Zero(uint64_t offset, uint64_t bytes) = 0;
};

// Owner: TierStack. Threads: any. Failure: a device with a sticky error (ECC, a hung copy, a reset) is fenced
// for good: its batches end as Unavailable, Health() says why and how to recover; other devices go on.
// No CUDA call is made from static destructors or with a lock held.
class Gpus {
 public:
  // Never fails: without driver, device or CUDA in this build it has no devices, and why_none() says why
  // and what to do.
  static std::unique_ptr<Gpus> Open(const GpuOptions& options);
  virtual ~Gpus() = default;

  virtual std::span<const GpuInfo> devices() const = 0;
  virtual const std::string& why_none() const = 0;
  virtual std::string driver_version() const = 0;  // "13.0", empty without a driver
  // Index into devices(), or NotFound that names the devices there are.
  virtual absl::StatusOr<uint32_t> Find(const DeviceUuid& uuid) const = 0;

  // Lives as long as this object.
  virtual CopyEngine* engine(uint32_t device) = 0;
  // OK, or why the device is out of service and how to recover.
  virtual absl::Status Health(uint32_t device) const = 0;

  // Opens an engine's allocations and events and checks the layout against the allocations' real sizes.
  // The region's memory is that of this device. May take milliseconds. Handles' descriptors stay the caller's.
  virtual absl::StatusOr<std::shared_ptr<Region>> OpenRegion(uint32_t device, RegionLayout layout,
                                                             std::span<const AllocationHandle> allocations,
                                                             std::span<const EventHandle> events) = 0;
  // Makes host memory fast for copies (cuMemHostRegister) and copyable by any device; takes about a second
  // for ten GiB. Memory that is not pinned is copied through the engine's own staging. Unpin before unmapping.
  virtual absl::Status PinHost(std::byte* base, uint64_t bytes) = 0;
  virtual void UnpinHost(std::byte* base) = 0;

  virtual absl::StatusOr<std::unique_ptr<DeviceMemory>> Allocate(uint32_t device, uint64_t bytes) = 0;
  // Memory of Allocate (the GPU tier's) as a region of one allocation, for copies between it and host frames. The
  // memory must outlive the region's batches.
  virtual absl::StatusOr<std::shared_ptr<Region>> WrapMemory(const DeviceMemory& memory, RegionLayout layout) = 0;
};

}  // namespace terrace::gpu
