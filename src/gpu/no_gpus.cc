// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Gpus of a build without the CUDA toolkit; cuda/cuda_gpus.cc otherwise.
#include "gpu/gpus.h"
#include "kvstore/base/log.h"

namespace terrace::gpu {
namespace {

// Owner, threads: as Gpus.
class NoGpus final : public Gpus {
 public:
  std::span<const GpuInfo> devices() const override { return {}; }
  const std::string& why_none() const override { return why_; }
  std::string driver_version() const override { return ""; }
  absl::StatusOr<uint32_t> Find(const DeviceUuid&) const override { return absl::NotFoundError(why_); }
  CopyEngine* engine(uint32_t) override { return nullptr; }
  absl::Status Health(uint32_t) const override { return absl::NotFoundError(why_); }
  absl::StatusOr<std::shared_ptr<Region>> OpenRegion(uint32_t, RegionLayout, std::span<const AllocationHandle>,
                                                     std::span<const EventHandle>) override {
    return absl::NotFoundError(why_);
  }
  absl::Status PinHost(std::byte*, uint64_t) override { return absl::OkStatus(); }  // nothing will copy from it
  void UnpinHost(std::byte*) override {}
  absl::StatusOr<std::unique_ptr<DeviceMemory>> Allocate(uint32_t, uint64_t) override {
    return absl::NotFoundError(why_);
  }
  absl::StatusOr<std::shared_ptr<Region>> WrapMemory(const DeviceMemory&, RegionLayout) override {
    return absl::NotFoundError(why_);
  }

 private:
  const std::string why_ =
      "built without GPU support: install the CUDA toolkit and build with -DTERRACE_CUDA=ON";
};

}  // namespace

std::unique_ptr<Gpus> Gpus::Open(const GpuOptions&) {
  auto gpus = std::make_unique<NoGpus>();
  Log(LogLevel::kInfo, "no_gpus", {{"why", gpus->why_none()}});
  return gpus;
}

}  // namespace terrace::gpu
