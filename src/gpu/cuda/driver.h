// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Driver: NVIDIA's driver API (https://docs.nvidia.com/cuda/cuda-driver-api/), found with dlopen() at run time, so that
// one binary runs on machines without a driver. The CUDA runtime library is not used at all. Needs the standard
// library only: libterrace links it, too.
//
// The only header that includes <cuda.h>; it is included by .cc files of src/gpu/cuda and src/api/client only.
#pragma once

#include <cuda.h>

#include <memory>
#include <string>

// Names are those of <cuda.h>, whose macros give them their version suffix (cuMemAlloc is cuMemAlloc_v2).
#define TERRACE_CUDA_FUNCTIONS(F)                                                                           \
  F(cuInit) F(cuDriverGetVersion) F(cuGetErrorName) F(cuGetErrorString)                                     \
  F(cuDeviceGetCount) F(cuDeviceGet) F(cuDeviceGetName) F(cuDeviceGetUuid) F(cuDeviceGetAttribute)          \
  F(cuDeviceTotalMem) F(cuDeviceGetPCIBusId)                                                                \
  F(cuDevicePrimaryCtxRetain) F(cuDevicePrimaryCtxRelease) F(cuDevicePrimaryCtxSetFlags)                    \
  F(cuCtxPushCurrent) F(cuCtxPopCurrent) F(cuCtxGetCurrent) F(cuCtxGetDevice)                               \
  F(cuMemAlloc) F(cuMemFree) F(cuMemGetInfo) F(cuMemGetAddressRange) F(cuPointerGetAttribute)               \
  F(cuMemHostRegister) F(cuMemHostUnregister) F(cuMemHostAlloc) F(cuMemFreeHost)                            \
  F(cuMemHostGetDevicePointer) F(cuMemcpyAsync) F(cuMemcpy2DAsync) F(cuMemsetD8Async)                       \
  F(cuStreamCreateWithPriority) F(cuStreamDestroy) F(cuStreamQuery) F(cuStreamSynchronize)                  \
  F(cuStreamWaitEvent) F(cuCtxGetStreamPriorityRange)                                                       \
  F(cuEventCreate) F(cuEventDestroy) F(cuEventRecord) F(cuEventQuery) F(cuEventSynchronize)                 \
  F(cuEventElapsedTime)                                                                                     \
  F(cuIpcGetMemHandle) F(cuIpcOpenMemHandle) F(cuIpcCloseMemHandle)                                         \
  F(cuIpcGetEventHandle) F(cuIpcOpenEventHandle)                                                            \
  F(cuMemCreate) F(cuMemRelease) F(cuMemAddressReserve) F(cuMemAddressFree) F(cuMemMap) F(cuMemUnmap)       \
  F(cuMemSetAccess) F(cuMemRetainAllocationHandle) F(cuMemExportToShareableHandle)                          \
  F(cuMemImportFromShareableHandle) F(cuMemGetAllocationPropertiesFromHandle)                               \
  F(cuMemGetAllocationGranularity)                                                                          \
  F(cuModuleLoadData) F(cuModuleUnload) F(cuModuleGetFunction) F(cuLaunchKernel)

namespace terrace::gpu {

// Constant once loaded. Threads: any. Not every driver has the functions behind "may be null".
struct Driver {
#define TERRACE_CUDA_MEMBER(name) decltype(&::name) name = nullptr;
  TERRACE_CUDA_FUNCTIONS(TERRACE_CUDA_MEMBER)
#undef TERRACE_CUDA_MEMBER
  decltype(&::cuMemcpyBatchAsync) cuMemcpyBatchAsync = nullptr;  // may be null: drivers before 13.0
  int version = 0;  // cuDriverGetVersion: 13000 is 13.0

  // Opens the library (never closed again) and calls cuInit. null: *why says what is missing and what to do.
  // `library`: as for dlopen().
  static std::shared_ptr<const Driver> Load(const std::string& library, std::string* why);

  // "CUDA_ERROR_OUT_OF_MEMORY: out of memory".
  std::string Explain(CUresult result) const;
  // True for errors after which the context is of no use for good: the device is to be fenced.
  static bool IsSticky(CUresult result);
};

// Makes a context current in this scope. Owner: the stack.
class ScopedContext {
 public:
  ScopedContext(const Driver& driver, CUcontext context) : driver_(driver) {
    result_ = driver_.cuCtxPushCurrent(context);
  }
  ~ScopedContext() {
    CUcontext popped;
    if (result_ == CUDA_SUCCESS) driver_.cuCtxPopCurrent(&popped);
  }
  ScopedContext(const ScopedContext&) = delete;
  CUresult result() const { return result_; }

 private:
  const Driver& driver_;
  CUresult result_;
};

}  // namespace terrace::gpu
