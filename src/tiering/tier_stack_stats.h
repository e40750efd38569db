// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What operators see of a TierStack.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gpu/gpus.h"
#include "kvstore/block_key.h"
#include "kvstore/key_space.h"
#include "tiering/nvme/nvme_tier.h"
#include "tiering/policy/retention.h"

namespace terrace::tiering {

// A block as an operator sees it.
struct BlockInfo {
  kv::BlockKey key;
  const kv::KeySpace* key_space = nullptr;
  uint64_t payload_bytes = 0;
  uint64_t generation = 0;
  uint32_t pins = 0;
  bool has_children = false;
  std::string tier;  // "host", "nvme"
};

struct TierUsage {
  std::string tier;  // "host", first; "nvme"; "gpu", where gpu.tier_bytes asks for it
  uint64_t capacity_bytes = 0, used_bytes = 0, pinned_bytes = 0, blocks = 0;
  TierState state = TierState::kOnline;
  std::string detail;  // why it is not online; progress of recovery
};
// One GPU as an operator sees it.
struct GpuUsage {
  gpu::GpuInfo info;
  absl::Status health;  // OK, or why it is out of service and what to do
  gpu::CopyEngineStats copies;
  uint64_t tier_capacity_bytes = 0, tier_used_bytes = 0, tier_blocks = 0;  // of its GPU tier
};
struct ClassUsage {
  uint64_t floor_bytes = 0, used_bytes = 0, blocks = 0;
};

struct TierStackStats {
  std::vector<TierUsage> tiers;
  uint64_t budget_bytes = 0, budget_used_bytes = 0;  // used: what is charged, staging and tables included
  uint64_t sessions = 0, leases = 0, key_spaces = 0;
  uint64_t index_bytes = 0;
  uint64_t prefaulted_bytes = 0;  // progress of the background page faults
  ClassUsage classes[kBlockClasses];
  std::optional<NvmeTier::Stats> nvme;
  std::string policy;             // what decides now; see EvictionPolicy::Stats
  double host_recovery_ratio = 1.0;  // below 1: blocks of the last process are still being taken over
  uint64_t recovered_blocks = 0;     // taken over so far, host tier
  std::vector<GpuUsage> gpus;
  std::string why_no_gpu;            // when there are none
  uint64_t host_regions = 0, gpu_regions = 0;  // open
};

struct VerifyReport {
  uint64_t blocks = 0, bytes = 0, corrupt = 0;
  uint64_t corrupt_on_disk = 0;  // of these
};

}  // namespace terrace::tiering
