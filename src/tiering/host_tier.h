// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// HostTier: the bytes behind the frames in host memory. Owns the shared-memory segments and the
// FramePool over them, grows segment by segment within the budget, writes and checks headers.
// Knows frames, not which keys are where; holds no policy.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "kvstore/base/memory_budget.h"
#include "kvstore/base/mutex.h"
#include "kvstore/block_header.h"
#include "kvstore/block_key.h"
#include "kvstore/frame_pool.h"
#include "kvstore/key_space.h"
#include "tiering/shared_segment.h"

namespace terrace::tiering {

class HostMemoryDir;

// Hears of the payload memory of segments, but not of its end with the tier. Any thread; at most the lock that the
// making of segments is serialised by is held.
class SegmentObserver {
 public:
  virtual ~SegmentObserver() = default;
  virtual void OnMapped(std::byte* base, uint64_t bytes) = 0;  // new, no page of it touched yet
  virtual void OnInUse(std::byte* base, uint64_t bytes) = 0;   // blocks come, or soon will; may be told twice
  virtual void OnUnmapping(std::byte* base) = 0;               // about to go
};

// Owner: TierStack. Threads: any, and one of its own that takes the page faults of segments to come.
// Limits: the budget; segment_bytes a segment. Failure: no memory is "no frame", never an abort.
class HostTier {
 public:
  struct Options {
    uint64_t segment_bytes = 0;  // multiple of kExtentBytes, >= 16 MiB
    uint64_t arena_bytes = 0;    // most payload bytes in segments
    bool prefault = true, huge_pages = true;
    uint32_t max_slabs = 1 << 20;
    uint64_t overhead_bytes_per_frame = 64;
    // Where the memory outlives the process, with what its blocks belong to; null: anonymous memory, gone
    // with the process. Both must outlive the tier. Key spaces are recorded in the directory from then on.
    HostMemoryDir* memory_dir = nullptr;
    kv::KeySpaceTable* key_spaces = nullptr;
    std::vector<std::string> tenants;  // names by TenantId; used with memory_dir only
    SegmentObserver* observer = nullptr;  // may be null; must outlive the tier
  };
  // A block that the last process left, checked but for its payload (every reader does that).
  struct AdoptedBlock {
    kv::FrameId frame;  // ready
    const kv::KeySpace* key_space;
    std::array<uint8_t, 32> key_space_digest;
    kv::BlockKey key;
    std::array<uint8_t, 24> parent_tag;  // first bytes of the parent's key; zeros: none. A hint only
    uint64_t generation;
    uint64_t payload_bytes;
  };
  HostTier(const Options& options, MemoryBudget* budget,
           std::function<void(kv::TenantId, uint32_t)> segment_gone);
  ~HostTier();

  // A free frame (Filling), from the tenant's segments or a new one. nullopt: something must go first.
  std::optional<kv::FrameId> TryAllocate(kv::TenantId tenant, uint64_t block_bytes);
  // Could a block of this size ever be here? No: nothing needs to make room for it.
  bool MayFit(uint64_t block_bytes) const;
  // Gives up an empty segment of another tenant (or of this one, when a larger one is needed).
  bool GiveUpEmptySegment(kv::TenantId wanted_by);
  // Gives a prefaulted segment that nobody uses back to the budget.
  bool GiveUpSpare();

  kv::FramePool& pool() { return pool_; }
  const kv::FramePool& pool() const { return pool_; }

  // REQUIRES: the frame is filling, pinned or otherwise held.
  std::byte* Payload(kv::FrameId frame) const;
  // As they stand in the header of a ready frame; may be damaged there, unlike what Check says.
  std::vector<uint64_t> Checksums(kv::FrameId frame, uint64_t payload_bytes) const;
  // The same once the header was checked; nullopt: it is not the header of that block. REQUIRES: pinned.
  std::optional<std::vector<uint64_t>> CheckedChecksums(kv::FrameId frame, const kv::KeySpace& key_space,
                                                        const kv::BlockKey& key) const;
  // Completes a fill whose payload is in place; returns the generation. parent: remembered as a hint.
  uint64_t WriteHeader(kv::FrameId frame, const kv::KeySpace& key_space, const kv::BlockKey& key,
                       std::span<const uint64_t> checksums,
                       const std::optional<kv::BlockKey>& parent = std::nullopt);
  // Reads the block and checks everything. REQUIRES: pinned. target empty: check in place only.
  bool Check(kv::FrameId frame, const kv::KeySpace& key_space, const kv::BlockKey& key,
             std::span<std::byte> target) const;

  // From out-of-the-index or filling to free, now or with the last unpin.
  void Retire(kv::FrameId frame);
  void Abandon(kv::FrameId frame);
  void Unpin(kv::FrameId frame);
  void UnpinAll(std::span<const kv::FrameId> frames);
  // Copies a ready frame to a filling one: same block, new generation. False if it fails its check.
  bool CopyFrame(kv::FrameId source, kv::FrameId target, const kv::KeySpace& key_space,
                 const kv::BlockKey& key);

  // Takes over one segment that the last process left: publish gets each of its good blocks, holding no
  // lock; false: not wanted, its frame is freed. Beside serving, one thread at a time. False: nothing is
  // left. A crash in between loses nothing: what was not taken over yet is found again.
  bool AdoptStep(absl::FunctionRef<bool(const AdoptedBlock&)> publish);
  // Bytes of what was found at the start and is taken over by now; 1: done.
  double adoption_ratio() const;
  struct Adoption {
    uint64_t blocks = 0;   // good ones
    uint64_t damaged = 0;  // headers and table records that failed their checks
    uint64_t foreign = 0;  // of a key space or tenant that is not known any more, or not wanted
    uint64_t segments_dropped = 0;  // damaged, of an unknown tenant, or beyond the budget
  };
  Adoption adoption() const;

  struct Fds {
    int payload, headers;
    uint64_t payload_bytes, header_bytes;
  };
  // The descriptors belong to the caller.
  std::optional<Fds> FindSegment(uint32_t segment_id, kv::TenantId tenant) const;

  uint64_t capacity_bytes() const { return options_.arena_bytes; }
  uint64_t prefaulted_bytes() const { return prefaulted_.load(std::memory_order_relaxed); }

 private:
  static constexpr uint32_t kMaxSegments = 1 << 16;
  static constexpr uint64_t kTableShare = 8;  // tables take at most an eighth of the payload
  struct Mapped {
    std::byte* payload = nullptr;
    std::byte* headers = nullptr;
    SharedSegment* segment = nullptr;
  };
  // Of the last process, not yet taken over.
  struct Pending {
    kv::TenantId tenant;
    std::unique_ptr<SharedSegment> segment;
    uint64_t table_bytes;  // charged for it already
  };
  std::unique_ptr<SharedSegment> MakeSegment(uint64_t bytes);
  absl::StatusOr<std::unique_ptr<SharedSegment>> MapSegment(uint32_t id, uint64_t bytes);
  // A segment's last reference: its files go with it.
  void Destroy(std::unique_ptr<SharedSegment> segment);
  void SayFull(absl::string_view why);
  void SayInUse(const SharedSegment& segment);
  std::string TenantName(kv::TenantId tenant) const;
  // The slab of a frame is reserved and in its segment's table: its header may be touched.
  bool IsPrepared(kv::FrameId frame) const;
  bool Prepare(kv::FrameId frame);
  absl::Status ReserveHeaders(SharedSegment* segment, const kv::FramePool::SlabPlace& place);
  absl::Status ReserveSlab(SharedSegment* segment, const kv::FramePool::SlabPlace& place);

  void FindSegments();
  bool KeepFoundLocked(std::unique_ptr<SharedSegment>* found) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AdoptSegment(Pending pending, absl::FunctionRef<bool(const AdoptedBlock&)> publish);
  void AdoptSlab(const SharedSegment& segment, kv::TenantId tenant, kv::FrameId first,
                 absl::FunctionRef<bool(const AdoptedBlock&)> publish, Adoption* counts);
  void AdoptFrame(const kv::BlockHeader& header, kv::TenantId tenant, const kv::FramePool::SlabSpan& span,
                  kv::FrameId frame, absl::FunctionRef<bool(const AdoptedBlock&)> publish,
                  const kv::KeySpace** last, Adoption* counts);
  void ForgetLocked(uint32_t id, uint64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool AddSegment(kv::TenantId tenant, uint64_t least_bytes);
  void Prefault();
  void Recycle(kv::FrameId frame);
  kv::BlockHeader* Header(const kv::FramePool::Place& place) const;
  const Mapped& MappedAt(uint32_t segment_id) const;

  const Options options_;
  MemoryBudget* const budget_;
  const std::function<void(kv::TenantId, uint32_t)> segment_gone_;
  kv::FramePool pool_;
  std::unique_ptr<Mapped[]> mapped_;  // by id % kMaxSegments; set before any frame of it exists
  std::atomic<uint64_t> prefaulted_{0};

  Mutex reserve_mu_;  // a slab's memory is being reserved. Never with another one
  Mutex grow_mu_ ABSL_ACQUIRED_BEFORE(mu_);  // held while a segment is made for a frame that is wanted now
  mutable Mutex mu_;
  CondVar wake_;
  bool closing_ ABSL_GUARDED_BY(mu_) = false;
  bool no_more_spares_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t arena_used_ ABSL_GUARDED_BY(mu_) = 0;  // payload bytes of all segments, spare ones too
  uint32_t next_id_ ABSL_GUARDED_BY(mu_) = 1;
  std::vector<bool> slot_used_ ABSL_GUARDED_BY(mu_) = std::vector<bool>(kMaxSegments);
  struct Owned {
    kv::TenantId tenant;
    std::unique_ptr<SharedSegment> segment;
  };
  std::map<uint32_t, Owned> segments_ ABSL_GUARDED_BY(mu_);
  std::deque<std::unique_ptr<SharedSegment>> spare_ ABSL_GUARDED_BY(mu_);
  std::deque<Pending> pending_ ABSL_GUARDED_BY(mu_);
  bool has_adopted_ ABSL_GUARDED_BY(mu_) = false;  // all of them
  Adoption adoption_ ABSL_GUARDED_BY(mu_);
  uint64_t found_bytes_ = 0;  // constant after construction
  std::atomic<uint64_t> adopted_bytes_{0};
  std::atomic<bool> said_full_{false};
  std::thread prefaulter_;
};

}  // namespace terrace::tiering
