// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// RETURN_IF_ERROR and ASSIGN_OR_RETURN, named as in newer Abseil so that they can be dropped for it.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define TERRACE_CONCAT_INNER(a, b) a##b
#define TERRACE_CONCAT(a, b) TERRACE_CONCAT_INNER(a, b)

#define RETURN_IF_ERROR(expression)                  \
  do {                                               \
    if (absl::Status status_macro_ = (expression); !status_macro_.ok()) return status_macro_; \
  } while (false)

#define ASSIGN_OR_RETURN(lhs, expression) \
  ASSIGN_OR_RETURN_IMPL(TERRACE_CONCAT(status_or_, __LINE__), lhs, expression)
#define ASSIGN_OR_RETURN_IMPL(name, lhs, expression) \
  auto name = (expression);                          \
  if (!name.ok()) return std::move(name).status();   \
  lhs = std::move(name).value()
