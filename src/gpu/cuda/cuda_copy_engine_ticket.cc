// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/cuda_copy_engine_ticket.h"

#include <algorithm>
#include <utility>

#include "kvstore/base/block_copy.h"

namespace terrace::gpu {

CudaCopyTicket::CudaCopyTicket(CopyBatch taken, FramePlaces found, uint64_t chunk_bytes)
    : batch(std::move(taken)),
      frames(std::move(found)),
      page_bytes_(batch.region->page_bytes()),
      shape_(ShapeOf(batch)),
      chunks_(CutBatch(static_cast<uint32_t>(batch.pages.size()), page_bytes_, chunk_bytes,
                       batch.planes_done != nullptr && batch.direction == Direction::kLoad)),
      chunk_done_(chunks_.size()),
      page_failed_(batch.pages.size()) {
  uint64_t begin = 0;
  const RegionLayout& layout = batch.region->layout();
  for (uint32_t i = 0; i < layout.planes.size(); ++i) {
    const Plane& plane = layout.planes[i];
    planes_.push_back({reinterpret_cast<uint64_t>(batch.region->Piece(i, 0)), plane.stride, begin, plane.bytes});
    begin += plane.bytes;
  }
}

std::span<const PlaneEntry> CudaCopyTicket::PlanesOf(uint64_t begin, uint64_t end) const {
  const auto after = [](uint64_t at, const PlaneEntry& plane) { return at < plane.begin; };
  const auto first = std::upper_bound(planes_.begin(), planes_.end(), begin, after) - 1;
  const auto last = std::upper_bound(first, planes_.end(), end - 1, after);
  return {first, last};
}

uint64_t CudaCopyTicket::Begin(const CopyChunk& chunk) const {
  return uint64_t{chunk.first_segment} * kChecksumSegmentBytes;
}
uint64_t CudaCopyTicket::End(const CopyChunk& chunk) const {
  return std::min(page_bytes_, (uint64_t{chunk.first_segment} + chunk.n_segments) * kChecksumSegmentBytes);
}

void CudaCopyTicket::ChunkDone(size_t index, std::span<const uint64_t> checksums) {
  const CopyChunk& chunk = chunks_[index];
  for (uint32_t b = 0; b < chunk.n_blocks; ++b) {
    PageCopy& page = batch.pages[chunk.first_block + b];
    const auto found = checksums.subspan(size_t{b} * chunk.n_segments, chunk.n_segments);
    const auto kept = page.checksums.begin() + chunk.first_segment;
    if (!is_load()) {
      std::copy(found.begin(), found.end(), kept);
    } else if (!std::equal(found.begin(), found.end(), kept)) {
      page_failed_[chunk.first_block + b] = true;
      any_failed_ = true;
    }
  }
  chunk_done_[index] = true;
  while (first_open_ < chunks_.size() && chunk_done_[first_open_]) ++first_open_;
  TellPlanes();
}

void CudaCopyTicket::TellPlanes() {
  if (!is_load() || any_failed_ || batch.planes_done == nullptr || !status.ok()) return;
  const uint64_t arrived = first_open_ == chunks_.size() ? page_bytes_ : Begin(chunks_[first_open_]);
  uint32_t n = planes_told_;
  while (n < planes_.size() && planes_[n].begin + planes_[n].bytes <= arrived) ++n;
  if (n == planes_told_) return;
  planes_told_ = n;
  batch.planes_done(n);
}

void CudaCopyTicket::End(const absl::Status& end, bool frames_lost) {
  batch.frames_lost = frames_lost;
  for (size_t i = 0; i < batch.pages.size(); ++i) batch.pages[i].intact = end.ok() && !page_failed_[i];
  batch.done(batch, end);
}

}  // namespace terrace::gpu
