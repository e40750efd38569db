// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// LowerTierLookup: what a lookup does about keys that are not in host memory: finds out how far the chain
// goes on in lower tiers, decides whether loading it beats computing it again, and starts the loads.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "tiering/catalog.h"
#include "tiering/demoter.h"
#include "tiering/load_rates.h"
#include "tiering/promoter.h"
#include "tiering/tier_stack.h"

namespace terrace::tiering {

// Owner: TierStack. Threads: any. Waits for nothing. Limits: those of the promoter, and may_lease.
class LowerTierLookup {
 public:
  LowerTierLookup(Catalog* catalog, NvmeTier* nvme, Promoter* promoter, Demoter* demoter,
                  const LoadRates* rates, std::function<bool(uint64_t more_bytes)> may_lease)
      : catalog_(catalog),
        nvme_(nvme),
        promoter_(promoter),
        demoter_(demoter),
        rates_(rates),
        may_lease_(std::move(may_lease)) {}

  // What is known of one key beyond the host tier's first answer.
  struct Found {
    kv::FrameId frame = kv::kNoFrame;      // in host memory after all, behind the first gap: pinned
    std::shared_ptr<Promotion> promotion;  // on its way
    Reason reason = Reason::kNone;         // a miss that this class knows the reason of
    bool may_be_there = false;             // not known to be anywhere, but a disk does not know all it holds
  };
  // One entry a key; empty entries for those that host memory answered, and behind the first miss in
  // prefix mode. why_not: kNone when loads may be started, else the reason of what lies below.
  // Promotions are counted when they settle, see Promoter::Counters.
  std::vector<Found> Find(const kv::KeySpace& key_space, std::span<const kv::BlockKey> keys,
                          std::span<const kv::PrefixIndex::Found> host, const LookupOptions& options,
                          Reason why_not) const;

 private:
  enum class Where : uint8_t { kNowhere, kUnknown, kHost, kUnderWay, kNvme, kOffline };
  Where WhereIs(const kv::KeySpace& key_space, const kv::BlockKey& key) const;
  // A chain is used as a whole: what of it is in host memory may be needed from disk one day.
  void MarkUsed(const kv::KeySpace& key_space, std::span<const kv::BlockKey> keys,
                std::span<const kv::PrefixIndex::Found> host) const;
  bool WorthLoading(const kv::KeySpace& key_space, uint64_t blocks, int64_t recompute_ns_per_token) const;

  Catalog* const catalog_;
  NvmeTier* const nvme_;
  Promoter* const promoter_;
  Demoter* const demoter_;
  const LoadRates* const rates_;
  const std::function<bool(uint64_t)> may_lease_;
};

}  // namespace terrace::tiering
