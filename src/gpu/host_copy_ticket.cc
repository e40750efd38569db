// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/host_copy_ticket.h"

#include <algorithm>
#include <span>
#include <utility>

namespace terrace::gpu {
namespace {

constexpr uint64_t kTaskBytes = 1 << 20;  // some 50 us of copying; taking a task costs well under one
constexpr uint64_t kMaxChunks = 1024;     // bounds a ticket's tables, whatever a page's size
// Batches from here on do not stay in the caches until somebody reads them, so they need not go through them.
constexpr uint64_t kStreamingBytes = 1 << 20;

constexpr uint64_t DivideUp(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

}  // namespace

HostCopyTicket::HostCopyTicket(CopyBatch taken)
    : batch(std::move(taken)),
      page_bytes_(batch.region->page_bytes()),
      failed_(std::make_unique<std::atomic<bool>[]>(batch.pages.size())) {
  uint64_t end = 0;
  for (const Plane& plane : batch.region->layout().planes) plane_ends_.push_back(end += plane.bytes);
  // Small chunks only where somebody wants to hear of planes.
  const bool by_planes = batch.planes_done && batch.direction == Direction::kLoad;
  const uint64_t wanted = by_planes ? kChecksumSegmentBytes : kTaskBytes;
  const uint64_t least = DivideUp(page_bytes_, kMaxChunks);
  chunk_bytes_ = DivideUp(std::max(wanted, least), kChecksumSegmentBytes) * kChecksumSegmentBytes;
  n_chunks_ = DivideUp(page_bytes_, chunk_bytes_);
  pages_per_group_ = std::max<uint64_t>(1, kTaskBytes / std::min(chunk_bytes_, page_bytes_));
  groups_ = DivideUp(batch.pages.size(), pages_per_group_);
}

void HostCopyTicket::Run(size_t task, std::vector<Piece>* scratch) {
  const size_t chunk = task / groups_, group = task % groups_;
  const uint64_t begin = chunk * chunk_bytes_, end = std::min(begin + chunk_bytes_, page_bytes_);
  const size_t end_page = std::min(batch.pages.size(), (group + 1) * pages_per_group_);
  for (size_t i = group * pages_per_group_; i < end_page; ++i) {
    if (failed_[i].load(std::memory_order_relaxed)) continue;
    if (!CopyPart(batch.pages[i], begin / kChecksumSegmentBytes, begin, end, scratch)) {
      failed_[i].store(true, std::memory_order_relaxed);
      any_failed_.store(true, std::memory_order_relaxed);
    }
  }
}

bool HostCopyTicket::CopyPart(PageCopy& copy, size_t first_segment, uint64_t begin, uint64_t end,
                              std::vector<Piece>* scratch) {
  scratch->clear();
  size_t plane = std::upper_bound(plane_ends_.begin(), plane_ends_.end(), begin) - plane_ends_.begin();
  for (uint64_t at = begin; at < end; ++plane) {
    const uint64_t plane_begin = plane == 0 ? 0 : plane_ends_[plane - 1];
    const uint64_t bytes = std::min(end, plane_ends_[plane]) - at;
    scratch->push_back({batch.region->Piece(static_cast<uint32_t>(plane), copy.page) + (at - plane_begin), bytes});
    at += bytes;
  }
  const Piece frame{copy.frame + begin, end - begin};
  const std::span<uint64_t> checksums = std::span(copy.checksums).subspan(first_segment, ChecksumCount(end - begin));
  const uint64_t seed = SeedFromSegment(copy.identity_seed, first_segment);
  const CopyStores stores = total_bytes() >= kStreamingBytes ? CopyStores::kStreaming : CopyStores::kCached;
  if (batch.direction == Direction::kStore) {
    return CopyBlock(*scratch, {&frame, 1}, seed, CopyCheck::kCompute, checksums, stores);
  }
  return CopyBlock({&frame, 1}, *scratch, seed, CopyCheck::kVerify, checksums, stores);
}

uint32_t HostCopyTicket::PlanesIn(size_t n_chunks) const {
  if (any_failed_.load(std::memory_order_relaxed)) return 0;
  const uint64_t bytes = std::min(n_chunks * chunk_bytes_, page_bytes_);
  return static_cast<uint32_t>(std::upper_bound(plane_ends_.begin(), plane_ends_.end(), bytes) - plane_ends_.begin());
}

void HostCopyTicket::Judge(bool ok) {
  for (size_t i = 0; i < batch.pages.size(); ++i) {
    batch.pages[i].intact = ok && !failed_[i].load(std::memory_order_relaxed);
  }
}

}  // namespace terrace::gpu
