// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// NvmeLog: the end of one disk's log, where blocks are appended. Appenders reserve a place on disk and
// one in a ring of memory under a short lock, copy outside it, and mark the record as filled; the store's
// thread takes runs of filled records that lie one after another and writes each run in one request.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "kvstore/base/mutex.h"
#include "tiering/nvme/nvme_index.h"

namespace terrace::tiering {

// Owner: NvmeStore. Threads: appenders any; what is marked so, the store's own only.
// Limits: the memory given; what finds no place is refused at once. Failure: none of its own.
class NvmeLog {
 public:
  static constexpr uint64_t kRunBytes = 1ull << 20;     // worth a request; below it waits for more
  static constexpr uint64_t kMaxRunBytes = 4ull << 20;  // a longer record is a run of its own

  struct Record {
    NvmePlace place;
    uint32_t pages = 0;
    uint32_t entry_id = NvmeIndex::kNone;
    uint32_t replaces = NvmeIndex::kNone;  // the entry that moves here
    uint64_t fingerprint = 0;
    uint32_t space_tag = 0;
    int64_t reserved_ns = 0;
    std::span<std::byte> memory;
    std::function<void(bool)> done;
    enum State : uint8_t { kFilling, kFilled, kVoid } state = kFilling;
    uint64_t memory_end = 0;  // of the ring, counted from the beginning of time
  };
  enum class Refusal { kNone, kUnderWay, kNoBuffer, kNoSegment, kNoMemory };
  struct Reserved {
    Refusal refusal = Refusal::kNone;
    Record* record = nullptr;  // valid until it was completed
  };
  struct Position {
    uint32_t segment = 0;
    uint64_t sequence = 0;  // 0: no segment is open
    uint32_t page = 0;
  };

  explicit NvmeLog(std::span<std::byte> memory) : memory_(memory) {}

  // A place for a record of so many pages. Only for its caller: the record until Fill.
  // index: where the caller believes to append; refused if that changed.
  Reserved Reserve(const NvmeIndex* index, uint64_t fingerprint, uint32_t space_tag, uint32_t pages,
                   uint32_t replaces, int64_t now_ns);
  // The bytes stand in memory; intact false: they are to be forgotten. True: wake the store's thread.
  bool Fill(Record* record, bool intact, std::function<void(bool)> done);
  Position position() const;
  // Everything there is lies before it, everything to come does not.
  Position FlushPosition();

  // The store's thread, all of the following.
  // floor: below all sequence numbers that segments will get from now on.
  void Start(const NvmeGeometry& geometry, NvmeIndex* index, uint64_t floor);
  // Nothing is taken any more until Start.
  void Stop();
  // Appending goes on there. False: a flush came in between, nothing may follow its position there.
  bool SetOpen(Position open);
  void SetPrepared(uint32_t segment, uint64_t sequence);
  bool has_prepared() const;
  // What is kept for records that move: pages of the open segment, bytes of the memory.
  void Keep(uint32_t pages, uint64_t bytes);
  // Whether somebody was refused for want of a segment since it was last asked.
  bool TakeOutOfRoom();
  // Whether the open segment has room, or the next one is ready.
  bool has_room(uint32_t pages) const;
  // Segments that appending has left behind, with the number of pages used; each is named once.
  std::vector<Position> TakeRolled();
  // The oldest place that is not completed yet, or the end.
  Position oldest_pending() const;
  uint64_t pending_bytes() const;  // of records that are not in a run yet
  // When the oldest of them was reserved; INT64_MAX: there is none.
  int64_t oldest_waiting_ns() const;

  struct Run {
    uint64_t first = 0, count = 0;  // records
    uint64_t device_offset = 0;
    std::span<std::byte> memory;
  };
  // The next run to be written, if there is one worth it (all: any).
  std::optional<Run> TakeRun(bool all);
  // The run's records, to be published and told; their memory is free from now on.
  std::vector<Record> Complete(const Run& run);
  // Gives up what is in no run. REQUIRES: no runs are under way; waits for those who are copying.
  std::vector<Record> TakeAll();

 private:
  struct Active {
    Run run;
    bool completed = false;
  };
  Record* PlaceLocked(uint32_t pages, uint64_t kept_bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void PopLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::vector<Record> TakeLocked(uint64_t first, uint64_t count) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::span<std::byte> memory_;
  mutable Mutex mu_;
  CondVar filled_;
  NvmeGeometry geometry_ ABSL_GUARDED_BY(mu_);
  NvmeIndex* index_ ABSL_GUARDED_BY(mu_) = nullptr;
  uint64_t floor_ ABSL_GUARDED_BY(mu_) = 0;
  bool floor_used_ ABSL_GUARDED_BY(mu_) = false;
  Position open_ ABSL_GUARDED_BY(mu_);
  Position prepared_ ABSL_GUARDED_BY(mu_);
  bool is_out_of_room_ ABSL_GUARDED_BY(mu_) = false;
  uint32_t kept_pages_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t kept_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<Position> rolled_ ABSL_GUARDED_BY(mu_);
  uint64_t head_ ABSL_GUARDED_BY(mu_) = 0, tail_ ABSL_GUARDED_BY(mu_) = 0;  // of the ring of memory
  std::deque<Record> records_ ABSL_GUARDED_BY(mu_);
  uint64_t first_number_ ABSL_GUARDED_BY(mu_) = 0;  // of the first in records_
  uint64_t next_run_ ABSL_GUARDED_BY(mu_) = 0;      // first record that is in no run
  uint64_t pending_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  std::deque<Active> runs_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_set<uint64_t> under_way_ ABSL_GUARDED_BY(mu_);  // fingerprints
};

}  // namespace terrace::tiering
