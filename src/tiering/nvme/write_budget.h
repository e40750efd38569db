// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// WriteBudget: how many bytes may be written to a disk, so that no 24 hours see more than a day's share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kvstore/base/mutex.h"

namespace terrace::tiering {

// A token bucket that holds an eighth of a day's share and fills with the other seven eighths over the
// day: together never more than the share in any 24 hours. Owner: NvmeStore. Threads: any.
// Limits: the level may go below zero for what has to be written (tables, state).
class WriteBudget {
 public:
  explicit WriteBudget(uint64_t bytes_per_day)
      : per_day_(static_cast<double>(bytes_per_day)), level_(per_day_ / 8) {}

  bool limited() const { return per_day_ > 0; }
  bool TrySpend(uint64_t bytes, int64_t now_ns) {
    if (!limited()) return true;
    MutexLock lock(&mu_);
    FillLocked(now_ns);
    if (level_ < static_cast<double>(bytes)) return false;
    level_ -= static_cast<double>(bytes);
    return true;
  }
  void Charge(uint64_t bytes) {
    MutexLock lock(&mu_);
    level_ -= static_cast<double>(bytes);
  }
  void Refund(uint64_t bytes) {
    MutexLock lock(&mu_);
    level_ += static_cast<double>(bytes);
  }
  int64_t Level(int64_t now_ns) {
    MutexLock lock(&mu_);
    FillLocked(now_ns);
    return static_cast<int64_t>(level_);
  }
  // What an earlier life of the daemon left; not more than what is there now.
  void LowerTo(int64_t level) {
    MutexLock lock(&mu_);
    level_ = std::min(level_, static_cast<double>(level));
  }

 private:
  void FillLocked(int64_t now_ns) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (last_ns_ != 0) {
      level_ += per_day_ * 7 / 8 * static_cast<double>(now_ns - last_ns_) / 86'400e9;
      level_ = std::min(level_, per_day_ / 8);
    }
    last_ns_ = now_ns;
  }

  const double per_day_;
  mutable Mutex mu_;
  double level_ ABSL_GUARDED_BY(mu_);
  int64_t last_ns_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace terrace::tiering
