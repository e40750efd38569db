// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/cuda_device.h"

#include <cstring>
#include <fstream>

#include "absl/memory/memory.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"

namespace terrace::gpu {
namespace {

absl::StatusCode CodeOf(CUresult result) {
  switch (result) {
    case CUDA_ERROR_OUT_OF_MEMORY:
    case CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES:
    case CUDA_ERROR_TOO_MANY_PEERS:
      return absl::StatusCode::kResourceExhausted;
    case CUDA_ERROR_INVALID_VALUE:
    case CUDA_ERROR_INVALID_HANDLE:
    case CUDA_ERROR_INVALID_DEVICE:
    case CUDA_ERROR_INVALID_IMAGE:
    case CUDA_ERROR_MAP_FAILED:
    case CUDA_ERROR_NOT_FOUND:
    case CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED:
    case CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED:
      return absl::StatusCode::kInvalidArgument;
    case CUDA_ERROR_NOT_READY:
      return absl::StatusCode::kDeadlineExceeded;
    case CUDA_ERROR_NOT_SUPPORTED:
    case CUDA_ERROR_NOT_PERMITTED:
    case CUDA_ERROR_PEER_ACCESS_UNSUPPORTED:
    case CUDA_ERROR_NO_BINARY_FOR_GPU:
    case CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
    case CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE:
      return absl::StatusCode::kFailedPrecondition;
    default:
      return Driver::IsSticky(result) ? absl::StatusCode::kUnavailable : absl::StatusCode::kInternal;
  }
}

// -1: not said. MIG devices and virtual machines often have none.
int NumaNodeOf(const std::string& pci_bus) {
  std::ifstream file("/sys/bus/pci/devices/" + pci_bus + "/numa_node");
  int node = -1;
  return file >> node ? node : -1;
}

}  // namespace

CUresult OpenedHandles::Open(const Driver& driver, const Handle& handle, CUdeviceptr* base) {
  {
    MutexLock lock(&mu_);
    for (auto found = handles_.find(handle); found != handles_.end(); found = handles_.find(handle)) {
      if (!found->second.is_changing) {
        ++found->second.uses;
        *base = found->second.base;
        return CUDA_SUCCESS;
      }
      changed_.Wait(&mu_);
    }
    handles_[handle] = {};
  }
  CUipcMemHandle wire;
  static_assert(sizeof(wire) == sizeof(handle));
  std::memcpy(&wire, handle.data(), sizeof(wire));
  const CUresult result = driver.cuIpcOpenMemHandle(base, wire, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
  MutexLock lock(&mu_);
  if (result == CUDA_SUCCESS) {
    handles_[handle] = {.is_changing = false, .base = *base, .uses = 1};
  } else {
    handles_.erase(handle);
  }
  changed_.SignalAll();
  return result;
}

void OpenedHandles::Close(const Driver& driver, const Handle& handle) {
  CUdeviceptr base;
  {
    MutexLock lock(&mu_);
    Entry& entry = handles_[handle];
    if (--entry.uses > 0) return;
    entry.is_changing = true;
    base = entry.base;
  }
  driver.cuIpcCloseMemHandle(base);
  MutexLock lock(&mu_);
  handles_.erase(handle);
  changed_.SignalAll();
}

absl::StatusOr<std::shared_ptr<CudaDevice>> CudaDevice::Open(std::shared_ptr<const Driver> driver, int ordinal) {
  CUdevice device = 0;
  if (const CUresult result = driver->cuDeviceGet(&device, ordinal); result != CUDA_SUCCESS) {
    return absl::UnavailableError(absl::StrCat("cuDeviceGet: ", driver->Explain(result)));
  }
  std::shared_ptr<CudaDevice> opened(absl::WrapUnique(new CudaDevice(std::move(driver), device)));
  RETURN_IF_ERROR(opened->Describe());
  // Refused where the context is in use already, by a library in this process: it is used as it is.
  opened->driver_->cuDevicePrimaryCtxSetFlags(device, CU_CTX_SCHED_BLOCKING_SYNC);
  CUcontext context = nullptr;
  const CUresult result = opened->driver_->cuDevicePrimaryCtxRetain(&context, device);
  if (result != CUDA_SUCCESS) {
    return absl::UnavailableError(absl::StrCat(
        "cuDevicePrimaryCtxRetain: ", opened->driver_->Explain(result),
        result == CUDA_ERROR_DEVICE_UNAVAILABLE ? " (does another process have it for itself? `nvidia-smi -c DEFAULT`)"
                                                : ""));
  }
  opened->context_ = context;
  return opened;
}

CudaDevice::~CudaDevice() {
  if (context_ != nullptr && !fenced()) driver_->cuDevicePrimaryCtxRelease(device_);
}

absl::Status CudaDevice::Describe() {
  char text[256] = {};
  CUuuid uuid;
  size_t bytes = 0;
  RETURN_IF_ERROR(Check(driver_->cuDeviceGetName(text, sizeof(text) - 1, device_), "cuDeviceGetName"));
  info_.name = text;
  RETURN_IF_ERROR(Check(driver_->cuDeviceGetPCIBusId(text, sizeof(text) - 1, device_), "cuDeviceGetPCIBusId"));
  info_.pci_bus = text;
  for (char& c : info_.pci_bus) c = absl::ascii_tolower(static_cast<unsigned char>(c));  // as /sys has it
  RETURN_IF_ERROR(Check(driver_->cuDeviceGetUuid(&uuid, device_), "cuDeviceGetUuid"));
  static_assert(sizeof(uuid.bytes) == sizeof(DeviceUuid));
  std::memcpy(info_.uuid.data(), uuid.bytes, sizeof(uuid.bytes));
  RETURN_IF_ERROR(Check(driver_->cuDeviceTotalMem(&bytes, device_), "cuDeviceTotalMem"));
  info_.total_bytes = bytes;
  const std::pair<CUdevice_attribute, int*> attributes[] = {
      {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &info_.compute_major},
      {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &info_.compute_minor},
      {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, &sm_count_}};
  for (const auto& [attribute, value] : attributes) {
    RETURN_IF_ERROR(Check(driver_->cuDeviceGetAttribute(value, attribute, device_), "cuDeviceGetAttribute"));
  }
  info_.numa_node = NumaNodeOf(info_.pci_bus);
  return absl::OkStatus();
}

absl::Status CudaDevice::Check(CUresult result, const char* call) {
  if (result == CUDA_SUCCESS) return absl::OkStatus();
  const absl::Status status(CodeOf(result), absl::StrCat(call, ": ", driver_->Explain(result)));
  if (Driver::IsSticky(result)) Fence(status);
  return status;
}

absl::Status CudaDevice::CheckForeign(CUresult result, const char* call) {
  if (result == CUDA_SUCCESS) return absl::OkStatus();
  size_t free_bytes = 0, total_bytes = 0;
  RETURN_IF_ERROR(Check(driver_->cuMemGetInfo(&free_bytes, &total_bytes), "cuMemGetInfo"));
  const std::string text = absl::StrCat(call, ": ", driver_->Explain(result));
  if (result == CUDA_ERROR_OUT_OF_MEMORY) return absl::ResourceExhaustedError(text);
  return absl::InvalidArgumentError(text);
}

void CudaDevice::Fence(absl::Status why) {
  {
    MutexLock lock(&mu_);
    if (!why_.ok()) return;
    why_ = absl::UnavailableError(
        absl::StrCat("GPU ", info_.name, " at ", info_.pci_bus, " is out of service: ", why.message(),
                     ". To recover: end the engines on it, run `nvidia-smi --gpu-reset -i ", info_.pci_bus,
                     "`, restart terraced"));
    why = why_;
    fenced_.store(true, std::memory_order_release);
  }
  Log(LogLevel::kError, "gpu_out_of_service", {{"gpu", info_.pci_bus}, {"error", why.message()}});
}

absl::Status CudaDevice::health() const {
  MutexLock lock(&mu_);
  return why_;
}

}  // namespace terrace::gpu
