// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// softcuda: what tests and softnccl need of it beside what the product uses: work of their own in a stream's order.
#include "gpu/softcuda/state.h"

// As the driver's, but for one thing: the function may ask where device memory is (softcuda_translate).
CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void* data) {
  SOFTCUDA_ENTER(cuLaunchHostFunc);
  if (function == nullptr) return CUDA_ERROR_INVALID_VALUE;
  std::shared_ptr<CUstream_st> stream;
  if (const CUresult e = softcuda::FindStream(handle, &stream); e != CUDA_SUCCESS) return e;
  return softcuda::Enqueue(stream, [function, data] {
    function(data);
    return CUDA_SUCCESS;
  });
}

// Inside a function of cuLaunchHostFunc: where the bytes can be read and written until it returns, or null.
extern "C" void* softcuda_translate(CUdeviceptr address, size_t bytes) { return softcuda::Translate(address, bytes); }
