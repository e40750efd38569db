// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// AdaptiveAdmission: what was used again is written; of what was used once as much as pays, heads of
// chains first.
#pragma once

#include <cstdint>

#include "tiering/policy/admission_policy.h"
#include "tiering/policy/ghost_list.h"
#include "tiering/policy/write_budget.h"

namespace terrace::tiering {

// A block is of use only with all blocks before it. So of the blocks used once those are written that lie
// less than `cutoff` blocks deep, and not those that the eviction policy thinks much less likely to be used
// again than most. The cutoff follows what comes of the writes: it falls while there are more than
// kWritesPerHit for each hit on NVMe, and rises while there are fewer, or while so many of the rejected are
// asked for again (ghost hits) that writing them would pay. Under a write budget it falls with what is left.
// Remembers as many rejected blocks as the tier holds, 4096 at least.
class AdaptiveAdmission final : public AdmissionPolicy {
 public:
  explicit AdaptiveAdmission(const AdmissionOptions& options);
  Decision Decide(const Candidate& candidate, int64_t now_ns) override;
  void OnStore(uint64_t fingerprint, int64_t now_ns) override;
  void OnHit(uint64_t fingerprint, int64_t now_ns) override;
  int64_t StayNs(int64_t now_ns) const override { return budget_.StayNs(now_ns); }
  Stats GetStats() const override { return {.ghost_hits = ghost_hits_, .open_ratio = open_ratio_}; }

 private:
  Decision Reject(const Candidate& candidate, Decision why);
  // Seen once so far: is it among those that are written now?
  bool IsWorthIt(const Candidate& candidate);
  void Adapt();

  WriteBudget budget_;
  GhostList rejected_, wanted_;
  double cutoff_;
  double mean_chance_ = 0;  // of blocks used once
  // Since some time, old ones fading.
  double writes_ = 0, hits_ = 0, rejections_ = 0, rejected_hits_ = 0;
  const double fade_writes_;
  uint32_t until_adapt_;
  uint64_t ghost_hits_ = 0;
  double open_ratio_ = 1;
};

}  // namespace terrace::tiering
