// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What TierStack and Session share. Internal to src/tiering.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gpu/host_block_copier.h"
#include "kvstore/base/memory_budget.h"
#include "tiering/catalog.h"
#include "tiering/demoter.h"
#include "tiering/fill_table.h"
#include "tiering/host_memory_dir.h"
#include "tiering/host_pinner.h"
#include "tiering/host_tier.h"
#include "tiering/load_rates.h"
#include "tiering/lower_tier_lookup.h"
#include "tiering/promoter.h"
#include "tiering/region_mover.h"
#include "tiering/staging_share.h"
#include "tiering/tier_stack.h"

namespace terrace::tiering {

// Metrics of one tenant.
struct TenantCounters {
  Counter* lookup_blocks;
  Counter* hit_blocks;
  Counter* lookup_tokens;
  Counter* hit_tokens;
  Counter* nvme_hit_blocks;
  Counter* nvme_hit_tokens;
  Counter* miss_blocks[kReasonCount];   // by Reason; null where a lookup cannot answer it
  Counter* store_blocks[kReasonCount];  // by Reason; null where a store cannot end so
};

// How the budget is divided before anything is allocated.
struct MemoryPlan {
  uint64_t arena_bytes = 0;     // segments of the host tier
  uint64_t staging_bytes = 0;   // share that is kept for clients' staging memory
  uint64_t budget_for_staging_bytes = 0;  // that would hold what one client asks for; 0: this one does
  uint64_t disk_bytes = 0;      // buffers of disks and their index
  uint64_t static_bytes = 0;    // the process and the tables that do not depend on the load
  uint64_t index_capacity = 0;  // blocks
  uint64_t expected_blocks = 0;
  static MemoryPlan For(const TierStackOptions& options);
};

// Owner: TierStack. Threads: any. Members are built in this order and destroyed in reverse, but for what
// Stop() ends first, so that no completion finds a half-destroyed stack.
class TierStack::Impl {
 public:
  Impl(const TierStackOptions& options, const MemoryPlan& plan, std::unique_ptr<HostMemoryDir> memory_dir,
       Catalog::Policies policies, const Clock* clock, MetricRegistry* metrics);
  ~Impl();
  // The lower tiers and what moves blocks between them and host memory.
  absl::Status AddLowerTiers(MetricRegistry* metrics);
  // Begins to take over what the last process left; goes on in the background when there is much.
  void Recover();

  void RegisterMetrics(MetricRegistry* metrics);
  void RegisterTierMetrics(MetricRegistry* metrics);
  void RegisterGauges(MetricRegistry* metrics);
  void RegisterGpuGauges(MetricRegistry* metrics);
  std::vector<GpuUsage> GpuUsages() const;
  TierUsage GpuTierUsage(std::span<const GpuUsage> all) const;
  void Put(const Session& session, PutRequest request);
  // Checks a pinned frame; drops the block and counts when it is bad.
  bool CheckPinned(const kv::KeySpace& key_space, const kv::BlockKey& key, kv::FrameId frame,
                   std::span<std::byte> target);
  // uncounted: bytes that the caller has pinned and the pool does not count yet.
  bool MayLease(uint64_t uncounted) const {
    return static_cast<double>(tier.pool().pinned_bytes() + uncounted) <
           options.max_leased_ratio * static_cast<double>(tier.capacity_bytes());
  }
  uint64_t NewLeaseId();
  // Logs when the guard has changed who decides on evictions. The stepping thread only.
  void SayWhoEvicts();
  // Logs, once a key space, that its blocks will stay in host memory.
  void WarnIfTooLargeForDisks(const kv::KeySpace& key_space);
  // Leases cost memory here and count on frames: what all of them may name together is bounded, however
  // often a client asks for the same block. False: no room for so many more.
  bool TryChargePins(uint64_t pins);
  // A block that lookups were told to be pending has come (kNone) or does not: now it is a hit or a miss of theirs.
  void CountSettled(const kv::KeySpace& key_space, Reason reason, uint64_t lookups);
  // Lets go of everything that a lease holds.
  void End(Session::Lease* lease);

  // On a lower tier.
  bool IsBelow(const kv::KeySpace& key_space, const kv::BlockKey& key) const;
  // Not here yet: being stored, on a lower tier or on its way from there.
  bool IsComing(const kv::KeySpace& key_space, const kv::BlockKey& key) const;
  void AddRegions(MetricRegistry* metrics);

  const TierStackOptions options;
  const MemoryPlan plan;
  const Clock* const clock;
  const std::unique_ptr<HostMemoryDir> memory_dir;  // null: anonymous memory
  MemoryBudget budget;
  MemoryBudget disk_budget;  // the disks' share, charged to budget as a whole
  StagingShare staging;
  kv::KeySpaceTable key_spaces;
  std::vector<TenantCounters> tenants;
  Counter *evictions = nullptr, *evicted_bytes = nullptr, *moved_bytes = nullptr, *integrity_checksum = nullptr;
  Counter *leases_expired, *leases_reclaimed_session, *leases_released;
  Counter *host_in_bytes, *host_out_bytes, *scrub_bytes;
  Counter *demote_evictions = nullptr, *demote_evicted_bytes = nullptr;
  Promoter::Counters promotions;
  Demoter::Counters demotions;
  Histogram* store_duration;
  std::atomic<int64_t> leases{0};
  const uint64_t max_pins;  // of all leases; a lease itself counts as kPinsPerLease
  std::atomic<uint64_t> charged_pins{0};
  static constexpr uint64_t kPinsPerLease = 16;
  std::atomic<uint64_t> next_session{1}, next_lease{1};
  const uint64_t lease_secret;
  std::atomic<bool> draining{false};

  FillTable fills;  // at most store_queue_depth, and what regions' stores have in copy

  mutable Mutex mu;
  std::function<void(kv::TenantId, uint32_t)> segment_gone ABSL_GUARDED_BY(mu);
  absl::flat_hash_map<uint64_t, Session*> sessions ABSL_GUARDED_BY(mu);

  std::unique_ptr<gpu::Gpus> gpus;      // null: not used
  std::unique_ptr<HostPinner> pinner;  // null: no GPU
  HostTier tier;
  Catalog catalog;
  gpu::HostBlockCopier copies;       // stores
  gpu::HostBlockCopier load_copies;  // what lower tiers deliver
  LoadRates rates;
  std::unique_ptr<NvmeTier> nvme;   // null: no devices
  std::unique_ptr<Promoter> promoter;
  std::unique_ptr<Demoter> demoter;          // null without lower tiers
  std::unique_ptr<LowerTierLookup> lower;    // null without lower tiers

  std::unique_ptr<RegionMover> regions;

  std::string evicting_policy;  // the stepping thread's

  std::atomic<bool> stopping{false};
  std::atomic<uint64_t> recovered_blocks{0};
  std::atomic<bool> is_recovered{true};
  std::thread recovery;  // of the host tier, while it lasts
};

// What one lease holds in place.
struct Session::Lease {
  std::vector<kv::FrameId> frames;
  std::vector<std::shared_ptr<Promotion>> promotions;
  uint64_t charged_pins = 0;
  int64_t expires_ns = 0;
};

}  // namespace terrace::tiering
