// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/engine/client_regions.h"

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"

namespace terrace::api {
namespace {

absl::Status NoSuchRegion(uint32_t id) {
  return absl::NotFoundError(absl::StrCat("no region ", id, " on this connection; register it first"));
}

}  // namespace

absl::StatusOr<std::shared_ptr<RegionSlots>> RegionSlots::Make() {
  ASSIGN_OR_RETURN(auto memory,
                   tiering::SharedMemory::Create("terrace-progress", wire::kRegionSlots * sizeof(wire::RegionProgress),
                                                 tiering::SharedMemory::Clients::kMayOnlyRead, false));
  return std::shared_ptr<RegionSlots>(absl::WrapUnique(new RegionSlots(std::move(memory))));
}

absl::Status ClientRegions::BeginOpening() {
  MutexLock lock(&mu_);
  if (is_opening_) return absl::ResourceExhaustedError("a region of this connection is being opened; wait for it");
  if (entries_.size() >= max_regions_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("this connection has ", entries_.size(), " regions already (engine.max_regions)"));
  }
  is_opening_ = true;
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> ClientRegions::EndOpening(std::shared_ptr<gpu::Region> region,
                                                   std::shared_ptr<RegionSlots> slots) {
  MutexLock lock(&mu_);
  is_opening_ = false;
  if (region == nullptr) return 0;
  if (closed_) {
    region->Fence();
    return absl::CancelledError("the connection was closed");
  }
  const uint32_t id = next_id_++;
  Entry& entry = entries_[id];
  entry.region = std::move(region);
  entry.slots = std::move(slots);
  return id;
}

absl::StatusOr<ClientRegions::Use> ClientRegions::Begin(uint32_t region_id, uint32_t slot, uint32_t request_id) {
  MutexLock lock(&mu_);
  const auto it = entries_.find(region_id);
  if (it == entries_.end() || it->second.closing.has_value()) return NoSuchRegion(region_id);
  Entry& entry = it->second;
  if (slot >= wire::kRegionSlots || entry.in_use[slot]) {
    return absl::InvalidArgumentError(
        absl::StrCat("slot ", slot, " is in use or not one of the ", wire::kRegionSlots));
  }
  entry.in_use[slot] = true;
  ++entry.operations;
  Use use{region_id, slot, request_id, entry.region, entry.slots};
  use.Set(0);
  return use;
}

std::optional<wire::Header> ClientRegions::End(const Use& use) {
  std::map<uint32_t, Entry>::node_type gone;  // goes without the lock
  MutexLock lock(&mu_);
  const auto it = entries_.find(use.region_id);
  if (it == entries_.end()) return std::nullopt;
  Entry& entry = it->second;
  entry.in_use[use.slot] = false;
  if (--entry.operations > 0 || !(closed_ || entry.closing.has_value())) return std::nullopt;
  gone = entries_.extract(it);
  return entry.closing;
}

absl::StatusOr<bool> ClientRegions::Unregister(uint32_t region_id, const wire::Header& request) {
  std::map<uint32_t, Entry>::node_type gone;
  MutexLock lock(&mu_);
  const auto it = entries_.find(region_id);
  if (it == entries_.end() || it->second.closing.has_value()) return NoSuchRegion(region_id);
  it->second.region->Fence();
  if (it->second.operations == 0) {
    gone = entries_.extract(it);
    return true;
  }
  it->second.closing = request;
  return false;
}

bool ClientRegions::Close() {
  std::map<uint32_t, Entry> unused;
  MutexLock lock(&mu_);
  closed_ = true;
  for (auto it = entries_.begin(); it != entries_.end();) {
    it->second.region->Fence();
    it->second.closing.reset();
    const auto next = std::next(it);
    if (it->second.operations == 0) unused.insert(entries_.extract(it));
    it = next;
  }
  return !entries_.empty();
}

uint64_t ClientRegions::count() const {
  MutexLock lock(&mu_);
  return entries_.size();
}

}  // namespace terrace::api
