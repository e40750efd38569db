// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// How a HostTier takes over what the last process left in its memory directory. What is found is charged
// at once, so that nobody else takes its memory; its blocks become visible segment by segment.
#include <algorithm>
#include <cstring>
#include <utility>

#include "kvstore/base/check.h"
#include "kvstore/base/kill_point.h"
#include "kvstore/base/log.h"
#include "kvstore/key_space_registry.h"
#include "tiering/host_memory_dir.h"
#include "tiering/host_tier.h"

namespace terrace::tiering {

using kv::BlockHeader;
using kv::FrameId;
using kv::FramePool;
using kv::kExtentBytes;
using kv::kHeaderBytesPerExtent;

namespace {

uint64_t CutBytes(const SharedSegment& segment) {
  uint64_t extents = 0;
  for (const auto& slab : segment.table->List()) extents += kv::ShapeFor(slab.stride).extents;
  return extents * kExtentBytes;
}

std::optional<kv::TenantId> Find(const std::vector<std::string>& names, absl::string_view name) {
  const auto it = std::find_if(names.begin(), names.end(), [&](const std::string& n) { return n == name; });
  if (it == names.end()) return std::nullopt;
  return static_cast<kv::TenantId>(it - names.begin());
}

}  // namespace

void HostTier::FindSegments() {
  pool_.StartGenerations(options_.memory_dir->first_generation());
  auto registry = kv::KeySpaceRegistry::Open(options_.memory_dir->key_spaces_path(),
                                             options_.key_spaces->max_key_spaces());
  if (registry.ok()) {
    options_.key_spaces->UseRegistry(*std::move(registry),
                                     [this](absl::string_view name) { return Find(options_.tenants, name); });
  } else {
    Log(LogLevel::kWarning, "key_spaces_unknown", {{"error", registry.status().message()}});
  }
  auto found = options_.memory_dir->FindSegments();
  // Where not all fit, what holds most stays.
  std::vector<std::pair<uint64_t, std::unique_ptr<SharedSegment>>> by_use;
  for (auto& segment : found) {
    const uint64_t bytes = CutBytes(*segment);
    by_use.emplace_back(bytes, std::move(segment));
  }
  std::stable_sort(by_use.begin(), by_use.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  MutexLock lock(&mu_);
  for (auto& [bytes, segment] : by_use) {
    next_id_ = std::max(next_id_, segment->id + 1);
    if (KeepFoundLocked(&segment)) continue;
    ++adoption_.segments_dropped;
    Destroy(std::move(segment));
  }
  for (const Pending& pending : pending_) found_bytes_ += pending.segment->payload->bytes();
  Log(LogLevel::kInfo, "host_memory_found",
      {{"path", options_.memory_dir->path()}, {"segments", pending_.size()}, {"bytes", found_bytes_},
       {"spare_segments", spare_.size()}, {"dropped_segments", adoption_.segments_dropped}});
}

// Takes the segment if it fits what is configured now. A tenant's waits for its adoption; one that nobody
// used yet is a spare one again, its page faults paid.
bool HostTier::KeepFoundLocked(std::unique_ptr<SharedSegment>* found) {
  SharedSegment* segment = found->get();
  const std::string name = segment->table->tenant();
  const auto tenant = Find(options_.tenants, name);
  const bool is_spare = name.empty();
  const uint64_t bytes = segment->payload->bytes();
  const auto slabs = segment->table->List();
  if (is_spare ? !slabs.empty() || bytes != options_.segment_bytes : !tenant.has_value()) return false;
  if (slot_used_[segment->id % kMaxSegments] || segment->id % kMaxSegments == 0) return false;
  if (bytes > options_.arena_bytes - std::min(options_.arena_bytes, arena_used_)) return false;
  uint64_t tables = 0;
  for (const auto& slab : slabs) tables += pool_.BytesOf(kv::ShapeFor(slab.stride));
  if (!budget_->TryCharge(bytes + std::max(tables, bytes / kTableShare))) return false;
  budget_->Release(std::max(tables, bytes / kTableShare) - tables);
  arena_used_ += bytes;
  slot_used_[segment->id % kMaxSegments] = true;
  if (options_.huge_pages) segment->payload->PreferHugePages();
  mapped_[segment->id % kMaxSegments] = {segment->payload->data(), segment->headers->data(), segment};
  prefaulted_.fetch_add(bytes, std::memory_order_relaxed);
  if (is_spare) {
    spare_.push_back(std::move(*found));
  } else {
    pending_.push_back({*tenant, std::move(*found), tables});
  }
  return true;
}

bool HostTier::AdoptStep(absl::FunctionRef<bool(const AdoptedBlock&)> publish) {
  if (options_.memory_dir == nullptr) return false;
  Pending next;
  Adoption result;
  {
    MutexLock lock(&mu_);
    if (!pending_.empty()) {
      next = std::move(pending_.front());
      pending_.pop_front();
    } else if (std::exchange(has_adopted_, true)) {
      return false;
    }
    result = adoption_;
  }
  if (next.segment != nullptr) {
    KillPoint("host_in_recovery");
    AdoptSegment(std::move(next), publish);
    return true;
  }
  options_.key_spaces->ForgetUnrecalled();
  if (result.damaged + result.foreign > 0) {
    Log(LogLevel::kWarning, "host_memory_dropped", {{"damaged", result.damaged}, {"not_wanted", result.foreign}});
  }
  return false;
}

double HostTier::adoption_ratio() const {
  if (found_bytes_ == 0) return 1.0;
  return static_cast<double>(adopted_bytes_.load(std::memory_order_relaxed)) / static_cast<double>(found_bytes_);
}

HostTier::Adoption HostTier::adoption() const {
  MutexLock lock(&mu_);
  return adoption_;
}

void HostTier::AdoptSegment(Pending pending, absl::FunctionRef<bool(const AdoptedBlock&)> publish) {
  SharedSegment* segment = pending.segment.get();
  const uint32_t id = segment->id;
  const uint64_t bytes = segment->payload->bytes();
  const auto extents = static_cast<uint32_t>(bytes / kExtentBytes);
  Adoption counts;
  counts.damaged = segment->table->damaged();
  // All memory that will be touched must be there: it is, unless somebody tampered with the files.
  std::vector<FramePool::SlabPlace> slabs = segment->table->List();
  const bool is_reserved = segment->payload->IsReserved();
  std::erase_if(slabs, [&](const FramePool::SlabPlace& slab) {
    if ((is_reserved ? ReserveHeaders(segment, slab) : ReserveSlab(segment, slab)).ok()) return false;
    segment->table->Erase(slab);
    ++counts.damaged;
    return true;
  });
  // Headers outside of slabs are of blocks that are lost; their pages are not paid for.
  uint32_t from = 0;
  for (const FramePool::SlabPlace& slab : slabs) {
    segment->headers->Punch(from * kHeaderBytesPerExtent, (slab.first_extent - from) * kHeaderBytesPerExtent);
    from = slab.first_extent + kv::ShapeFor(slab.stride).extents;
  }
  segment->headers->Punch(from * kHeaderBytesPerExtent, (extents - from) * kHeaderBytesPerExtent);

  SayInUse(*segment);
  {
    MutexLock lock(&mu_);
    segments_[id] = {pending.tenant, std::move(pending.segment)};
  }
  budget_->Release(pending.table_bytes);
  const std::vector<FrameId> firsts = pool_.AdoptSegment(id, pending.tenant, extents, slabs);
  // In use from here on: once the last of these frames is freed again, the segment may be given up.
  for (const FrameId first : firsts) {
    if (first != kv::kNoFrame) AdoptSlab(*segment, pending.tenant, first, publish, &counts);
  }
  adopted_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  MutexLock lock(&mu_);
  adoption_.blocks += counts.blocks;
  adoption_.damaged += counts.damaged;
  adoption_.foreign += counts.foreign;
}

void HostTier::AdoptSlab(const SharedSegment& segment, kv::TenantId tenant, FrameId first,
                         absl::FunctionRef<bool(const AdoptedBlock&)> publish, Adoption* counts) {
  constexpr uint64_t kChunk = 256 << 10;  // a header of the largest block is half of it
  const FramePool::SlabSpan span = pool_.SpanOf(first);
  const auto at_once = static_cast<uint32_t>(kChunk / span.header_bytes);
  std::vector<uint64_t> chunk(at_once * span.header_bytes / sizeof(uint64_t));
  auto* bytes = reinterpret_cast<std::byte*>(chunk.data());
  const kv::KeySpace* key_space = nullptr;
  for (uint32_t frame = 0; frame < span.shape.frames; frame += at_once) {
    const uint32_t n = std::min(at_once, span.shape.frames - frame);
    const uint64_t offset = span.place.first_extent * kHeaderBytesPerExtent + frame * span.header_bytes;
    // Copied: what is looked at cannot change, and a file that somebody cut short is no signal.
    if (!segment.headers->Read(offset, bytes, n * span.header_bytes)) std::memset(bytes, 0, n * span.header_bytes);
    for (uint32_t i = 0; i < n; ++i) {
      const auto* header = reinterpret_cast<const BlockHeader*>(bytes + i * span.header_bytes);
      AdoptFrame(*header, tenant, span, first + frame + i, publish, &key_space, counts);
    }
  }
}

void HostTier::AdoptFrame(const BlockHeader& header, kv::TenantId tenant, const FramePool::SlabSpan& span,
                          FrameId frame, absl::FunctionRef<bool(const AdoptedBlock&)> publish,
                          const kv::KeySpace** last, Adoption* counts) {
  // Free, or being filled or freed when the last process ended. Its page need not even be there.
  if (header.generation == 0) return pool_.Recycle(frame);
  AdoptedBlock block{.frame = frame, .generation = header.generation, .payload_bytes = header.payload_bytes};
  const bool is_whole = kv::IsWholeHeader(&header, span.header_bytes) &&
                        header.generation < options_.memory_dir->first_generation() &&
                        (header.payload_bytes + kv::kFrameAlign - 1) / kv::kFrameAlign ==
                            span.shape.stride / kv::kFrameAlign;
  if (is_whole) {
    std::memcpy(block.key_space_digest.data(), header.key_space_digest, 32);
    std::memcpy(block.key.bytes.data(), header.key, 32);
    std::memcpy(block.parent_tag.data(), header.parent_tag, sizeof(header.parent_tag));
    // Nearly always that of the block before.
    if (*last == nullptr || (*last)->digest != block.key_space_digest) {
      *last = options_.key_spaces->Recall(block.key_space_digest);
    }
    block.key_space = *last;
  }
  if (block.key_space == nullptr || block.key_space->tenant != tenant ||
      block.key_space->identity.block_bytes != header.payload_bytes) {
    ++(is_whole ? counts->foreign : counts->damaged);
    return Recycle(frame);
  }
  pool_.MakeReady(frame, header.generation);
  if (publish(block)) {
    ++counts->blocks;
  } else {
    ++counts->foreign;
    Retire(frame);
  }
}

}  // namespace terrace::tiering
