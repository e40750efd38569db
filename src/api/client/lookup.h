// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The lookup: all parts in one round trip (chains longer than one message: one more for each further
// 4096 keys), leased as they are found.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "api/client/deadline.h"
#include "api/client/key_space.h"
#include "api/client/link.h"
#include "api/client/result.h"
#include "api/client/stats.h"

namespace terrace::client {

// One part with its key space resolved. A plain value.
struct LookupQuestion {
  terrace_lookup_part* part;
  const KeySpace* key_space;
};

// A plain value.
struct LookupFlags {
  bool lease = true;
  bool may_wait = false;  // blocks of lower tiers count as here, pending
};

// Fills in all parts. On failure every count is 0, every reason UNAVAILABLE, and nothing stays leased.
// REQUIRES: the parts were checked.
Result RunLookup(Link* link, Stats* stats, std::span<const LookupQuestion> questions,
                 LookupFlags flags, Deadline deadline);

}  // namespace terrace::client
