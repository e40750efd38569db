// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Locate: asks the daemon where blocks are that were on their way when they were looked up.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "api/client/connection.h"
#include "api/client/op.h"
#include "api/engine/wire.h"

namespace terrace::client {

// One question for the leading blocks of a run. Owner: the asker.
class LocateRequest : public Request {
 public:
  // The daemon answers when the first block is settled, or after wait_ns.
  Result Send(Connection* connection, uint32_t key_space_id, std::span<const KeyBytes> keys, int64_t wait_ns,
              Deadline deadline);
  // REQUIRES: done and result().ok(). At least one; a first one that is still kPending: the time was up.
  const std::vector<wire::Ref>& refs() const { return refs_; }

 private:
  Result OnReply(Reply& reply) override;
  uint32_t n_keys_ = 0;
  std::vector<wire::Ref> refs_;
};

// Waits for one block's place, at most until the deadline; kPending then.
Result LocateOne(Connection* connection, uint32_t key_space_id, const uint8_t key[32], Deadline deadline,
                 wire::Ref* place);

}  // namespace terrace::client
