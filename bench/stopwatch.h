// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Time and order statistics of the measurements.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <vector>

namespace terrace::bench {

inline double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The value below which the share q of the samples lies. REQUIRES: samples is not empty.
inline double Quantile(std::vector<double> samples, double q) {
  const auto at = static_cast<size_t>(q * static_cast<double>(samples.size() - 1) + 0.5);
  std::nth_element(samples.begin(), samples.begin() + static_cast<std::ptrdiff_t>(at), samples.end());
  return samples[at];
}
inline double Median(const std::vector<double>& samples) { return Quantile(samples, 0.5); }

// Seconds that fn takes.
template <typename Fn>
double TimeOf(const Fn& fn) {
  const double begun = Seconds();
  fn();
  return Seconds() - begun;
}

}  // namespace terrace::bench
