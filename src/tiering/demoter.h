// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Demoter: keeps some of the host tier free by copying what would go next to the NVMe tier, ahead of need,
// so that a store finds room without waiting for a disk. Never in the path of a store.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
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
// Chains on disk are whole, so that they can be found when host memory is lost: with a block those before it
// are admitted that are not on disk. They are owed: written when they leave themselves, or beside other
// departures one for one, or when nothing has to leave; then they stay in host memory, too.
// Limits: kMaxOwed, what is beyond it is decided about when it leaves.
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
  static constexpr size_t kMaxOwed = 4096;
  static constexpr int kOwedPerIdleRound = 16;

  using Name = std::pair<kv::KeySpaceId, kv::BlockKey>;
  using Departures = std::vector<Catalog::Departure>;

  void Run();
  // Bytes that must still begin to leave; 0: enough is free.
  uint64_t Wanted() const;
  // stay_ns: how long what is written stays on disk. False: the disks take nothing now.
  bool Depart(const Catalog::Departure& departure, int64_t stay_ns);
  bool Copy(const Catalog::Departure& departure);
  // On disk, on its way there, or owed.
  bool IsBelow(const kv::KeySpace& key_space, const kv::BlockKey& key) const;
  bool IsOwed(const kv::KeySpace& key_space, const kv::BlockKey& key) const;
  void Owe(const Departures& before);
  // Copies of the blocks that are owed longest, at most so many. Returns how many; they are not owed any more.
  int PayOwed(int most);
  void NotWritten(const kv::KeySpace& key_space);
  AdmissionPolicy::Decision Decide(const Catalog::Departure& departure, const Departures& before);
  NvmeTier::Append Append(const Catalog::Departure& departure, bool leaves);
  void OnWritten(const Name& name, uint64_t bytes, bool written);
  // Leaves when the copy of it that is being written is on disk. False: none is.
  bool LeavesWhenWritten(const Catalog::Departure& departure);
  void End(const Catalog::Departure& departure, bool leave) {
    catalog_->EndCopy(departure);
    catalog_->EndDeparture(departure, leave);
  }

  HostTier* const tier_;
  Catalog* const catalog_;
  NvmeTier* const nvme_;
  const Clock* const clock_;
  const Counters counters_;
  std::atomic<uint64_t> bytes_leaving_{0};
  std::atomic<uint64_t> allotted_{0};          // since the last round
  std::atomic<uint64_t> wake_after_{1 << 20};  // a quarter of the low watermark
  std::atomic<bool> stopping_{false};

  // Who runs Round. What is in the list only was written meanwhile.
  std::deque<std::pair<const kv::KeySpace*, kv::BlockKey>> owed_list_;
  absl::flat_hash_set<Name> owed_;

  mutable Mutex writing_mu_;  // after the catalogue's; before the frame pool's
  // Copies on their way to disk, and who leaves when its copy is there.
  absl::flat_hash_map<Name, std::optional<Catalog::Departure>> writing_ ABSL_GUARDED_BY(writing_mu_);

  Mutex append_mu_;  // held from the look at a departure's flush count to its append; see Barrier
  mutable Mutex admission_mu_;
  const std::unique_ptr<AdmissionPolicy> admission_ ABSL_PT_GUARDED_BY(admission_mu_);

  Mutex mu_;
  CondVar wake_;
  std::thread thread_;
};

}  // namespace terrace::tiering
