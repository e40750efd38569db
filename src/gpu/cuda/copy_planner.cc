// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/copy_planner.h"

#include <algorithm>

#include "kvstore/base/block_copy.h"

namespace terrace::gpu {
namespace {

constexpr uint64_t kKernelRunBytes = 28 * 1024;       // below: copy engines are slow
constexpr uint64_t kSmallBatchBytes = 1024 * 1024;    // latency counts more than rate
constexpr uint64_t kMaxPitch = (1ull << 31) - 1;      // CU_DEVICE_ATTRIBUTE_MAX_PITCH of all GPUs so far
constexpr double kNewWeight = 0.125;
constexpr uint32_t kExploreEvery = 64, kExploreSeldomest = 4096;

double CopyEngineStartRate(uint64_t run_bytes) {
  if (run_bytes < kKernelRunBytes) return 5'500;
  return run_bytes < 64 * 1024 ? 42'000 : 51'000;
}

// How many bytes lie one after another in the pages, merged over planes that adjoin; one page.
uint64_t PageRunBytes(const RegionLayout& layout, uint64_t page_bytes) {
  uint64_t runs = 1;
  for (size_t i = 1; i < layout.planes.size(); ++i) {
    const Plane &before = layout.planes[i - 1], &plane = layout.planes[i];
    // Adjoining in page 0 is not enough: distances must agree.
    const bool adjoins = plane.allocation == before.allocation && plane.stride == before.stride &&
                         plane.offset == before.offset + before.bytes;
    if (!adjoins) ++runs;
  }
  return page_bytes / runs;
}

}  // namespace

std::vector<CopyChunk> CutBatch(uint32_t n_blocks, uint64_t page_bytes, uint64_t chunk_bytes, bool by_planes) {
  const uint32_t n_segments = static_cast<uint32_t>(ChecksumCount(page_bytes));
  const uint64_t segment = std::min<uint64_t>(page_bytes, kChecksumSegmentBytes);
  const uint64_t per_chunk = std::clamp<uint64_t>(chunk_bytes / segment, 1, kMaxChunkItems);  // segments
  uint64_t blocks, segments;
  if (by_planes) {
    blocks = std::min<uint64_t>(n_blocks, per_chunk);
    segments = std::clamp<uint64_t>(per_chunk / blocks, 1, n_segments);
  } else {
    segments = std::min<uint64_t>(n_segments, per_chunk);
    blocks = std::clamp<uint64_t>(per_chunk / segments, 1, n_blocks);
  }
  std::vector<CopyChunk> chunks;
  const auto add = [&](uint32_t block, uint32_t first) {
    chunks.push_back({block, static_cast<uint32_t>(std::min<uint64_t>(blocks, n_blocks - block)), first,
                      static_cast<uint32_t>(std::min<uint64_t>(segments, n_segments - first))});
  };
  const auto block_step = static_cast<uint32_t>(blocks), segment_step = static_cast<uint32_t>(segments);
  if (by_planes) {
    for (uint32_t s = 0; s < n_segments; s += segment_step) {
      for (uint32_t b = 0; b < n_blocks; b += block_step) add(b, s);
    }
  } else {
    for (uint32_t b = 0; b < n_blocks; b += block_step) {
      for (uint32_t s = 0; s < n_segments; s += segment_step) add(b, s);
    }
  }
  return chunks;
}

void AddRun(std::vector<CopyOp>& ops, uint64_t page_side, uint64_t frame_side, uint64_t bytes) {
  if (!ops.empty()) {
    CopyOp& last = ops.back();
    if (last.rows == 1) {
      if (page_side == last.page_side + last.bytes && frame_side == last.frame_side + last.bytes) {
        last.bytes += bytes;
        return;
      }
      if (bytes == last.bytes && page_side >= last.page_side + bytes && frame_side >= last.frame_side + bytes &&
          page_side - last.page_side <= kMaxPitch && frame_side - last.frame_side <= kMaxPitch) {
        last.rows = 2;
        last.page_pitch = page_side - last.page_side;
        last.frame_pitch = frame_side - last.frame_side;
        return;
      }
    } else if (bytes == last.bytes && page_side == last.page_side + last.rows * last.page_pitch &&
               frame_side == last.frame_side + last.rows * last.frame_pitch) {
      ++last.rows;
      return;
    } else if (last.rows == 2) {
      // The second row may begin something longer.
      CopyOp second;
      second.page_side = last.page_side + last.page_pitch;
      second.frame_side = last.frame_side + last.frame_pitch;
      second.bytes = last.bytes;
      last.rows = 1;
      ops.push_back(second);
      AddRun(ops, page_side, frame_side, bytes);
      return;
    }
  }
  CopyOp op;
  op.page_side = page_side;
  op.frame_side = frame_side;
  op.bytes = bytes;
  ops.push_back(op);
}

void FinishOps(std::vector<CopyOp>& ops) {
  const auto is_short = [](const CopyOp& op) { return op.rows > 1 && op.rows < kMinRows; };
  if (std::none_of(ops.begin(), ops.end(), is_short)) return;
  std::vector<CopyOp> finished;
  finished.reserve(ops.size() * 2);
  for (const CopyOp& op : ops) {
    if (!is_short(op)) {
      finished.push_back(op);
      continue;
    }
    for (uint32_t row = 0; row < op.rows; ++row) {
      CopyOp single = op;
      single.page_side += row * op.page_pitch;
      single.frame_side += row * op.frame_pitch;
      single.rows = 1;
      finished.push_back(single);
    }
  }
  ops = std::move(finished);
}

CopyShape ShapeOf(const CopyBatch& batch) {
  const RegionLayout& layout = batch.region->layout();
  const uint64_t page_bytes = batch.region->page_bytes();
  CopyShape shape;
  shape.direction = batch.direction;
  shape.frames_on_device = batch.frames_on_device;
  shape.batch_bytes = page_bytes * batch.pages.size();
  shape.page_run_bytes = PageRunBytes(layout, page_bytes);
  const bool pages_adjoin = shape.page_run_bytes == page_bytes && layout.planes[0].stride == page_bytes;
  uint64_t page_runs = 1, frame_runs = 1;
  for (size_t i = 1; i < batch.pages.size(); ++i) {
    const bool frames_go_on = batch.pages[i].frame == batch.pages[i - 1].frame + page_bytes;
    if (!frames_go_on) ++frame_runs;
    if (!frames_go_on || batch.pages[i].page != batch.pages[i - 1].page + 1) ++page_runs;
  }
  if (pages_adjoin) shape.page_run_bytes = shape.batch_bytes / page_runs;
  shape.frame_run_bytes = shape.batch_bytes / frame_runs;
  return shape;
}

size_t CopyPlanner::RunClass(uint64_t bytes) {
  constexpr std::array<uint64_t, kRunClasses - 1> kUpTo = {4096,   8192,     16384,  kKernelRunBytes,
                                                           65536, 262144, 1048576};
  return static_cast<size_t>(std::upper_bound(kUpTo.begin(), kUpTo.end(), bytes) - kUpTo.begin());
}

size_t CopyPlanner::CellIndex(const CopyShape& shape) {
  size_t index = shape.direction == Direction::kLoad ? 1 : 0;
  index = index * 2 + (shape.frames_on_device ? 1 : 0);
  index = index * 2 + (shape.batch_bytes < kSmallBatchBytes ? 1 : 0);
  index = index * 2 + (shape.frame_run_bytes < kKernelRunBytes ? 1 : 0);
  return index * kRunClasses + RunClass(shape.page_run_bytes);
}

double CopyPlanner::StartRate(const CopyShape& shape, CopyMeans means) {
  const bool small = shape.batch_bytes < kSmallBatchBytes;
  switch (means) {
    case CopyMeans::kCopyEngine:
      // Short runs on either side make small copies.
      return CopyEngineStartRate(std::min(shape.page_run_bytes, shape.frame_run_bytes));
    case CopyMeans::kDirect:
      // One launch and nothing else: best for little. Writes to host memory are posted, reads are waited for.
      if (shape.frames_on_device) return 200'000;
      if (small) return shape.page_run_bytes < kKernelRunBytes ? 41'500 : 41'000;
      return shape.direction == Direction::kStore ? 38'000 : 34'000;
    case CopyMeans::kStaged:
      // The copies between staging and frames are the slower part; two more steps than one launch.
      return std::min(small ? 30'000.0 : 41'000.0, CopyEngineStartRate(shape.frame_run_bytes));
  }
  return 0;
}

bool CopyPlanner::Possible(const CopyShape& shape, CopyMeans means) const {
  if (means == CopyMeans::kCopyEngine) return true;
  if (!limits_.kernels) return false;
  return means == CopyMeans::kDirect || (limits_.staging && !shape.frames_on_device);
}

double CopyPlanner::Rate(const CopyShape& shape, CopyMeans means) const {
  const double measured = cells_[CellIndex(shape)].rate[static_cast<size_t>(means)];
  return measured > 0 ? measured : StartRate(shape, means);
}

CopyMeans CopyPlanner::Choose(const CopyShape& shape) {
  if (limits_.only.has_value() && Possible(shape, *limits_.only)) return *limits_.only;
  Cell& cell = cells_[CellIndex(shape)];
  CopyMeans best = CopyMeans::kCopyEngine;
  for (size_t i = 1; i < kCopyMeansCount; ++i) {
    const auto means = static_cast<CopyMeans>(i);
    if (Possible(shape, means) && Rate(shape, means) > Rate(shape, best)) best = means;
  }
  CopyMeans chosen = best;
  for (size_t i = 0; i < kCopyMeansCount; ++i) {
    const auto means = static_cast<CopyMeans>(i);
    if (means == best || !Possible(shape, means)) continue;
    // A means eight times slower is tried 64 times as seldom: trying costs at most a few per cent.
    const double ratio = Rate(shape, best) / Rate(shape, means);
    const double every = std::min<double>(kExploreSeldomest, kExploreEvery * ratio * ratio);
    if (++cell.waited[i] >= every) chosen = means;
  }
  cell.waited[static_cast<size_t>(chosen)] = 0;
  return chosen;
}

void CopyPlanner::Record(const CopyShape& shape, CopyMeans means, uint64_t bytes, int64_t ns) {
  if (bytes == 0 || ns <= 0) return;
  const double rate = static_cast<double>(bytes) * 1000.0 / static_cast<double>(ns);
  double& kept = cells_[CellIndex(shape)].rate[static_cast<size_t>(means)];
  // The first figure counts as one of many: it may be that of a cold start.
  kept = Rate(shape, means) * (1 - kNewWeight) + rate * kNewWeight;
}

}  // namespace terrace::gpu
