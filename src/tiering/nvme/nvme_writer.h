// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// NvmeWriter: the writing half of one store: runs of the log, tables of segments, the state, and the
// ring: which segment is used next and which of its blocks move to the end of the log.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "tiering/nvme/nvme_reader.h"

namespace terrace::tiering {

// Owner: NvmeStore. Threads: TryAppend any, the rest the store's own. Limits: kMaxRuns requests of the
// log and one of tables at a time; fewer while loads wait. Failure: done(false); the error stands in the
// disk for the store to see, and nothing is written again until Resume.
class NvmeWriter {
 public:
  NvmeWriter(NvmeDisk* disk, NvmeReader* reader) : disk_(disk), reader_(reader) {}

  struct Source {
    NvmeBlock block;
    std::optional<kv::BlockKey> parent;
    std::span<const std::byte> payload;
    std::span<const uint64_t> checksums;
    uint32_t replaces = NvmeIndex::kNone;
    bool is_budgeted = true;
  };
  NvmeTier::Append TryAppend(NvmeVolume* volume, const Source& source, std::function<void(bool)> done);

  // After recovery: of this volume, from the beginning.
  void Start(NvmeVolume* volume);
  // After an error.
  void Resume() { is_stopped_ = false; }
  bool is_stopped() const { return is_stopped_; }
  // Nothing new comes: no segment is taken out of use any more.
  void End() { is_ending_ = true; }
  // One round. all: write what there is, however little.
  void Step(int64_t now_ns, bool all);
  // No requests are made any more; what waits is given up once nothing is on its way.
  void GiveUp();
  // What is written next takes the place of nothing.
  bool has_free_room() const {
    return volume_ != nullptr && !disk_->ring.empty() && volume_->index.live_count(disk_->ring.front()) == 0;
  }
  bool idle() const { return runs_ == 0 && tasks_.empty() && !cleaner_; }

  // ticket: what checkpoint_ticket() says once it was written in full, or more.
  void RequestCheckpoint(bool clean, uint64_t ticket);
  void RequestStateWrite();
  bool wants_checkpoint(int64_t now_ns) const;
  uint64_t checkpoints() const { return checkpoints_; }  // that were written in full
  uint64_t checkpoint_ticket() const { return checkpoint_ticket_; }
  uint64_t state_writes() const { return state_writes_; }  // that were asked for alone, in full

 private:
  static constexpr uint32_t kMaxRuns = 8, kMaxRunsBesideLoads = 2;
  // What is written to tables and state, one after another.
  struct Task {
    enum Kind : uint8_t { kOpen, kSeal, kCheckpoint, kState } kind;
    NvmeLog::Position segment;
    bool clean = false;
    uint64_t ticket = 0;
    int step = 0;
  };
  // Takes a segment out of use: moves what was hit to the end of the log.
  struct Cleaner {
    explicit Cleaner(uint32_t which) : segment(which) {}
    const uint32_t segment;
    uint32_t next = 0;
    uint32_t reads = 0, appends = 0;
    uint32_t moved_pages = 0;    // begun
    uint32_t settled_pages = 0;  // in the log, or given up
    bool is_full = false;  // no room for more
    std::vector<std::pair<NvmeIndex::Found, std::span<std::byte>>> read;  // wait for room in the log
  };

  void WriteRuns(int64_t now_ns, bool all);
  void OnRun(const NvmeLog::Run& run, int error);
  void Publish(const NvmeLog::Record& record, bool written);
  void RunTasks();
  bool RunStep(Task& task);
  bool SubmitControl(IoOp op, uint64_t offset, uint64_t bytes);
  bool WriteSlot(const NvmeLog::Position& segment, bool sealed, bool empty);
  bool WriteState(bool clean);
  void OnControl(IoOp op, int error);
  void FinishTask();
  void Seal();
  void Prepare();
  uint32_t HotPages(uint32_t segment) const;
  void ForgetOldHits();
  void Clean();
  bool StartMoves();
  void KeepRoom();
  bool Move(const NvmeIndex::Found& found, std::span<std::byte> record);

  NvmeDisk* const disk_;
  NvmeReader* const reader_;
  NvmeVolume* volume_ = nullptr;
  bool is_stopped_ = true;
  bool is_ending_ = false;
  uint32_t runs_ = 0;
  std::deque<Task> tasks_;
  bool control_busy_ = false;
  std::vector<NvmeLog::Position> rolled_;  // wait for their last writes
  absl::flat_hash_set<uint32_t> dirty_, syncing_;  // segments written to since the last sync; before it
  std::optional<Cleaner> cleaner_;
  uint64_t cleaner_number_ = 0;
  bool is_preparing_ = false;
  uint64_t kept_for_ = 0;  // sequence of the open segment in which room is kept for what moves
  uint32_t kept_pages_ = 0;
  NvmeLog::Position covered_;  // by the checkpoint that is being written: pages before it
  int64_t checkpoint_ns_ = 0;
  uint64_t checkpoints_ = 0, checkpoint_ticket_ = 0, state_writes_ = 0, written_at_checkpoint_ = 0;
};

}  // namespace terrace::tiering
