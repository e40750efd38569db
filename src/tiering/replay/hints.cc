// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/replay/hints.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace terrace::tiering {
namespace {

// Not of the standard library, whose distributions differ from one to the next.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  double Uniform() {  // above 0, up to 1
    uint64_t x = state_ += 0x9E3779B97F4A7C15ull;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return static_cast<double>(((x ^ x >> 31) >> 11) + 1) * 0x1.0p-53;
  }
  double Normal() {
    const double radius = std::sqrt(-2 * std::log(Uniform()));
    return radius * std::cos(2 * std::numbers::pi * Uniform());
  }

 private:
  uint64_t state_;
};

}  // namespace

absl::StatusOr<HintOptions> HintOptions::Parse(absl::string_view text) {
  HintOptions options;
  if (text == "none") return options;
  if (absl::ConsumePrefix(&text, "noisy:")) {
    const std::vector<absl::string_view> parts = absl::StrSplit(text, ',');
    if (parts.size() == 2 && absl::SimpleAtod(parts[0], &options.share) &&
        absl::SimpleAtod(parts[1], &options.sigma) && options.share >= 0 && options.share <= 1 &&
        options.sigma >= 0 && options.sigma <= 10) {
      return options;
    }
  }
  return absl::InvalidArgumentError("hints must be none or noisy:SHARE,SIGMA with a share of 0 to 1");
}

HintSource::HintSource(const Trace& trace, const HintOptions& options) : trace_(trace) {
  if (options.share <= 0) return;
  next_uses_ = NextUses(trace);
  Random random(options.seed);
  for (size_t i = 0; i < trace.requests.size(); ++i) {
    const bool is_hinted = random.Uniform() <= options.share;
    const double factor = std::exp(options.sigma * random.Normal());
    factors_.push_back(is_hinted ? static_cast<float>(factor) : 0);
  }
}

RetentionHint HintSource::HintOf(uint32_t request, uint64_t reference) const {
  if (factors_.empty() || factors_[request] == 0) return {};
  const uint32_t next = next_uses_[reference];
  if (next == kNever) return {.done = true};
  const int64_t now_ns = trace_.requests[request].time_ns;
  const auto ahead_ns = static_cast<double>(trace_.requests[next].time_ns - now_ns) * factors_[request];
  const auto longest = static_cast<double>(kMaxHintNs);
  return {.reuse_at_ns = now_ns + 1 + static_cast<int64_t>(std::min(ahead_ns, longest))};
}

}  // namespace terrace::tiering
