// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The GPU cases of a build without CUDA (TERRACE_CUDA=OFF): there are none.
#include "gpu_cases.h"

namespace terrace::bench {

absl::Status RunGpuCases(const GpuBenchContext&) { return absl::UnimplementedError("built without CUDA"); }

}  // namespace terrace::bench
