// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/policy/adaptive_admission.h"

#include <algorithm>
#include <cstdlib>

namespace terrace::tiering {
namespace {

constexpr uint64_t kMinRemembered = 4096, kMaxRemembered = 1 << 24;
// Without a budget: half of what is written may be for nothing.
static const double kWritesPerHit = getenv("WH") ? atof(getenv("WH")) : 2;
// A block is much less likely to be used than most below this share of their mean chance.
static const double kUnlikely = getenv("UL") ? atof(getenv("UL")) : 0.75;
constexpr double kLeastCutoff = 1, kMostCutoff = AdmissionPolicy::kMaxDepth + 1;
constexpr uint32_t kAdaptEvery = 64;  // candidates
static const double kStep = getenv("ST") ? atof(getenv("ST")) : 1.03;

}  // namespace

AdaptiveAdmission::AdaptiveAdmission(const AdmissionOptions& options)
    : budget_(options.capacity_bytes, options.write_bytes_per_day),
      rejected_(std::clamp(options.expected_blocks, kMinRemembered, kMaxRemembered)),
      wanted_(std::clamp(options.expected_blocks, kMinRemembered, kMaxRemembered)),
      cutoff_(getenv("C0")?atof(getenv("C0")):kMostCutoff),
      fade_writes_(static_cast<double>(std::max(options.expected_blocks, kMinRemembered))*(getenv("FW")?atof(getenv("FW")):1)),
      until_adapt_(kAdaptEvery) { writes_=fade_writes_/2; hits_=writes_/kWritesPerHit; }

AdmissionPolicy::Decision AdaptiveAdmission::Reject(const Candidate& candidate, Decision why) {
  rejected_.Add(candidate.fingerprint);
  ++rejections_;
  return why;
}

bool AdaptiveAdmission::IsWorthIt(const Candidate& candidate) {
  if (candidate.reuse_chance >= 0) {
    mean_chance_ += (candidate.reuse_chance - mean_chance_) / 1024;
    if (candidate.reuse_chance < kUnlikely * mean_chance_) return false;
  }
  return candidate.depth < cutoff_ * budget_.LeftRatio();
}

AdmissionPolicy::Decision AdaptiveAdmission::Decide(const Candidate& candidate, int64_t now_ns) {
  if (--until_adapt_ == 0) Adapt();
  if (candidate.hint.done) return Reject(candidate, Decision::kRejectOnce);
  if (candidate.uses == 0 && !wanted_.Contains(candidate.fingerprint)) {
    const bool is_worth_it = IsWorthIt(candidate);
    open_ratio_ += ((is_worth_it ? 1.0 : 0.0) - open_ratio_) / 256;
    if (!is_worth_it) return Reject(candidate, Decision::kRejectOnce);
  }
  if (!budget_.TrySpend(candidate.bytes, now_ns)) return Reject(candidate, Decision::kRejectBudget);
  wanted_.Remove(candidate.fingerprint);
  ++writes_;
  return Decision::kAdmit;
}

void AdaptiveAdmission::Adapt() {
  until_adapt_ = kAdaptEvery;
  const bool would_pay = rejected_hits_ * kWritesPerHit > rejections_;
  const bool pays = hits_ * kWritesPerHit >= writes_;
  cutoff_ = std::clamp(pays || would_pay ? cutoff_ * kStep : cutoff_ / kStep, kLeastCutoff, kMostCutoff);
  if (writes_ + rejections_ < fade_writes_) return;
  for (double* count : {&writes_, &hits_, &rejections_, &rejected_hits_}) *count /= 2;
}

void AdaptiveAdmission::OnStore(uint64_t fingerprint, int64_t /*now_ns*/) {
  if (!rejected_.Remove(fingerprint)) return;
  ++ghost_hits_;
  ++rejected_hits_;
  wanted_.Add(fingerprint);
}

void AdaptiveAdmission::OnHit(uint64_t /*fingerprint*/, int64_t /*now_ns*/) { ++hits_; }

}  // namespace terrace::tiering
