// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "kvstore/frame_pool.h"

#include <algorithm>

#include "kvstore/base/check.h"

namespace terrace::kv {
namespace {

constexpr uint32_t kDraining = 1u << 31;
constexpr uint32_t kFrameBits = 12;  // frames a slab: 16 MiB / 4 KiB
constexpr uint32_t kMaxSlabExtents = 16;

}  // namespace

SlabShape ShapeFor(uint64_t block_bytes) {
  const uint64_t stride = (block_bytes + kFrameAlign - 1) / kFrameAlign * kFrameAlign;
  const auto least = static_cast<uint32_t>((stride + kExtentBytes - 1) / kExtentBytes);
  SlabShape best{stride, least, static_cast<uint32_t>(least * kExtentBytes / stride)};
  double best_waste = 1.0;
  for (uint32_t extents = least; extents <= std::max(least, kMaxSlabExtents); ++extents) {
    const uint64_t bytes = extents * kExtentBytes;
    const double waste = static_cast<double>(bytes % stride) / static_cast<double>(bytes);
    if (waste < best_waste - 1e-9) {
      best_waste = waste;
      best = {stride, extents, static_cast<uint32_t>(bytes / stride)};
    }
    if (best_waste <= 0.016) break;  // small slabs change size more easily than large ones
  }
  return best;
}

FramePool::FramePool(uint32_t max_slabs, uint64_t overhead_bytes_per_frame, MemoryBudget* budget)
    : max_slabs_(std::min(max_slabs, 1u << (32 - kFrameBits))),
      overhead_bytes_per_frame_(overhead_bytes_per_frame),
      budget_(budget),
      slabs_(new std::atomic<Slab*>[max_slabs_]()) {}

FramePool::~FramePool() {
  for (uint32_t i = 0; i < max_slabs_; ++i) {
    std::unique_ptr<Slab> slab(slabs_[i].load(std::memory_order_relaxed));
    if (slab != nullptr && slab->charged != 0) budget_->Release(slab->charged);
  }
  MutexLock lock(&mu_);
  for (const auto& [id, segment] : segments_) {
    for (const uint32_t bytes : segment.header_touched) budget_->Release(bytes);
  }
}

FramePool::Slab* FramePool::SlabOf(FrameId frame) const {
  const uint32_t slab = frame >> kFrameBits;
  TERRACE_CHECK(slab < max_slabs_);
  return slabs_[slab].load(std::memory_order_acquire);
}

FramePool::Frame& FramePool::FrameOf(FrameId frame) const {
  return SlabOf(frame)->frames[frame & ((1u << kFrameBits) - 1)];
}

void FramePool::AddSegment(uint32_t segment_id, TenantId tenant, uint32_t extents) {
  MutexLock lock(&mu_);
  const bool added =
      segments_
          .emplace(segment_id, Segment{tenant, extents, extents, std::vector<bool>(extents),
                                       std::vector<uint32_t>(extents)})
          .second;
  TERRACE_CHECK(added);
}

std::optional<uint32_t> FramePool::RemoveEmptySegment(std::optional<TenantId> of,
                                                      std::optional<TenantId> except) {
  MutexLock lock(&mu_);
  for (auto it = segments_.begin(); it != segments_.end(); ++it) {
    const Segment& segment = it->second;
    if (segment.free_extents != segment.extents) continue;
    if (of.has_value() && segment.tenant != *of) continue;
    if (except.has_value() && segment.tenant == *except) continue;
    const uint32_t id = it->first;
    for (const uint32_t bytes : segment.header_touched) budget_->Release(bytes);
    segments_.erase(it);
    return id;
  }
  return std::nullopt;
}

namespace {

// Header room that a slab's headers touch in its i-th extent, in whole pages.
uint32_t HeaderShare(const SlabShape& shape, uint32_t i) {
  const uint64_t header_pages = (shape.frames * HeaderBytes(shape.stride) + 4095) / 4096 * 4096;
  const uint64_t before = i * kHeaderBytesPerExtent;
  return static_cast<uint32_t>(header_pages <= before ? 0
                                                      : std::min(header_pages - before, kHeaderBytesPerExtent));
}

}  // namespace

uint64_t FramePool::TableBytes(const SlabShape& shape) const {
  return sizeof(Slab) + shape.frames * (sizeof(Frame) + 2 + overhead_bytes_per_frame_);
}

uint64_t FramePool::BytesOf(const SlabShape& shape) const {
  uint64_t bytes = TableBytes(shape);
  for (uint32_t i = 0; i < shape.extents; ++i) bytes += HeaderShare(shape, i);
  return bytes;
}

uint32_t FramePool::CutSlab(uint32_t segment_id, Segment* segment, const SlabPlace& place, bool* no_metadata) {
  const SlabShape shape = ShapeFor(place.stride);
  const uint32_t first = place.first_extent;
  if (unused_slabs_.empty()) {
    if (slab_count_ == max_slabs_) return kNoSlab;
    slabs_[slab_count_].store(std::make_unique<Slab>().release(), std::memory_order_release);
    unused_slabs_.push_back(slab_count_++);
  }
  // Header pages stay touched until the segment goes: charged once, when first touched.
  uint64_t touch = 0;
  for (uint32_t i = 0; i < shape.extents; ++i) {
    touch += HeaderShare(shape, i) - std::min(HeaderShare(shape, i), segment->header_touched[first + i]);
  }
  const uint64_t tables = TableBytes(shape);
  if (!budget_->TryCharge(touch + tables)) {
    *no_metadata = true;
    return kNoSlab;
  }
  for (uint32_t i = 0; i < shape.extents; ++i) {
    uint32_t& touched = segment->header_touched[first + i];
    touched = std::max(touched, HeaderShare(shape, i));
    segment->used[first + i] = true;
  }
  segment->free_extents -= shape.extents;
  const uint32_t slab_id = unused_slabs_.back();
  unused_slabs_.pop_back();
  Slab* slab = slabs_[slab_id].load(std::memory_order_relaxed);
  slab->segment_id = segment_id;
  slab->first_extent = first;
  slab->tenant = segment->tenant;
  slab->shape = shape;
  slab->header_units = static_cast<uint32_t>(HeaderBytes(shape.stride) / kHeaderUnit);
  slab->charged = tables;
  slab->closed = false;
  slab->listed = false;
  slab->free.clear();
  slab->frames = std::make_unique<Frame[]>(shape.frames);
  classes_[{slab->tenant, shape.stride}].slabs.push_back(slab_id);
  return slab_id;
}

bool FramePool::AddSlab(TenantId tenant, uint64_t block_bytes, bool* no_metadata) {
  const SlabShape shape = ShapeFor(block_bytes);
  for (auto& [segment_id, segment] : segments_) {
    if (segment.tenant != tenant || segment.free_extents < shape.extents) continue;
    uint32_t run = 0, first = 0;
    for (uint32_t i = 0; i < segment.extents && run < shape.extents; ++i) {
      run = segment.used[i] ? 0 : run + 1;
      first = i + 1 - run;
    }
    if (run < shape.extents) continue;
    const uint32_t slab_id = CutSlab(segment_id, &segment, {first, shape.stride}, no_metadata);
    if (slab_id == kNoSlab) return false;
    Slab* slab = slabs_[slab_id].load(std::memory_order_relaxed);
    for (uint32_t i = shape.frames; i-- > 0;) slab->free.push_back(static_cast<uint16_t>(i));
    slab->listed = true;
    Class& of_shape = classes_.at({tenant, shape.stride});
    of_shape.with_free.push_back(slab_id);
    of_shape.free_frames += shape.frames;
    return true;
  }
  return false;
}

std::vector<FrameId> FramePool::AdoptSegment(uint32_t segment_id, TenantId tenant, uint32_t extents,
                                             std::span<const SlabPlace> slabs) {
  std::vector<FrameId> firsts(slabs.size(), kNoFrame);
  MutexLock lock(&mu_);
  const auto [it, added] = segments_.emplace(
      segment_id, Segment{tenant, extents, extents, std::vector<bool>(extents), std::vector<uint32_t>(extents)});
  TERRACE_CHECK(added);
  Segment& segment = it->second;
  for (size_t i = 0; i < slabs.size(); ++i) {
    const uint32_t first = slabs[i].first_extent, n = ShapeFor(slabs[i].stride).extents;
    if (n > extents || first > extents - n) continue;
    bool is_free = true;
    for (uint32_t extent = first; extent < first + n; ++extent) is_free &= !segment.used[extent];
    bool no_metadata = false;
    const uint32_t slab_id = is_free ? CutSlab(segment_id, &segment, slabs[i], &no_metadata) : kNoSlab;
    if (slab_id != kNoSlab) firsts[i] = slab_id << kFrameBits;
  }
  return firsts;
}

void FramePool::RemoveSlab(uint32_t slab_id) {
  Slab* slab = slabs_[slab_id].load(std::memory_order_relaxed);
  auto it = classes_.find({slab->tenant, slab->shape.stride});
  std::erase(it->second.slabs, slab_id);
  std::erase(it->second.with_free, slab_id);
  it->second.free_frames -= slab->free.size();
  if (it->second.slabs.empty()) classes_.erase(it);
  Segment& segment = segments_.at(slab->segment_id);
  for (uint32_t i = 0; i < slab->shape.extents; ++i) segment.used[slab->first_extent + i] = false;
  segment.free_extents += slab->shape.extents;
  budget_->Release(slab->charged);
  slab->charged = 0;
  slab->free.clear();
  slab->listed = false;
  unused_slabs_.push_back(slab_id);
}

std::optional<FrameId> FramePool::Allocate(TenantId tenant, uint64_t block_bytes, bool* no_metadata) {
  const uint64_t stride = ShapeFor(block_bytes).stride;
  MutexLock lock(&mu_);
  *no_metadata = false;
  for (int attempt = 0; attempt < 2; ++attempt) {
    if (auto it = classes_.find({tenant, stride}); it != classes_.end()) {
      Class& of_shape = it->second;
      while (!of_shape.with_free.empty()) {
        const uint32_t slab_id = of_shape.with_free.back();
        Slab* slab = slabs_[slab_id].load(std::memory_order_relaxed);
        if (slab->free.empty() || slab->closed) {
          of_shape.with_free.pop_back();
          slab->listed = false;
          continue;
        }
        const uint16_t place = slab->free.back();
        slab->free.pop_back();
        --of_shape.free_frames;
        return slab_id << kFrameBits | place;
      }
    }
    if (attempt == 0 && !AddSlab(tenant, block_bytes, no_metadata)) return std::nullopt;
  }
  return std::nullopt;
}

void FramePool::MakeReady(FrameId frame, uint64_t generation) {
  Frame& f = FrameOf(frame);
  f.generation = generation;
  f.ready.store(true, std::memory_order_release);
}

void FramePool::SetBlock(FrameId frame, BlockId block) {
  FrameOf(frame).block.store(block, std::memory_order_relaxed);
}

void FramePool::Prefetch(FrameId frame) const {
  // The slab is one of few and in the cache; its table of frames may just be given up, which is why only
  // the slab's own fields are read.
  const uint32_t slab_id = frame >> kFrameBits;
  const Slab* slab = slab_id < max_slabs_ ? slabs_[slab_id].load(std::memory_order_acquire) : nullptr;
  if (slab != nullptr) __builtin_prefetch(slab);
}

void FramePool::Pin(FrameId frame) {
  uint64_t newly_pinned = 0;
  PinUncounted(frame, &newly_pinned);
  if (newly_pinned > 0) CountPinned(newly_pinned);
}

bool FramePool::Unpin(FrameId frame) {
  uint64_t last_unpinned = 0;
  const bool last_of_draining = UnpinUncounted(frame, &last_unpinned);
  if (last_unpinned > 0) CountUnpinned(last_unpinned);
  return last_of_draining;
}

void FramePool::PinUncounted(FrameId frame, uint64_t* newly_pinned) {
  const uint32_t before = FrameOf(frame).pins.fetch_add(1, std::memory_order_acq_rel);
  TERRACE_CHECK((before & ~kDraining) < (kDraining >> 1));
  if ((before & ~kDraining) == 0) *newly_pinned += SlabOf(frame)->shape.stride;
}

bool FramePool::UnpinUncounted(FrameId frame, uint64_t* last_unpinned) {
  const uint64_t stride = SlabOf(frame)->shape.stride;
  const uint32_t before = FrameOf(frame).pins.fetch_sub(1, std::memory_order_acq_rel);
  TERRACE_CHECK((before & ~kDraining) > 0);
  if ((before & ~kDraining) == 1) *last_unpinned += stride;
  return before == (kDraining | 1);
}

bool FramePool::Retire(FrameId frame) {
  Frame& f = FrameOf(frame);
  f.ready.store(false, std::memory_order_relaxed);
  const uint32_t before = f.pins.fetch_or(kDraining, std::memory_order_acq_rel);
  TERRACE_CHECK((before & kDraining) == 0);
  return before == 0;
}

void FramePool::Recycle(FrameId frame) {
  MutexLock lock(&mu_);
  const uint32_t slab_id = frame >> kFrameBits;
  Slab* slab = slabs_[slab_id].load(std::memory_order_relaxed);
  Frame& f = FrameOf(frame);
  TERRACE_CHECK((f.pins.load(std::memory_order_relaxed) & ~kDraining) == 0);
  f.pins.store(0, std::memory_order_relaxed);
  f.block.store(kNoBlock, std::memory_order_relaxed);
  f.generation = 0;
  f.ready.store(false, std::memory_order_relaxed);
  slab->free.push_back(static_cast<uint16_t>(frame & ((1u << kFrameBits) - 1)));
  Class& of_shape = classes_.at({slab->tenant, slab->shape.stride});
  ++of_shape.free_frames;
  if (slab->free.size() == slab->shape.frames && !slab->closed) {
    RemoveSlab(slab_id);
  } else if (!slab->listed && !slab->closed) {
    of_shape.with_free.push_back(slab_id);
    slab->listed = true;
  }
}

bool FramePool::IsPinned(FrameId frame) const { return Pins(frame) != 0; }

uint32_t FramePool::Pins(FrameId frame) const {
  return FrameOf(frame).pins.load(std::memory_order_acquire) & ~kDraining;
}

FramePool::Place FramePool::PlaceOf(FrameId frame) const {
  const Slab* slab = SlabOf(frame);
  const uint32_t index = frame & ((1u << kFrameBits) - 1);
  const Frame& f = slab->frames[index];
  const uint64_t header_units = slab->first_extent * (kHeaderBytesPerExtent / kHeaderUnit) +
                                static_cast<uint64_t>(index) * slab->header_units;
  return {slab->segment_id, static_cast<uint32_t>(header_units),
          slab->first_extent * kExtentBytes + index * slab->shape.stride, f.generation,
          f.block.load(std::memory_order_relaxed)};
}

FramePool::SlabSpan FramePool::SpanOf(FrameId frame) const {
  const Slab* slab = SlabOf(frame);
  return {slab->segment_id, {slab->first_extent, slab->shape.stride}, slab->shape, slab->header_units * kHeaderUnit};
}

std::optional<FramePool::Evacuation> FramePool::BeginEvacuation(FrameId like) {
  MutexLock lock(&mu_);
  const Slab* model = slabs_[like >> kFrameBits].load(std::memory_order_relaxed);
  const auto it = classes_.find({model->tenant, model->shape.stride});
  if (it == classes_.end()) return std::nullopt;
  // Not even a slab's worth of free frames: nothing to gain, and no need to look at every slab.
  if (it->second.free_frames < model->shape.frames) return std::nullopt;
  uint32_t best = ~0u;
  for (const uint32_t slab_id : it->second.slabs) {
    const Slab* slab = slabs_[slab_id].load(std::memory_order_relaxed);
    const size_t used = slab->shape.frames - slab->free.size();
    if (slab->closed || used > it->second.free_frames - slab->free.size()) continue;
    if (best != ~0u) {
      const Slab* other = slabs_[best].load(std::memory_order_relaxed);
      if (std::pair(other->segment_id, other->first_extent) <
          std::pair(slab->segment_id, slab->first_extent)) {
        continue;
      }
    }
    // A frame in use that is not ready is being filled.
    size_t movable = 0;
    for (uint32_t i = 0; i < slab->shape.frames; ++i) {
      const Frame& f = slab->frames[i];
      movable += f.ready.load(std::memory_order_acquire) && f.pins.load(std::memory_order_acquire) == 0;
    }
    if (movable == used) best = slab_id;
  }
  if (best == ~0u) return std::nullopt;
  Slab* slab = slabs_[best].load(std::memory_order_relaxed);
  slab->closed = true;
  Evacuation evacuation{best, {}};
  for (uint32_t i = 0; i < slab->shape.frames; ++i) {
    if (slab->frames[i].ready.load(std::memory_order_acquire)) {
      evacuation.frames.push_back(best << kFrameBits | i);
    }
  }
  return evacuation;
}

void FramePool::EndEvacuation(const Evacuation& evacuation) {
  MutexLock lock(&mu_);
  Slab* slab = slabs_[evacuation.slab].load(std::memory_order_relaxed);
  slab->closed = false;
  if (slab->free.size() == slab->shape.frames) {
    RemoveSlab(evacuation.slab);
  } else if (!slab->listed && !slab->free.empty()) {
    classes_.at({slab->tenant, slab->shape.stride}).with_free.push_back(evacuation.slab);
    slab->listed = true;
  }
}

bool FramePool::SameShape(FrameId frame, TenantId tenant, uint64_t block_bytes) const {
  const Slab* slab = SlabOf(frame);
  return slab->tenant == tenant && slab->shape.stride == ShapeFor(block_bytes).stride;
}

TenantId FramePool::TenantOf(FrameId frame) const { return SlabOf(frame)->tenant; }

FramePool::Usage FramePool::GetUsage() const {
  MutexLock lock(&mu_);
  Usage usage;
  for (const auto& [id, segment] : segments_) {
    usage.extents += segment.extents;
    usage.extents_in_slabs += segment.extents - segment.free_extents;
  }
  for (const auto& [key, of_shape] : classes_) {
    uint64_t frames = 0;
    for (const uint32_t slab_id : of_shape.slabs) {
      frames += slabs_[slab_id].load(std::memory_order_relaxed)->shape.frames;
    }
    usage.frames += frames;
    usage.frames_in_use += frames - of_shape.free_frames;
    usage.used_bytes += (frames - of_shape.free_frames) * key.second;
  }
  usage.pinned_bytes = pinned_bytes();
  return usage;
}

}  // namespace terrace::kv
