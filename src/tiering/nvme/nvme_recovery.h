// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// NvmeRecovery: from an opened device to a volume that can be read and written. Reads the superblock
// and the state, writes them where the device is new, reads the segments' tables, and walks the records
// of segments whose table does not tell everything. Blocks are found as soon as their segment is done.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tiering/nvme/nvme_disk.h"

namespace terrace::tiering {

// Owner: NvmeStore, made anew for each attempt. Threads: the store's own. Must outlive its requests.
// Limits: kMaxReads requests; buffers from the disk's arena. Failure: outcome() and detail().
class NvmeRecovery {
 public:
  enum class Outcome : uint8_t {
    kRunning,
    kDone,     // the disk's volume, state, ring and log are set
    kFailed,   // the device failed: try again later
    kRefused,  // what is on it is not ours, or it is too small
  };
  // volumes: where a new one is put; the last one is used again if it is what the device holds.
  // REQUIRES: its index is empty.
  NvmeRecovery(NvmeDisk* disk, std::vector<std::unique_ptr<NvmeVolume>>* volumes)
      : disk_(disk), volumes_(volumes) {}

  void Step();
  Outcome outcome() const { return outcome_; }
  const std::string& detail() const { return detail_; }
  double ratio() const;

 private:
  static constexpr uint32_t kMaxReads = 24, kMaxWalks = 4;
  static constexpr uint64_t kTableRead = 64ull << 10, kWindow = 256ull << 10;
  static constexpr uint64_t kHeadBytes = kNvmeSlotsOffset;

  // Segment whose records are read one after another.
  struct Walk {
    uint32_t segment = 0;
    uint64_t sequence = 0;  // 0: not known
    uint32_t page = 0;      // next to be looked at
    uint32_t covered = 0;   // what lies before it is in the table, as far as it is still wanted
    struct Seen {
      NvmeEntry entry;
      uint64_t sequence;
    };
    std::vector<Seen> seen;
  };
  struct Unsealed {
    uint32_t segment;
    uint64_t sequence;
    uint32_t end_page;
  };

  using Then = std::function<void(std::span<std::byte>)>;
  // Reads and gives the bytes to then; an error ends the attempt.
  bool Read(uint64_t offset, uint64_t bytes, Then then);
  bool Write(uint64_t offset, std::span<std::byte> range, std::function<void()> then);
  void Fail(Outcome outcome, std::string detail);

  void OnHead(std::span<std::byte> head);
  void Format(const std::string& why, std::span<std::byte> head);
  bool Load(const NvmeSuperblock& super, std::span<std::byte> head);
  void Adopt(const NvmeSuperblock& super, const NvmeGeometry& geometry, NvmeState state);
  void WriteQueued();
  void StartTables();
  void OnTable(uint32_t segment, std::span<std::byte> range);
  void UseTable(uint32_t segment, const NvmeSlotHeader& header, std::span<const std::byte> table);
  bool StepWalk(const std::shared_ptr<Walk>& walk);
  void OnWindow(const std::shared_ptr<Walk>& walk, std::span<const std::byte> window);
  void EndWalk(Walk& walk);
  void Publish(uint32_t segment, uint64_t sequence, const NvmeEntry& entry);
  void Finish();

  NvmeDisk* const disk_;
  std::vector<std::unique_ptr<NvmeVolume>>* const volumes_;
  Outcome outcome_ = Outcome::kRunning;
  std::string detail_ = "reading the superblock";
  enum class Phase : uint8_t { kHead, kHeadRead, kWrites, kSync, kSyncing, kTables } phase_ = Phase::kHead;

  struct QueuedWrite {
    uint64_t offset;
    std::vector<std::byte> bytes;
  };
  std::deque<QueuedWrite> writes_;
  NvmeVolume* volume_ = nullptr;
  bool is_new_ = false;
  uint32_t requests_ = 0;
  uint32_t next_table_ = 0, tables_done_ = 0;
  std::deque<std::shared_ptr<Walk>> walks_;  // to begin or to go on with
  uint32_t walks_active_ = 0, walks_done_ = 0, walks_all_ = 0;
  std::vector<Unsealed> open_;
  uint64_t blocks_ = 0;
  bool no_memory_ = false;
};

}  // namespace terrace::tiering
