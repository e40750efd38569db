// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What the parts of one store (reader, writer, recovery, scrubber) share: the volume that was found on
// the device, and the means to work on it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gpu/block_copier.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/memory_budget.h"
#include "kvstore/base/mutex.h"
#include "tiering/nvme/nvme_index.h"
#include "tiering/nvme/nvme_io.h"
#include "tiering/nvme/nvme_log.h"
#include "tiering/nvme/nvme_metrics.h"
#include "tiering/nvme/write_budget.h"

namespace terrace::tiering {

// The flushes that blocks on disk may be older than. Owner: NvmeVolume. Threads: any.
// Limits: kNvmeMaxTombstones; one more turns into a flush of everything.
class NvmeTombstones {
 public:
  void Add(const NvmeTombstone& tombstone);
  void Set(std::vector<NvmeTombstone> tombstones);
  // Was it flushed after it had been laid down?
  bool Covers(const NvmePlace& place, uint32_t space_tag) const;
  // Was there a flush, of whatever, behind that position?
  bool IsBefore(uint64_t sequence, uint64_t page) const;
  // Forgets those that are older than every use of a segment; returns the rest.
  std::vector<NvmeTombstone> Prune(uint64_t oldest_sequence);

 private:
  mutable Mutex mu_;
  std::atomic<bool> any_{false};
  std::vector<NvmeTombstone> list_ ABSL_GUARDED_BY(mu_);
};

// What is on the device and where. Owner: NvmeStore; lives as long as it. Constant but for what has its
// own locks, so that any thread may hold a pointer to it.
struct NvmeVolume {
  NvmeVolume(const NvmeDeviceId& id, uint64_t seed, const NvmeGeometry& g, MemoryBudget* budget)
      : device_id(id), fingerprint_seed(seed), geometry(g), index(g, budget) {}
  const NvmeDeviceId device_id;
  const uint64_t fingerprint_seed;
  const NvmeGeometry geometry;
  NvmeIndex index;
  NvmeTombstones tombstones;
};

// Owner: NvmeStore. Threads: the store's own, but for what is atomic or has its own locks.
struct NvmeDisk {
  const NvmeOptions* options;
  const BlockDeviceOptions* device_options;
  const Clock* clock;
  MemoryBudget* budget;
  NvmeMetrics* metrics;
  NvmeDeviceMetrics* device_metrics;
  gpu::BlockCopier* copies;

  NvmeIo io;
  NvmeReadArena arena;
  NvmeLog log;
  WriteBudget write_budget;
  std::span<std::byte> control_memory;  // for tables and state; one write at a time
  std::atomic<NvmeVolume*> volume{nullptr};
  std::function<void()> wake;  // any thread: the store's own has something to do

  NvmeState state;           // as last written or read, but for the tombstones
  uint64_t written_before = 0;  // ever, up to this start
  uint64_t sequence_count = 0;  // lower half of the last sequence number given
  std::vector<uint32_t> unsealed;  // found by recovery: their tables are still to be written
  std::vector<uint32_t> ring;      // segments in the order in which they will be reused, first first

  // What went wrong since the store last looked; see NvmeStore::LookAtHealth.
  uint32_t read_errors = 0;  // in a row
  int write_error = 0;       // errno of a write or sync
  bool sync_failed = false;
  int read_error = 0;

  std::string path() const { return device_options->path; }
  uint64_t NextSequence() { return state.epoch << 32 | ++sequence_count; }
};

}  // namespace terrace::tiering
