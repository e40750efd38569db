// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// CHECK: assertions for our own bugs, on in every build. A failed one prints the place and aborts: a
// cache that doubts its own bookkeeping must not answer. Never used on input from outside.
#pragma once

namespace terrace::internal {
[[noreturn]] void CheckFailed(const char* condition, const char* file, int line);
}  // namespace terrace::internal

#define TERRACE_CHECK(condition)                                                  \
  (__builtin_expect(static_cast<bool>(condition), 1)                              \
       ? static_cast<void>(0)                                                     \
       : ::terrace::internal::CheckFailed(#condition, __FILE__, __LINE__))
