// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/plane_overlap.h"

#include <algorithm>
#include <span>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"

namespace terrace::gpu {
namespace {

// Offsets and strides have 64 bits, pages 28.
__extension__ using Wide = __int128;

struct Extent {
  const Plane* plane;
  size_t number;
  uint64_t end;  // of the last page's piece
};

Wide CeilDivide(Wide value, Wide by) { return (value + by - 1) / by; }

// Sum of (a * i + b) / m, rounded down, over i in [0, n).
Wide FloorSum(Wide n, Wide m, Wide a, Wide b) {
  Wide sum = 0;
  while (n > 0) {
    sum += n * (n - 1) / 2 * (a / m) + n * (b / m);
    a %= m;
    b %= m;
    const Wide last = a * n + b;
    n = last / m;
    b = last % m;
    std::swap(m, a);
  }
  return sum;
}

// Pairs (p, q) of pages for which p * step_p - q * step_q <= limit.
Wide CountPairs(Wide n, Wide step_p, Wide step_q, Wide limit) {
  const Wide first = limit >= 0 ? 0 : std::min(n, CeilDivide(-limit, step_q));  // before it: no p
  const Wide rest = step_p * (n - 1) - limit;
  const Wide all = rest <= 0 ? 0 : std::min(n, CeilDivide(rest, step_q));       // from there on: every p
  const Wide between = all > first ? FloorSum(all - first, step_p, step_q, limit + step_q * first) + (all - first) : 0;
  return between + (n - std::max(first, all)) * n;
}

// a begins first.
bool Overlap(const Plane& a, const Plane& b, uint64_t n_pages) {
  const uint64_t distance = b.offset - a.offset;
  if (a.stride == b.stride) {
    const uint64_t pages = distance / a.stride, rest = distance % a.stride;
    return (pages < n_pages && rest < a.bytes) || (pages + 1 < n_pages && b.bytes > a.stride - rest);
  }
  const Wide d = distance;
  const auto count = [&](Wide limit) { return CountPairs(n_pages, a.stride, b.stride, limit); };
  return count(d + b.bytes - 1) > count(d - a.bytes);
}

absl::Status Refuse(const Extent& a, const Extent& b) {
  const auto [first, second] = std::minmax(a.number, b.number);
  return absl::InvalidArgumentError(absl::StrCat("planes ", first, " and ", second, " overlap: pieces of both lie on ",
                                                 "the same bytes of allocation ", a.plane->allocation));
}

// Extents that overlap in a row. Inside one stride, the same for all, no piece meets one of another page.
bool IsInsideOneStride(std::span<const Extent> cluster) {
  const Plane& first = *cluster[0].plane;
  return std::all_of(cluster.begin(), cluster.end(), [&](const Extent& extent) {
    const uint64_t from = extent.plane->offset - first.offset;
    return extent.plane->stride == first.stride && from < first.stride && extent.plane->bytes <= first.stride - from;
  });
}

absl::Status CheckCluster(std::span<const Extent> cluster, uint64_t n_pages, int* unequal_pairs) {
  if (IsInsideOneStride(cluster)) {
    for (size_t i = 1; i < cluster.size(); ++i) {
      const Plane& before = *cluster[i - 1].plane;
      if (cluster[i].plane->offset - before.offset < before.bytes) return Refuse(cluster[i - 1], cluster[i]);
    }
    return absl::OkStatus();
  }
  for (size_t i = 0; i < cluster.size(); ++i) {
    for (size_t j = i + 1; j < cluster.size() && cluster[j].plane->offset < cluster[i].end; ++j) {
      const Plane &a = *cluster[i].plane, &b = *cluster[j].plane;
      if (a.stride != b.stride && ++*unequal_pairs > kMaxUnequalPairs) {
        return absl::InvalidArgumentError(absl::StrCat("more than ", kMaxUnequalPairs, " pairs of planes lie among ",
                                                       "each other with different strides, as ", cluster[i].number,
                                                       " and ", cluster[j].number));
      }
      if (Overlap(a, b, n_pages)) return Refuse(cluster[i], cluster[j]);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckPlanesApart(const RegionLayout& layout) {
  std::vector<Extent> extents;
  for (size_t i = 0; i < layout.planes.size(); ++i) {
    const Plane& plane = layout.planes[i];
    extents.push_back({&plane, i, plane.offset + (layout.n_pages - 1) * plane.stride + plane.bytes});
  }
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
    return std::tie(a.plane->allocation, a.plane->offset, a.number) <
           std::tie(b.plane->allocation, b.plane->offset, b.number);
  });
  int unequal_pairs = 0;
  for (size_t begin = 0, end = 0; begin < extents.size(); begin = end) {
    uint64_t reach = 0;
    for (end = begin; end < extents.size() && extents[end].plane->allocation == extents[begin].plane->allocation &&
                      (end == begin || extents[end].plane->offset < reach);
         ++end) {
      reach = std::max(reach, extents[end].end);
    }
    absl::Status status = CheckCluster(std::span(extents).subspan(begin, end - begin), layout.n_pages, &unequal_pairs);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace terrace::gpu
