// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// HostCopyTicket: one batch of HostCopyEngine, cut into tasks that any thread can run. Knows no queue and no lock.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "gpu/copy_engine.h"
#include "kvstore/base/block_copy.h"

namespace terrace::gpu {

// A task is a chunk (a run of checksum segments that all pages go through together, so that the first planes of all
// pages are there before later ones) times a group of pages.
//
// Owner: HostCopyEngine. Threads: Run() any, several at a time; the rest constant, or as said. Limits: 1,024 chunks.
// Failure: a page whose bytes differ from its checksums is noted and left alone from there on.
class HostCopyTicket {
 public:
  // REQUIRES: CheckBatch() held.
  explicit HostCopyTicket(CopyBatch taken);
  HostCopyTicket(const HostCopyTicket&) = delete;

  size_t task_count() const { return n_chunks_ * groups_; }
  size_t chunk_count() const { return n_chunks_; }
  size_t tasks_per_chunk() const { return groups_; }
  // Tasks stand in the order in which they are to be run: all of a chunk, then the next chunk's.
  size_t ChunkOf(size_t task) const { return task / groups_; }
  uint64_t total_bytes() const { return batch.pages.size() * page_bytes_; }

  // Copies and checks. Each task at most once. scratch: of the calling thread, to be used again.
  void Run(size_t task, std::vector<Piece>* scratch);
  // Planes that lie wholly inside the first chunks; none once a page has failed.
  uint32_t PlanesIn(size_t n_chunks) const;
  // Writes the verdicts. After the last task.
  void Judge(bool ok);

  CopyBatch batch;

 private:
  bool CopyPart(PageCopy& copy, size_t first_segment, uint64_t begin, uint64_t end, std::vector<Piece>* scratch);

  const uint64_t page_bytes_;
  std::vector<uint64_t> plane_ends_;  // in the payload
  uint64_t chunk_bytes_ = 0;          // whole segments
  size_t n_chunks_ = 0, groups_ = 0, pages_per_group_ = 0;
  std::unique_ptr<std::atomic<bool>[]> failed_;  // one a page
  std::atomic<bool> any_failed_{false};
};

}  // namespace terrace::gpu
