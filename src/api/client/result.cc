// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/result.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace terrace::client {
namespace {

// A plain array: nothing to destroy when a thread or the process ends.
thread_local char last_error_text[512] = "";

}  // namespace

Result Fail(terrace_status code, const char* format, ...) {
  char text[501];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  return {code, text};
}

terrace_status Answer(const Result& result) {
  if (!result.ok()) {
    const size_t bytes = std::min(result.text.size(), sizeof(last_error_text) - 1);
    std::memcpy(last_error_text, result.text.data(), bytes);
    last_error_text[bytes] = '\0';
  }
  return result.code;
}

const char* LastErrorText() { return last_error_text; }

}  // namespace terrace::client
