// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Whether pieces of two planes of a region lie on the same bytes. Exact, and without looking at pages: an engine may
// register a quarter of a billion of them.
#pragma once

#include "absl/status/status.h"
#include "gpu/region.h"

namespace terrace::gpu {

// Planes that lie among each other with different strides take longer to compare: so many pairs of them at most.
inline constexpr int kMaxUnequalPairs = 65'536;

// InvalidArgument names the two planes. Pieces may lie among each other in any way as long as none shares a byte with
// another. Time: planes * log(planes) where planes lie one after another, or all inside one stride, which is every
// paged layout in use; else pairs of planes. REQUIRES: each plane for itself lies inside its allocation.
absl::Status CheckPlanesApart(const RegionLayout& layout);

}  // namespace terrace::gpu
