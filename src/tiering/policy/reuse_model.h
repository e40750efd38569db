// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// ReuseModel: what a block is worth that was used so and so and has rested so long, learned from what
// became of blocks like it. Nothing is assumed of the workload but that it goes on for a while.
#pragma once

#include <cstdint>
#include <vector>

namespace terrace::tiering {

// Uses fall into kinds (which the policy defines); a kind belongs to a group of kinds. For each kind and
// span of age the model counts the rests that ended in it by a use and those that outlasted it. From both
// follows the chance of a use in each span and from these the worth: the most uses per second of room that
// keeping the block for any length of time can be expected to bring (the Gittins index). What is known of
// a kind only from few rests is filled up from its group, from all kinds, and at last from a chance that is
// equal for every doubling of the age, under which the longest rested is worth least: LRU.
// Old counts fade. Owner: a policy. Threads: one at a time. Limits: n_kinds x kSpans counters.
class ReuseModel {
 public:
  // Spans of age: below 2^kFirstBit ticks, then half octaves.
  static constexpr uint32_t kSpans = 44;

  // groups[kind]: group of the kind, below n_groups.
  ReuseModel(std::vector<uint8_t> groups, uint32_t n_groups);

  static uint32_t SpanOf(uint32_t age_ticks);
  // Upper ends of all spans but the last.
  static const std::vector<uint32_t>& Boundaries();

  void CountUse(uint8_t kind, uint32_t age_ticks) { ++used_[kind * kSpans + SpanOf(age_ticks)]; }
  void CountPassed(uint8_t kind, uint32_t span) { ++passed_[kind * kSpans + span]; }
  // Halves the weight of all that was counted so far.
  void Fade();
  // Computes the chances anew from the counts, and the worths of a kind when they are next asked for: while
  // nothing has to leave nobody asks. About a tenth of a millisecond, and some microseconds for each kind asked for.
  void Refresh();

  // Expected uses per tick and block; above 0.
  float Worth(uint8_t kind, uint32_t age_ticks) {
    if (worth_is_stale_[kind]) FillWorth(kind);
    return worth_[kind * kSpans + SpanOf(age_ticks)];
  }
  // Chance of a use before it has rested for until_ticks.
  double ChanceUntil(uint8_t kind, uint32_t age_ticks, uint32_t until_ticks) const;

 private:
  void FillWorth(uint32_t kind);

  const std::vector<uint8_t> groups_;
  const uint32_t n_groups_;
  const uint32_t n_kinds_;
  std::vector<float> used_, passed_;  // by kind and span
  std::vector<float> chance_, worth_;
  std::vector<uint8_t> worth_is_stale_;  // by kind
};

}  // namespace terrace::tiering
