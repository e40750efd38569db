// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// HostGpus: Gpus with one device whose memory is host memory, copied by the product's HostCopyEngine: for tests
// of what stands above Gpus. What the driver does is tested on softcuda and on real GPUs (tests/gpu).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gpu/gpus.h"
#include "gpu/host_copy_engine.h"
#include "gpu/host_region.h"

namespace terrace::testing {

class HostGpus final : public gpu::Gpus {
 public:
  explicit HostGpus(uint32_t queue_depth = 64) : engine_(1, queue_depth) {
    info_.name = "host";
    info_.uuid[0] = std::byte{1};
  }
  void Break(absl::Status health) { health_ = std::move(health); }
  // The next allocations are refused.
  void SetFull(bool is_full) { is_full_ = is_full; }
  int zeroed() const { return zeroed_.load(); }

  std::span<const gpu::GpuInfo> devices() const override { return {&info_, 1}; }
  const std::string& why_none() const override { return none_; }
  std::string driver_version() const override { return "0.0"; }
  absl::StatusOr<uint32_t> Find(const gpu::DeviceUuid& uuid) const override {
    if (uuid == info_.uuid) return 0;
    return absl::NotFoundError("no such device");
  }
  gpu::CopyEngine* engine(uint32_t) override { return &engine_; }
  absl::Status Health(uint32_t) const override { return health_; }
  absl::StatusOr<std::shared_ptr<gpu::Region>> OpenRegion(uint32_t, gpu::RegionLayout layout,
                                                          std::span<const gpu::AllocationHandle> allocations,
                                                          std::span<const gpu::EventHandle>) override {
    return gpu::HostRegion::Open(std::move(layout), allocations);
  }
  absl::Status PinHost(std::byte*, uint64_t) override { return absl::OkStatus(); }
  void UnpinHost(std::byte*) override {}
  absl::StatusOr<std::unique_ptr<gpu::DeviceMemory>> Allocate(uint32_t, uint64_t bytes) override {
    if (is_full_) return absl::ResourceExhaustedError("out of GPU memory");
    return std::make_unique<Memory>(bytes, &zeroed_);
  }
  absl::StatusOr<std::shared_ptr<gpu::Region>> WrapMemory(const gpu::DeviceMemory& memory,
                                                          gpu::RegionLayout layout) override {
    const std::span<std::byte> bytes(memory.data(), memory.bytes());
    return gpu::HostRegion::Wrap(std::move(layout), {&bytes, 1});
  }

 private:
  class Memory final : public gpu::DeviceMemory {
   public:
    Memory(uint64_t bytes, std::atomic<int>* zeroed) : memory_(bytes), zeroed_(zeroed) {}
    std::byte* data() const override { return const_cast<std::byte*>(memory_.data()); }
    uint64_t bytes() const override { return memory_.size(); }
    absl::Status Zero(uint64_t offset, uint64_t bytes) override {
      std::memset(memory_.data() + offset, 0, bytes);
      zeroed_->fetch_add(1);
      return absl::OkStatus();
    }

   private:
    std::vector<std::byte> memory_;
    std::atomic<int>* const zeroed_;
  };
  gpu::GpuInfo info_;
  std::string none_;
  absl::Status health_;
  bool is_full_ = false;
  std::atomic<int> zeroed_{0};
  gpu::HostCopyEngine engine_;
};

}  // namespace terrace::testing
