// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/policy/arc_policy.h"

namespace terrace::tiering {

uint32_t ArcPolicy::ListOfNew(BlockId block, const Insert& insert) {
  fingerprints_[block] = insert.fingerprint;
  const auto once = static_cast<double>(lost_once_.size()), often = static_cast<double>(lost_often_.size());
  if (lost_once_.Remove(insert.fingerprint)) {
    once_target_ = std::min(Held(), once_target_ + std::max(1.0, often / once));
  } else if (lost_often_.Remove(insert.fingerprint)) {
    once_target_ = std::max(0.0, once_target_ - std::max(1.0, once / often));
  } else {
    return kOnce;
  }
  ++ghost_hits_;
  return kOften;
}

void ArcPolicy::OnGone(BlockId block, uint32_t list, bool evicted) {
  if (!evicted) return;
  // Once: here and lost together as many as are held; in all twice as many.
  const uint64_t held = lists_.Size(kOnce) + lists_.Size(kOften) + 1;
  GhostList& lost = list == kOnce ? lost_once_ : lost_often_;
  lost.Add(fingerprints_[block]);
  lost_once_.SetLimit(held - std::min(held - 1, lists_.Size(kOnce)));
  lost_often_.SetLimit(2 * held - std::min(held, lists_.Size(kOften) + lists_.Size(kOnce) + lost_once_.size()));
}

BlockId ArcPolicy::Victim(absl::FunctionRef<bool(BlockId)> allowed, int64_t /*now_ns*/) {
  const auto once = static_cast<double>(lists_.Size(kOnce));
  const uint32_t first = once > 0 && once > once_target_ ? kOnce : kOften;
  const BlockId block = lists_.FindCold(first, allowed);
  return block != kNoBlock ? block : lists_.FindCold(1 - first, allowed);
}

}  // namespace terrace::tiering
