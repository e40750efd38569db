// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Admission by a fixed rule, under the write budget: everything, or what was used twice.
#pragma once

#include <algorithm>

#include "tiering/policy/admission_policy.h"
#include "tiering/policy/ghost_list.h"
#include "tiering/policy/write_allowance.h"

namespace terrace::tiering {

class AdmitAll final : public AdmissionPolicy {
 public:
  explicit AdmitAll(const AdmissionOptions& options) : budget_(options.capacity_bytes, options.write_bytes_per_day) {}
  Decision Decide(const Candidate& candidate, std::span<const Candidate> before, int64_t now_ns) override {
    return budget_.TrySpend(BytesOf(candidate, before), now_ns) ? Decision::kAdmit : Decision::kRejectBudget;
  }
  void OnNotWritten(uint64_t /*blocks*/, uint64_t bytes) override { budget_.GiveBack(bytes); }
  void OnStore(uint64_t, int64_t) override {}
  void OnHit(uint64_t, int64_t) override {}
  int64_t StayNs(int64_t now_ns) const override { return budget_.StayNs(now_ns); }
  Stats GetStats() const override { return {}; }

 private:
  WriteAllowance budget_;
};

// What was used again in host memory, or was rejected and then stored anew. Remembers as many rejected
// blocks as the tier holds, 1024 at least.
class AdmitSecondUse final : public AdmissionPolicy {
 public:
  explicit AdmitSecondUse(const AdmissionOptions& options)
      : budget_(options.capacity_bytes, options.write_bytes_per_day),
        rejected_(std::max<uint64_t>(options.expected_blocks, 1024)),
        wanted_(std::max<uint64_t>(options.expected_blocks, 1024)) {}
  // Who uses a block uses those before it, so they are not asked about.
  Decision Decide(const Candidate& candidate, std::span<const Candidate> before, int64_t now_ns) override {
    if (candidate.uses == 0 && !wanted_.Contains(candidate.fingerprint)) {
      rejected_.Add(candidate.fingerprint);
      return Decision::kRejectOnce;
    }
    if (!budget_.TrySpend(BytesOf(candidate, before), now_ns)) return Decision::kRejectBudget;
    wanted_.Remove(candidate.fingerprint);
    return Decision::kAdmit;
  }
  void OnNotWritten(uint64_t /*blocks*/, uint64_t bytes) override { budget_.GiveBack(bytes); }
  void OnStore(uint64_t fingerprint, int64_t /*now_ns*/) override {
    if (!rejected_.Remove(fingerprint)) return;
    ++ghost_hits_;
    wanted_.Add(fingerprint);
  }
  void OnHit(uint64_t, int64_t) override {}
  int64_t StayNs(int64_t now_ns) const override { return budget_.StayNs(now_ns); }
  Stats GetStats() const override { return {.ghost_hits = ghost_hits_, .open_ratio = 0}; }

 private:
  WriteAllowance budget_;
  GhostList rejected_, wanted_;
  uint64_t ghost_hits_ = 0;
};

}  // namespace terrace::tiering
