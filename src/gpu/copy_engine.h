// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// CopyEngine seam: moves blocks between the pages of an engine's region and frames, in batches. A batch is
// a ticket: it ends exactly once, with a status and a verdict for each block. No policy; knows no keys.
//
// Implementations: HostCopyEngine (processor threads; engines whose KV cache is host memory) and
// CudaCopyEngine (one GPU). Both pass tests/contract/copy_engine_contract.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gpu/region.h"

namespace terrace::gpu {

enum class Direction : uint8_t {
  kStore,  // pages -> frames; checksums are computed of the bytes that reached the frame
  kLoad,   // frames -> pages; the bytes are compared with the checksums
};

// One block of a batch.
struct PageCopy {
  uint64_t page = 0;           // number in the region
  std::byte* frame = nullptr;  // page_bytes() long, contiguous
  uint64_t identity_seed = 0;  // kvstore/base/block_copy.h
  std::vector<uint64_t> checksums;  // ChecksumCount(page_bytes()) of them: in for kLoad, out for kStore
  bool intact = false;  // out. kStore: it was copied whole. kLoad: the page holds the checksums' bytes; when
                        // false its bytes are undefined
};

inline constexpr uint32_t kNoEvent = ~0u;

// Frames and region must stay valid until done was called.
struct CopyBatch {
  static constexpr size_t kMaxPages = 4096;

  std::shared_ptr<Region> region;
  Direction direction = Direction::kStore;
  bool frames_on_device = false;  // frames are memory of the engine's GPU (GPU tier), not host memory
  std::vector<PageCopy> pages;    // 1 .. kMaxPages; no two loads of a batch into one page
  // Of the region's events: nothing of the region is touched before the work that the engine's stream had
  // when it recorded this event is done. kNoEvent: it is done already.
  uint32_t after_event = kNoEvent;
  // Loads, optional: called with a growing number, on a thread of the copy engine. The first n planes of every
  // page have arrived and every checksum that covers a byte of them held: the engine may use them before
  // the rest is there. Not called (any further) once a page has failed.
  std::function<void(uint32_t n_planes)> planes_done;
  // Called exactly once, on a thread of the copy engine, under no lock. OK: see each page's verdict. Else
  // none of the pages is intact: Cancelled (region fenced, closing), DeadlineExceeded, Unavailable (the GPU
  // is out of service), ResourceExhausted.
  std::function<void(CopyBatch& batch, const absl::Status& status)> done;
  // Out: a copy that could not be stopped may still write to the frames. They must never be used again.
  bool frames_lost = false;
};

struct CopyEngineStats {
  uint64_t store_bytes = 0, load_bytes = 0, store_batches = 0, load_batches = 0, failed_batches = 0;
  uint64_t lost_frames = 0;
  // By means, bytes: what the planner chose (CUDA only).
  uint64_t copy_engine_bytes = 0, kernel_bytes = 0, staged_bytes = 0;
  std::string health;  // empty: in service; else why not and what to do
};

// Threads: any. Batches end in any order; loads overtake stores. Never waits.
class CopyEngine {
 public:
  virtual ~CopyEngine() = default;  // ends all batches (Cancelled where not begun), waits for running ones
  // ResourceExhausted: the queue is full. Unavailable: closing or out of service. Cancelled: fenced region.
  // InvalidArgument: a page that the region has not, no page or too many, a wrong number of checksums, an
  // event that the region has not, a region or frames of another kind of memory. done is then not called
  // and the batch is left as it was.
  virtual absl::Status Submit(CopyBatch& batch) = 0;
  // Waits until all submitted batches have called done.
  virtual void Drain() = 0;
  virtual CopyEngineStats Stats() const = 0;
};

// What every Submit checks first, the same for all implementations.
absl::Status CheckBatch(const CopyBatch& batch);

}  // namespace terrace::gpu
