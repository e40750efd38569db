// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/policy/reuse_model.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace terrace::tiering {
namespace {

constexpr uint32_t kFirstBit = 6;  // 2^6 ticks: 67 ms
// With nothing known: one block in fifty is used in each half octave of its age.
constexpr float kPriorChance = 0.02f;
// So many rests weigh as much as what is known of all kinds (for a group) and of the group (for a kind).
// Blocks come in chains that are used together: 32 rests are two or three chains only.
constexpr float kPriorRests = 32;
// Ages are alike, and so is what is known of them: a span counts its neighbours, the nearest most.
constexpr uint32_t kNeighbours = 4;

// Ticks of each span.
const std::vector<double>& Widths() {
  static const std::vector<double> kWidths = [] {
    std::vector<double> ticks = {1u << kFirstBit};
    for (uint32_t span = 1; span < ReuseModel::kSpans; ++span) {
      ticks.push_back((1u << kFirstBit) * (std::exp2(span / 2.0) - std::exp2((span - 1) / 2.0)));
    }
    return ticks;
  }();
  return kWidths;
}

float Smooth(const float* counts, uint32_t span) {
  float sum = counts[span];
  for (uint32_t d = 1; d <= kNeighbours; ++d) {
    const float weight = 1 - static_cast<float>(d) / (kNeighbours + 1);
    if (span >= d) sum += weight * counts[span - d];
    if (span + d < ReuseModel::kSpans) sum += weight * counts[span + d];
  }
  return sum;
}

float Blend(float use, float rest, float prior_rests, float prior) {
  return (use + prior_rests * prior) / (rest + prior_rests);
}

}  // namespace

ReuseModel::ReuseModel(std::vector<uint8_t> groups, uint32_t n_groups)
    : groups_(std::move(groups)),
      n_groups_(n_groups),
      n_kinds_(static_cast<uint32_t>(groups_.size())),
      used_(n_kinds_ * kSpans, 0),
      passed_(n_kinds_ * kSpans, 0),
      chance_(n_kinds_ * kSpans, 0),
      worth_(n_kinds_ * kSpans, 0),
      worth_is_stale_(n_kinds_) {
  Refresh();
}

uint32_t ReuseModel::SpanOf(uint32_t age_ticks) {
  if (age_ticks < 1u << kFirstBit) return 0;
  const auto octave = static_cast<uint32_t>(std::bit_width(age_ticks)) - 1;
  // The square root of two divides the octave.
  const bool is_upper = static_cast<uint64_t>(age_ticks) * age_ticks >= 1ull << (2 * octave + 1);
  return std::min(1 + 2 * (octave - kFirstBit) + is_upper, kSpans - 1);
}

const std::vector<uint32_t>& ReuseModel::Boundaries() {
  static const std::vector<uint32_t> kBoundaries = [] {
    std::vector<uint32_t> ends;
    for (uint32_t span = 0; span + 1 < kSpans; ++span) {
      ends.push_back(static_cast<uint32_t>(std::ceil((1u << kFirstBit) * std::exp2(span / 2.0))));
    }
    return ends;
  }();
  return kBoundaries;
}

void ReuseModel::Fade() {
  for (float& count : used_) count /= 2;
  for (float& count : passed_) count /= 2;
}

void ReuseModel::Refresh() {
  // Row 0: all kinds; then the groups; then the kinds.
  const uint32_t first_kind = 1 + n_groups_;
  std::vector<float> used((first_kind + n_kinds_) * kSpans, 0), rests(used);
  for (uint32_t kind = 0; kind < n_kinds_; ++kind) {
    for (uint32_t span = 0; span < kSpans; ++span) {
      const float use = Smooth(&used_[kind * kSpans], span);
      const float rest = use + Smooth(&passed_[kind * kSpans], span);
      for (const uint32_t row : {0u, 1u + groups_[kind], first_kind + kind}) {
        used[row * kSpans + span] += use;
        rests[row * kSpans + span] += rest;
      }
    }
  }
  for (uint32_t kind = 0; kind < n_kinds_; ++kind) {
    const uint32_t group = (1 + groups_[kind]) * kSpans, self = (first_kind + kind) * kSpans;
    for (uint32_t span = 0; span < kSpans; ++span) {
      float chance = Blend(used[span], rests[span], kPriorRests, kPriorChance);
      chance = Blend(used[group + span], rests[group + span], kPriorRests, chance);
      chance_[kind * kSpans + span] = Blend(used[self + span], rests[self + span], kPriorRests, chance);
    }
    worth_is_stale_[kind] = 1;
  }
}

void ReuseModel::FillWorth(uint32_t kind) {
  worth_is_stale_[kind] = 0;
  const std::vector<double>& widths = Widths();
  const float* chance = &chance_[kind * kSpans];
  for (uint32_t from = 0; from < kSpans; ++from) {
    double left = 1, uses = 0, time = 0, best = 0;
    for (uint32_t span = from; span < kSpans; ++span) {
      // On average half of the span it is in is over.
      const double width = span == from ? widths[span] / 2 : widths[span];
      uses += left * chance[span];
      time += left * (1 - chance[span] / 2) * width;
      left *= 1 - chance[span];
      if (uses > best * time) best = uses / time;
    }
    worth_[kind * kSpans + from] = static_cast<float>(best);
  }
}

double ReuseModel::ChanceUntil(uint8_t kind, uint32_t age_ticks, uint32_t until_ticks) const {
  double left = 1;
  const uint32_t last = SpanOf(until_ticks);
  for (uint32_t span = SpanOf(age_ticks); span <= last; ++span) left *= 1 - chance_[kind * kSpans + span];
  return 1 - left;
}

}  // namespace terrace::tiering
