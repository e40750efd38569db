// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// NvmeReader: loads of one store. A record is read into the store's own memory, its header compared with
// the block that was asked for, and its payload verified while it is copied to the target. A read that
// hangs therefore never writes to a target that was given away (docs/decisions/0007).
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "tiering/nvme/nvme_disk.h"

namespace terrace::tiering {

// Owner: NvmeStore. Threads: Submit any, the rest the store's own.
// Limits: kMaxQueued loads; buffers from the disk's arena. Failure: the reason, to the load's call-back.
class NvmeReader {
 public:
  using Done = std::function<void(NvmeTier::ReadResult)>;
  static constexpr size_t kMaxQueued = 16384;

  explicit NvmeReader(NvmeDisk* disk) : disk_(disk) {}
  ~NvmeReader();  // waits for the copies under way

  // False: too many are queued; done was not called and is as before.
  bool Submit(NvmeVolume* volume, const NvmeIndex::Found& found, const NvmeBlock& block,
              std::span<std::byte> target, Done& done);
  int64_t EstimateNs(uint64_t bytes) const;
  uint64_t bytes_per_second() const { return rate_.load(std::memory_order_relaxed); }

  // Takes over what was submitted, answers what is too late, starts what there is room for.
  void Step(int64_t now_ns);
  // Answers all that wait for the device, also those whose request is on its way.
  void FailAll(Reason reason);
  bool idle() const { return waiting_.empty() && disk_->io.reads_in_flight() == 0; }
  bool has_waiting() const { return !waiting_.empty(); }

  // Reads a record for the store's own purposes, only while no load waits. False: not now.
  // then gets the record's pages (empty: failed) and returns the range itself with Return.
  bool ReadRecord(const NvmeIndex::Found& found, std::function<void(std::span<std::byte>)> then);
  void Return(std::span<std::byte> range) { disk_->arena.Give(range); }
  // Whether these are the record's pages, payload included; counts and drops it if not.
  bool CheckWhole(NvmeVolume* volume, const NvmeIndex::Found& found, std::span<const std::byte> record);

 private:
  struct Load {
    NvmeVolume* volume;
    NvmeIndex::Found found;
    NvmeBlock block;
    std::span<std::byte> target;
    Done done;  // empty: was called
    int64_t deadline_ns;
    std::span<std::byte> buffer;
    bool is_copying = false;
  };
  using LoadPtr = std::shared_ptr<Load>;

  void TakeOver();
  bool Start(const LoadPtr& load);
  void OnRead(const LoadPtr& load, int error);
  void Copy(const LoadPtr& load);
  void Finish(const LoadPtr& load, Reason reason);
  // Why a record that does not check is not there; counts and drops it, unless it was overwritten.
  Reason Bad(NvmeVolume* volume, const NvmeIndex::Found& found, NvmeBad bad);
  void Measure(int64_t now_ns);

  NvmeDisk* const disk_;
  std::deque<LoadPtr> waiting_;      // for a buffer and a request
  std::deque<LoadPtr> by_deadline_;  // all that are not answered, and some that are
  int64_t busy_since_ns_ = 0;
  uint64_t busy_bytes_ = 0;
  std::atomic<uint64_t> rate_{0}, queued_bytes_{0};

  mutable Mutex mu_;
  CondVar no_copies_;
  std::deque<LoadPtr> inbox_ ABSL_GUARDED_BY(mu_);
  std::vector<std::span<std::byte>> returned_ ABSL_GUARDED_BY(mu_);  // by copy threads
  size_t queued_ ABSL_GUARDED_BY(mu_) = 0;
  size_t copies_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace terrace::tiering
