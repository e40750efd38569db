// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What operators ask a TierStack: statistics, listings, flush, verify.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tiering/tier_stack.h"
#include "tiering/tier_stack_impl.h"

namespace terrace::tiering {

using kv::BlockKey;
using kv::KeySpace;
using kv::PrefixIndex;

std::vector<GpuUsage> TierStack::Impl::GpuUsages() const {
  std::vector<GpuUsage> all;
  if (gpus == nullptr) return all;
  const std::vector<GpuTier::Stats> gpu_tiers = regions->GpuTierStats();
  for (uint32_t i = 0; i < gpus->devices().size(); ++i) {
    all.push_back({.info = gpus->devices()[i],
                   .health = gpus->Health(i),
                   .copies = gpus->engine(i)->Stats(),
                   .tier_capacity_bytes = gpu_tiers[i].capacity_bytes,
                   .tier_used_bytes = gpu_tiers[i].used_bytes,
                   .tier_blocks = gpu_tiers[i].blocks});
  }
  return all;
}

// All GPUs' together; each GPU's own is GpuUsage's. Why it is not what was asked for: GPUs out of service, or full.
TierUsage TierStack::Impl::GpuTierUsage(std::span<const GpuUsage> all) const {
  TierUsage usage{.tier = "gpu", .state = TierState::kOffline};
  if (all.empty()) usage.detail = gpus == nullptr ? "no GPU is used (gpu.enabled)" : gpus->why_none();
  for (const GpuUsage& gpu : all) {
    usage.capacity_bytes += gpu.tier_capacity_bytes;
    usage.used_bytes += gpu.tier_used_bytes;
    usage.blocks += gpu.tier_blocks;
    if (gpu.health.ok() && gpu.tier_capacity_bytes > 0) {
      usage.state = TierState::kOnline;
    } else {
      absl::StrAppend(&usage.detail, usage.detail.empty() ? "" : "; ", gpu.info.pci_bus, ": ",
                      gpu.health.ok() ? "no memory for it (gpu.tier_bytes)" : gpu.health.message());
    }
  }
  return usage;
}

TierStackStats TierStack::Stats() const {
  const Impl& impl = *impl_;
  const auto usage = impl.tier.pool().GetUsage();
  TierStackStats stats;
  stats.host_recovery_ratio = impl.is_recovered ? 1.0 : std::min(impl.tier.adoption_ratio(), 0.999);
  stats.recovered_blocks = impl.recovered_blocks.load(std::memory_order_relaxed);
  stats.tiers.push_back({.tier = "host",
                         .capacity_bytes = impl.tier.capacity_bytes(),
                         .used_bytes = usage.used_bytes,
                         .pinned_bytes = usage.pinned_bytes,
                         .blocks = impl.catalog.index().size(),
                         .state = TierState::kOnline,
                         .detail = impl.is_recovered ? ""
                                                     : absl::StrFormat("taking over: %.0f %%",
                                                                       100 * stats.host_recovery_ratio)});
  stats.index_bytes = impl.catalog.TableBytes();
  if (impl.nvme != nullptr) {
    stats.nvme = impl.nvme->GetStats();
    std::string detail;
    for (const NvmeTier::DeviceStats& device : stats.nvme->devices) {
      if (!device.detail.empty()) absl::StrAppend(&detail, detail.empty() ? "" : "; ", device.detail);
    }
    stats.tiers.push_back({.tier = "nvme",
                           .capacity_bytes = stats.nvme->capacity_bytes,
                           .used_bytes = stats.nvme->used_bytes,
                           .pinned_bytes = 0,
                           .blocks = stats.nvme->blocks,
                           .state = stats.nvme->state,
                           .detail = detail});
    stats.index_bytes += stats.nvme->index_bytes;
  }
  for (int c = 0; c < kBlockClasses; ++c) {
    const auto of = impl.catalog.GetClassStats(static_cast<BlockClass>(c));
    stats.classes[c] = {of.floor_bytes, of.used_bytes, of.blocks};
    if (c == 0) stats.policy = of.policy.name;
  }
  stats.budget_bytes = impl.budget.limit();
  stats.budget_used_bytes = impl.budget.used();
  {
    MutexLock lock(&impl.mu);
    stats.sessions = impl.sessions.size();
  }
  stats.leases = static_cast<uint64_t>(std::max<int64_t>(0, impl.leases.load(std::memory_order_relaxed)));
  stats.key_spaces = impl.key_spaces.List().size();
  stats.prefaulted_bytes = impl.tier.prefaulted_bytes();
  stats.gpus = impl.GpuUsages();
  if (impl.options.gpu_tier_bytes > 0) stats.tiers.push_back(impl.GpuTierUsage(stats.gpus));
  if (stats.gpus.empty()) stats.why_no_gpu = impl.gpus == nullptr ? "not used (gpu.enabled)" : impl.gpus->why_none();
  stats.host_regions = impl.regions->open_regions(RegionMemory::kHost);
  stats.gpu_regions = impl.regions->open_regions(RegionMemory::kGpu);
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
  const kv::FramePool& pool = impl_->tier.pool();
  const auto frame = impl_->catalog.PinIfHere(key_space, key);
  if (!frame.has_value()) {
    if (!impl_->IsBelow(key_space, key)) return std::nullopt;
    return BlockInfo{key, &key_space, key_space.identity.block_bytes, 0, 0, false, "nvme"};
  }
  const auto place = pool.PlaceOf(*frame);
  BlockInfo info{key, &key_space, key_space.identity.block_bytes, place.generation,
                 pool.Pins(*frame) - 1, impl_->catalog.HasChildren(place.block), "host"};
  impl_->tier.Unpin(*frame);
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

absl::StatusOr<std::shared_ptr<gpu::Region>> TierStack::OpenRegion(
    const gpu::DeviceUuid& device_uuid, gpu::RegionLayout layout, std::span<const gpu::AllocationHandle> allocations,
    std::span<const gpu::EventHandle> events) {
  return impl_->regions->OpenRegion(device_uuid, std::move(layout), allocations, events);
}

std::optional<uint32_t> TierStack::DeviceOf(const gpu::Region& region) const {
  return impl_->regions->DeviceOf(region);
}

void TierStack::DiscardNew() {
  if (impl_->nvme != nullptr) impl_->nvme->DiscardNew();
}

uint64_t TierStack::Flush(const KeySpace* key_space) {
  uint64_t flushed = impl_->catalog.Flush(key_space);
  impl_->regions->Flush(key_space);
  if (impl_->nvme != nullptr) {
    impl_->demoter->Barrier();
    flushed += impl_->nvme->Flush(key_space == nullptr ? std::nullopt : std::optional(key_space->digest));
  }
  return flushed;
}

VerifyReport TierStack::Verify(const std::atomic<bool>* stop) {
  VerifyReport report;
  const std::vector<const KeySpace*> all = impl_->key_spaces.List();
  impl_->catalog.index().ForEach([&](kv::BlockId, const PrefixIndex::Entry& entry) {
    if (stop != nullptr && stop->load(std::memory_order_relaxed)) return false;
    if (entry.key_space > all.size()) return true;  // opened since we began
    const KeySpace& key_space = *all[entry.key_space - 1];
    const auto frame = impl_->catalog.PinIfHere(key_space, entry.key);
    if (!frame.has_value()) return true;
    ++report.blocks;
    report.bytes += key_space.identity.block_bytes;
    impl_->scrub_bytes->Add(key_space.identity.block_bytes);
    report.corrupt += !impl_->CheckPinned(key_space, entry.key, *frame, {});
    impl_->tier.Unpin(*frame);
    return true;
  });
  if (impl_->nvme != nullptr) {
    const NvmeTier::Verified below = impl_->nvme->Verify(stop);
    report.blocks += below.blocks;
    report.bytes += below.bytes;
    report.corrupt += below.corrupt;
    report.corrupt_on_disk = below.corrupt;
  }
  return report;
}

}  // namespace terrace::tiering
