// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What a client says of blocks' future, as the tiers take it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "absl/status/statusor.h"
#include "api/engine/packet_body.h"
#include "api/engine/wire.h"
#include "tiering/policy/retention.h"

namespace terrace::api {

// Durations become points in time; what is too far away is cut, what has no meaning is refused.
inline absl::StatusOr<tiering::RetentionHint> ToHint(const wire::Retention& retention, int64_t now_ns) {
  if (retention.done > 1 || retention.reserved != 0) return Malformed("retention");
  const auto at = [now_ns](uint32_t ms) {
    return ms == 0 ? 0 : now_ns + std::min(int64_t{ms} * 1'000'000, tiering::kMaxHintNs);
  };
  return tiering::RetentionHint{.reuse_at_ns = at(retention.reuse_after_ms),
                                .pin_until_ns = at(retention.pin_ms),
                                .done = retention.done != 0,
                                .priority = std::min(retention.priority, tiering::kMaxPriority)};
}

}  // namespace terrace::api
