// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// HintSource: what clients would say of the future, made from the trace with noise.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tiering/policy/retention.h"
#include "tiering/replay/trace.h"

namespace terrace::tiering {

// A request is hinted with probability `share`, and then all its blocks are: with their next use, all
// of a request too early or too late by one factor (log-normal with `sigma`), or `done`.
struct HintOptions {
  double share = 0, sigma = 0;
  uint64_t seed = 1;
  // "none" or "noisy:SHARE,SIGMA", e.g. "noisy:0.5,0.5".
  static absl::StatusOr<HintOptions> Parse(absl::string_view text);
};

// Threads: one. The trace must outlive it.
class HintSource {
 public:
  HintSource(const Trace& trace, const HintOptions& options);
  // Of the trace's reference number `reference`, which belongs to request number `request`.
  RetentionHint HintOf(uint32_t request, uint64_t reference) const;

 private:
  const Trace& trace_;
  std::vector<uint32_t> next_uses_;
  std::vector<float> factors_;  // by request; 0: not hinted
};

}  // namespace terrace::tiering
