// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// A disk in memory, for tests and simulation. MemoryDisk is the medium and outlives daemons; MemoryDevice
// is one opening of it, in the time of a Clock. Power and processes can fail at any moment:
//
//   FakeClock clock;
//   MemoryDisks disks(&clock);                           // by path, made when first opened
//   auto tier = NvmeTier::Create(options, disks.Factory(), ...);
//   ...                                                  // tier->Step(); clock.AdvanceNs(...)
//   disks.LosePower(seed);                               // unsynced data: a random part of it is gone
//   tier.reset();                                        // what it still does reaches no disk
//   tier = NvmeTier::Create(options, disks.Factory(), ...);  // finds what a real disk would hold
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/lazy_array.h"
#include "kvstore/base/mutex.h"
#include "testing/payload.h"
#include "tiering/io/block_device.h"

namespace terrace::testing {

// How long requests take: latency_ns each, side by side, and the bytes one after the other at the rate.
// jitter_ns: a random time of at most so much more, which lets requests overtake each other.
struct DiskCosts {
  int64_t latency_ns = 80'000;
  int64_t jitter_ns = 0;
  int64_t sync_ns = 500'000;
  double read_bytes_per_s = 3e9, write_bytes_per_s = 2e9;
  uint64_t seed = 1;  // of the jitter
};

// The bytes of a disk: what reads see, and what a power loss would leave. Starts as zeros; memory is
// taken for what was written. Threads: any. Limits: bytes, constant.
class MemoryDisk {
 public:
  static constexpr uint64_t kSector = 512;  // written whole or not at all

  explicit MemoryDisk(uint64_t bytes) : bytes_(bytes), image_(bytes) {}
  uint64_t bytes() const { return bytes_; }

  // At once, as seen by reads.
  void Read(uint64_t offset, std::span<std::byte> out) const;
  void Write(uint64_t offset, std::span<const std::byte> data);
  // What was written before BeginSync survives a power loss from FinishSync on, and only that.
  uint64_t BeginSync();
  void FinishSync(uint64_t mark);
  void Sync() { FinishSync(BeginSync()); }
  // The power goes: of each page of 4 KiB written since the last Sync a seeded draw keeps the new
  // content, the old one, or a mixture of their sectors.
  void LosePower(uint64_t seed);
  // Damage at rest.
  void FlipBit(uint64_t byte, int bit);
  void CopyRange(uint64_t from, uint64_t to, uint64_t bytes);  // a misdirected or stale write

  uint64_t unsynced_pages() const;

 private:
  static constexpr uint64_t kPage = 4096;
  // A page that differs from what is surely on the medium: what it was before the first write since the
  // last finished sync, and before the first write after each sync that began meanwhile.
  struct Version {
    uint64_t write;  // number of the write that replaced it
    std::vector<std::byte> content;
  };
  struct Unsynced {
    uint64_t last_write = 0;
    std::vector<Version> versions;
  };
  void KeepOldPage(uint64_t page) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const uint64_t bytes_;
  mutable Mutex mu_;
  LazyArray<std::byte> image_ ABSL_GUARDED_BY(mu_);
  uint64_t writes_ ABSL_GUARDED_BY(mu_) = 0;       // numbers them
  uint64_t begun_sync_ ABSL_GUARDED_BY(mu_) = 0;   // number of the last write before the latest BeginSync
  absl::flat_hash_map<uint64_t, Unsynced> unsynced_ ABSL_GUARDED_BY(mu_);  // by page number
};

// BlockDevice over a MemoryDisk. A request takes effect at the moment it completes. With a FakeClock a
// Poll never waits: it hands out what is due by now (NextDueNs says what to wait for); with the real clock
// it waits as the product's devices do.
// Owner: whoever opened it. Threads: as BlockDevice; Cut, NextDueNs and Wake from any.
class MemoryDevice final : public tiering::BlockDevice {
 public:
  MemoryDevice(std::shared_ptr<MemoryDisk> disk, const Clock* clock, uint32_t depth, const DiskCosts& costs = {});
  uint64_t bytes() const override { return disk_->bytes(); }
  uint32_t depth() const override { return depth_; }
  std::string_view backend() const override { return "memory"; }
  void RegisterBuffers(std::span<std::byte> /*memory*/) override {}
  bool Submit(const tiering::IoRequest& request) override;
  size_t Poll(std::span<tiering::IoResult> results, int64_t wait_ns) override;
  void Wake() override;

  // When the next request completes; kNever with none in flight.
  static constexpr int64_t kNever = INT64_MAX;
  int64_t NextDueNs() const;
  // The process dies or the power goes: of each write in flight a seeded draw of sectors reaches the disk,
  // everything else and all that is submitted later ends with EIO at once.
  void Cut(uint64_t seed);

 private:
  struct Pending {
    tiering::IoRequest request;
    int64_t due_ns;
    uint64_t sync_mark;  // kSync only
  };
  int Apply(const Pending& pending) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool IsInside(const tiering::IoRequest& request) const;

  const std::shared_ptr<MemoryDisk> disk_;
  const Clock* const clock_;
  const uint32_t depth_;
  const DiskCosts costs_;
  mutable Mutex mu_;
  CondVar changed_;
  Random random_ ABSL_GUARDED_BY(mu_);
  std::vector<Pending> pending_ ABSL_GUARDED_BY(mu_);  // at most depth_
  int64_t busy_until_ns_ ABSL_GUARDED_BY(mu_) = 0;     // the last byte of what was submitted has moved
  bool is_woken_ ABSL_GUARDED_BY(mu_) = false;
  bool is_cut_ ABSL_GUARDED_BY(mu_) = false;
};

// The disks of a machine, by path. Owner: a test; must outlive the devices. Threads: any.
// Opening follows OpenBlockDevice: one opening at a time (FailedPrecondition), another size keeps what
// lies in both.
class MemoryDisks {
 public:
  explicit MemoryDisks(const Clock* clock, const DiskCosts& costs = {}) : clock_(clock), costs_(costs) {}
  tiering::BlockDeviceFactory Factory();
  // Null before the first opening.
  std::shared_ptr<MemoryDisk> Find(const std::string& path) const;
  // kill -9: writes in flight are torn; what was written stays. The devices are dead, the disks can be
  // opened again at once.
  void KillProcess(uint64_t seed) { End(seed, false); }
  // The same, and what was not synced is gone in part.
  void LosePower(uint64_t seed) { End(seed, true); }
  // The earliest NextDueNs of all open devices.
  int64_t NextDueNs() const;

 private:
  class Opening;
  void End(uint64_t seed, bool loses_power);
  void Close(const Opening* opening);
  absl::StatusOr<std::unique_ptr<tiering::BlockDevice>> Open(const tiering::BlockDeviceOptions& options);

  const Clock* const clock_;
  const DiskCosts costs_;
  mutable Mutex mu_;
  std::map<std::string, std::shared_ptr<MemoryDisk>> disks_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, Opening*> openings_ ABSL_GUARDED_BY(mu_);
};

}  // namespace terrace::testing
