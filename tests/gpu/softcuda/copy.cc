// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// softcuda: copies and fills. Ranges are checked when a copy is enqueued (as an argument) and again when it is
// executed: memory that was freed meanwhile is an illegal address. Copies of host memory that is not registered
// return when they are done, as the driver's do.
#include <cstring>

#include "gpu/softcuda/state.h"

namespace softcuda {
namespace {

struct Copy {
  uintptr_t target, source;
  size_t bytes;
};

CUresult Execute(const Copy& copy) {
  std::byte* const target = TranslateAny(copy.target, copy.bytes);
  const std::byte* const source = TranslateAny(copy.source, copy.bytes);
  if (target == nullptr || source == nullptr) return CUDA_ERROR_ILLEGAL_ADDRESS;
  std::memmove(target, source, copy.bytes);
  return CUDA_SUCCESS;
}

CUresult Check(const Copy& copy, bool* pageable) {
  Place target, source;
  if (const CUresult e = Classify(reinterpret_cast<void*>(copy.target), copy.bytes, &target); e != CUDA_SUCCESS) {
    return e;
  }
  if (const CUresult e = Classify(reinterpret_cast<void*>(copy.source), copy.bytes, &source); e != CUDA_SUCCESS) {
    return e;
  }
  *pageable |= target.is_pageable || source.is_pageable;
  return CUDA_SUCCESS;
}

CUresult EnqueueCopy(CUstream handle, Copy copy, bool wait) {
  std::shared_ptr<CUstream_st> stream;
  if (const CUresult e = FindStream(handle, &stream); e != CUDA_SUCCESS) return e;
  if (copy.bytes == 0) return CUDA_SUCCESS;
  if (const CUresult e = Check(copy, &wait); e != CUDA_SUCCESS) return e;
  return Enqueue(
      stream,
      [copy] {
        const CUresult result = Execute(copy);
        if (result == CUDA_SUCCESS) CountCopy(TranslateAny(copy.target, copy.bytes), copy.bytes);
        return result;
      },
      wait);
}

CUresult EnqueueFill(CUstream handle, CUdeviceptr target, unsigned char value, size_t bytes, bool wait) {
  std::shared_ptr<CUstream_st> stream;
  if (const CUresult e = FindStream(handle, &stream); e != CUDA_SUCCESS) return e;
  if (bytes == 0) return CUDA_SUCCESS;
  Place place;
  if (const CUresult e = Classify(reinterpret_cast<void*>(target), bytes, &place); e != CUDA_SUCCESS) return e;
  if (place.is_pageable) return CUDA_ERROR_INVALID_VALUE;
  return Enqueue(
      stream,
      [=] {
        std::byte* const at = Translate(target, bytes);
        if (at == nullptr) return CUDA_ERROR_ILLEGAL_ADDRESS;
        std::memset(at, value, bytes);
        return CUDA_SUCCESS;
      },
      wait);
}

// One side of a 2D copy: its first byte, or 0 where the description is wrong.
uintptr_t Side(CUmemorytype type, const void* host, CUdeviceptr device, size_t pitch, size_t x, size_t y,
               const CUDA_MEMCPY2D& copy) {
  constexpr size_t kMaxPitch = 0x7fffffff;
  if (type == CU_MEMORYTYPE_ARRAY || pitch > kMaxPitch) return 0;
  if (copy.Height > 1 && pitch < copy.WidthInBytes + x) return 0;
  const uintptr_t base = type == CU_MEMORYTYPE_HOST ? reinterpret_cast<uintptr_t>(host) : device;
  if (base == 0 || (type == CU_MEMORYTYPE_HOST && Get().InArena(base))) return 0;
  if (type == CU_MEMORYTYPE_DEVICE) {
    Place place;
    if (Classify(reinterpret_cast<void*>(base), 1, &place) != CUDA_SUCCESS || place.is_pageable) return 0;
  }
  return base + y * pitch + x;
}

}  // namespace
}  // namespace softcuda

using softcuda::EnqueueCopy;

CUresult cuMemcpyAsync(CUdeviceptr target, CUdeviceptr source, size_t bytes, CUstream stream) {
  SOFTCUDA_ENTER(cuMemcpyAsync);
  return EnqueueCopy(stream, {target, source, bytes}, false);
}

CUresult cuMemcpy(CUdeviceptr target, CUdeviceptr source, size_t bytes) {
  SOFTCUDA_ENTER(cuMemcpy);
  return EnqueueCopy(nullptr, {target, source, bytes}, true);
}

CUresult cuMemcpyHtoD(CUdeviceptr target, const void* source, size_t bytes) {
  SOFTCUDA_ENTER(cuMemcpyHtoD);
  return EnqueueCopy(nullptr, {target, reinterpret_cast<uintptr_t>(source), bytes}, true);
}

CUresult cuMemcpyDtoH(void* target, CUdeviceptr source, size_t bytes) {
  SOFTCUDA_ENTER(cuMemcpyDtoH);
  return EnqueueCopy(nullptr, {reinterpret_cast<uintptr_t>(target), source, bytes}, true);
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr target, const void* source, size_t bytes, CUstream stream) {
  SOFTCUDA_ENTER(cuMemcpyHtoDAsync);
  return EnqueueCopy(stream, {target, reinterpret_cast<uintptr_t>(source), bytes}, false);
}

CUresult cuMemcpyDtoHAsync(void* target, CUdeviceptr source, size_t bytes, CUstream stream) {
  SOFTCUDA_ENTER(cuMemcpyDtoHAsync);
  return EnqueueCopy(stream, {reinterpret_cast<uintptr_t>(target), source, bytes}, false);
}

CUresult cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t bytes, CUstream stream) {
  SOFTCUDA_ENTER(cuMemsetD8Async);
  return softcuda::EnqueueFill(stream, target, value, bytes, false);
}

CUresult cuMemsetD8(CUdeviceptr target, unsigned char value, size_t bytes) {
  SOFTCUDA_ENTER(cuMemsetD8);
  return softcuda::EnqueueFill(nullptr, target, value, bytes, true);
}

CUresult cuMemcpy2DAsync(const CUDA_MEMCPY2D* copy, CUstream handle) {
  SOFTCUDA_ENTER(cuMemcpy2DAsync);
  std::shared_ptr<CUstream_st> stream;
  if (const CUresult e = softcuda::FindStream(handle, &stream); e != CUDA_SUCCESS) return e;
  if (copy == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (copy->WidthInBytes == 0 || copy->Height == 0) return CUDA_SUCCESS;
  const uintptr_t source = softcuda::Side(copy->srcMemoryType, copy->srcHost, copy->srcDevice, copy->srcPitch,
                                          copy->srcXInBytes, copy->srcY, *copy);
  const uintptr_t target = softcuda::Side(copy->dstMemoryType, copy->dstHost, copy->dstDevice, copy->dstPitch,
                                          copy->dstXInBytes, copy->dstY, *copy);
  if (source == 0 || target == 0) return CUDA_ERROR_INVALID_VALUE;
  std::vector<softcuda::Copy> rows;
  bool pageable = false;
  for (size_t i = 0; i < copy->Height; ++i) {
    rows.push_back({target + i * copy->dstPitch, source + i * copy->srcPitch, copy->WidthInBytes});
    if (const CUresult e = softcuda::Check(rows.back(), &pageable); e != CUDA_SUCCESS) return e;
  }
  return softcuda::Enqueue(
      stream,
      [rows = std::move(rows)] {
        for (const softcuda::Copy& row : rows) {
          if (const CUresult e = softcuda::Execute(row); e != CUDA_SUCCESS) return e;
        }
        softcuda::CountCopy(softcuda::TranslateAny(rows[0].target, rows[0].bytes), rows[0].bytes);
        return CUDA_SUCCESS;
      },
      pageable);
}

// Copies of a batch have no order: they are executed backwards.
CUresult cuMemcpyBatchAsync(CUdeviceptr* targets, CUdeviceptr* sources, size_t* sizes, size_t count,
                            CUmemcpyAttributes* attributes, size_t* attribute_starts, size_t n_attributes,
                            CUstream handle) {
  SOFTCUDA_ENTER(cuMemcpyBatchAsync);
  std::shared_ptr<CUstream_st> stream;
  if (handle == nullptr || handle == CU_STREAM_LEGACY) return CUDA_ERROR_INVALID_VALUE;  // refused by the driver, too
  if (const CUresult e = softcuda::FindStream(handle, &stream); e != CUDA_SUCCESS) return e;
  if (targets == nullptr || sources == nullptr || sizes == nullptr || attributes == nullptr ||
      attribute_starts == nullptr || count == 0 || n_attributes == 0 || n_attributes > count ||
      attribute_starts[0] != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  for (size_t i = 0; i < n_attributes; ++i) {
    const auto order = attributes[i].srcAccessOrder;
    if (order != CU_MEMCPY_SRC_ACCESS_ORDER_STREAM && order != CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL &&
        order != CU_MEMCPY_SRC_ACCESS_ORDER_ANY) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    if (i > 0 && (attribute_starts[i] <= attribute_starts[i - 1] || attribute_starts[i] >= count)) {
      return CUDA_ERROR_INVALID_VALUE;
    }
  }
  std::vector<softcuda::Copy> copies;
  bool pageable = false;
  for (size_t i = 0; i < count; ++i) {
    copies.push_back({targets[i], sources[i], sizes[i]});
    if (sizes[i] == 0) return CUDA_ERROR_INVALID_VALUE;
    if (const CUresult e = softcuda::Check(copies.back(), &pageable); e != CUDA_SUCCESS) return e;
  }
  return softcuda::Enqueue(
      stream,
      [copies = std::move(copies)] {
        for (auto copy = copies.rbegin(); copy != copies.rend(); ++copy) {
          if (const CUresult e = softcuda::Execute(*copy); e != CUDA_SUCCESS) return e;
          softcuda::CountCopy(softcuda::TranslateAny(copy->target, copy->bytes), copy->bytes);
        }
        return CUDA_SUCCESS;
      },
      pageable);
}
