// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What operators and scrapes ask a TierStack: statistics, listings, flush, verify, metrics.
#include <algorithm>

#include "tiering/tier_stack.h"
#include "tiering/tier_stack_impl.h"

namespace terrace::tiering {

using kv::BlockKey;
using kv::KeySpace;
using kv::PrefixIndex;

TierStackStats TierStack::Stats() const {
  const auto usage = impl_->tier.pool().GetUsage();
  TierStackStats stats;
  stats.tiers.push_back({.tier = "host",
                         .capacity_bytes = impl_->tier.capacity_bytes(),
                         .used_bytes = usage.used_bytes,
                         .pinned_bytes = usage.pinned_bytes,
                         .blocks = impl_->catalog.index().size(),
                         .state = TierState::kOnline,
                         .detail = ""});
  stats.budget_bytes = impl_->budget.limit();
  stats.budget_used_bytes = impl_->budget.used();
  {
    MutexLock lock(&impl_->mu);
    stats.sessions = impl_->sessions.size();
  }
  stats.leases = static_cast<uint64_t>(std::max<int64_t>(0, impl_->leases.load(std::memory_order_relaxed)));
  stats.key_spaces = impl_->key_spaces.List().size();
  stats.index_bytes = impl_->catalog.TableBytes();
  stats.prefaulted_bytes = impl_->tier.prefaulted_bytes();
  return stats;
}

std::vector<const KeySpace*> TierStack::KeySpaces() const { return impl_->key_spaces.List(); }

const KeySpace* TierStack::FindKeySpace(kv::TenantId tenant, kv::KeySpaceId id) const {
  return impl_->key_spaces.Find(tenant, id);
}

std::string TierStack::TenantName(kv::TenantId tenant) const {
  return tenant < impl_->options.tenants.size() ? impl_->options.tenants[tenant].name : "";
}

std::optional<BlockInfo> TierStack::Stat(const KeySpace& key_space, const BlockKey& key) const {
  PrefixIndex::Found found;
  bool refused;
  kv::FramePool& pool = impl_->tier.pool();
  impl_->catalog.index().FindChain(
      key_space.id, {&key, 1}, true, &pool, [](uint64_t) { return true; }, {&found, 1}, &refused);
  if (found.block == kv::kNoBlock) return std::nullopt;
  BlockInfo info{key, &key_space, key_space.identity.block_bytes, pool.PlaceOf(found.frame).generation,
                 pool.Pins(found.frame) - 1, impl_->catalog.HasChildren(found.block), "host"};
  impl_->tier.Unpin(found.frame);
  return info;
}

std::vector<BlockInfo> TierStack::List(const KeySpace* key_space, size_t limit) const {
  std::vector<BlockInfo> blocks;
  const std::vector<const KeySpace*> all = impl_->key_spaces.List();
  impl_->catalog.index().ForEach([&](kv::BlockId, const PrefixIndex::Entry& entry) {
    if (blocks.size() >= limit) return false;
    if (key_space != nullptr && entry.key_space != key_space->id) return true;
    if (entry.key_space > all.size()) return true;  // opened since we began
    if (auto info = Stat(*all[entry.key_space - 1], entry.key)) blocks.push_back(*std::move(info));
    return true;
  });
  return blocks;
}

uint64_t TierStack::Flush(const KeySpace* key_space) { return impl_->catalog.Flush(key_space); }

VerifyReport TierStack::Verify(const std::atomic<bool>* stop) {
  VerifyReport report;
  const std::vector<const KeySpace*> all = impl_->key_spaces.List();
  impl_->catalog.index().ForEach([&](kv::BlockId, const PrefixIndex::Entry& entry) {
    if (stop != nullptr && stop->load(std::memory_order_relaxed)) return false;
    if (entry.key_space > all.size()) return true;  // opened since we began
    const KeySpace& key_space = *all[entry.key_space - 1];
    PrefixIndex::Found found;
    bool refused;
    impl_->catalog.index().FindChain(key_space.id, {&entry.key, 1}, true, &impl_->tier.pool(),
                                     [](uint64_t) { return true; }, {&found, 1}, &refused);
    if (found.block == kv::kNoBlock) return true;
    ++report.blocks;
    report.bytes += key_space.identity.block_bytes;
    impl_->scrub_bytes->Add(key_space.identity.block_bytes);
    report.corrupt += !impl_->CheckPinned(key_space, entry.key, found.frame, {});
    impl_->tier.Unpin(found.frame);
    return true;
  });
  return report;
}

void TierStack::Impl::RegisterMetrics(MetricRegistry* metrics) {
  using Type = MetricRegistry::Type;
  for (const TenantOptions& tenant : options.tenants) {
    TenantCounters c{};
    const MetricRegistry::Labels labels{{"tenant", tenant.name}};
    const MetricRegistry::Labels tier_labels{{"tier", "host"}, {"tenant", tenant.name}};
    c.lookup_blocks =
        metrics->AddCounter("terrace_lookup_blocks_total", "Blocks asked for.", labels);
    c.hit_blocks = metrics->AddCounter("terrace_hit_blocks_total",
                                       "Blocks found, by the tier that had them.", tier_labels);
    c.lookup_tokens = metrics->AddCounter("terrace_lookup_tokens_total",
                                          "Tokens of the blocks asked for.", labels);
    c.hit_tokens =
        metrics->AddCounter("terrace_hit_tokens_total", "Tokens of the blocks found.", tier_labels);
    for (const Reason reason :
         {Reason::kCold, Reason::kEvicted, Reason::kCorrupt, Reason::kFlushed,
          Reason::kKeySpaceEmpty, Reason::kModelDiffers, Reason::kLayoutDiffers,
          Reason::kHashDiffers, Reason::kAfterMiss, Reason::kLeaseLimit}) {
      c.miss_blocks[static_cast<int>(reason)] = metrics->AddCounter(
          "terrace_miss_blocks_total", "Blocks asked for and not served, by reason.",
          {{"reason", std::string(ReasonName(reason))}, {"tenant", tenant.name}});
    }
    for (const Reason reason : {Reason::kNone, Reason::kDuplicate, Reason::kBudget,
                                Reason::kBadChecksum, Reason::kOverload, Reason::kCancelled}) {
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
  metrics->AddReader("terrace_policy_touches_dropped_total", "Access records the policy never saw.",
                     Type::kCounter, {},
                     [this] { return static_cast<double>(catalog.dropped_touches()); });
}

}  // namespace terrace::tiering
