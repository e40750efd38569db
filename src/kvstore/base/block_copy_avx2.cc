// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#define TERRACE_COPY_NAMESPACE copy_avx2
#include "kvstore/base/block_copy_loop.h"
