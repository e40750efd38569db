// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The kernels that softcuda knows by name: src/gpu/cuda/kernels on a warp of the processor.
#include "gpu/softcuda/kernels.h"

#include "gpu/softcuda/softcuda.h"

namespace softcuda {
namespace {

using terrace::gpu::CopyTable;
using terrace::gpu::SegmentWork;

struct DeviceMemory {
  std::byte* Map(uint64_t address, uint64_t bytes) { return Translate(address, bytes); }
};

template <SegmentWork kWork, bool kHash>
CUresult Run(Dim3 grid, Dim3 block, unsigned, void** args) {
  if (grid.x == 0 || grid.y != 1 || grid.z != 1 || block.x == 0 || block.x % 32 != 0 ||
      block.x > terrace::gpu::kMaxKernelThreads || block.y != 1 || block.z != 1) {
    return CUDA_ERROR_LAUNCH_FAILED;
  }
  const CopyTable& table = *static_cast<const CopyTable*>(args[0]);
  return RunCopyKernel<kWork, kHash>(DeviceMemory(), table) ? CUDA_SUCCESS : CUDA_ERROR_ILLEGAL_ADDRESS;
}

}  // namespace

const std::vector<Kernel>& Kernels() {
  static const auto* const kernels = new std::vector<Kernel>{
      {terrace::gpu::kGatherKernel, {sizeof(CopyTable)}, Run<SegmentWork::kGather, true>},
      {terrace::gpu::kScatterKernel, {sizeof(CopyTable)}, Run<SegmentWork::kScatter, true>},
      {terrace::gpu::kChecksumKernel, {sizeof(CopyTable)}, Run<SegmentWork::kChecksum, true>},
      {terrace::gpu::kPlainGatherKernel, {sizeof(CopyTable)}, Run<SegmentWork::kGather, false>},
  };
  return *kernels;
}

}  // namespace softcuda
