// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// StoreOp: blocks on their way from the caller's memory to the daemon; and the requests they become.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "api/client/connection.h"
#include "api/client/op.h"

namespace terrace::client {

// Owner, threads: as Op; its blocks are taken by the store thread only.
class StoreOp : public Op {
 public:
  // parent: of the first block. independent: no block has a parent.
  StoreOp(Work op_work, std::optional<KeyBytes> parent, bool independent,
          const wire::Retention& blocks_retention)
      : Op(std::move(op_work)),
        retention(blocks_retention),
        parent_(parent),
        independent_(independent) {}

  const KeyBytes* ParentOf(uint32_t i) const {
    if (independent_) return nullptr;
    if (i > 0) return &work.keys[i - 1];
    return parent_.has_value() ? &*parent_ : nullptr;
  }
  // Ends one block: its reason and its share of the counters.
  void EndBlock(uint32_t i, Reason reason);

  const wire::Retention retention;

 private:
  const std::optional<KeyBytes> parent_;
  const bool independent_;
};

// One block that the daemon is copying in. Owner: StoreQueue, until its reply is there.
class PutRequest : public Request {
 public:
  PutRequest(std::shared_ptr<StoreOp> store_op, uint32_t block_index, uint64_t offset)
      : op(std::move(store_op)), index(block_index), staging_offset(offset) {}

  // REQUIRES: done.
  Reason FinalReason() const;
  // Gives the block its reason. Once.
  void End(Reason reason) {
    ended_ = true;
    op->EndBlock(index, reason);
  }
  bool ended() const { return ended_; }

  const std::shared_ptr<StoreOp> op;
  const uint32_t index;
  const uint64_t staging_offset;
  int64_t sent_at_ns = 0;

 private:
  Result OnReply(Reply& reply) override;
  bool ended_ = false;
  wire::PutDone answer_{};
};

// Asks which blocks of [begin, begin + count) are there already.
class DuplicatesRequest : public Request {
 public:
  DuplicatesRequest(std::vector<bool>* here, uint32_t begin, uint32_t count)
      : here_(here), begin_(begin), count_(count) {}

 private:
  Result OnReply(Reply& reply) override;
  std::vector<bool>* const here_;
  const uint32_t begin_, count_;
};

}  // namespace terrace::client
