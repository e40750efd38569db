// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/retention.h"

#include <algorithm>

namespace terrace::client {
namespace {

constexpr uint8_t kMaxPriority = 7;

}  // namespace

Result ReadRetention(const terrace_retention* from, wire::Retention* out) {
  *out = {};
  if (from == nullptr) return {};
  if (from->done > 1) {
    return Fail(TERRACE_INVALID_ARGUMENT, "terrace_retention.done is %u, must be 0 or 1", from->done);
  }
  if (from->priority > kMaxPriority) {
    return Fail(TERRACE_INVALID_ARGUMENT, "terrace_retention.priority is %u, at most %u", from->priority,
                kMaxPriority);
  }
  *out = {from->reuse_after_ms, from->pin_ms, from->done, from->priority, 0};
  return {};
}

Result SendHints(Connection* connection, uint32_t key_space_id, const uint8_t* keys, uint32_t n,
                 const wire::Retention& retention) {
  const uint32_t most =
      std::clamp<uint32_t>(connection->welcome().max_keys, 1, wire::kMaxKeysPerMessage);
  for (uint32_t begin = 0; begin < n; begin += most) {
    wire::Hint hint{key_space_id, std::min(most, n - begin), retention, 0};
    Result sent = connection->Send(wire::Type::kHint,
                                   {{&hint, sizeof(hint)},
                                    {const_cast<uint8_t*>(keys + size_t{begin} * wire::kKeyBytes),
                                     size_t{hint.n_keys} * wire::kKeyBytes}},
                                   nullptr, Deadline{});
    if (!sent.ok()) return sent;
  }
  return {};
}

}  // namespace terrace::client
