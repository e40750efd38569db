// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Result: what a call inside libterrace came to: a status of terrace.h and, if it failed, a text that
// says what to do about it. libterrace links no Abseil, hence no absl::Status here.
#pragma once

#include <cstdint>
#include <string>

#include "api/client/terrace.h"

namespace terrace::client {

// A plain value. Threads: as any value. A miss is not a failure and never stands here.
struct [[nodiscard]] Result {
  terrace_status code = TERRACE_OK;
  std::string text;  // empty when ok

  bool ok() const { return code == TERRACE_OK; }
};

// printf-style; texts longer than 500 bytes are cut.
[[gnu::format(printf, 2, 3)]] Result Fail(terrace_status code, const char* format, ...);

// Keeps the text for terrace_error_text() of this thread and gives the code on to the C caller.
terrace_status Answer(const Result& result);
const char* LastErrorText();  // of this thread; never null

}  // namespace terrace::client
