// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/gpus.h"

#include "kvstore/base/log.h"
#if defined(TERRACE_HAVE_CUDA)
#include "gpu/cuda/cuda_device.h"
#endif

namespace terrace::gpu {

#if defined(TERRACE_HAVE_CUDA)

std::unique_ptr<Gpus> Gpus::Open(const GpuOptions& options) { return OpenCudaGpus(options); }

#else

namespace {

// What a build without the toolkit has.
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

#endif

}  // namespace terrace::gpu
