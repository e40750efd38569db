// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/host_tier.h"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "kvstore/base/check.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"
#include "tiering/host_memory_dir.h"

namespace terrace::tiering {

using kv::BlockHeader;
using kv::FrameId;
using kv::kExtentBytes;

HostTier::HostTier(const Options& options, MemoryBudget* budget,
                   std::function<void(kv::TenantId, uint32_t)> segment_gone)
    : options_(options),
      budget_(budget),
      segment_gone_(std::move(segment_gone)),
      pool_(options.max_slabs, options.overhead_bytes_per_frame, budget),
      mapped_(new Mapped[kMaxSegments]) {
  if (options_.memory_dir != nullptr) FindSegments();
  if (options_.prefault) {
    prefaulter_ = std::thread([this] { Prefault(); });
    pthread_setname_np(prefaulter_.native_handle(), "terrace-fault");
  }
}

HostTier::~HostTier() {
  {
    MutexLock lock(&mu_);
    closing_ = true;
  }
  wake_.SignalAll();
  if (prefaulter_.joinable()) prefaulter_.join();
  MutexLock lock(&mu_);
  budget_->Release(arena_used_);
  for (const Pending& pending : pending_) budget_->Release(pending.table_bytes);
}

// Charges the budget and the arena's limit; null when either is used up or the kernel refuses.
std::unique_ptr<SharedSegment> HostTier::MakeSegment(uint64_t bytes) {
  uint32_t id;
  {
    MutexLock lock(&mu_);
    if (closing_ || bytes > options_.arena_bytes - std::min(options_.arena_bytes, arena_used_)) return nullptr;
    if (segments_.size() + spare_.size() + 1 >= kMaxSegments) return nullptr;
    // Only where the tables of its frames fit, too, at their worst (blocks of a page: 87 KiB an extent).
    // Else it would take what was given up to pay for tables, and stay empty for want of them.
    if (!budget_->TryCharge(bytes + bytes / kTableShare)) return nullptr;
    budget_->Release(bytes / kTableShare);
    arena_used_ += bytes;
    // A slot belongs to one segment as long as it lives; ids are not used again for a long time.
    while (slot_used_[next_id_ % kMaxSegments] || next_id_ % kMaxSegments == 0) ++next_id_;
    id = next_id_++;
    slot_used_[id % kMaxSegments] = true;
  }
  auto made = MapSegment(id, bytes);
  if (!made.ok()) {
    Log(LogLevel::kError, "segment_refused",
        {{"error", made.status().message()},
         {"consequence", "blocks that needed this memory are refused (budget)"},
         {"mend", "free memory or space in host.memory_dir, or lower host.budget"}});
    MutexLock lock(&mu_);
    ForgetLocked(id, bytes);
    return nullptr;
  }
  std::unique_ptr<SharedSegment> segment = *std::move(made);
  mapped_[id % kMaxSegments] = {segment->payload->data(), segment->headers->data(), segment.get()};
  if (options_.observer != nullptr) options_.observer->OnMapped(segment->payload->data(), bytes);
  return segment;
}

absl::StatusOr<std::unique_ptr<SharedSegment>> HostTier::MapSegment(uint32_t id, uint64_t bytes) {
  if (options_.memory_dir != nullptr) {
    ASSIGN_OR_RETURN(auto segment, options_.memory_dir->Make(id, bytes));
    if (options_.huge_pages) segment->payload->PreferHugePages();
    return segment;
  }
  using Clients = SharedMemory::Clients;
  auto payload = options_.huge_pages
                     ? SharedMemory::Create("terrace-payload", bytes, Clients::kMayOnlyRead, true)
                     : absl::UnavailableError("huge pages are off");
  if (absl::IsUnavailable(payload.status())) {
    payload = SharedMemory::Create("terrace-payload", bytes, Clients::kMayOnlyRead, false);
    if (payload.ok() && options_.huge_pages) (*payload)->PreferHugePages();
  }
  RETURN_IF_ERROR(payload.status());
  auto segment = std::make_unique<SharedSegment>();
  segment->id = id;
  segment->payload = *std::move(payload);
  ASSIGN_OR_RETURN(segment->headers,
                   SharedMemory::Create("terrace-headers", bytes / kExtentBytes * kv::kHeaderBytesPerExtent,
                                        Clients::kMayOnlyRead, false));
  return segment;
}

void HostTier::SayInUse(const SharedSegment& segment) {
  if (options_.observer != nullptr) options_.observer->OnInUse(segment.payload->data(), segment.payload->bytes());
}

void HostTier::Destroy(std::unique_ptr<SharedSegment> segment) {
  if (options_.observer != nullptr) options_.observer->OnUnmapping(segment->payload->data());
  if (segment->table != nullptr) options_.memory_dir->Remove(segment->id);
}

// Empty: not to be found again.
std::string HostTier::TenantName(kv::TenantId tenant) const {
  if (tenant >= options_.tenants.size()) return "";
  const std::string& name = options_.tenants[tenant];
  return name.size() > SharedSegmentTable::kMaxTenantBytes ? "" : name;
}

void HostTier::SayFull(absl::string_view why) {
  if (said_full_.exchange(true)) return;
  Log(LogLevel::kError, "memory_dir_full",
      {{"path", options_.memory_dir->path()},
       {"error", why},
       {"fix", "make the tmpfs larger (mount -o remount,size=...) or host.budget smaller"}});
}

bool HostTier::IsPrepared(FrameId frame) const {
  const auto span = pool_.SpanOf(frame);
  const SharedSegment* segment = MappedAt(span.segment_id).segment;
  return segment->table == nullptr || segment->table->Holds(span.place);
}

bool HostTier::Prepare(FrameId frame) {
  if (IsPrepared(frame)) return true;
  const auto span = pool_.SpanOf(frame);
  SharedSegment* segment = MappedAt(span.segment_id).segment;
  // Slabs are reserved as a whole: there must be none of which some frames can be used and others cannot.
  // One after another: who fails takes back what another one, for the same slab, relies on.
  MutexLock lock(&reserve_mu_);
  if (IsPrepared(frame)) return true;
  if (const absl::Status reserved = ReserveSlab(segment, span.place); !reserved.ok()) {
    SayFull(reserved.message());
    return false;
  }
  segment->table->Add(span.place);
  return true;
}

absl::Status HostTier::ReserveHeaders(SharedSegment* segment, const kv::FramePool::SlabPlace& place) {
  constexpr uint64_t kPage = 4096;
  const kv::SlabShape shape = kv::ShapeFor(place.stride);
  const uint64_t bytes = (shape.frames * kv::HeaderBytes(place.stride) + kPage - 1) / kPage * kPage;
  return segment->headers->Reserve(place.first_extent * kv::kHeaderBytesPerExtent, bytes);
}

absl::Status HostTier::ReserveSlab(SharedSegment* segment, const kv::FramePool::SlabPlace& place) {
  RETURN_IF_ERROR(ReserveHeaders(segment, place));
  return segment->payload->Reserve(place.first_extent * kExtentBytes,
                                   kv::ShapeFor(place.stride).extents * kExtentBytes);
}

void HostTier::ForgetLocked(uint32_t id, uint64_t bytes) {
  slot_used_[id % kMaxSegments] = false;
  arena_used_ -= bytes;
  budget_->Release(bytes);
}

bool HostTier::AddSegment(kv::TenantId tenant, uint64_t least_bytes) {
  std::unique_ptr<SharedSegment> segment;
  {
    MutexLock lock(&mu_);
    if (!spare_.empty() && spare_.front()->payload->bytes() >= least_bytes) {
      segment = std::move(spare_.front());
      spare_.pop_front();
    }
  }
  // The end of the arena may be shorter than a whole segment.
  for (uint64_t bytes = std::max(options_.segment_bytes, least_bytes); segment == nullptr;) {
    segment = MakeSegment(bytes);
    if (bytes == least_bytes) break;
    bytes = std::max(bytes / 2 / kExtentBytes * kExtentBytes, least_bytes);
  }
  if (segment == nullptr) return false;
  const uint32_t id = segment->id;
  const auto extents = static_cast<uint32_t>(segment->payload->bytes() / kExtentBytes);
  if (segment->table != nullptr) segment->table->SetTenant(TenantName(tenant));
  SayInUse(*segment);
  {
    MutexLock lock(&mu_);
    segments_[id] = {tenant, std::move(segment)};
  }
  pool_.AddSegment(id, tenant, extents);
  wake_.SignalOne();
  return true;
}

std::optional<FrameId> HostTier::TryAllocate(kv::TenantId tenant, uint64_t block_bytes) {
  if (!MayFit(block_bytes)) return std::nullopt;
  const uint64_t slab_bytes = kv::ShapeFor(block_bytes).extents * kExtentBytes;
  while (true) {
    bool no_metadata = false;
    auto frame = pool_.Allocate(tenant, block_bytes, &no_metadata);
    if (!frame.has_value() && !no_metadata) {
      // One grows at a time. Who comes second finds what the first has added, instead of an arena whose
      // last segments are spoken for and not there yet.
      MutexLock lock(&grow_mu_);
      frame = pool_.Allocate(tenant, block_bytes, &no_metadata);
      if (!frame.has_value() && !no_metadata && AddSegment(tenant, slab_bytes)) continue;
    }
    if (frame.has_value()) {
      if (!Prepare(*frame)) {
        pool_.Recycle(*frame);
        return std::nullopt;
      }
      // Headers of another size may have lain here: what stands in the place of the generation is theirs.
      kv::StoreGeneration(Header(pool_.PlaceOf(*frame)), 0);
      std::atomic_thread_fence(std::memory_order_seq_cst);
      return frame;
    }
    // Spare segments that are too small make room for one that is not; and tables eat into what was set aside
    // for payloads: one spare segment pays for many slabs. Under no lock: a GPU's driver may have to let go of it.
    if (!GiveUpSpare()) return std::nullopt;
  }
}

bool HostTier::MayFit(uint64_t block_bytes) const {
  return kv::ShapeFor(block_bytes).extents * kExtentBytes <= options_.arena_bytes;
}

bool HostTier::GiveUpEmptySegment(kv::TenantId wanted_by) {
  auto id = pool_.RemoveEmptySegment(std::nullopt, wanted_by);
  if (!id.has_value()) id = pool_.RemoveEmptySegment(wanted_by, std::nullopt);
  if (!id.has_value()) return false;
  Owned gone;
  {
    MutexLock lock(&mu_);
    auto node = segments_.extract(*id);
    gone = std::move(node.mapped());
    ForgetLocked(*id, gone.segment->payload->bytes());
  }
  Destroy(std::move(gone.segment));
  segment_gone_(gone.tenant, *id);
  return true;
}

bool HostTier::GiveUpSpare() {
  std::unique_ptr<SharedSegment> spare;
  {
    MutexLock lock(&mu_);
    no_more_spares_ = true;  // the memory has other uses: the prefaulter must not take it again
    if (spare_.empty()) return false;
    spare = std::move(spare_.back());
    spare_.pop_back();
    ForgetLocked(spare->id, spare->payload->bytes());
  }
  Destroy(std::move(spare));
  return true;
}

void HostTier::Prefault() {
  constexpr uint64_t kStep = 8 << 20;  // a few milliseconds: closing waits no longer
  while (true) {
    bool enough;
    {
      MutexLock lock(&mu_);
      enough = no_more_spares_;
    }
    auto segment = enough ? nullptr : MakeSegment(options_.segment_bytes);
    if (segment == nullptr) {
      // All memory is spoken for. What is given up later is faulted in by its next user.
      MutexLock lock(&mu_);
      while (!closing_) wake_.Wait(&mu_);
      return;
    }
    absl::Status reserved;
    for (uint64_t at = 0; at < segment->payload->bytes(); at += kStep) {
      {
        MutexLock lock(&mu_);
        if (closing_) {
          spare_.push_back(std::move(segment));
          return;
        }
      }
      const uint64_t step = std::min(kStep, segment->payload->bytes() - at);
      reserved = segment->payload->Reserve(at, step);
      if (!reserved.ok()) break;
      segment->payload->Populate(at, step);
      prefaulted_.fetch_add(step, std::memory_order_relaxed);
    }
    if (!reserved.ok()) SayFull(reserved.message());
    if (reserved.ok()) SayInUse(*segment);
    MutexLock lock(&mu_);
    spare_.push_back(std::move(segment));
    no_more_spares_ |= !reserved.ok();
  }
}

const HostTier::Mapped& HostTier::MappedAt(uint32_t segment_id) const {
  return mapped_[segment_id % kMaxSegments];
}

BlockHeader* HostTier::Header(const kv::FramePool::Place& place) const {
  return reinterpret_cast<BlockHeader*>(MappedAt(place.segment_id).headers +
                                        place.header_offset * kv::kHeaderUnit);
}

std::byte* HostTier::Payload(FrameId frame) const {
  const auto place = pool_.PlaceOf(frame);
  return MappedAt(place.segment_id).payload + place.payload_offset;
}

std::vector<uint64_t> HostTier::Checksums(FrameId frame, uint64_t payload_bytes) const {
  const BlockHeader* header = Header(pool_.PlaceOf(frame));
  return {header->checksums(), header->checksums() + ChecksumCount(payload_bytes)};
}

uint64_t HostTier::WriteHeader(FrameId frame, const kv::KeySpace& key_space, const kv::BlockKey& key,
                               std::span<const uint64_t> checksums,
                               const std::optional<kv::BlockKey>& parent) {
  BlockHeader* header = Header(pool_.PlaceOf(frame));
  // Not checked to be 0 but made so: it is shared memory, where a bit may have flipped.
  kv::StoreGeneration(header, 0);
  const uint64_t generation = pool_.NextGeneration();
  BlockHeader fields{};
  fields.magic = kv::kBlockHeaderMagic;
  fields.version = kv::kBlockHeaderVersion;
  fields.payload_bytes = key_space.identity.block_bytes;
  fields.segment_bytes = kChecksumSegmentBytes;
  fields.n_checksums = static_cast<uint32_t>(checksums.size());
  std::memcpy(fields.key_space_digest, key_space.digest.data(), 32);
  std::memcpy(fields.key, key.bytes.data(), 32);
  if (parent.has_value()) std::memcpy(fields.parent_tag, parent->bytes.data(), sizeof(fields.parent_tag));
  fields.header_checksum = kv::ComputeHeaderChecksum(fields, generation, checksums.data());
  std::memcpy(header, &fields, sizeof(fields));
  std::memcpy(header->checksums(), checksums.data(), checksums.size_bytes());
  std::atomic_thread_fence(std::memory_order_seq_cst);
  kv::StoreGeneration(header, generation);
  return generation;
}

std::optional<std::vector<uint64_t>> HostTier::CheckedChecksums(FrameId frame, const kv::KeySpace& key_space,
                                                                const kv::BlockKey& key) const {
  const auto place = pool_.PlaceOf(frame);
  const uint64_t bytes = key_space.identity.block_bytes;
  if (kv::CheckHeader(Header(place), key_space.digest.data(), key.bytes.data(), place.generation, bytes) !=
      kv::HeaderVerdict::kOk) {
    return std::nullopt;
  }
  return Checksums(frame, bytes);
}

bool HostTier::Check(FrameId frame, const kv::KeySpace& key_space, const kv::BlockKey& key,
                     std::span<std::byte> target) const {
  const auto place = pool_.PlaceOf(frame);
  const uint64_t bytes = key_space.identity.block_bytes;
  auto known = CheckedChecksums(frame, key_space, key);
  if (!known.has_value()) return false;
  std::vector<uint64_t> checksums = *std::move(known);
  const Piece source{MappedAt(place.segment_id).payload + place.payload_offset, bytes};
  const Piece into{target.data(), target.size()};
  return CopyBlock({&source, 1}, {&into, target.empty() ? 0u : 1u},
                   IdentitySeed(key_space.digest.data(), key.bytes.data(), bytes), CopyCheck::kVerify,
                   checksums, CopyStores::kCached);
}

// Readers that hold a stale ref must see that the frame is no longer theirs before a byte changes.
void HostTier::Recycle(FrameId frame) {
  if (IsPrepared(frame)) kv::StoreGeneration(Header(pool_.PlaceOf(frame)), 0);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  pool_.Recycle(frame);
}

void HostTier::Retire(FrameId frame) {
  if (pool_.Retire(frame)) Recycle(frame);
}

void HostTier::Abandon(FrameId frame) { Recycle(frame); }

void HostTier::Unpin(FrameId frame) {
  if (pool_.Unpin(frame)) Recycle(frame);
}

void HostTier::UnpinAll(std::span<const FrameId> frames) {
  uint64_t bytes = 0;
  for (const FrameId frame : frames) {
    if (pool_.UnpinUncounted(frame, &bytes)) Recycle(frame);
  }
  if (bytes > 0) pool_.CountUnpinned(bytes);
}

bool HostTier::CopyFrame(FrameId source, FrameId target, const kv::KeySpace& key_space,
                         const kv::BlockKey& key) {
  const uint64_t bytes = key_space.identity.block_bytes;
  if (!Prepare(target) || !Check(source, key_space, key, {Payload(target), bytes})) return false;
  const BlockHeader* header = Header(pool_.PlaceOf(source));
  const std::vector<uint64_t> checksums(header->checksums(), header->checksums() + ChecksumCount(bytes));
  kv::BlockKey parent{};
  std::memcpy(parent.bytes.data(), header->parent_tag, sizeof(header->parent_tag));
  const uint64_t generation = WriteHeader(target, key_space, key, checksums, parent);
  pool_.MakeReady(target, generation);
  return true;
}

std::optional<HostTier::Fds> HostTier::FindSegment(uint32_t segment_id,
                                                    kv::TenantId tenant) const {
  MutexLock lock(&mu_);
  const auto it = segments_.find(segment_id);
  if (it == segments_.end() || it->second.tenant != tenant) return std::nullopt;
  const SharedSegment& segment = *it->second.segment;
  // Duplicated under the lock: the segment may be gone, and its descriptor's number another tenant's,
  // before the caller has sent it.
  const int payload = fcntl(segment.payload->fd(), F_DUPFD_CLOEXEC, 0);
  const int headers = fcntl(segment.headers->fd(), F_DUPFD_CLOEXEC, 0);
  if (payload < 0 || headers < 0) {
    if (payload >= 0) close(payload);
    if (headers >= 0) close(headers);
    return std::nullopt;
  }
  return Fds{payload, headers, segment.payload->bytes(), segment.headers->bytes()};
}

}  // namespace terrace::tiering
