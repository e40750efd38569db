// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/driver.h"

#include <dlfcn.h>

#include <cstring>

namespace terrace::gpu {
namespace {

// After the macros of <cuda.h>: "cuMemAlloc_v2".
#define TERRACE_TEXT(name) #name
#define TERRACE_SYMBOL(name) TERRACE_TEXT(name)

// By name and version; where drivers before 12.8 know an equal function by its older name only, by that.
void* FindNeeded(void* library, const char* symbol) {
  void* const found = dlsym(library, symbol);
  if (found != nullptr || std::strcmp(symbol, "cuEventElapsedTime_v2") != 0) return found;
  return dlsym(library, "cuEventElapsedTime");
}

// Looked up by what version of the interface this was compiled against: the driver has several of a name.
void* FindOptional(void* library, const char* name) {
  const auto find = reinterpret_cast<decltype(&::cuGetProcAddress)>(dlsym(library, "cuGetProcAddress_v2"));
  void* found = nullptr;
  CUdriverProcAddressQueryResult status{};
  if (find == nullptr || find(name, &found, CUDA_VERSION, CU_GET_PROC_ADDRESS_DEFAULT, &status) != CUDA_SUCCESS ||
      status != CU_GET_PROC_ADDRESS_SUCCESS) {
    return nullptr;
  }
  return found;
}

}  // namespace

std::shared_ptr<const Driver> Driver::Load(const std::string& library, std::string* why) {
  // Never closed: the driver has threads and thread-local destructors of its own.
  void* const handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* const error = dlerror();
    *why = "no NVIDIA driver: " + std::string(error == nullptr ? library : error);
    return nullptr;
  }
  auto driver = std::make_shared<Driver>();
  const char* missing = nullptr;
#define TERRACE_CUDA_FIND(name)                                                                    \
  driver->name = reinterpret_cast<decltype(driver->name)>(FindNeeded(handle, TERRACE_SYMBOL(name))); \
  if (driver->name == nullptr && missing == nullptr) missing = TERRACE_SYMBOL(name);
  TERRACE_CUDA_FUNCTIONS(TERRACE_CUDA_FIND)
#undef TERRACE_CUDA_FIND
  if (missing != nullptr) {
    *why = library + " has no " + missing + ": the driver is too old; 525 (CUDA 12.0) or later is needed";
    return nullptr;
  }
  const CUresult result = driver->cuInit(0);
  if (result != CUDA_SUCCESS) {
    *why = "cuInit: " + driver->Explain(result) +
           (result == CUDA_ERROR_NO_DEVICE ? " (is one hidden by CUDA_VISIBLE_DEVICES?)"
                                           : "; see `nvidia-smi` and the kernel's log");
    return nullptr;
  }
  driver->cuDriverGetVersion(&driver->version);
  // A driver of an older major version loads neither our kernels' machine code nor their PTX.
  if (driver->version < 12000) {
    *why = "the NVIDIA driver speaks CUDA " + std::to_string(driver->version / 1000) + "." +
           std::to_string(driver->version % 1000 / 10) + "; 12.0 or later is needed";
    return nullptr;
  }
  // Drivers before 13.0 have a function of this name with other arguments, or none.
  if (driver->version >= 13000) {
    driver->cuMemcpyBatchAsync =
        reinterpret_cast<decltype(driver->cuMemcpyBatchAsync)>(FindOptional(handle, "cuMemcpyBatchAsync"));
  }
  return driver;
}

std::string Driver::Explain(CUresult result) const {
  const char *name = nullptr, *text = nullptr;
  if (cuGetErrorName(result, &name) != CUDA_SUCCESS || name == nullptr) {
    return "CUDA error " + std::to_string(static_cast<int>(result));
  }
  std::string said = name;
  if (cuGetErrorString(result, &text) == CUDA_SUCCESS && text != nullptr) said += std::string(": ") + text;
  return said;
}

bool Driver::IsSticky(CUresult result) {
  switch (result) {
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_NVLINK_UNCORRECTABLE:
    case CUDA_ERROR_CONTEXT_IS_DESTROYED:
    case CUDA_ERROR_DEINITIALIZED:
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_TIMEOUT:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_HARDWARE_STACK_ERROR:
    case CUDA_ERROR_ILLEGAL_INSTRUCTION:
    case CUDA_ERROR_MISALIGNED_ADDRESS:
    case CUDA_ERROR_INVALID_ADDRESS_SPACE:
    case CUDA_ERROR_INVALID_PC:
    case CUDA_ERROR_LAUNCH_FAILED:
    case CUDA_ERROR_SYSTEM_NOT_READY:
    case CUDA_ERROR_UNKNOWN:
    case CUDA_ERROR_EXTERNAL_DEVICE:
    case CUDA_ERROR_DEVICE_UNAVAILABLE:
    case CUDA_ERROR_MPS_CONNECTION_FAILED:
    case CUDA_ERROR_MPS_SERVER_NOT_READY:
    case CUDA_ERROR_MPS_RPC_FAILURE:
    case CUDA_ERROR_CONTAINED:
    case CUDA_ERROR_TENSOR_MEMORY_LEAK:
      return true;
    default:
      return false;
  }
}

}  // namespace terrace::gpu
