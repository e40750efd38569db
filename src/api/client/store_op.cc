// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/store_op.h"

#include <cstring>

namespace terrace::client {

void StoreOp::EndBlock(uint32_t i, Reason reason) {
  Stats& stats = *work.stats;
  SetReason(i, reason);
  stats.AddReason(reason);
  if (reason == Reason::kNone) {
    Stats::Add(stats.store_blocks, 1);
    Stats::Add(stats.store_bytes, work.key_space->block_bytes());
  } else {
    Stats::Add(reason == Reason::kDuplicate ? stats.store_duplicate_blocks : stats.store_failed_blocks,
               1);
  }
  Finish(1);
}

Result PutRequest::OnReply(Reply& reply) {
  if (!reply.Read(&answer_) || answer_.reason >= kReasonCount) {
    return Fail(TERRACE_INTERNAL, "the daemon's answer to a store has the wrong form");
  }
  return {};
}

Reason PutRequest::FinalReason() const {
  if (result().ok()) return static_cast<Reason>(answer_.reason);
  if (error_reason() > 0 && error_reason() < kReasonCount) {
    return static_cast<Reason>(error_reason());
  }
  return result().code == TERRACE_RESOURCE_EXHAUSTED ? Reason::kOverload : Reason::kUnavailable;
}

Result DuplicatesRequest::OnReply(Reply& reply) {
  wire::LookupDone done;
  if (!reply.Read(&done) || done.n_refs != count_ ||
      reply.body.size() != sizeof(done) + done.n_refs * sizeof(wire::Ref)) {
    return Fail(TERRACE_INTERNAL, "the daemon's answer to a lookup has the wrong form");
  }
  for (uint32_t i = 0; i < count_; ++i) {
    wire::Ref ref;
    std::memcpy(&ref, reply.body.data() + sizeof(done) + i * sizeof(ref), sizeof(ref));
    (*here_)[begin_ + i] = ref.reason == 0;
  }
  return {};
}

}  // namespace terrace::client
