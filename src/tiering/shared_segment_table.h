// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// SharedSegmentTable: what a segment's two files do not say themselves: whose they are and how their
// extents are cut into slabs. A small file beside them, mapped, so that the next process can find the
// headers. Every record has a checksum: a torn one is noticed and left out.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvstore/base/mutex.h"
#include "kvstore/frame_pool.h"

namespace terrace::tiering {

class SharedMemory;

// Owner: SharedSegment. Threads: any. Limits: tenant names up to kMaxTenantBytes.
// A slab stays in the table until another one is put over it: one that is gone by then holds headers of
// generation 0 only, so finding it again does no harm.
class SharedSegmentTable {
 public:
  static constexpr size_t kMaxTenantBytes = 448;
  static uint64_t FileBytes(uint32_t extents);

  // Writes a new table, of no tenant: a segment that nobody uses yet. REQUIRES: memory is reserved.
  static std::unique_ptr<SharedSegmentTable> Create(std::unique_ptr<SharedMemory> memory, uint32_t segment_id,
                                                    uint32_t extents);
  // DataLoss: damaged, of another version or another segment.
  static absl::StatusOr<std::unique_ptr<SharedSegmentTable>> Open(std::unique_ptr<SharedMemory> memory,
                                                                  uint32_t segment_id);
  ~SharedSegmentTable();
  SharedSegmentTable(const SharedSegmentTable&) = delete;

  uint32_t extents() const { return extents_; }
  // Empty: nobody's. REQUIRES: SetTenant is not running.
  std::string tenant() const;
  void SetTenant(absl::string_view name);

  // True if exactly this slab is in the table. One load.
  bool Holds(const kv::FramePool::SlabPlace& slab) const;
  // Puts it in, and takes out what it lies over. REQUIRES: none of these holds a block.
  void Add(const kv::FramePool::SlabPlace& slab);
  // REQUIRES: none of its frames is in use.
  void Erase(const kv::FramePool::SlabPlace& slab);
  // All slabs in order of place.
  std::vector<kv::FramePool::SlabPlace> List() const;
  // Records that Open found and left out: slabs whose blocks are lost.
  uint32_t damaged() const { return damaged_; }

 private:
  struct Head;
  struct Record;
  SharedSegmentTable(std::unique_ptr<SharedMemory> memory, uint32_t segment_id, uint32_t extents);
  Head* head() const;
  Record* record(uint32_t extent) const;
  uint64_t CheckOf(uint32_t extent, const Record& record) const;
  void ReadRecords();
  void EraseLocked(uint32_t first) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Seal();

  const std::unique_ptr<SharedMemory> memory_;
  const uint32_t segment_id_, extents_;
  uint32_t damaged_ = 0;  // constant after Open
  const std::unique_ptr<std::atomic<uint32_t>[]> pages_;  // by first extent: stride of the slab, 0: none
  Mutex mu_;
  std::vector<uint32_t> first_ ABSL_GUARDED_BY(mu_);  // by extent: where its slab begins; kNone: none
};

}  // namespace terrace::tiering
