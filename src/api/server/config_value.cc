// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/server/config_value.h"

#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

namespace terrace::api {
namespace {

struct Unit {
  const char* suffix;
  double factor;
};

constexpr Unit kSizeUnits[] = {{"B", 1},
                               {"KiB", 1024.0},
                               {"MiB", 1024.0 * 1024},
                               {"GiB", 1024.0 * 1024 * 1024},
                               {"TiB", 1024.0 * 1024 * 1024 * 1024},
                               {"KB", 1e3},
                               {"MB", 1e6},
                               {"GB", 1e9},
                               {"TB", 1e12}};
constexpr Unit kDurationUnits[] = {{"ns", 1}, {"us", 1e3}, {"ms", 1e6}, {"s", 1e9}, {"m", 60e9}, {"h", 3600e9}};

// Splits "1.5GiB" into a number and its unit. False if there is no plain number in front: no sign,
// no exponent, no "inf".
bool SplitNumber(absl::string_view text, double* number, absl::string_view* unit) {
  text = absl::StripAsciiWhitespace(text);
  size_t n = 0;
  while (n < text.size() && (absl::ascii_isdigit(text[n]) || text[n] == '.')) ++n;
  *unit = absl::StripAsciiWhitespace(text.substr(n));
  return n > 0 && absl::SimpleAtod(text.substr(0, n), number);
}

}  // namespace

absl::StatusOr<uint64_t> ParseSize(absl::string_view text) {
  const char* const accepted = "a size such as 64GiB, 512MiB or 1073741824 (bytes)";
  uint64_t plain = 0;
  if (absl::ascii_isdigit(text.empty() ? ' ' : text[0]) && absl::SimpleAtoi(text, &plain)) return plain;
  double number = 0;
  absl::string_view unit;
  if (!SplitNumber(text, &number, &unit)) return absl::InvalidArgumentError(accepted);
  for (const Unit& candidate : kSizeUnits) {
    if (!absl::EqualsIgnoreCase(unit, candidate.suffix)) continue;
    const double bytes = number * candidate.factor;
    if (bytes >= 9.2e18 || bytes != std::floor(bytes)) break;
    return static_cast<uint64_t>(bytes);
  }
  return absl::InvalidArgumentError(accepted);
}

absl::StatusOr<int64_t> ParseDuration(absl::string_view text) {
  double number = 0;
  absl::string_view unit;
  if (SplitNumber(text, &number, &unit)) {
    for (const Unit& candidate : kDurationUnits) {
      if (unit != candidate.suffix) continue;
      const double ns = number * candidate.factor;
      if (ns >= 9.2e18) break;
      return static_cast<int64_t>(ns);
    }
  }
  return absl::InvalidArgumentError("a duration with its unit, such as 250ms, 30s, 5m or 2h");
}

absl::StatusOr<bool> ParseBool(absl::string_view text) {
  for (const char* yes : {"true", "yes", "on"}) {
    if (absl::EqualsIgnoreCase(text, yes)) return true;
  }
  for (const char* no : {"false", "no", "off"}) {
    if (absl::EqualsIgnoreCase(text, no)) return false;
  }
  return absl::InvalidArgumentError("true or false");
}

absl::StatusOr<uint64_t> ParseUint(absl::string_view text, uint64_t min, uint64_t max) {
  uint64_t value = 0;
  if (text.empty() || !absl::ascii_isdigit(text[0]) || !absl::SimpleAtoi(text, &value) || value < min ||
      value > max) {
    return absl::InvalidArgumentError(absl::StrCat("a whole number from ", min, " to ", max));
  }
  return value;
}

absl::StatusOr<double> ParseRatio(absl::string_view text) {
  double number = 0;
  absl::string_view unit;
  if (SplitNumber(text, &number, &unit) && (unit.empty() || unit == "%")) {
    if (unit == "%") number /= 100;
    if (number >= 0 && number <= 1) return number;
  }
  return absl::InvalidArgumentError("a ratio from 0 to 1, such as 0.8, or 80%");
}

absl::StatusOr<uint32_t> ParseMode(absl::string_view text) {
  uint32_t mode = 0;
  bool valid = !text.empty() && text.size() <= 4;
  for (const char c : text) {
    valid = valid && c >= '0' && c <= '7';
    mode = mode * 8 + static_cast<uint32_t>(c - '0');
  }
  if (!valid || mode > 0777) return absl::InvalidArgumentError("an octal file mode such as 0660");
  return mode;
}

std::string FormatSize(uint64_t bytes) {
  uint64_t value = bytes;
  int unit = 0;
  while (value != 0 && value % 1024 == 0 && unit < 4) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? absl::StrCat(bytes) : absl::StrCat(value, kSizeUnits[unit].suffix);
}

std::string FormatDuration(int64_t ns) {
  for (int i = 5; i > 0; --i) {
    const auto factor = static_cast<int64_t>(kDurationUnits[i].factor);
    if (ns != 0 && ns % factor == 0) return absl::StrCat(ns / factor, kDurationUnits[i].suffix);
  }
  return ns == 0 ? "0s" : absl::StrCat(ns, "ns");
}

std::string FormatMode(uint32_t mode) { return absl::StrFormat("%04o", mode); }

}  // namespace terrace::api
