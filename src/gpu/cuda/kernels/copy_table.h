// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What a copy kernel is told: where the pages' pieces lie and where the blocks' contiguous bytes lie. Shared by the
// engine, the kernels and their stand-ins on the processor; no CUDA type. Addresses are the GPU's.
#pragma once

#include <cstdint>

namespace terrace::gpu {

// One plane of the region that the launch touches.
struct PlaneEntry {
  uint64_t base;    // address of page 0's piece
  uint64_t stride;  // from one page to the next
  uint64_t begin;   // where the piece lies in the payload
  uint64_t bytes;
};

struct BlockEntry {
  uint64_t page;
  uint64_t frame;  // address of the payload's bytes from first_segment on: a frame, staging or a bounce buffer
  uint64_t seed;   // the block's identity seed
};

// The argument of every kernel, by value. Work item i is segment first_segment + i % n_segments of block
// i / n_segments; one warp takes it.
struct CopyTable {
  const PlaneEntry* planes;  // in order, those that [first_segment, first_segment + n_segments) touches
  const BlockEntry* blocks;
  uint64_t* checksums;  // out, one an item; host memory
  uint64_t page_bytes;
  uint32_t n_planes;
  uint32_t n_blocks;
  uint32_t first_segment;
  uint32_t n_segments;
};

// Names in the module. All but the last compute checksums of the bytes they read.
inline constexpr char kGatherKernel[] = "terrace_gather";            // pages -> contiguous
inline constexpr char kScatterKernel[] = "terrace_scatter";          // contiguous -> pages
inline constexpr char kChecksumKernel[] = "terrace_checksum";        // reads pages only
inline constexpr char kPlainGatherKernel[] = "terrace_gather_plain"; // bench: what checksums cost

inline constexpr uint32_t kMaxKernelThreads = 512;  // of a block; a multiple of a warp

}  // namespace terrace::gpu
