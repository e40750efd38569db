// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// WriteAllowance: bytes a day that may be written, spread over the day, and how long what is written stays.
#pragma once

#include <algorithm>
#include <cstdint>

namespace terrace::tiering {

// Owner: an admission policy. Threads: one at a time. What is not used for kSavedNs is lost.
class WriteAllowance {
 public:
  WriteAllowance(uint64_t capacity_bytes, uint64_t bytes_per_day)
      : capacity_bytes_(std::max<double>(static_cast<double>(capacity_bytes), 1)),
        bytes_per_ns_(static_cast<double>(bytes_per_day) / kDayNs),
        left_(bytes_per_ns_ * kSavedNs) {}

  bool is_limited() const { return bytes_per_ns_ > 0; }
  // Takes the bytes if they are there.
  bool TrySpend(uint64_t bytes, int64_t now_ns) {
    Earn(now_ns);
    const auto cost = static_cast<double>(bytes);
    if (is_limited() && left_ < cost) return false;
    left_ -= cost;
    written_ += cost;
    // The rate is that of the latest one to two fillings of the device.
    if (written_ >= 2 * capacity_bytes_) {
      written_ /= 2;
      begin_ns_ = now_ns - (now_ns - begin_ns_) / 2;
    }
    return true;
  }
  // Of what was taken: it was not needed.
  void GiveBack(uint64_t bytes) {
    left_ += static_cast<double>(bytes);
    written_ = std::max(written_ - static_cast<double>(bytes), 0.0);
  }
  // 1: all that may be saved up is there; 0: used up.
  double LeftRatio() const { return is_limited() ? left_ / (bytes_per_ns_ * kSavedNs) : 1; }
  int64_t StayNs(int64_t now_ns) const {
    if (written_ <= 0 || now_ns <= begin_ns_) return 0;
    const double stay = static_cast<double>(now_ns - begin_ns_) * capacity_bytes_ / written_;
    return static_cast<int64_t>(std::min(stay, kDayNs));
  }

 private:
  static constexpr double kDayNs = 86'400e9;
  static constexpr double kSavedNs = 3'600e9;  // an hour of writing too little may be caught up

  void Earn(int64_t now_ns) {
    if (last_ns_ < 0) begin_ns_ = last_ns_ = now_ns;
    const auto ns = static_cast<double>(std::max<int64_t>(now_ns - last_ns_, 0));
    left_ = std::min(left_ + ns * bytes_per_ns_, bytes_per_ns_ * kSavedNs);
    last_ns_ = now_ns;
  }

  const double capacity_bytes_, bytes_per_ns_;
  double left_;
  double written_ = 0;  // since begin_ns_
  int64_t begin_ns_ = 0, last_ns_ = -1;
};

}  // namespace terrace::tiering
