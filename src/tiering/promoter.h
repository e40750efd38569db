// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Promoter: brings blocks from a lower tier into host memory. One motion per block, whoever asks
// (single flight); blocks of a chain become visible in the chain's order; askers in other processes wait
// here for where they are.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/metrics.h"
#include "kvstore/base/mutex.h"
#include "tiering/catalog.h"
#include "tiering/host_tier.h"
#include "tiering/load_rates.h"
#include "tiering/nvme/nvme_tier.h"
#include "tiering/tier_stack.h"

namespace terrace::tiering {

// One block on its way up. Once it is here its frame stays pinned until the last holder lets go.
// Owner: the leases that wait for it, and the promoter while it is under way. Threads: any.
class Promotion {
 public:
  explicit Promotion(HostTier* tier) : tier_(tier) {}
  ~Promotion() {
    if (frame_ != kv::kNoFrame) tier_->Unpin(frame_);
  }
  Promotion(const Promotion&) = delete;
  Promotion& operator=(const Promotion&) = delete;

 private:
  friend class Promoter;
  HostTier* const tier_;
  kv::FrameId frame_ = kv::kNoFrame;  // set once, before it leaves the promoter's table
};

// Owner: TierStack. Threads: any; completions come on the NVMe tier's or the copy engine's threads.
// Locks: mu_, taken before none of the catalogue's: nothing is called under it.
// Limits: max_bytes under way; kMaxWaiters askers. Failure: a block that does not come is a miss with
// the reason that the lower tier gave; its frame is given back.
class Promoter {
 public:
  struct Counters {
    Counter* promoted_blocks = nullptr;
    Counter* promoted_bytes = nullptr;
    Counter* failed_blocks[kReasonCount] = {};  // by reason; null where it cannot occur
    Histogram* duration = nullptr;
    // Lookups were told that a block is pending, and it has come (kNone) or does not: once a block, with how many.
    std::function<void(const kv::KeySpace&, Reason, uint64_t lookups)> settled;
  };
  Promoter(HostTier* tier, Catalog* catalog, NvmeTier* nvme, const Clock* clock, LoadRates* rates,
           uint64_t max_bytes, const Counters& counters);
  // REQUIRES: the NVMe tier has ended, so nothing is under way any more.
  ~Promoter();

  // Begins to bring the block up, or joins who has begun. behind: the block before it in its chain, if that
  // is on its way too. nullptr and *why: no room now. for_lookup: Counters::settled is to tell how it ended,
  // whoever still waits then.
  std::shared_ptr<Promotion> Start(const kv::KeySpace& key_space, const kv::BlockKey& key,
                                   const std::shared_ptr<Promotion>& behind, Reason* why, bool for_lookup = false);
  // Joins those who wait for the block; nullptr: it is not on its way.
  std::shared_ptr<Promotion> Join(const kv::KeySpace& key_space, const kv::BlockKey& key) const;
  bool IsUnderWay(const kv::KeySpace& key_space, const kv::BlockKey& key) const;

  // See Session::Locate.
  absl::Status Locate(const kv::KeySpace& key_space, std::span<const kv::BlockKey> keys, int64_t timeout_ns,
                      std::function<void(std::vector<BlockPlace>)> done);
  // Answers those whose time is up.
  void Step();
  // Answers all who wait, with what is known.
  void EndWaiting();

 private:
  static constexpr size_t kMaxWaiters = 65536;
  using Name = std::pair<kv::KeySpaceId, kv::BlockKey>;
  struct Waiter {
    const kv::KeySpace* key_space;
    std::vector<kv::BlockKey> keys;
    int64_t deadline_ns;
    std::function<void(std::vector<BlockPlace>)> done;
  };
  struct UnderWay {
    std::shared_ptr<Promotion> promotion;
    const kv::KeySpace* key_space = nullptr;
    kv::FrameId frame = kv::kNoFrame;  // being filled
    int64_t started_ns = 0;
    uint32_t as_of_flushes = 0;
    uint64_t lookups = 0;                           // that were told that it is pending
    bool behind_other = false;                      // waits for the one before it in its chain
    std::optional<NvmeTier::ReadResult> result;     // arrived, but not its turn yet
    std::vector<Name> next;                         // those that wait for this one
    std::vector<Waiter> waiters;                    // askers whose first block this is
  };

  void OnRead(const Name& name, NvmeTier::ReadResult result);
  // Ends the named block and all whose turn it is then.
  void FinishFrom(Name name);
  // Those whose turn it is then are added to turn.
  void Finish(const Name& name, std::vector<Name>* turn);
  // kNone: the block can be found and is pinned for the promotion. Else why not; the frame is given back.
  Reason Publish(const kv::KeySpace& key_space, const kv::BlockKey& key, kv::FrameId frame,
                 uint32_t as_of_flushes, NvmeTier::ReadResult result, Promotion* promotion);
  void AnswerWhoseTimeIsUp(int64_t now_ns);
  void Answer(Waiter waiter);
  // nullopt: still under way.
  std::optional<BlockPlace> SettledPlace(const kv::KeySpace& key_space, const kv::BlockKey& key) const;

  HostTier* const tier_;
  Catalog* const catalog_;
  NvmeTier* const nvme_;
  const Clock* const clock_;
  LoadRates* const rates_;
  const uint64_t max_bytes_;
  const Counters counters_;
  std::atomic<int64_t> last_finish_ns_{0};

  mutable Mutex mu_;
  absl::flat_hash_map<Name, UnderWay> under_way_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<const Promotion*, Name> names_ ABSL_GUARDED_BY(mu_);
  uint64_t bytes_under_way_ ABSL_GUARDED_BY(mu_) = 0;
  size_t waiter_count_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace terrace::tiering
