// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The GPU cases about kernels: what copies cost the engine's, and what checksums cost ours.
#pragma once

#include "gpu_cases.h"
#include "gpu_rig.h"

namespace terrace::bench {

absl::Status RunInterference(const GpuBenchContext& context, GpuRig* rig);
absl::Status RunChecksum(const GpuBenchContext& context, GpuRig* rig);

}  // namespace terrace::bench
