// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Demoter: keeps some of the host tier free by copying what would go next to the NVMe tier, ahead of need,
// so that a store finds room without waiting for a disk. Never in the path of a store.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "kvstore/base/clock.h"
#include "kvstore/base/metrics.h"
#include "kvstore/base/mutex.h"
#include "tiering/catalog.h"
#include "tiering/host_tier.h"
#include "tiering/nvme/nvme_tier.h"
#include "tiering/policy/admission_policy.h"

namespace terrace::tiering {

// Watermarks: below 1/kLowShare of what the tier holds free, departures begin, until 1/kHighShare is free
// or on its way out. A block leaves host memory when its copy is on disk, when it is there already, or
// when the admission policy finds it not worth a write. When the disks are busy or out of service the
// demoter does nothing, and stores make room by evicting.
// Owner: TierStack. Threads: one of its own (or whoever calls Round); completions on the NVMe tier's.
class Demoter {
 public:
  struct Counters {
    Counter *admitted = nullptr, *rejected_once = nullptr, *rejected_budget = nullptr;
    Counter *demoted_blocks = nullptr, *demoted_bytes = nullptr;
  };
  Demoter(HostTier* tier, Catalog* catalog, NvmeTier* nvme, std::unique_ptr<AdmissionPolicy> admission,
          const Clock* clock, const Counters& counters, bool thread);
  // No departure begins any more; those whose copy is with the NVMe tier must end before this object does.
  void Stop();
  ~Demoter();

  // What the admission policy learns from.
  void OnStored(const kv::KeySpace& key_space, const kv::BlockKey& key);
  void OnNvmeHit(const kv::KeySpace& key_space, const kv::BlockKey& key);
  // So many bytes of frames were allotted: looks at once when that is a good part of what is kept free.
  void OnAllocated(uint64_t bytes) {
    const uint64_t since = allotted_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
    if (since >= wake_after_.load(std::memory_order_relaxed)) wake_.SignalOne();
  }

  // From here on nothing goes to disk that the catalogue flushed before this call.
  void Barrier() { MutexLock lock(&append_mu_); }

  // One round of departures, at most kMaxPerRound. Returns how many began.
  int Round();
  AdmissionPolicy::Stats AdmissionStats() const;

 private:
  static constexpr uint64_t kLowShare = 32, kHighShare = 20;
  static constexpr int kMaxPerRound = 256;

  void Run();
  // Bytes that must still begin to leave; 0: enough is free.
  uint64_t Wanted() const;
  // False: the disks take nothing now.
  bool Depart(const Catalog::Departure& departure);

  HostTier* const tier_;
  Catalog* const catalog_;
  NvmeTier* const nvme_;
  const Clock* const clock_;
  const Counters counters_;
  std::atomic<uint64_t> bytes_leaving_{0};
  std::atomic<uint64_t> allotted_{0};          // since the last round
  std::atomic<uint64_t> wake_after_{1 << 20};  // a quarter of the low watermark
  std::atomic<bool> stopping_{false};

  Mutex append_mu_;  // held from the look at a departure's flush count to its append; see Barrier
  mutable Mutex admission_mu_;
  const std::unique_ptr<AdmissionPolicy> admission_ ABSL_PT_GUARDED_BY(admission_mu_);

  Mutex mu_;
  CondVar wake_;
  std::thread thread_;
};

}  // namespace terrace::tiering
