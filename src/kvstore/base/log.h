// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Structured log lines on standard error: one event a line, key=value (logfmt) or JSON. No payloads,
// no full keys: a key is shown by its first 8 hex digits.
//
//   Log(LogLevel::kWarning, "tenant_refused", {{"tenant", name}, {"uid", uid}});
//
// Threads: any. Limits: an event name that repeats more than 20 times in a second is counted instead
// and the count is shown with the next line of that name.
#pragma once

#include <initializer_list>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace terrace {

enum class LogLevel { kDebug, kInfo, kWarning, kError };
enum class LogFormat { kLogfmt, kJson };

struct LogField {
  template <typename T>
  LogField(absl::string_view field_name, const T& field_value)  // NOLINT: many fields a line
      : name(field_name), value(absl::StrCat(field_value)), is_number(std::is_arithmetic_v<T>) {}
  absl::string_view name;
  std::string value;
  bool is_number;  // written without quotes in JSON
};

void SetLogLevel(LogLevel level);    // default kInfo
void SetLogFormat(LogFormat format); // default logfmt
void Log(LogLevel level, absl::string_view event, std::initializer_list<LogField> fields = {});

}  // namespace terrace
