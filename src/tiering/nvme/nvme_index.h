// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// NvmeIndex: which blocks one disk holds and where, in about 24 bytes a block. Entries of 16 bytes lie
// in arrays per segment, so that a segment's reuse drops them without a search; sharded hash sets of
// entry numbers find them by a keyed 64-bit fingerprint. Two blocks of one fingerprint cost a read and
// a miss: the full identity stands in the record on disk.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "kvstore/base/memory_budget.h"
#include "kvstore/base/mutex.h"
#include "tiering/nvme/nvme_format.h"

namespace terrace::tiering {

// Owner: NvmeStore. Threads: as each group below says; a shard's lock is held for one operation and
// never together with another shard's. Limits: max_entries a segment; memory is charged in steps, and an
// entry that finds none is refused. Failure: none.
class NvmeIndex {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;
  static constexpr uint64_t kChargedPerEntry = sizeof(NvmeEntry) + 12;  // 12: its place in a hash set

  NvmeIndex(const NvmeGeometry& geometry, MemoryBudget* budget);
  ~NvmeIndex();
  NvmeIndex(const NvmeIndex&) = delete;

  struct Found {
    uint32_t id = kNone;
    NvmePlace place;
    uint32_t pages = 0;
    uint32_t space_tag = 0;
    uint64_t fingerprint = 0;
    bool was_hit = false;
  };
  // Any thread.
  std::optional<Found> Find(uint64_t fingerprint, bool mark_hit);
  bool Contains(uint64_t fingerprint) const;
  // Takes it out if it is (still) this entry; kNone: whatever entry it is.
  bool Drop(uint64_t fingerprint, uint32_t id);
  // Blocks of a key space, or all.
  uint64_t DropSpace(std::optional<uint32_t> space_tag);
  // False: no block of the key space is here. True once in a thousand times for another one of the same count.
  bool MayHaveSpace(uint32_t space_tag) const {
    return of_space_[space_tag % of_space_.size()].load(std::memory_order_relaxed) > 0;
  }
  uint64_t blocks() const { return blocks_.load(std::memory_order_relaxed); }
  uint64_t used_bytes() const { return used_pages_.load(std::memory_order_relaxed) * kNvmePage; }
  uint64_t charged_bytes() const { return charged_.load(std::memory_order_relaxed); }
  uint64_t sequence(uint32_t segment) const {
    return segments_[segment].sequence.load(std::memory_order_acquire);
  }
  uint32_t entry_count(uint32_t segment) const {
    return segments_[segment].count.load(std::memory_order_acquire);
  }

  // Blocks that are visible in a segment.
  uint32_t live_count(uint32_t segment) const {
    return segments_[segment].live.load(std::memory_order_acquire);
  }

  // One thread at a time for one segment.
  // The number of a new entry, not published yet; kNone: no memory or no room.
  uint32_t Reserve(uint32_t segment);

  // The store's own thread.
  // Makes it visible. Of two entries for one fingerprint that of the later sequence (or place) stays.
  // replaces: only if that entry is the present one. allowed is asked under the shard's lock.
  bool Publish(uint32_t id, const NvmeEntry& entry, uint32_t replaces, absl::FunctionRef<bool()> allowed);
  // So many blocks are about to come: makes room at once instead of step by step.
  void Expect(uint64_t blocks);
  // Empty from now on, in a new use. REQUIRES: nothing reserved there is still to be published.
  void ResetSegment(uint32_t segment, uint64_t sequence);
  // Nothing in the segment counts as used any more.
  void ForgetHits(uint32_t segment);
  // Takes out all that is visible in a segment; it stays in its use.
  void DropSegment(uint32_t segment);
  // The i-th entry of a segment, if it is visible.
  std::optional<Found> At(uint32_t segment, uint32_t i) const;
  // What a segment's table says: entries that are visible.
  std::vector<NvmeEntry> Table(uint32_t segment) const;

 private:
  // pages: as on disk in the low bits, flags above. Written by the store's thread before the entry is
  // published, but for the flags.
  struct Entry {
    uint64_t fingerprint;
    uint32_t space_tag;
    uint16_t page;
    std::atomic<uint16_t> pages;
  };
  static_assert(sizeof(Entry) == sizeof(NvmeEntry));
  static constexpr uint16_t kPagesMask = 0x1fff, kHit = 0x2000, kLive = 0x4000;
  // Chunk 0 and 1 hold 64 entries, each further one as many as all before it.
  static constexpr uint32_t kFirstChunk = 64;
  struct Segment {
    std::atomic<uint64_t> sequence{0};
    std::atomic<uint32_t> count{0}, live{0};
    std::array<std::unique_ptr<Entry[]>, 12> chunks;
  };
  struct Hash {
    using is_transparent = void;
    const NvmeIndex* index;
    size_t operator()(uint32_t id) const { return index->EntryOf(id).fingerprint; }
    size_t operator()(uint64_t fingerprint) const { return fingerprint; }
  };
  struct Equal {
    using is_transparent = void;
    const NvmeIndex* index;
    bool operator()(uint32_t a, uint32_t b) const { return a == b; }
    bool operator()(uint32_t id, uint64_t fingerprint) const {
      return index->EntryOf(id).fingerprint == fingerprint;
    }
    bool operator()(uint64_t fingerprint, uint32_t id) const { return (*this)(id, fingerprint); }
  };
  using Set = absl::flat_hash_set<uint32_t, Hash, Equal>;
  struct alignas(64) Shard {
    explicit Shard(const NvmeIndex* index) : set(0, Hash{index}, Equal{index}) {}
    mutable Mutex mu;
    Set set ABSL_GUARDED_BY(mu);
  };
  static constexpr int kShardBits = 6;

  Shard& ShardOf(uint64_t fingerprint) const { return *shards_[fingerprint >> (64 - kShardBits)]; }
  Entry& EntryOf(uint32_t id) const;
  Found Describe(uint32_t id) const;
  void Forget(Shard& shard, Set::iterator it) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu);

  const int entry_bits_;  // of an entry's number: place in its segment; above: the segment
  const uint32_t max_entries_;
  MemoryBudget* const budget_;
  std::vector<Segment> segments_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::array<std::atomic<uint32_t>, 1024> of_space_{};  // blocks, by the tag's remainder
  std::atomic<uint64_t> blocks_{0}, used_pages_{0}, charged_{0};
};

}  // namespace terrace::tiering
