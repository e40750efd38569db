// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// CudaCopyEngine under the contract of all copy engines, in every way that it copies. Runs on softcuda, and on a real
// GPU where TERRACE_TEST_DRIVER says so.
#include "contract/copy_engine_contract.h"
#include "gpu/cuda_copy_rig.h"

namespace terrace::gpu {
namespace {

struct ByMeasuredRates final : CudaCopyRig {};
struct CopyEnginesOnly final : CudaCopyRig {
  CopyEnginesOnly() : CudaCopyRig({.only = CopyMeans::kCopyEngine}) {}
};
struct KernelsOnly final : CudaCopyRig {
  KernelsOnly() : CudaCopyRig({.only = CopyMeans::kDirect}) {}
};
struct StagedOnly final : CudaCopyRig {
  StagedOnly() : CudaCopyRig({.only = CopyMeans::kStaged}) {}
};
// Frames that are not pinned, one chunk a batch.
struct Bounced final : CudaCopyRig {
  Bounced() : CudaCopyRig({.is_pinned = false, .staging_bytes = 64 << 20}) {}
};
struct BouncedInChunks final : CudaCopyRig {
  BouncedInChunks() : CudaCopyRig({.only = CopyMeans::kStaged, .is_pinned = false}) {}
};
// An old driver, or a GPU that is not known yet.
struct WithoutKernels final : CudaCopyRig {
  WithoutKernels() : CudaCopyRig({.has_kernels = false, .has_batches = false, .staging_bytes = 0}) {}
};
struct WithoutKernelsBounced final : CudaCopyRig {
  WithoutKernelsBounced() : CudaCopyRig({.is_pinned = false, .has_kernels = false}) {}
};
struct WithoutStaging final : CudaCopyRig {
  WithoutStaging() : CudaCopyRig({.has_batches = false, .staging_bytes = 0}) {}
};

using Rigs = ::testing::Types<ByMeasuredRates, CopyEnginesOnly, KernelsOnly, StagedOnly, Bounced, BouncedInChunks,
                              WithoutKernels, WithoutKernelsBounced, WithoutStaging>;
TERRACE_COPY_ENGINE_CONTRACT(Cuda, Rigs);

}  // namespace
}  // namespace terrace::gpu
