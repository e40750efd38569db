// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// RegionMover: regions, limits, beginning and end. Stores and loads: region_mover_store.cc, region_mover_load.cc.
#include "tiering/region_mover.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gpu/host_region.h"
#include "kvstore/base/check.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"

namespace terrace::tiering {

RegionMover::RegionMover(const Options& options, const Parts& parts, MetricRegistry* metrics)
    : options_(options),
      parts_(parts),
      metrics_(metrics),
      worker_(std::make_shared<RegionWorker>(options.host_threads > 0)) {
  devices_->worker = worker_;
  if (options.host_regions) {
    host_engine_ = std::make_unique<gpu::HostCopyEngine>(options.host_threads, options.queue_depth);
  }
  if (parts.gpus == nullptr) return;
  for (uint32_t device = 0; device < parts.gpus->devices().size(); ++device) {
    gpu_tiers_.emplace_back();
    if (options.gpu_tier_bytes == 0) continue;
    auto tier = GpuTier::Create({.device = device, .bytes = options.gpu_tier_bytes, .policy = options.policy},
                                parts.gpus, parts.clock, [this, device](GpuTier::Departure departure) {
                                  Demote(device, std::move(departure));
                                });
    if (tier.ok()) {
      gpu_tiers_.back() = *std::move(tier);
    } else {
      Log(LogLevel::kError, "gpu_tier_off",
          {{"gpu", device}, {"why", tier.status().message()}, {"mend", "change gpu.tier_bytes, or free memory there"}});
    }
  }
}

RegionMover::~RegionMover() {
  Stop();
  gpu_tiers_.clear();  // waits for its copies, whose ends may still come here
  Drain();
  worker_->Stop();  // regions that live on are closed by whoever lets go of them
}

absl::StatusOr<std::shared_ptr<gpu::Region>> RegionMover::OpenRegion(
    const gpu::DeviceUuid& device_uuid, gpu::RegionLayout layout, std::span<const gpu::AllocationHandle> allocations,
    std::span<const gpu::EventHandle> events) {
  std::shared_ptr<gpu::Region> opened;
  std::optional<uint32_t> device;
  if (device_uuid == gpu::DeviceUuid{}) {
    if (host_engine_ == nullptr) {
      return absl::FailedPreconditionError("this daemon opens no host memory of engines (engine.host_regions)");
    }
    if (!events.empty()) return absl::InvalidArgumentError("a region of host memory has no events");
    ASSIGN_OR_RETURN(opened, gpu::HostRegion::Open(std::move(layout), allocations));
  } else {
    if (parts_.gpus == nullptr) return absl::FailedPreconditionError("this daemon uses no GPU (gpu.enabled)");
    if (parts_.gpus->devices().empty()) return absl::FailedPreconditionError(parts_.gpus->why_none());
    const auto found = parts_.gpus->Find(device_uuid);
    if (!found.ok()) return absl::FailedPreconditionError(found.status().message());
    device = *found;
    if (const absl::Status health = parts_.gpus->Health(*device); !health.ok()) {
      return absl::FailedPreconditionError(health.message());
    }
    ASSIGN_OR_RETURN(opened, parts_.gpus->OpenRegion(*device, std::move(layout), allocations, events));
  }
  {
    MutexLock lock(&devices_->mu);
    devices_->by_region[opened.get()] = device;
  }
  Gauge* const open = metrics_.open[static_cast<size_t>(MemoryOf(device))];
  open->Add(1);
  gpu::Region* const region = opened.get();
  return std::shared_ptr<gpu::Region>(
      region, [devices = devices_, open, opened = std::move(opened)](gpu::Region* gone) mutable {
        {
          MutexLock lock(&devices->mu);
          devices->by_region.erase(gone);
        }
        // Unmapping takes its time: neither a thread that serves lookups nor one that drives a GPU does it.
        devices->worker->Post(
            [open, closing = std::move(opened)]() mutable {
              closing.reset();
              open->Add(-1);
            },
            false);
      });
}

std::optional<uint32_t> RegionMover::DeviceOf(const gpu::Region& region) const {
  MutexLock lock(&devices_->mu);
  const auto it = devices_->by_region.find(&region);
  return it == devices_->by_region.end() ? std::nullopt : it->second;
}

gpu::CopyEngine* RegionMover::EngineFor(std::optional<uint32_t> device) const {
  return device.has_value() ? parts_.gpus->engine(*device) : host_engine_.get();
}

absl::Status RegionMover::Check(kv::TenantId tenant, const std::shared_ptr<gpu::Region>& region,
                                const kv::KeySpace* key_space, size_t n_keys, std::span<const uint64_t> pages,
                                uint32_t after_event) const {
  if (region == nullptr || key_space == nullptr) return absl::InvalidArgumentError("no region or no key space");
  if (key_space->tenant != tenant) return absl::InvalidArgumentError("a key space of another tenant");
  if (key_space->identity.block_bytes != region->page_bytes()) {
    return absl::InvalidArgumentError(absl::StrCat("pages of ", region->page_bytes(), " bytes in a key space of ",
                                                   key_space->identity.block_bytes, "-byte blocks"));
  }
  if (n_keys == 0 || n_keys > gpu::CopyBatch::kMaxPages || pages.size() != n_keys) {
    return absl::InvalidArgumentError(absl::StrCat(n_keys, " keys and ", pages.size(), " pages; 1 to ",
                                                   gpu::CopyBatch::kMaxPages, ", as many of both"));
  }
  for (const uint64_t page : pages) {
    if (page >= region->layout().n_pages) {
      return absl::InvalidArgumentError(
          absl::StrCat("page ", page, " of a region of ", region->layout().n_pages, " pages"));
    }
  }
  if (after_event != gpu::kNoEvent && after_event >= region->event_count()) {
    return absl::InvalidArgumentError(
        absl::StrCat("event ", after_event, " of a region of ", region->event_count(), " events"));
  }
  const std::optional<uint32_t> device = DeviceOf(*region);
  if (EngineFor(device) == nullptr) return absl::InvalidArgumentError("nobody can copy that region");
  return device.has_value() ? parts_.gpus->Health(*device) : absl::OkStatus();
}

absl::Status RegionMover::TryBegin(gpu::Direction direction, Share* share, uint64_t bytes) {
  if (share->operations.fetch_add(1, std::memory_order_relaxed) >= Share::kMaxOperations) {
    share->operations.fetch_sub(1, std::memory_order_relaxed);
    return absl::ResourceExhaustedError(
        absl::StrCat(Share::kMaxOperations, " operations of this session are under way; wait for some of them"));
  }
  // A single request may be larger than the limit: then it goes alone.
  auto& in_copy = bytes_in_copy_[static_cast<size_t>(direction)];
  const uint64_t before = in_copy.fetch_add(bytes, std::memory_order_relaxed);
  if (before == 0 || before + bytes <= options_.max_bytes) return absl::OkStatus();
  End(direction, share, bytes);
  const char* const way = direction == gpu::Direction::kStore ? "out of" : "into";
  return absl::ResourceExhaustedError(
      absl::StrCat(before, " bytes are being copied ", way, " engines' memory already; try again"));
}

void RegionMover::End(gpu::Direction direction, Share* share, uint64_t bytes) {
  bytes_in_copy_[static_cast<size_t>(direction)].fetch_sub(bytes, std::memory_order_relaxed);
  share->operations.fetch_sub(1, std::memory_order_relaxed);
}

void RegionMover::BeginBusy() {
  MutexLock lock(&busy_mu_);
  ++busy_;
}

void RegionMover::EndBusy() {
  MutexLock lock(&busy_mu_);
  if (--busy_ == 0) idle_.SignalAll();
}

void RegionMover::Drain() {
  MutexLock lock(&busy_mu_);
  while (busy_ > 0) idle_.Wait(&busy_mu_);
}

void RegionMover::Stop() {
  StopStores();
  stopped_.store(true, std::memory_order_relaxed);
  Drain();
}

Reason RegionMover::ReasonOf(const absl::Status& batch_status) {
  switch (batch_status.code()) {
    case absl::StatusCode::kOk:
      return Reason::kNone;
    case absl::StatusCode::kCancelled:
      return Reason::kCancelled;
    case absl::StatusCode::kDeadlineExceeded:
      return Reason::kDeadline;
    case absl::StatusCode::kResourceExhausted:
      return Reason::kOverload;
    default:
      return Reason::kUnavailable;
  }
}

void RegionMover::SayRefused(gpu::Direction direction, std::optional<uint32_t> device, const absl::Status& why) const {
  if (absl::IsCancelled(why)) return;  // the engine has gone
  std::string memory = "host";
  if (device.has_value()) {
    const gpu::GpuInfo& gpu = parts_.gpus->devices()[*device];
    memory = absl::StrCat("gpu ", *device, ", ", gpu.name, " at ", gpu.pci_bus);
  }
  Log(LogLevel::kWarning, "region_batch_refused",
      {{"memory", memory},
       {"what", direction == gpu::Direction::kStore ? "store" : "load"},
       {"reason", std::string(ReasonName(ReasonOf(why)))},
       {"why", why.message()},
       {"effect", "its blocks are misses, or not stored"}});
}

void RegionMover::Quarantine(uint64_t bytes, const absl::Status& why) {
  metrics_.lost_bytes->Add(bytes);
  Log(LogLevel::kError, "frames_lost",
      {{"bytes", bytes},
       {"why", why.message()},
       {"consequence", "this host memory is not used again while this process lives"},
       {"mend", "restart terraced when the GPU has been reset"}});
}

void RegionMover::Flush(const kv::KeySpace* key_space) {
  for (const auto& tier : gpu_tiers_) {
    if (tier != nullptr) tier->Flush(key_space);
  }
}

void RegionMover::Step() {
  EndFencedWaits();
  for (const auto& tier : gpu_tiers_) {
    if (tier != nullptr) tier->Step();
  }
}

std::vector<GpuTier::Stats> RegionMover::GpuTierStats() const {
  std::vector<GpuTier::Stats> all;
  for (const auto& tier : gpu_tiers_) all.push_back(tier == nullptr ? GpuTier::Stats{} : tier->GetStats());
  return all;
}

}  // namespace terrace::tiering
