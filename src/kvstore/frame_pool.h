// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// FramePool: the frames of one tier: which exist, which are free, who holds them in place. Bookkeeping
// only; it never touches a byte of a block.
//
// Memory comes as *segments* of 1 MiB *extents* (one tenant a segment). Runs of extents are cut into
// *slabs* of equal frames for one block size; a slab that is empty gives its extents back and may come
// again with another size.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kvstore/base/memory_budget.h"
#include "kvstore/base/mutex.h"
#include "kvstore/block_header.h"
#include "kvstore/key_space.h"

namespace terrace::kv {

using FrameId = uint32_t;  // slab number and place in the slab
using BlockId = uint32_t;  // slot in the PrefixIndex
inline constexpr FrameId kNoFrame = ~0u;
inline constexpr BlockId kNoBlock = ~0u;

inline constexpr uint64_t kExtentBytes = 1 << 20;
inline constexpr uint64_t kHeaderBytesPerExtent = 64 << 10;  // header room; touched only where used
inline constexpr uint64_t kFrameAlign = 4096;                // payloads start at pages (O_DIRECT, DMA)

// How blocks of a size are laid out: the slab with the least waste of up to 16 extents (or one frame).
struct SlabShape {
  uint64_t stride;  // bytes from frame to frame
  uint32_t extents, frames;
};
SlabShape ShapeFor(uint64_t block_bytes);

// Threads: any. Pin, Unpin and Place take no lock.
// Limits: slabs and segments as given; frames a slab by the id's width.
// Life of a frame (I3): Free -> Filling (Allocate) -> Ready (MakeReady) -> Draining (Retire) -> Free;
// an unfinished fill goes Filling -> Free. Draining waits for the last pin.
class FramePool {
 public:
  // Tables of frames are charged to budget; overhead_bytes_per_frame adds what others (the index)
  // spend on each frame.
  FramePool(uint32_t max_slabs, uint64_t overhead_bytes_per_frame, MemoryBudget* budget);
  ~FramePool();

  void AddSegment(uint32_t segment_id, TenantId tenant, uint32_t extents);
  // A segment that is cut already. All frames of its slabs are Filling: they are the caller's, who makes
  // each Ready in the generation it has, or recycles it. Returns the first frame of each slab (the others
  // follow), kNoFrame where there is no memory for its tables, no slab number left or no such place.
  struct SlabPlace {
    uint32_t first_extent;
    uint64_t stride;  // the shape is ShapeFor(stride)
  };
  std::vector<FrameId> AdoptSegment(uint32_t segment_id, TenantId tenant, uint32_t extents,
                                    std::span<const SlabPlace> slabs);
  // What a slab costs beside its segment: tables, and header pages where they were never touched.
  uint64_t BytesOf(const SlabShape& shape) const;
  // Takes an entirely free segment out; nullopt when the tenant (or any other than except) has none.
  std::optional<uint32_t> RemoveEmptySegment(std::optional<TenantId> of, std::optional<TenantId> except);

  // Free -> Filling. nullopt when there is neither a free frame of this shape nor room for a slab.
  // no_metadata is set when only the budget for tables stood in the way.
  std::optional<FrameId> Allocate(TenantId tenant, uint64_t block_bytes, bool* no_metadata);
  // Filling -> Ready, in a new generation that is never used again.
  // From then on generations are at least this. REQUIRES: none was given yet.
  void StartGenerations(uint64_t first) { next_generation_.store(first, std::memory_order_relaxed); }
  uint64_t NextGeneration() { return next_generation_.fetch_add(1, std::memory_order_relaxed); }
  void MakeReady(FrameId frame, uint64_t generation);
  // Whose frame it is, for evacuations. Under the catalogue's mutex only.
  void SetBlock(FrameId frame, BlockId block);

  // Holds the frame in place. REQUIRES: it cannot be retired meanwhile (its index shard is locked, or it
  // is pinned already).
  void Pin(FrameId frame);
  // Fetches what Pin will touch. Any value is harmless.
  void Prefetch(FrameId frame) const;
  // True: that was the last pin of a draining frame; the caller must clear its header, then Recycle it.
  [[nodiscard]] bool Unpin(FrameId frame);
  // For many frames at a time: the same without the pool's count of pinned bytes, which is shared by all
  // threads. *newly_pinned and *last_unpinned grow by what the caller then counts with CountPinned and
  // CountUnpinned; a pin must be counted before its frame can be unpinned.
  void PinUncounted(FrameId frame, uint64_t* newly_pinned);
  [[nodiscard]] bool UnpinUncounted(FrameId frame, uint64_t* last_unpinned);
  void CountPinned(uint64_t bytes) { pinned_bytes_.fetch_add(bytes, std::memory_order_relaxed); }
  void CountUnpinned(uint64_t bytes) { pinned_bytes_.fetch_sub(bytes, std::memory_order_relaxed); }
  // Ready -> Draining. REQUIRES: out of the index. True: no pins; clear its header, then Recycle it.
  [[nodiscard]] bool Retire(FrameId frame);
  // Draining or Filling -> Free. REQUIRES: its header's generation is 0.
  void Recycle(FrameId frame);

  bool IsPinned(FrameId frame) const;
  uint32_t Pins(FrameId frame) const;

  struct Place {
    uint32_t segment_id;
    uint32_t header_offset;  // units of kHeaderUnit
    uint64_t payload_offset;
    uint64_t generation;
    BlockId block;
  };
  // REQUIRES: the frame is filling, pinned, or otherwise kept from being recycled.
  Place PlaceOf(FrameId frame) const;

  // Where the frame's slab lies. REQUIRES: as PlaceOf.
  struct SlabSpan {
    uint32_t segment_id;
    SlabPlace place;
    SlabShape shape;
    uint64_t header_bytes;  // of one header; those of the slab lie packed from its first extent on
  };
  SlabSpan SpanOf(FrameId frame) const;

  // For making room across sizes: of the slabs of this frame's shape and tenant the one that lies first
  // (so that the room made is contiguous) whose frames fit into the free frames of the others and of
  // which none is pinned or filling.
  // Its ready frames are returned; no frame of it is handed out until EndEvacuation.
  struct Evacuation {
    uint32_t slab;
    std::vector<FrameId> frames;
  };
  std::optional<Evacuation> BeginEvacuation(FrameId like);
  void EndEvacuation(const Evacuation& evacuation);

  bool SameShape(FrameId frame, TenantId tenant, uint64_t block_bytes) const;
  TenantId TenantOf(FrameId frame) const;

  struct Usage {
    uint64_t extents = 0, extents_in_slabs = 0;
    uint64_t frames = 0, frames_in_use = 0, used_bytes = 0, pinned_bytes = 0;
  };
  Usage GetUsage() const;
  uint64_t pinned_bytes() const { return pinned_bytes_.load(std::memory_order_relaxed); }

 private:
  struct Frame {
    std::atomic<uint32_t> pins{0};  // kDraining | count
    std::atomic<BlockId> block{kNoBlock};  // set when the block can be found already
    uint64_t generation = 0;
    std::atomic<bool> ready{false};
  };
  struct Slab {  // objects are reused, never freed: a stale id reads a slab, not freed memory
    uint32_t segment_id = 0, first_extent = 0;
    TenantId tenant = 0;
    SlabShape shape{};
    uint32_t header_units = 0;  // of one header
    uint64_t charged = 0;
    bool closed = false;  // being evacuated
    bool listed = false;  // stands in its class's list of slabs with free frames
    std::vector<uint16_t> free;
    std::unique_ptr<Frame[]> frames;
  };
  struct Segment {
    TenantId tenant;
    uint32_t extents, free_extents;
    std::vector<bool> used;
    std::vector<uint32_t> header_touched;  // bytes of header room ever used, per extent
  };
  struct Class {
    std::vector<uint32_t> slabs;      // all of this shape
    std::vector<uint32_t> with_free;  // those that (may) have free frames
    uint64_t free_frames = 0;
  };
  using ClassKey = std::pair<TenantId, uint64_t>;  // tenant, stride

  Slab* SlabOf(FrameId frame) const;
  Frame& FrameOf(FrameId frame) const;
  bool AddSlab(TenantId tenant, uint64_t block_bytes, bool* no_metadata) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Cuts these extents, which are free. kNoSlab: no number left, or (no_metadata) no memory for tables.
  static constexpr uint32_t kNoSlab = ~0u;
  uint32_t CutSlab(uint32_t segment_id, Segment* segment, const SlabPlace& place, bool* no_metadata)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  uint64_t TableBytes(const SlabShape& shape) const;
  void RemoveSlab(uint32_t slab_id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const uint32_t max_slabs_;
  const uint64_t overhead_bytes_per_frame_;
  MemoryBudget* const budget_;
  std::atomic<uint64_t> next_generation_{1};
  std::atomic<uint64_t> pinned_bytes_{0};
  std::unique_ptr<std::atomic<Slab*>[]> slabs_;  // written under mu_

  mutable Mutex mu_;
  std::map<uint32_t, Segment> segments_ ABSL_GUARDED_BY(mu_);
  std::map<ClassKey, Class> classes_ ABSL_GUARDED_BY(mu_);
  std::vector<uint32_t> unused_slabs_ ABSL_GUARDED_BY(mu_);
  uint32_t slab_count_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace terrace::kv
