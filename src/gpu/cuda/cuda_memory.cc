// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/cuda_memory.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/status_macros.h"

namespace terrace::gpu {

absl::StatusOr<std::unique_ptr<CudaMemory>> CudaMemory::Make(std::shared_ptr<CudaDevice> device, uint64_t bytes,
                                                             int64_t deadline_ns) {
  if (device->fenced()) return device->health();
  if (bytes == 0) return absl::InvalidArgumentError("no bytes of GPU memory");
  auto memory = absl::WrapUnique(new CudaMemory(std::move(device), bytes, deadline_ns));
  RETURN_IF_ERROR(memory->Allocate());
  RETURN_IF_ERROR(memory->Zero(0, bytes));
  return memory;
}

absl::Status CudaMemory::Allocate() {
  const Driver& driver = device_->driver();
  const ScopedContext current(driver, device_->context());
  RETURN_IF_ERROR(device_->Check(current.result(), "cuCtxPushCurrent"));
  // Only what was made is given back by the destructor.
  CUdeviceptr base = 0;
  RETURN_IF_ERROR(device_->Check(driver.cuMemAlloc(&base, bytes_), "cuMemAlloc"));
  base_ = base;
  CUstream stream = nullptr;
  RETURN_IF_ERROR(
      device_->Check(driver.cuStreamCreateWithPriority(&stream, CU_STREAM_NON_BLOCKING, 0), "cuStreamCreate"));
  stream_ = stream;
  return absl::OkStatus();
}

CudaMemory::~CudaMemory() {
  if (device_->fenced()) return;
  const Driver& driver = device_->driver();
  const ScopedContext current(driver, device_->context());
  if (stream_ != nullptr) driver.cuStreamDestroy(stream_);
  if (base_ != 0) driver.cuMemFree(base_);
}

absl::Status CudaMemory::Zero(uint64_t offset, uint64_t bytes) {
  if (bytes > bytes_ || offset > bytes_ - bytes) {
    return absl::InvalidArgumentError(absl::StrCat(bytes, " bytes from ", offset, " of ", bytes_));
  }
  if (device_->fenced()) return device_->health();
  const Driver& driver = device_->driver();
  const ScopedContext current(driver, device_->context());
  RETURN_IF_ERROR(device_->Check(current.result(), "cuCtxPushCurrent"));
  RETURN_IF_ERROR(device_->Check(driver.cuMemsetD8Async(base_ + offset, 0, bytes, stream_), "cuMemsetD8Async"));
  // Asked, not waited for: a stream that hangs would never let go.
  const int64_t deadline_ns = Clock::Real()->NowNs() + deadline_ns_;
  std::chrono::microseconds pause(5);
  while (true) {
    const CUresult result = driver.cuStreamQuery(stream_);
    if (result != CUDA_ERROR_NOT_READY) return device_->Check(result, "cuMemsetD8Async");
    if (Clock::Real()->NowNs() > deadline_ns) break;
    std::this_thread::sleep_for(pause);
    pause = std::min<std::chrono::microseconds>(2 * pause, std::chrono::milliseconds(1));
  }
  device_->Fence(absl::DeadlineExceededError("it hangs: zeros did not arrive in time"));
  return device_->health();
}

}  // namespace terrace::gpu
