// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "kvstore/base/check.h"

#include <cstdio>
#include <cstdlib>

namespace terrace::internal {

void CheckFailed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "level=fatal event=check_failed condition=\"%s\" at=%s:%d\n", condition, file,
               line);
  std::abort();
}

}  // namespace terrace::internal
