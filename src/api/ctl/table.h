// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Table: rows of text in aligned columns, for a terminal.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace terrace::ctl {

// Plain value. A column is right-aligned when all its cells but the header start with a digit.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : header_(std::move(header)) {}
  // REQUIRES: as many cells as the header.
  void Add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  // One line a row, header first, no trailing blanks. is_bold_header: with terminal codes.
  std::string ToText(bool is_bold_header) const;

 private:
  const std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;
};

// True when standard output is a terminal that shows colour and NO_COLOR (https://no-color.org) is unset.
bool StandardOutputHasColour();

// "1.5 GiB", "0 B": for people, rounded.
std::string HumanBytes(uint64_t bytes);
// "1,234,567".
std::string HumanCount(uint64_t count);
// "3d 4h", "5m 12s", "0.8s".
std::string HumanSeconds(double seconds);

// Control characters replaced: texts of clients must not steer the terminal.
std::string Printable(const std::string& text);

}  // namespace terrace::ctl
