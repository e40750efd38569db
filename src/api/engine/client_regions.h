// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// ClientRegions: the regions that one connection has registered, and how far their operations are.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "api/engine/wire_region.h"
#include "gpu/region.h"
#include "kvstore/base/mutex.h"
#include "tiering/shared_segment.h"

namespace terrace::api {

// A region's slots: memory that its client maps for reading. Owner: the region's entry and its operations.
class RegionSlots {
 public:
  static absl::StatusOr<std::shared_ptr<RegionSlots>> Make();
  int fd() const { return memory_->fd(); }
  // What was written before is seen by whoever sees this.
  void Set(uint32_t slot, uint32_t request_id, uint32_t value) {
    auto* const progress = reinterpret_cast<wire::RegionProgress*>(memory_->data());
    __atomic_store_n(&progress[slot].value, uint64_t{request_id} << 32 | value, __ATOMIC_RELEASE);
  }

 private:
  explicit RegionSlots(std::unique_ptr<tiering::SharedMemory> memory) : memory_(std::move(memory)) {}
  const std::unique_ptr<tiering::SharedMemory> memory_;
};

// Owner: ClientConnection. Threads: any. Limits: max_regions, those that are being opened or closed included;
// kRegionSlots operations on each. Failure: see the single calls; all of them leave everything as it was.
class ClientRegions {
 public:
  explicit ClientRegions(uint32_t max_regions) : max_regions_(max_regions) {}

  // Room for a region that is about to be opened. ResourceExhausted: too many, or one is being opened already.
  absl::Status BeginOpening();
  // Its end: the region's id, or (no region, or closed meanwhile) nothing. slots: as many as the region lives.
  absl::StatusOr<uint32_t> EndOpening(std::shared_ptr<gpu::Region> region, std::shared_ptr<RegionSlots> slots);

  // An operation on a region.
  struct Use {
    uint32_t region_id = 0, slot = 0, request_id = 0;
    std::shared_ptr<gpu::Region> region;
    std::shared_ptr<RegionSlots> slots;
    void Set(uint32_t value) const { slots->Set(slot, request_id, value); }
  };
  // NotFound: no such region. InvalidArgument: no such slot, or it is in use.
  absl::StatusOr<Use> Begin(uint32_t region_id, uint32_t slot, uint32_t request_id);
  // The request that wants to be told that the region is closed, if this was the last operation it waits for.
  std::optional<wire::Header> End(const Use& use);

  // No operation on it begins any more, those under way are cut short. True: none is; else End says when.
  // NotFound: no such region.
  absl::StatusOr<bool> Unregister(uint32_t region_id, const wire::Header& request);
  // Fences all. True: operations are under way.
  bool Close();

  uint64_t count() const;

 private:
  struct Entry {
    std::shared_ptr<gpu::Region> region;
    std::shared_ptr<RegionSlots> slots;
    std::array<bool, wire::kRegionSlots> in_use{};
    uint32_t operations = 0;
    std::optional<wire::Header> closing;  // the request to do so
  };
  const uint32_t max_regions_;
  mutable Mutex mu_;
  std::map<uint32_t, Entry> entries_ ABSL_GUARDED_BY(mu_);
  uint32_t next_id_ ABSL_GUARDED_BY(mu_) = 1;
  bool is_opening_ ABSL_GUARDED_BY(mu_) = false;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace terrace::api
