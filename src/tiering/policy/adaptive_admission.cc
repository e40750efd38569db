// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/policy/adaptive_admission.h"

#include <algorithm>

namespace terrace::tiering {
namespace {

constexpr uint64_t kMinRemembered = 4096, kMaxRemembered = 1 << 24;
// The cutoff, in blocks, when every write is hit once; in proportion where it is less or more. More of it buys
// hits for writes, evenly (docs/decisions/0008): this much is about 1.4 writes a hit where half of all
// prompts come back.
constexpr double kReach = 23.5;
constexpr double kFirstHitsPerWrite = 0.5;
constexpr double kLeastCutoff = 1, kMostCutoff = AdmissionPolicy::kMaxDepth + 1;
constexpr double kLeftToFill = 0.5;  // of the write budget, while free room is filled
constexpr uint32_t kAdaptEvery = 64;  // candidates

}  // namespace

AdaptiveAdmission::AdaptiveAdmission(const AdmissionOptions& options)
    : budget_(options.capacity_bytes, options.write_bytes_per_day),
      rejected_(std::clamp(options.expected_blocks, kMinRemembered, kMaxRemembered)),
      wanted_(std::clamp(options.expected_blocks, kMinRemembered, kMaxRemembered)),
      cutoff_(kReach * kFirstHitsPerWrite),
      fade_writes_(static_cast<double>(std::max(options.expected_blocks, kMinRemembered))),
      until_adapt_(kAdaptEvery) {
  writes_ = fade_writes_ / 2;  // as if there had been some
  hits_ = writes_ * kFirstHitsPerWrite;
}

AdmissionPolicy::Decision AdaptiveAdmission::Reject(const Candidate& candidate, Decision why) {
  rejected_.Add(candidate.fingerprint);
  ++rejections_;
  return why;
}

bool AdaptiveAdmission::IsWorthIt(const Candidate& candidate) {
  if (candidate.reuse_chance >= 0) {
    mean_chance_ += (candidate.reuse_chance - mean_chance_) / 1024;
    if (candidate.reuse_chance < mean_chance_) return false;
  }
  return candidate.depth < cutoff_ * budget_.LeftRatio();
}

bool AdaptiveAdmission::IsWanted(const Candidate& candidate) const {
  return candidate.uses > 0 || wanted_.Contains(candidate.fingerprint);
}

bool AdaptiveAdmission::FillsRoom(const Candidate& candidate) const {
  return candidate.is_room_free && budget_.LeftRatio() >= kLeftToFill;
}

AdmissionPolicy::Decision AdaptiveAdmission::Decide(const Candidate& candidate, std::span<const Candidate> before,
                                                    int64_t now_ns) {
  if (--until_adapt_ == 0) Adapt();
  if (candidate.hint.done) return Reject(candidate, Decision::kRejectOnce);
  if (!IsWanted(candidate)) {
    const bool is_worth_it = IsWorthIt(candidate) || FillsRoom(candidate);
    open_ratio_ += ((is_worth_it ? 1.0 : 0.0) - open_ratio_) / 256;
    if (!is_worth_it) return Reject(candidate, Decision::kRejectOnce);
  }
  for (const Candidate& one : before) {
    const bool is_likely = one.reuse_chance < 0 || one.reuse_chance >= mean_chance_;
    const bool is_worth_it = !one.hint.done && (is_likely || IsWanted(one) || FillsRoom(one));
    if (!is_worth_it) return Reject(candidate, Decision::kRejectOnce);
  }
  if (!budget_.TrySpend(BytesOf(candidate, before), now_ns)) return Reject(candidate, Decision::kRejectBudget);
  wanted_.Remove(candidate.fingerprint);
  for (const Candidate& one : before) wanted_.Remove(one.fingerprint);
  writes_ += static_cast<double>(1 + before.size());
  return Decision::kAdmit;
}

void AdaptiveAdmission::OnNotWritten(uint64_t blocks, uint64_t bytes) {
  budget_.GiveBack(bytes);
  writes_ = std::max(writes_ - static_cast<double>(blocks), 0.0);
}

void AdaptiveAdmission::Adapt() {
  until_adapt_ = kAdaptEvery;
  cutoff_ = std::clamp(kReach * (hits_ + 1) / (writes_ + 1), kLeastCutoff, kMostCutoff);
  if (writes_ + rejections_ < fade_writes_) return;
  for (double* count : {&writes_, &hits_, &rejections_}) *count /= 2;
}

void AdaptiveAdmission::OnStore(uint64_t fingerprint, int64_t /*now_ns*/) {
  if (!rejected_.Remove(fingerprint)) return;
  ++ghost_hits_;
  wanted_.Add(fingerprint);
}

void AdaptiveAdmission::OnHit(uint64_t /*fingerprint*/, int64_t /*now_ns*/) { ++hits_; }

}  // namespace terrace::tiering
