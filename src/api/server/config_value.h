// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Texts of configuration values and back: sizes, durations, whole numbers, ratios, yes/no, file modes.
// Every error says what is accepted. Knows no key and no file.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace terrace::api {

// "1073741824", "512MiB", "64 GiB", "1.5GiB", "10GB" (decimal). Bytes.
absl::StatusOr<uint64_t> ParseSize(absl::string_view text);
// "250ms", "30s", "5m", "2h". Nanoseconds; a number without a unit is refused.
absl::StatusOr<int64_t> ParseDuration(absl::string_view text);
// "true", "yes", "on" and their opposites.
absl::StatusOr<bool> ParseBool(absl::string_view text);
absl::StatusOr<uint64_t> ParseUint(absl::string_view text, uint64_t min, uint64_t max);
// "0.8" or "80%", between 0 and 1.
absl::StatusOr<double> ParseRatio(absl::string_view text);
// Octal permission bits: "0660", "660".
absl::StatusOr<uint32_t> ParseMode(absl::string_view text);

// Shortest exact text, as the parsers accept it.
std::string FormatSize(uint64_t bytes);
std::string FormatDuration(int64_t ns);
std::string FormatMode(uint32_t mode);

}  // namespace terrace::api
