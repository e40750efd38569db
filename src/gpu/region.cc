// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/region.h"

#include "absl/strings/str_cat.h"
#include "gpu/copy_engine.h"
#include "gpu/plane_overlap.h"
#include "kvstore/base/block_copy.h"

namespace terrace::gpu {

uint64_t RegionLayout::PageBytes() const {
  uint64_t bytes = 0;
  for (const Plane& plane : planes) bytes += plane.bytes;
  return bytes;
}

absl::Status RegionLayout::Validate(std::span<const uint64_t> allocation_bytes) const {
  if (planes.empty() || planes.size() > kMaxPlanes) {
    return absl::InvalidArgumentError(absl::StrCat("a region of ", planes.size(), " planes; 1 to ", kMaxPlanes));
  }
  if (allocation_bytes.empty() || allocation_bytes.size() > kMaxAllocations) {
    return absl::InvalidArgumentError(
        absl::StrCat("a region of ", allocation_bytes.size(), " allocations; 1 to ", kMaxAllocations));
  }
  if (n_pages == 0 || n_pages > kMaxPages) {
    return absl::InvalidArgumentError(absl::StrCat("a region of ", n_pages, " pages; 1 to ", kMaxPages));
  }
  uint64_t page_bytes = 0;
  for (size_t i = 0; i < planes.size(); ++i) {
    const Plane& plane = planes[i];
    if (plane.allocation >= allocation_bytes.size()) {
      return absl::InvalidArgumentError(absl::StrCat("plane ", i, " lies in allocation ", plane.allocation, " of ",
                                                     allocation_bytes.size()));
    }
    if (plane.bytes == 0 || plane.stride < plane.bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("plane ", i, ": pieces of ", plane.bytes, " bytes every ", plane.stride, " bytes"));
    }
    const uint64_t size = allocation_bytes[plane.allocation];
    uint64_t last = 0, end = 0;  // where the last page's piece begins and ends
    if (__builtin_mul_overflow(n_pages - 1, plane.stride, &last) || __builtin_add_overflow(last, plane.offset, &last) ||
        __builtin_add_overflow(last, plane.bytes, &end) || end > size) {
      return absl::InvalidArgumentError(absl::StrCat("plane ", i, ": ", n_pages, " pages of ", plane.stride,
                                                     " bytes from ", plane.offset,
                                                     " do not lie inside its allocation of ", size, " bytes"));
    }
    if (__builtin_add_overflow(page_bytes, plane.bytes, &page_bytes)) {
      return absl::InvalidArgumentError("the planes' bytes do not add up");
    }
  }
  return CheckPlanesApart(*this);
}

absl::Status CheckBatch(const CopyBatch& batch) {
  if (batch.region == nullptr) return absl::InvalidArgumentError("a batch without a region");
  if (batch.pages.empty() || batch.pages.size() > CopyBatch::kMaxPages) {
    return absl::InvalidArgumentError(
        absl::StrCat("a batch of ", batch.pages.size(), " pages; 1 to ", CopyBatch::kMaxPages));
  }
  if (batch.after_event != kNoEvent && batch.after_event >= batch.region->event_count()) {
    return absl::InvalidArgumentError(
        absl::StrCat("event ", batch.after_event, " of ", batch.region->event_count()));
  }
  const uint64_t n_pages = batch.region->layout().n_pages;
  const size_t n_checksums = ChecksumCount(batch.region->page_bytes());
  for (const PageCopy& copy : batch.pages) {
    if (copy.page >= n_pages) {
      return absl::InvalidArgumentError(absl::StrCat("page ", copy.page, " of ", n_pages));
    }
    if (copy.frame == nullptr) return absl::InvalidArgumentError("a page without a frame");
    if (copy.checksums.size() != n_checksums) {
      return absl::InvalidArgumentError(
          absl::StrCat(copy.checksums.size(), " checksums for a page; ", n_checksums, " are needed"));
    }
  }
  if (batch.region->fenced()) return absl::CancelledError("the region is closed");
  return absl::OkStatus();
}

}  // namespace terrace::gpu
