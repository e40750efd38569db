// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/ctl/table.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace terrace::ctl {

std::string Table::ToText(bool is_bold_header) const {
  std::vector<size_t> widths;
  std::vector<bool> right;
  for (size_t column = 0; column < header_.size(); ++column) {
    size_t width = header_[column].size();
    bool is_right = !rows_.empty();
    for (const std::vector<std::string>& row : rows_) {
      width = std::max(width, row[column].size());
      is_right = is_right && !row[column].empty() && row[column].size() < 24 && absl::ascii_isdigit(row[column][0]);
    }
    widths.push_back(width);
    right.push_back(is_right);
  }
  const auto line = [&](const std::vector<std::string>& row) {
    std::string text;
    for (size_t column = 0; column < row.size(); ++column) {
      const std::string padding(widths[column] - row[column].size(), ' ');
      absl::StrAppend(&text, column == 0 ? "" : "  ", right[column] ? padding : "", row[column],
                      right[column] ? "" : padding);
    }
    while (!text.empty() && text.back() == ' ') text.pop_back();
    return text;
  };
  std::string text = is_bold_header ? absl::StrCat("\x1b[1m", line(header_), "\x1b[0m\n") : line(header_) + "\n";
  for (const std::vector<std::string>& row : rows_) absl::StrAppend(&text, line(row), "\n");
  return text;
}

bool StandardOutputHasColour() {
  const char* no_colour = std::getenv("NO_COLOR");
  const char* terminal = std::getenv("TERM");
  return isatty(STDOUT_FILENO) == 1 && (no_colour == nullptr || *no_colour == '\0') && terminal != nullptr &&
         std::strcmp(terminal, "dumb") != 0;
}

std::string HumanBytes(uint64_t bytes) {
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  auto value = static_cast<double>(bytes);
  int unit = 0;
  while (value >= 1024 && unit < 5) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? absl::StrCat(bytes, " B") : absl::StrFormat("%.1f %s", value, units[unit]);
}

std::string HumanCount(uint64_t count) {
  std::string text = absl::StrCat(count);
  for (size_t i = text.size(); i > 3; i -= 3) text.insert(i - 3, 1, ',');
  return text;
}

std::string HumanSeconds(double seconds) {
  if (seconds < 60) return absl::StrFormat("%.1fs", seconds);
  const auto s = static_cast<uint64_t>(seconds);
  if (s < 3600) return absl::StrFormat("%dm %ds", s / 60, s % 60);
  if (s < 86400) return absl::StrFormat("%dh %dm", s / 3600, s / 60 % 60);
  return absl::StrFormat("%dd %dh", s / 86400, s / 3600 % 24);
}

std::string Printable(const std::string& text) {
  std::string result = text;
  for (char& c : result) {
    if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) c = '?';
  }
  return result;
}

}  // namespace terrace::ctl
