// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What a cache could reach at best: with no limit, and with a limit and knowledge of the future.
#pragma once

#include <cstdint>

#include "tiering/replay/replay_result.h"
#include "tiering/replay/trace.h"

namespace terrace::tiering {

// Every block is kept for ever.
ReplayResult ReplayInfinite(const Trace& trace, const ReplayBlocks& blocks);

// Belady: of what is here and what was just computed, the capacity_blocks that are used soonest are kept
// (what is not worth its place is not stored). A parent is never used later than its child, and of equals
// the deeper goes first, so that chains stay whole.
ReplayResult ReplayBelady(const Trace& trace, const ReplayBlocks& blocks, uint64_t capacity_blocks);

}  // namespace terrace::tiering
