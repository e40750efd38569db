// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The copy kernels: segment_copy.h on real warps. At most max_sms blocks are launched, so that the engine keeps its
// multiprocessors; each warp takes items until there are none.
#include "gpu/cuda/kernels/segment_copy.h"

namespace terrace::gpu {
namespace {

struct GpuWarp {
  uint32_t lane;
  uint8_t* tail;
  xxh3::LaneState state;
  xxh3::Word16 words[2 * kBlocksAtOnce];

  template <class F>
  __device__ __forceinline__ void Each(F f) {
    f(lane, state, words);
  }
  __device__ __forceinline__ void SumBlock() {
#pragma unroll
    for (uint32_t step = 4; step < 32; step *= 2) {
      state.sum[0] += __shfl_xor_sync(~0u, state.sum[0], step);
      state.sum[1] += __shfl_xor_sync(~0u, state.sum[1], step);
    }
  }
  template <class F>
  __device__ __forceinline__ uint64_t SumFour(F f) {
    uint64_t part = lane < 4 ? f(lane, state) : 0;
    part += __shfl_xor_sync(~0u, part, 1);
    part += __shfl_xor_sync(~0u, part, 2);
    return part;
  }
  __device__ __forceinline__ void Sync() { __syncwarp(); }
  __device__ __forceinline__ uint8_t* Tail() { return tail; }
  // Nothing here is read twice: past the caches where that is possible.
  __device__ __forceinline__ xxh3::Word16 Load(uint64_t address) {
    const ulonglong2 value = __ldcs(reinterpret_cast<const ulonglong2*>(address));
    return {value.x, value.y};
  }
  __device__ __forceinline__ void Store(uint64_t address, const xxh3::Word16& word) {
    __stcs(reinterpret_cast<ulonglong2*>(address), make_ulonglong2(word.low, word.high));
  }
  __device__ __forceinline__ uint8_t LoadByte(uint64_t address) {
    return *reinterpret_cast<const uint8_t*>(address);
  }
  __device__ __forceinline__ void StoreByte(uint64_t address, uint8_t byte) {
    *reinterpret_cast<uint8_t*>(address) = byte;
  }
  template <class F>
  __device__ __forceinline__ void Publish(uint64_t* to, F f) {
    if (lane == 0) *to = f();
  }
};

template <SegmentWork kWork, bool kHash>
__device__ __forceinline__ void CopyItems(const CopyTable& table) {
  __shared__ uint8_t tails[kMaxKernelThreads / 32][kTailBytes];
  GpuWarp warp;
  warp.lane = threadIdx.x % 32;
  warp.tail = tails[threadIdx.x / 32];
  const uint32_t warps = gridDim.x * (blockDim.x / 32);
  const uint32_t n_items = table.n_blocks * table.n_segments;
  // Neighbouring items go to different multiprocessors.
  for (uint32_t item = threadIdx.x / 32 * gridDim.x + blockIdx.x; item < n_items; item += warps) {
    CopySegment<kWork, kHash>(warp, table, item);
  }
}

}  // namespace
}  // namespace terrace::gpu

using terrace::gpu::CopyTable;
using terrace::gpu::SegmentWork;

#define TERRACE_COPY_KERNEL extern "C" __global__ void __launch_bounds__(terrace::gpu::kMaxKernelThreads)

TERRACE_COPY_KERNEL terrace_gather(const CopyTable table) {
  terrace::gpu::CopyItems<SegmentWork::kGather, true>(table);
}
TERRACE_COPY_KERNEL terrace_scatter(const CopyTable table) {
  terrace::gpu::CopyItems<SegmentWork::kScatter, true>(table);
}
TERRACE_COPY_KERNEL terrace_checksum(const CopyTable table) {
  terrace::gpu::CopyItems<SegmentWork::kChecksum, true>(table);
}
TERRACE_COPY_KERNEL terrace_gather_plain(const CopyTable table) {
  terrace::gpu::CopyItems<SegmentWork::kGather, false>(table);
}
