// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Locate and Hint for a TierStack that has no lower tier: a block is here or it is not, at once. Weak: the
// tier stack's own take their place.
#include "kvstore/base/status_macros.h"
#include "tiering/tier_stack.h"

namespace terrace::tiering {

__attribute__((weak)) absl::Status Session::Locate(kv::KeySpaceId key_space, std::span<const kv::BlockKey> keys,
                                                   int64_t, std::function<void(std::vector<BlockPlace>)> done) {
  ASSIGN_OR_RETURN(const LookupAnswer answer, Lookup(key_space, keys, LookupOptions{.mode = LookupMode::kAll}));
  if (answer.lease_id != 0) RETURN_IF_ERROR(Release(answer.lease_id));
  done(answer.places);
  return absl::OkStatus();
}

__attribute__((weak)) absl::StatusOr<uint32_t> Session::Hint(kv::KeySpaceId key_space,
                                                             std::span<const kv::BlockKey> keys,
                                                             const RetentionHint&) {
  ASSIGN_OR_RETURN(const LookupAnswer answer,
                   Lookup(key_space, keys, LookupOptions{.mode = LookupMode::kProbe, .lease = kNoLease}));
  return answer.n_here;
}

}  // namespace terrace::tiering
