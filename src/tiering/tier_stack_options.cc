// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// TierStack: what its options may be, and how they divide the memory.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "tiering/tier_stack_impl.h"

namespace terrace::tiering {
namespace {

constexpr uint64_t kLeastArena = 2 << 20;  // enough to work at all: tests and simulators
constexpr uint64_t kDeviceBytes = 2 << 20;  // of a disk beside its buffers: control pages, tables of its parts
constexpr uint64_t kTypicalBlockBytes = 256 << 10;  // a guess, for how much policies remember

uint64_t IoBytes(const TierStackOptions& options) {
  return options.nvme.devices.size() * (options.nvme.io_memory_bytes + kDeviceBytes);
}

}  // namespace

absl::Status TierStackOptions::Validate() const {
  if (tenants.empty()) return absl::InvalidArgumentError("tenants: at least one tenant is needed");
  if (tenants.size() > 4096) return absl::InvalidArgumentError("tenants: at most 4096");
  const uint64_t io_bytes = IoBytes(*this);
  if (budget_bytes < process_bytes + io_bytes + 2 * kLeastArena) {
    return absl::InvalidArgumentError(
        absl::StrCat("host.budget is ", budget_bytes, " bytes; of these ", process_bytes,
                     " are for the process itself (host.process_bytes), ", io_bytes,
                     " for buffers of disks (nvme.io_memory each), and at least ", 2 * kLeastArena,
                     " must remain for blocks"));
  }
  if (!(max_leased_ratio > 0 && max_leased_ratio <= 1)) {
    return absl::InvalidArgumentError("host.max_leased_ratio must be above 0 and at most 1");
  }
  if (!(class_floor[0] >= 0 && class_floor[1] >= 0 && class_floor[0] + class_floor[1] <= 0.9)) {
    return absl::InvalidArgumentError("host.kv_floor and host.shard_floor must be 0 or more, together at most 0.9");
  }
  if (!(max_pin_ratio >= 0 && max_pin_ratio <= 0.5)) {
    return absl::InvalidArgumentError("host.max_pin_ratio must be 0 to 0.5");
  }
  if (lease_max_age_ns <= 0) return absl::InvalidArgumentError("host.lease_max_age must be positive");
  if (max_key_spaces == 0 || max_leases_per_session == 0 || store_queue_depth == 0) {
    return absl::InvalidArgumentError(
        "host.max_key_spaces, host.max_leases_per_session and host.store_queue_depth must be positive");
  }
  if (store_threads > 64) return absl::InvalidArgumentError("host.store_threads must be at most 64");
  RETURN_IF_ERROR(MakeEvictionPolicy(eviction_policy, 1, 1).status());
  if (nvme.devices.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(MakeAdmissionPolicy(admission_policy, {}).status());
  // Beside what is for blocks, not in place of it.
  if (const uint64_t most = (budget_bytes - process_bytes - io_bytes) / 2; nvme_index_bytes > most) {
    return absl::InvalidArgumentError(
        absl::StrCat("nvme.index_memory is ", nvme_index_bytes, " bytes; host.budget leaves at most ", most,
                     " for it, half of what remains beside the process and the buffers of disks"));
  }
  return nvme.Validate();
}

MemoryPlan MemoryPlan::For(const TierStackOptions& options) {
  MemoryPlan plan;
  uint64_t for_blocks = options.budget_bytes - options.process_bytes;
  // Disks: their buffers, and their index as if blocks were small (48 KiB, 32 bytes each), but no more than
  // a sixteenth. Smaller ones than that fill the index before the disk.
  bool is_whole_device = false;  // of a size that is not known yet
  uint64_t disk_bytes = 0;
  for (const BlockDeviceOptions& device : options.nvme.devices) {
    disk_bytes += device.bytes;
    is_whole_device |= device.bytes == 0;
  }
  if (!options.nvme.devices.empty()) {
    const uint64_t most = for_blocks / 16;
    uint64_t index = is_whole_device ? most : std::min(std::max<uint64_t>(disk_bytes / 1536, 256 << 10), most);
    if (options.nvme_index_bytes != 0) index = options.nvme_index_bytes;
    plan.disk_bytes = std::min(IoBytes(options) + index, for_blocks - 2 * kLeastArena);
    for_blocks -= plan.disk_bytes;
  }
  // A share for staging, and 3 % for the tables of frames (they depend on the block size); what those need
  // beyond it comes out of segments nobody uses yet.
  plan.staging_bytes = StagingShare::BytesFor(for_blocks, options.client_staging_bytes);
  if (plan.staging_bytes < options.client_staging_bytes) {
    // A disk's index grows with the budget, too: a sixteenth of it at most.
    const uint64_t missing = StagingShare::BlockMemoryFor(options.client_staging_bytes) - for_blocks;
    constexpr uint64_t kRound = 16 << 20;
    plan.budget_for_staging_bytes = options.budget_bytes + (missing + missing / 8 + kRound - 1) / kRound * kRound;
  }
  plan.arena_bytes = (for_blocks - plan.staging_bytes) / 100 * 97;
  plan.arena_bytes = plan.arena_bytes / (2 * kv::kExtentBytes) * (2 * kv::kExtentBytes);
  plan.index_capacity = plan.arena_bytes / kv::kFrameAlign;
  const uint64_t buckets = plan.index_capacity * 5;
  const uint64_t misses = std::clamp<uint64_t>(plan.index_capacity * 2, 1 << 12, 1 << 20) * 4;
  // What the policies remember of blocks, of both classes: 32 bytes for each of four times as many.
  plan.expected_blocks = plan.arena_bytes / kTypicalBlockBytes;
  const uint64_t remembered = std::min(plan.expected_blocks * 4, std::max<uint64_t>(1 << 20, plan.expected_blocks / 4));
  plan.static_bytes = options.process_bytes + buckets + misses + remembered * 2 * 32;
  return plan;
}

}  // namespace terrace::tiering
