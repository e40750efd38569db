// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// CudaCopyTicket: one batch of CudaCopyEngine: its chunks, which of them are done, and what is known of its pages. No
// CUDA call.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "gpu/copy_engine.h"
#include "gpu/cuda/copy_planner.h"
#include "gpu/cuda/cuda_copy_engine_frames.h"
#include "gpu/cuda/kernels/copy_table.h"

namespace terrace::gpu {

// Owner: CudaCopyEngine's thread, which alone uses it. Limits: those of a batch.
class CudaCopyTicket {
 public:
  // REQUIRES: CheckBatch() held.
  CudaCopyTicket(CopyBatch taken, FramePlaces found, uint64_t chunk_bytes);
  CudaCopyTicket(const CudaCopyTicket&) = delete;

  const CopyShape& shape() const { return shape_; }
  const std::vector<CopyChunk>& chunks() const { return chunks_; }
  // The planes of the region, in order; all of them.
  std::span<const PlaneEntry> planes() const { return planes_; }
  // Those that hold payload [begin, end).
  std::span<const PlaneEntry> PlanesOf(uint64_t begin, uint64_t end) const;
  uint64_t page_bytes() const { return page_bytes_; }
  bool is_load() const { return batch.direction == Direction::kLoad; }
  // Payload bytes [Begin, End) of each of the chunk's blocks.
  uint64_t Begin(const CopyChunk& chunk) const;
  uint64_t End(const CopyChunk& chunk) const;
  uint64_t Bytes(const CopyChunk& chunk) const { return (End(chunk) - Begin(chunk)) * chunk.n_blocks; }

  // checksums: block after block, as the kernels write them. Stores keep them; loads compare. Tells planes_done.
  void ChunkDone(size_t index, std::span<const uint64_t> checksums);
  // Verdicts, then done. The last call.
  void End(const absl::Status& end, bool frames_lost);

  CopyBatch batch;
  FramePlaces frames;
  size_t next_chunk = 0;         // the first that was not begun
  uint32_t in_flight = 0;        // chunks
  absl::Status status;           // the first error: no further chunk is begun
  int64_t progress_ns = 0;       // when the batch was begun, or a chunk of it ended

  bool ended() const { return in_flight == 0 && (next_chunk == chunks_.size() || !status.ok()); }

 private:
  void TellPlanes();

  const uint64_t page_bytes_;
  const CopyShape shape_;
  std::vector<PlaneEntry> planes_;
  std::vector<CopyChunk> chunks_;
  std::vector<bool> chunk_done_, page_failed_;
  bool any_failed_ = false;
  size_t first_open_ = 0;        // chunks before it are done
  uint32_t planes_told_ = 0;
};

}  // namespace terrace::gpu
