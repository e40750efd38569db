// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Report: what was measured, as JSON lines or as a table, and whether the targets were reached.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace terrace::bench {

// One JSON object under construction. Values are written as they come; keys are our own and plain.
class JsonLine {
 public:
  JsonLine& Text(absl::string_view key, absl::string_view value);
  JsonLine& Number(absl::string_view key, double value);  // six significant digits
  std::string Done() const { return "{" + body_ + "}"; }

 private:
  void Key(absl::string_view key);
  std::string body_;
};

// The figures of one case. Pairs come from one round each, ours and the limit right after one another.
struct Measurement {
  std::string name;   // as in the table of docs/benchmarks.md
  std::string what;   // one line for humans
  std::string unit;
  std::vector<double> values, limits;  // one a round; limits may be empty
  std::string limit_name;              // what the limit is, e.g. "memcpy"
  // Whether value / limit must stay below the target (true) or above it. The ratio is the median of the
  // rounds' ratios, so that what else the machine does falls on both sides.
  bool lower_is_better = false;
  double target = 0, aim = 0;  // of the ratio, or of the value where target_is_absolute. 0: none
  bool target_is_absolute = false;
  std::string note;
  std::vector<std::pair<std::string, double>> more;  // further figures, by key
};

// Owner: main. Threads: one. Writes to stdout at once, so that a run that is cut off leaves what it had.
class Report {
 public:
  explicit Report(bool json) : json_(json) {}

  void Machine(absl::string_view version);
  // A line of facts about what is measured.
  void Note(absl::string_view name, const std::vector<std::pair<std::string, std::string>>& facts);
  // others_cpu: cores that processes of others kept busy meanwhile.
  void Add(const Measurement& measurement, double others_cpu);
  // A case that could not be measured, and why.
  void Skip(absl::string_view name, absl::string_view why);

  bool all_targets_reached() const { return missed_ == 0; }

 private:
  const bool json_;
  int missed_ = 0;
};

}  // namespace terrace::bench
