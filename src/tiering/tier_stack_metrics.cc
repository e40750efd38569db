// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The metrics of a TierStack; all of them are listed in docs/metrics.md.
#include <algorithm>

#include "kvstore/base/check.h"
#include "tiering/tier_stack_impl.h"

namespace terrace::tiering {

void TierStack::Impl::RegisterMetrics(MetricRegistry* metrics) {
  for (const TenantOptions& tenant : options.tenants) {
    TenantCounters c{};
    const MetricRegistry::Labels labels{{"tenant", tenant.name}};
    const MetricRegistry::Labels tier_labels{{"tier", "host"}, {"tenant", tenant.name}};
    const MetricRegistry::Labels nvme_labels{{"tier", "nvme"}, {"tenant", tenant.name}};
    c.lookup_blocks =
        metrics->AddCounter("terrace_lookup_blocks_total", "Blocks asked for.", labels);
    c.hit_blocks = metrics->AddCounter("terrace_hit_blocks_total",
                                       "Blocks found, by the tier that had them.", tier_labels);
    c.nvme_hit_blocks = metrics->AddCounter("terrace_hit_blocks_total",
                                            "Blocks found, by the tier that had them.", nvme_labels);
    c.lookup_tokens = metrics->AddCounter("terrace_lookup_tokens_total",
                                          "Tokens of the blocks asked for.", labels);
    c.hit_tokens =
        metrics->AddCounter("terrace_hit_tokens_total", "Tokens of the blocks found.", tier_labels);
    c.nvme_hit_tokens =
        metrics->AddCounter("terrace_hit_tokens_total", "Tokens of the blocks found.", nvme_labels);
    for (const Reason reason :
         {Reason::kCold, Reason::kEvicted, Reason::kCorrupt, Reason::kFlushed,
          Reason::kKeySpaceEmpty, Reason::kModelDiffers, Reason::kLayoutDiffers,
          Reason::kHashDiffers, Reason::kAfterMiss, Reason::kPending, Reason::kLeaseLimit,
          Reason::kBudget, Reason::kOverload, Reason::kRecompute, Reason::kDeadline,
          Reason::kTierOffline, Reason::kIoError}) {
      c.miss_blocks[static_cast<int>(reason)] = metrics->AddCounter(
          "terrace_miss_blocks_total", "Blocks asked for and not served, by reason.",
          {{"reason", std::string(ReasonName(reason))}, {"tenant", tenant.name}});
    }
    for (const Reason reason : {Reason::kNone, Reason::kDuplicate, Reason::kBudget,
                                Reason::kBadChecksum, Reason::kOverload, Reason::kCancelled,
                                Reason::kFlushed, Reason::kUnavailable, Reason::kDeadline}) {
      c.store_blocks[static_cast<int>(reason)] = metrics->AddCounter(
          "terrace_store_blocks_total", "Blocks offered for storing, by outcome (none: stored).",
          {{"reason", std::string(ReasonName(reason))}, {"tenant", tenant.name}});
    }
    tenants.push_back(c);
  }
  const MetricRegistry::Labels host{{"tier", "host"}};
  evictions = metrics->AddCounter("terrace_evictions_total", "Blocks evicted to make room.",
                                  {{"tier", "host"}, {"cause", "capacity"}});
  evicted_bytes = metrics->AddCounter("terrace_evicted_bytes_total", "Bytes of evicted blocks.",
                                      {{"tier", "host"}, {"cause", "capacity"}});
  moved_bytes = metrics->AddCounter(
      "terrace_compaction_bytes_total",
      "Bytes moved inside the tier to make room for blocks of another size.", host);
  integrity_checksum =
      metrics->AddCounter("terrace_integrity_failures_total",
                          "Blocks that failed a check and were dropped. Page if it rises.",
                          {{"tier", "host"}, {"reason", "checksum"}});
  leases_expired =
      metrics->AddCounter("terrace_leases_expired_total", "Leases ended for their age.");
  leases_reclaimed_session = metrics->AddCounter("terrace_leases_reclaimed_total",
                                                 "Leases ended with the session that held them.",
                                                 {{"cause", "session_end"}});
  leases_released =
      metrics->AddCounter("terrace_leases_released_total", "Leases ended by their holder.");
  host_in_bytes = metrics->AddCounter(
      "terrace_transfer_bytes_total",
      "Bytes moved by the daemon (loads through shared memory are the client's).",
      {{"src", "client"}, {"dst", "host"}});
  host_out_bytes = metrics->AddCounter(
      "terrace_transfer_bytes_total",
      "Bytes moved by the daemon (loads through shared memory are the client's).",
      {{"src", "host"}, {"dst", "client"}});
  scrub_bytes =
      metrics->AddCounter("terrace_scrub_bytes_total", "Bytes re-read and checked.", host);
  store_duration = metrics->AddHistogram("terrace_store_duration_seconds",
                                         "From a block's arrival to its being visible.",
                                         {{"src", "client"}, {"dst", "host"}});
  RegisterTierMetrics(metrics);
  RegisterGauges(metrics);
}

void TierStack::Impl::CountSettled(const kv::KeySpace& key_space, Reason reason, uint64_t lookups) {
  const TenantCounters& counters = tenants[key_space.tenant];
  if (reason == Reason::kNone) {
    counters.nvme_hit_blocks->Add(lookups);
    counters.nvme_hit_tokens->Add(lookups * key_space.identity.tokens_per_block);
    return;
  }
  Counter* const counter = counters.miss_blocks[static_cast<int>(reason)];
  TERRACE_CHECK(counter != nullptr);
  counter->Add(lookups);
}

// Between the tiers.
void TierStack::Impl::RegisterTierMetrics(MetricRegistry* metrics) {
  const MetricRegistry::Labels demote{{"tier", "host"}, {"cause", "demote"}};
  demote_evictions =
      metrics->AddCounter("terrace_evictions_total", "Blocks evicted to make room.", demote);
  demote_evicted_bytes =
      metrics->AddCounter("terrace_evicted_bytes_total", "Bytes of evicted blocks.", demote);
  promotions.promoted_blocks = metrics->AddCounter(
      "terrace_promoted_blocks_total", "Blocks brought into host memory from a lower tier.",
      {{"src", "nvme"}});
  promotions.promoted_bytes = metrics->AddCounter(
      "terrace_promoted_bytes_total", "Bytes brought into host memory from a lower tier.",
      {{"src", "nvme"}});
  promotions.duration = metrics->AddHistogram(
      "terrace_load_duration_seconds", "From the request for a block to its being in host memory.",
      {{"src", "nvme"}, {"dst", "host"}});
  for (const Reason reason : {Reason::kEvicted, Reason::kCorrupt, Reason::kFlushed, Reason::kBudget, Reason::kOverload,
                              Reason::kDeadline, Reason::kTierOffline, Reason::kIoError}) {
    promotions.failed_blocks[static_cast<int>(reason)] = metrics->AddCounter(
        "terrace_promotion_failures_total", "Blocks that a lower tier did not deliver, by reason.",
        {{"src", "nvme"}, {"reason", std::string(ReasonName(reason))}});
  }
  const auto admission = [&](const char* decision) {
    return metrics->AddCounter("terrace_admissions_total",
                               "What was decided on blocks that were about to leave host memory.",
                               {{"tier", "nvme"}, {"decision", decision}});
  };
  demotions.admitted = admission("admit");
  demotions.rejected_once = admission("reject_once");
  demotions.rejected_budget = admission("reject_budget");
  demotions.demoted_blocks = metrics->AddCounter(
      "terrace_demoted_blocks_total", "Blocks copied to a lower tier.", {{"dst", "nvme"}});
  demotions.demoted_bytes = metrics->AddCounter(
      "terrace_demoted_bytes_total", "Bytes copied to a lower tier.", {{"dst", "nvme"}});
}

// All GPUs together: which ones there are is known at run time only; `terracectl status` tells them apart.
void TierStack::Impl::RegisterGpuGauges(MetricRegistry* metrics) {
  const auto add = [&](const char* name, const char* help, MetricRegistry::Type type, MetricRegistry::Labels labels,
                       std::function<uint64_t(const GpuUsage&)> of) {
    metrics->AddReader(name, help, type, std::move(labels), [this, of = std::move(of)] {
      uint64_t sum = 0;
      for (const GpuUsage& gpu : GpuUsages()) sum += of(gpu);
      return static_cast<double>(sum);
    });
  };
  constexpr auto kGauge = MetricRegistry::Type::kGauge;
  for (const bool good : {true, false}) {
    add("terrace_gpus", "GPUs by state. Page if one is out of service: its engines' blocks are not served.", kGauge,
        {{"state", good ? "in_service" : "out_of_service"}},
        [good](const GpuUsage& gpu) -> uint64_t { return gpu.health.ok() == good; });
  }
  const MetricRegistry::Labels gpu_tier{{"tier", "gpu"}};
  add("terrace_tier_capacity_bytes", "Most payload bytes the tier can hold.", kGauge, gpu_tier,
      [](const GpuUsage& gpu) { return gpu.tier_capacity_bytes; });
  add("terrace_tier_used_bytes", "Payload bytes in use.", kGauge, gpu_tier,
      [](const GpuUsage& gpu) { return gpu.tier_used_bytes; });
  add("terrace_tier_blocks", "Blocks in the tier.", kGauge, gpu_tier,
      [](const GpuUsage& gpu) { return gpu.tier_blocks; });
  const auto add_means = [&](const char* means, uint64_t gpu::CopyEngineStats::*bytes) {
    add("terrace_gpu_copy_bytes_total", "Bytes copied by GPUs, by the means that was chosen.",
        MetricRegistry::Type::kCounter, {{"means", means}},
        [bytes](const GpuUsage& gpu) { return gpu.copies.*bytes; });
  };
  add_means("copy_engine", &gpu::CopyEngineStats::copy_engine_bytes);
  add_means("kernel", &gpu::CopyEngineStats::kernel_bytes);
  add_means("staged", &gpu::CopyEngineStats::staged_bytes);
  metrics->AddReader("terrace_host_pinned_bytes", "Host memory that is pinned for GPUs.", kGauge, {}, [this] {
    return pinner == nullptr ? 0.0 : static_cast<double>(pinner->pinned_bytes());
  });
}

void TierStack::Impl::RegisterGauges(MetricRegistry* metrics) {
  using Type = MetricRegistry::Type;
  const MetricRegistry::Labels host{{"tier", "host"}};
  const auto gauge = [&](const char* name, const char* help, MetricRegistry::Labels labels,
                         std::function<double()> read) {
    metrics->AddReader(name, help, Type::kGauge, std::move(labels), std::move(read));
  };
  gauge("terrace_tier_capacity_bytes", "Most payload bytes the tier can hold.", host,
        [this] { return static_cast<double>(tier.capacity_bytes()); });
  gauge("terrace_tier_used_bytes", "Payload bytes in use.", host,
        [this] { return static_cast<double>(tier.pool().GetUsage().used_bytes); });
  gauge("terrace_tier_pinned_bytes", "Payload bytes under lease.", host,
        [this] { return static_cast<double>(tier.pool().pinned_bytes()); });
  gauge("terrace_tier_blocks", "Blocks in the tier.", host,
        [this] { return static_cast<double>(catalog.index().size()); });
  gauge("terrace_budget_bytes", "What this process may use.", {},
        [this] { return static_cast<double>(budget.limit()); });
  gauge("terrace_budget_used_bytes", "What is spoken for: segments, tables, staging, the process.",
        {}, [this] { return static_cast<double>(budget.used()); });
  gauge("terrace_leases", "Leases held.", {},
        [this] { return static_cast<double>(leases.load(std::memory_order_relaxed)); });
  gauge("terrace_sessions", "Sessions open, over both doors.", {}, [this] {
    MutexLock lock(&mu);
    return static_cast<double>(sessions.size());
  });
  gauge("terrace_key_spaces", "Key spaces known.", {},
        [this] { return static_cast<double>(key_spaces.List().size()); });
  for (int c = 0; c < kBlockClasses; ++c) {
    const auto of_class = static_cast<BlockClass>(c);
    const MetricRegistry::Labels labels{{"tier", "host"}, {"class", c == 0 ? "kv" : "shard"}};
    gauge("terrace_class_used_bytes", "Payload bytes by class of blocks.", labels, [this, of_class] {
      return static_cast<double>(catalog.GetClassStats(of_class).used_bytes);
    });
    gauge("terrace_class_floor_bytes", "What the other class leaves to this one.", labels,
          [this, of_class] { return static_cast<double>(catalog.GetClassStats(of_class).floor_bytes); });
  }
  gauge("terrace_recovery_ratio", "Of what the last process left in host memory, taken over; 1: done.",
        host, [this] { return is_recovered ? 1.0 : std::min(tier.adoption_ratio(), 0.999); });
  gauge("terrace_policy_shadow_lru_delta_ratio",
        "Hit ratio of the eviction policy minus that of plain LRU, last window.", host,
        [this] { return catalog.GetClassStats(BlockClass::kKv).policy.shadow_lru_delta; });
  metrics->AddReader("terrace_policy_fallbacks_total",
                     "Times the eviction policy did worse than LRU and was replaced by it.",
                     Type::kCounter, host, [this] {
                       return static_cast<double>(catalog.GetClassStats(BlockClass::kKv).policy.fallbacks);
                     });
  metrics->AddReader("terrace_ghost_hits_total", "Blocks stored again soon after they had gone.",
                     Type::kCounter, host, [this] {
                       return static_cast<double>(catalog.GetClassStats(BlockClass::kKv).policy.ghost_hits);
                     });
  metrics->AddReader("terrace_ghost_hits_total", "Blocks stored again soon after they had gone.",
                     Type::kCounter, {{"tier", "nvme"}}, [this] {
                       return demoter == nullptr ? 0.0
                                                 : static_cast<double>(demoter->AdmissionStats().ghost_hits);
                     });
  metrics->AddReader("terrace_forced_evictions_total",
                     "Times a store found nothing free and evicted on its own.", Type::kCounter, host,
                     [this] { return static_cast<double>(catalog.forced_evictions()); });
  metrics->AddReader("terrace_policy_touches_dropped_total", "Access records the policy never saw.",
                     Type::kCounter, {},
                     [this] { return static_cast<double>(catalog.dropped_touches()); });
}

}  // namespace terrace::tiering
