// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// AdaptiveAdmission: what was used again is written; of what was used once as much as pays, heads of
// chains first; and whatever comes, while there is room that holds nothing.
#pragma once

#include <cstdint>

#include "tiering/policy/admission_policy.h"
#include "tiering/policy/ghost_list.h"
#include "tiering/policy/write_allowance.h"

namespace terrace::tiering {

// A block is of use only with all blocks before it. So of the blocks used once those are written that lie
// less than a cutoff deep, but not those that the eviction policy thinks less likely to be used again than
// the mean of them. The cutoff is proportional to the hits on NVMe that a write brought lately: where
// writes pay, more is written; where they do not (scans, a tier too small for the rests between uses),
// little. Under a write budget it also falls with what is left of that.
// A disk that is not full yet takes everything but what is done with, as long as half of the write budget
// is left: it takes the place of nothing, and costs endurance once a disk.
// A chain is written as a whole: a block is rejected if one before it that would have to be written with it
// is not worth it by itself.
// A rejected block that is asked for again (a ghost hit) is written when it leaves the next time.
// Remembers as many rejected blocks as the tier holds, 4096 at least.
class AdaptiveAdmission final : public AdmissionPolicy {
 public:
  explicit AdaptiveAdmission(const AdmissionOptions& options);
  Decision Decide(const Candidate& candidate, std::span<const Candidate> before, int64_t now_ns) override;
  void OnNotWritten(uint64_t blocks, uint64_t bytes) override;
  void OnStore(uint64_t fingerprint, int64_t now_ns) override;
  void OnHit(uint64_t fingerprint, int64_t now_ns) override;
  int64_t StayNs(int64_t now_ns) const override { return budget_.StayNs(now_ns); }
  Stats GetStats() const override { return {.ghost_hits = ghost_hits_, .open_ratio = open_ratio_}; }

 private:
  Decision Reject(const Candidate& candidate, Decision why);
  // Used again, or missed.
  bool IsWanted(const Candidate& candidate) const;
  // Seen once so far: is it among those that are written now?
  bool IsWorthIt(const Candidate& candidate);
  // Not worth it, but there is room for it all the same.
  bool FillsRoom(const Candidate& candidate) const;
  void Adapt();

  WriteAllowance budget_;
  GhostList rejected_, wanted_;
  double cutoff_;           // blocks
  double mean_chance_ = 0;  // of blocks used once
  // Since some time, old ones fading.
  double writes_ = 0, hits_ = 0, rejections_ = 0;
  const double fade_writes_;
  uint32_t until_adapt_;
  uint64_t ghost_hits_ = 0;
  double open_ratio_ = 1;
};

}  // namespace terrace::tiering
