// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// CopyPlanner: how a batch is cut into chunks and by which means each chunk is copied. Arithmetic only: no CUDA, no
// clock, no thread; the engine says what it measured.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "gpu/copy_engine.h"

namespace terrace::gpu {

enum class CopyMeans : uint8_t {
  kCopyEngine,  // DMA between pages and frames, checksums by a kernel over the pages (or by the processor)
  kDirect,      // one kernel reads and writes both, checksums on the way
  kStaged,      // a kernel between pages and staging in GPU memory, DMA between staging and frames
};
inline constexpr size_t kCopyMeansCount = 3;

// Segments [first_segment, +n_segments) of blocks [first_block, +n_blocks) of a batch.
struct CopyChunk {
  uint32_t first_block = 0, n_blocks = 0;
  uint32_t first_segment = 0, n_segments = 0;
};

// The batch in bounded chunks, each byte in one. by_planes: chunk after chunk down the payload, all blocks at each
// place before the next, so that early planes of all pages arrive first; else block after block, for longer runs.
// Chunks are at most chunk_bytes (one segment at least) and kMaxChunkItems segments.
inline constexpr uint32_t kMaxChunkItems = 8192;
std::vector<CopyChunk> CutBatch(uint32_t n_blocks, uint64_t page_bytes, uint64_t chunk_bytes, bool by_planes);

// rows runs of `bytes`, at regular distances on both sides (distances count where rows > 1).
struct CopyOp {
  uint64_t page_side = 0, frame_side = 0, bytes = 0;
  uint32_t rows = 1;
  uint64_t page_pitch = 0, frame_pitch = 0;
};
// Adds a run of bytes to a list: merged with the run before where both sides go on, or made a further row of it. Rows
// of fewer than kMinRows are taken apart again by FinishOps(): a batch of copies does them better.
inline constexpr uint32_t kMinRows = 4;
void AddRun(std::vector<CopyOp>& ops, uint64_t page_side, uint64_t frame_side, uint64_t bytes);
void FinishOps(std::vector<CopyOp>& ops);

// What the choice depends on.
struct CopyShape {
  Direction direction = Direction::kStore;
  uint64_t page_run_bytes = 0;   // typical run on the pages' side
  uint64_t frame_run_bytes = 0;  // and on the frames'
  uint64_t batch_bytes = 0;
  bool frames_on_device = false;
};
CopyShape ShapeOf(const CopyBatch& batch);

// Owner: the engine's thread. For each kind of shape it keeps a moving average of what each means reached and takes the
// best, and tries the others now and then, the seldomer the worse they were. Before anything was measured it believes
// what is known of H100-class machines: batched copies of runs below 28 KiB reach 4 to 7 GB/s, of 28 KiB 40 to 44, of
// 64 KiB 51 to 52; kernels reach most of the link whatever the runs.
class CopyPlanner {
 public:
  struct Limits {
    bool kernels = false;  // the kernels are loaded
    bool staging = false;  // and there is GPU memory for staging
    std::optional<CopyMeans> only;  // where it is possible: tests and bench
  };
  explicit CopyPlanner(const Limits& limits) : limits_(limits) {}

  CopyMeans Choose(const CopyShape& shape);
  // ns: from when the direction had nothing older to do until it was done.
  void Record(const CopyShape& shape, CopyMeans means, uint64_t bytes, int64_t ns);
  // Bytes a microsecond believed at the moment.
  double Rate(const CopyShape& shape, CopyMeans means) const;

 private:
  static constexpr size_t kRunClasses = 8;
  struct Cell {
    std::array<double, kCopyMeansCount> rate{};      // 0: not measured
    std::array<uint32_t, kCopyMeansCount> waited{};  // choices since it was last taken
  };
  static size_t RunClass(uint64_t bytes);
  static double StartRate(const CopyShape& shape, CopyMeans means);
  bool Possible(const CopyShape& shape, CopyMeans means) const;
  static size_t CellIndex(const CopyShape& shape);

  const Limits limits_;
  // Direction, on device, small batch, runs of frames, runs of pages.
  std::array<Cell, 2 * 2 * 2 * 2 * kRunClasses> cells_;
};

}  // namespace terrace::gpu
