// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// NvmeStore: one disk of the NVMe tier: its device, what is on it, and the thread that works on it.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/string_view.h"
#include "kvstore/base/mutex.h"
#include "tiering/nvme/nvme_reader.h"
#include "tiering/nvme/nvme_recovery.h"
#include "tiering/nvme/nvme_scrubber.h"
#include "tiering/nvme/nvme_writer.h"

namespace terrace::tiering {

// State machine: starting -> online <-> readonly, any -> offline -> starting. Read-only after a failed
// write or sync; offline after several failed reads in a row, a request that hangs, or a device that
// cannot be opened. Each is left by a probe every retry_ns. See docs/nvme_format.md.
//
// Owner: NvmeTier. Threads: the first group any; Step the store's own.
// Limits: see NvmeOptions. Failure: as NvmeTier says; nothing here waits for the device but its thread.
class NvmeStore {
 public:
  // memory: read and write buffers, then control memory; outlives the store.
  NvmeStore(const NvmeOptions* options, size_t number, const BlockDeviceFactory* factory, const Clock* clock,
            MemoryBudget* budget, NvmeMetrics* metrics, gpu::BlockCopier* copies,
            std::span<std::byte> io_memory, std::span<std::byte> control_memory);
  ~NvmeStore();

  bool Contains(const NvmeBlock& block) const;
  bool MayHaveSpace(const std::array<uint8_t, 32>& key_space_digest) const;
  TierState state() const { return state_.load(std::memory_order_acquire); }
  // False: not here, done is as before.
  bool Read(const NvmeBlock& block, std::span<std::byte> target, NvmeReader::Done& done);
  NvmeTier::Append TryAppend(const NvmeBlock& block, const std::optional<kv::BlockKey>& parent,
                             std::span<const std::byte> payload, std::span<const uint64_t> checksums,
                             std::function<void(bool)> done);
  // As if it had been read. False: not here.
  bool MarkUsed(const NvmeBlock& block);
  // False while the index is being read back: what it does not contain may be here all the same.
  bool knows_all() const { return knows_all_.load(std::memory_order_acquire); }
  bool has_free_room() const { return has_free_room_.load(std::memory_order_relaxed); }
  void Kick();
  bool Drop(const NvmeBlock& block);
  uint64_t Flush(const std::optional<std::array<uint8_t, 32>>& key_space_digest);
  const NvmeReader& reader() const { return reader_; }
  NvmeTier::DeviceStats GetStats() const;
  uint64_t index_bytes() const;
  uint64_t write_budget_bytes();

  // Requests to the store's thread. A checkpoint that begins after the call and ends well gets its ticket,
  // or a later one.
  uint64_t RequestCheckpoint();
  uint64_t checkpoint_ticket() const { return checkpoint_ticket_.load(std::memory_order_acquire); }
  void RequestVerify();
  void StopVerify();
  // nullopt: still at it.
  std::optional<NvmeTier::Verified> verify_result() const;

  void StartThread();
  // See NvmeTier.
  void DiscardNew() { discards_new_.store(true, std::memory_order_relaxed); }
  // Writes what there is and a last checkpoint, for at most 2 s, and ends the thread.
  void Stop();
  // One round. wait_ns: how long it may wait for the device. REQUIRES: no thread.
  void Step(int64_t wait_ns);

 private:
  void Run();
  void Wake();
  void Open(int64_t now_ns);
  void Close();
  void StepRecovery(int64_t now_ns);
  void StepReady(int64_t now_ns);
  void TakeRequests();
  void LookAtHealth(int64_t now_ns);
  void Probe(int64_t now_ns);
  void GoOffline(int64_t now_ns, const std::string& detail);
  void SetState(TierState state, const std::string& detail);
  void UpdateStats(int64_t now_ns);
  int64_t WaitNs() const;
  void Shutdown();

  NvmeDisk disk_;
  const size_t number_;
  const BlockDeviceFactory* const factory_;
  const std::span<std::byte> io_memory_;
  NvmeReader reader_;
  NvmeWriter writer_;
  NvmeScrubber scrubber_;
  std::atomic<TierState> state_{TierState::kStarting};
  std::atomic<bool> has_free_room_{false}, knows_all_{false};
  std::atomic<bool> discards_new_{false};

  // The store's thread.
  std::unique_ptr<BlockDevice> device_;
  std::unique_ptr<NvmeRecovery> recovery_;
  std::vector<std::unique_ptr<NvmeVolume>> volumes_;  // the last is the present one
  bool is_recovered_ = false;
  bool is_probing_ = false;      // a probe's request is on its way
  bool must_reopen_ = false;
  int64_t next_try_ns_ = 0;
  int64_t next_look_ns_ = 0;     // at whether the file is where it was
  uint64_t probe_states_ = 0;    // state writes before the write probe
  std::string trouble_said_;     // what the log was told last; "" while all is well

  // Requests.
  std::atomic<bool> kick_{false}, flush_{false}, verify_{false}, stop_verify_{false};
  std::atomic<uint64_t> checkpoints_wanted_{0}, checkpoint_ticket_{0};
  uint64_t checkpoints_asked_ = 0;  // of those wanted; the store's thread

  mutable Mutex mu_;
  CondVar wake_;
  bool is_woken_ ABSL_GUARDED_BY(mu_) = false;
  bool is_stopping_ ABSL_GUARDED_BY(mu_) = false;
  BlockDevice* wakeable_ ABSL_GUARDED_BY(mu_) = nullptr;
  NvmeTier::DeviceStats stats_ ABSL_GUARDED_BY(mu_);
  std::optional<NvmeTier::Verified> verified_ ABSL_GUARDED_BY(mu_);
  bool verify_wanted_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace terrace::tiering
