// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Gpus over NVIDIA's driver.
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gpu/cuda/cuda_device.h"
#include "gpu/cuda/cuda_memory.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"

namespace terrace::gpu {
namespace {

// As nvidia-smi writes it.
std::string UuidText(const DeviceUuid& uuid) {
  std::string text = "GPU-";
  for (size_t i = 0; i < uuid.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    absl::StrAppend(&text, absl::Hex(static_cast<unsigned>(uuid[i]), absl::kZeroPad2));
  }
  return text;
}

// Owner, threads, failure: as Gpus. A device that cannot be opened is left out and logged; the others serve.
class CudaGpus final : public Gpus {
 public:
  explicit CudaGpus(const GpuOptions& options) : options_(options) {}
  ~CudaGpus() override {
    engines_.clear();  // ends all batches
    std::map<std::byte*, Pinned> pinned;
    {
      MutexLock lock(&mu_);
      pinned.swap(pinned_);
    }
    for (const auto& [base, range] : pinned) Unregister(base, *range.device);
  }

  void Open() {
    driver_ = Driver::Load(options_.driver, &why_none_);
    if (driver_ == nullptr) return;
    int count = 0;
    if (const CUresult result = driver_->cuDeviceGetCount(&count); result != CUDA_SUCCESS) {
      why_none_ = absl::StrCat("cuDeviceGetCount: ", driver_->Explain(result));
      return;
    }
    for (int ordinal = 0; ordinal < count; ++ordinal) {
      if (const absl::Status status = OpenDevice(ordinal); !status.ok()) {
        Log(LogLevel::kWarning, "gpu_not_opened", {{"gpu", ordinal}, {"error", status.message()}});
        why_none_ = absl::StrCat("GPU ", ordinal, ": ", absl::string_view(status.message()));
      }
    }
    if (!infos_.empty()) {
      why_none_.clear();
    } else if (count == 0) {
      why_none_ = "the NVIDIA driver has no device (is it hidden by CUDA_VISIBLE_DEVICES?)";
    }
  }

  std::span<const GpuInfo> devices() const override { return infos_; }
  const std::string& why_none() const override { return why_none_; }
  std::string driver_version() const override {
    if (driver_ == nullptr) return "";
    return absl::StrCat(driver_->version / 1000, ".", driver_->version % 1000 / 10);
  }

  absl::StatusOr<uint32_t> Find(const DeviceUuid& uuid) const override {
    for (uint32_t i = 0; i < infos_.size(); ++i) {
      if (infos_[i].uuid == uuid) return i;
    }
    if (infos_.empty()) return absl::NotFoundError(absl::StrCat("no GPU here: ", why_none_));
    return absl::NotFoundError(absl::StrCat(
        "no GPU ", UuidText(uuid), " here, only ",
        absl::StrJoin(infos_, ", ",
                      [](std::string* out, const GpuInfo& info) {
                        absl::StrAppend(out, UuidText(info.uuid), " (", info.name, ")");
                      }),
        ": give terraced and the engine the same devices (CUDA_VISIBLE_DEVICES, containers, MIG)"));
  }

  CopyEngine* engine(uint32_t device) override { return device < engines_.size() ? engines_[device].get() : nullptr; }
  absl::Status Health(uint32_t device) const override {
    RETURN_IF_ERROR(CheckNumber(device));
    return devices_[device]->health();
  }

  absl::StatusOr<std::shared_ptr<Region>> OpenRegion(uint32_t device, RegionLayout layout,
                                                     std::span<const AllocationHandle> allocations,
                                                     std::span<const EventHandle> events) override {
    RETURN_IF_ERROR(CheckNumber(device));
    ASSIGN_OR_RETURN(std::shared_ptr<Region> region,
                     CudaRegion::Open(devices_[device], std::move(layout), allocations, events));
    return region;
  }

  absl::Status PinHost(std::byte* base, uint64_t bytes) override;
  void UnpinHost(std::byte* base) override;

  absl::StatusOr<std::unique_ptr<DeviceMemory>> Allocate(uint32_t device, uint64_t bytes) override {
    RETURN_IF_ERROR(CheckNumber(device));
    ASSIGN_OR_RETURN(std::unique_ptr<DeviceMemory> memory,
                     CudaMemory::Make(devices_[device], bytes, options_.batch_deadline_ns));
    return memory;
  }
  absl::StatusOr<std::shared_ptr<Region>> WrapMemory(const DeviceMemory& memory, RegionLayout layout) override {
    const auto* const ours = dynamic_cast<const CudaMemory*>(&memory);
    if (ours == nullptr) return absl::InvalidArgumentError("memory of another kind of GPU");
    const std::pair<CUdeviceptr, uint64_t> allocation(reinterpret_cast<CUdeviceptr>(ours->data()), ours->bytes());
    ASSIGN_OR_RETURN(std::shared_ptr<Region> region,
                     CudaRegion::Wrap(ours->device(), std::move(layout), {&allocation, 1}, {}));
    return region;
  }

 private:
  struct Pinned {
    uint64_t bytes = 0;
    std::shared_ptr<CudaDevice> device;
  };

  absl::Status OpenDevice(int ordinal) {
    ASSIGN_OR_RETURN(std::shared_ptr<CudaDevice> device, CudaDevice::Open(driver_, ordinal));
    ASSIGN_OR_RETURN(std::unique_ptr<CopyEngine> engine, MakeCudaCopyEngine(device, options_));
    infos_.push_back(device->info());
    devices_.push_back(std::move(device));
    engines_.push_back(std::move(engine));
    return absl::OkStatus();
  }
  absl::Status CheckNumber(uint32_t device) const {
    if (device < devices_.size()) return absl::OkStatus();
    return absl::NotFoundError(absl::StrCat("no GPU ", device, "; there are ", devices_.size()));
  }
  static void Unregister(std::byte* base, CudaDevice& device) {
    if (device.fenced()) return;
    const ScopedContext current(device.driver(), device.context());
    device.driver().cuMemHostUnregister(base);
  }

  const GpuOptions options_;
  std::shared_ptr<const Driver> driver_;
  std::string why_none_;
  // Constant once open. One of each a device.
  std::vector<GpuInfo> infos_;
  std::vector<std::shared_ptr<CudaDevice>> devices_;
  std::vector<std::unique_ptr<CopyEngine>> engines_;
  Mutex mu_;
  std::map<std::byte*, Pinned> pinned_ ABSL_GUARDED_BY(mu_);
  bool has_warned_ ABSL_GUARDED_BY(mu_) = false;
};

// Portable: one registration serves the contexts of all devices. It belongs to the first device in service.
absl::Status CudaGpus::PinHost(std::byte* base, uint64_t bytes) {
  if (devices_.empty()) return absl::OkStatus();  // nothing will copy from it
  std::shared_ptr<CudaDevice> device;
  for (const auto& one : devices_) {
    if (device == nullptr && !one->fenced()) device = one;
  }
  if (device == nullptr) return devices_[0]->health();
  absl::Status status;
  {
    const ScopedContext current(*driver_, device->context());
    status = device->Check(current.result(), "cuCtxPushCurrent");
    if (status.ok()) {
      status = device->Check(
          driver_->cuMemHostRegister(base, bytes, CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP),
          "cuMemHostRegister");
    }
  }
  bool is_first_failure = false;
  {
    MutexLock lock(&mu_);
    if (status.ok()) pinned_[base] = {bytes, std::move(device)};
    is_first_failure = !status.ok() && !std::exchange(has_warned_, true);
  }
  if (is_first_failure) {
    Log(LogLevel::kWarning, "host_memory_not_pinned",
        {{"bytes", bytes},
         {"error", status.message()},
         {"effect", "copies to and from GPUs are slower; raise the limit of locked memory (LimitMEMLOCK=infinity) or "
                    "give less memory to terraced"}});
  }
  return status;
}

void CudaGpus::UnpinHost(std::byte* base) {
  std::shared_ptr<CudaDevice> device;
  {
    MutexLock lock(&mu_);
    const auto found = pinned_.find(base);
    if (found == pinned_.end()) return;  // it could not be pinned
    device = std::move(found->second.device);
    pinned_.erase(found);
  }
  Unregister(base, *device);
}

}  // namespace

std::unique_ptr<Gpus> Gpus::Open(const GpuOptions& options) {
  auto gpus = std::make_unique<CudaGpus>(options);
  gpus->Open();
  if (gpus->devices().empty()) {
    Log(LogLevel::kInfo, "no_gpus", {{"why", gpus->why_none()}});
    return gpus;
  }
  for (const GpuInfo& info : gpus->devices()) {
    Log(LogLevel::kInfo, "gpu_found",
        {{"gpu", info.pci_bus},
         {"uuid", UuidText(info.uuid)},
         {"name", info.name},
         {"bytes", info.total_bytes},
         {"numa_node", info.numa_node},
         {"driver", gpus->driver_version()}});
  }
  return gpus;
}

}  // namespace terrace::gpu
