// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// NvmeTier: blocks on one or several local disks. Each disk is a ring of segments that is written in
// large sequential pieces and recovered after any kind of end; see docs/nvme_format.md. Knows what is on
// disk and how to get it; which blocks come and go is decided above.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "gpu/block_copier.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/memory_budget.h"
#include "kvstore/base/metrics.h"
#include "kvstore/base/reason.h"
#include "kvstore/block_key.h"
#include "tiering/io/block_device.h"

namespace terrace::tiering {

struct NvmeOptions {
  std::vector<BlockDeviceOptions> devices;  // one store each; blocks are spread over them
  uint64_t segment_bytes = 0;     // 0: from the device's size, 16 MiB to 256 MiB
  uint64_t io_memory_bytes = 64ull << 20;   // a device: read and write buffers. Charged to the budget
  uint64_t write_bytes_per_day = 0;         // endurance, all devices together; 0: no limit
  int64_t read_deadline_ns = 2'000'000'000; // a read that takes longer is a miss
  int64_t retry_ns = 2'000'000'000;         // between attempts to bring a device back
  int64_t scrub_period_ns = 7ll * 86'400'000'000'000;  // everything is read once in this time; 0: never
  int64_t checkpoint_ns = 30'000'000'000;   // between checkpoints of the index; 8 times that when little is written
  bool threads = true;  // false: nothing happens outside Step() and the calls; for simulation
  absl::Status Validate() const;  // each message names the config key
};

// Which block: everything that its header on disk must match.
struct NvmeBlock {
  std::array<uint8_t, 32> key_space_digest{};
  kv::BlockKey key;
  uint64_t payload_bytes = 0;
};

enum class TierState : uint8_t { kStarting, kOnline, kReadOnly, kOffline };

// Owner: TierStack. Threads: any; one of its own per device, which owns the device's I/O and state.
// Limits: the devices' sizes; io_memory_bytes a device; index memory is charged to the budget and a block
// that finds none is refused; a block larger than a quarter of io_memory_bytes is refused.
// Failure: a read that fails in any way is a miss with its reason; a device that fails goes read-only,
// then offline, is tried again every retry_ns and comes back by itself. No call waits for a disk.
class NvmeTier {
 public:
  // Never fails for a disk's sake: one that cannot be opened is offline and tried again.
  // copies: verifies and copies what was read, off the device's thread. All must outlive the tier.
  static absl::StatusOr<std::unique_ptr<NvmeTier>> Create(const NvmeOptions& options,
                                                          BlockDeviceFactory factory, const Clock* clock,
                                                          MemoryBudget* budget, MetricRegistry* metrics,
                                                          gpu::BlockCopier* copies);
  // Writes a last checkpoint where the disk lets it in time (2 s), then leaves.
  ~NvmeTier();

  // kUnknown: a disk has not read its index back yet, or cannot: the block may be there.
  enum class Presence : uint8_t { kAbsent, kHere, kOffline, kUnknown };
  // In memory only, one shard lock. kHere is a promise of a try, not of the bytes.
  Presence Find(const NvmeBlock& block) const;

  // False: no disk holds a block of the key space, as far as is known. True may be wrong, rarely. In memory only.
  bool MayHaveSpace(const std::array<uint8_t, 32>& key_space_digest) const;

  struct ReadResult {
    Reason reason = Reason::kNone;  // kNone: target holds the checked block. Else it is undefined:
                                    // kCorrupt, kIoError, kDeadline, kTierOffline, kEvicted, kOverload
    std::vector<uint64_t> checksums;      // as in the header
    std::optional<kv::BlockKey> parent;   // as it was stored
  };
  // Starts a load. target: payload_bytes, kept by the caller until done was called. done: exactly once,
  // on a thread of the tier or of the copy engine or inside Read; by the deadline at the latest but for
  // a copy under way; afterwards target is not touched any more, whatever the disk does.
  // Reads are started in the order of the calls and overtake writes.
  void Read(const NvmeBlock& block, std::span<std::byte> target, std::function<void(ReadResult)> done);

  // The start fails: files that this tier has made are removed when it ends.
  void DiscardNew();

  enum class Append : uint8_t {
    kAccepted,   // done will be called
    kPresent,    // on disk already
    kBusy,       // all write buffers are on their way; try again later
    kBudget,     // endurance budget used up, or no memory for the index
    kTooLarge,
    kOffline,    // no device takes writes now
    kCorrupt,    // payload does not match its checksums: not taken
  };
  // Copies the block into a write buffer, verifying it. payload must not change during the call.
  // done(true): it is on disk and Find says so; done(false): it is not. On a thread of the tier (inside
  // Step without threads), exactly once. Blocks are laid out in the order of the calls.
  Append TryAppend(const NvmeBlock& block, const std::optional<kv::BlockKey>& parent,
                   std::span<const std::byte> payload, std::span<const uint64_t> checksums,
                   std::function<void(bool)> done);
  // What is appended now takes the place of nothing: its disk is not full yet, or was emptied.
  bool HasFreeRoom(const NvmeBlock& block) const;
  // As if it had been read: a block behind it was, and this one's copy in a faster tier may be lost.
  void MarkUsed(const NvmeBlock& block);
  // Nothing more is coming for a while: writes what stands in buffers. Also done after 50 ms.
  void Kick();

  // Takes a block out of sight. True if it was there.
  bool Drop(const NvmeBlock& block);
  // All blocks of a key space, or all there are (nullopt). Also what a crash would bring back.
  uint64_t Flush(const std::optional<std::array<uint8_t, 32>>& key_space_digest);

  // How long a load of so many bytes takes when it is asked for now: queue and measured rate. 0: nothing
  // was measured yet.
  int64_t EstimateReadNs(uint64_t bytes) const;

  // Re-reads and checks everything now (beside the slow scrub that always runs). Returns what it found.
  struct Verified {
    uint64_t blocks = 0, bytes = 0, corrupt = 0;
  };
  Verified Verify(const std::atomic<bool>* stop);
  // Writes checkpoints now and waits for them, at most timeout_ns. REQUIRES: threads.
  bool Checkpoint(int64_t timeout_ns);

  struct DeviceStats {
    std::string path, backend, detail;  // detail: why it is not online, what recovery is doing
    TierState state = TierState::kStarting;
    uint64_t capacity_bytes = 0, used_bytes = 0, blocks = 0;
    uint64_t read_bytes = 0, written_bytes = 0;  // of the device, since the start
    double recovery_ratio = 1.0;  // below 1: the index is still being read back
    double scrub_ratio = 0;       // of the present round
    double read_bytes_per_s = 0;  // measured over recent busy times
  };
  struct Stats {
    std::vector<DeviceStats> devices;
    uint64_t capacity_bytes = 0, used_bytes = 0, blocks = 0, index_bytes = 0;
    bool has_write_budget = false;    // write_bytes_per_day is set
    uint64_t write_budget_bytes = 0;  // left to be written now
    TierState state = TierState::kStarting;  // the best of its devices'
  };
  Stats GetStats() const;

  // One round of everything for all devices. REQUIRES: no threads.
  void Step();

 private:
  struct Impl;
  explicit NvmeTier(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace terrace::tiering
