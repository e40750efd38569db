// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// LoadOp: copies leased blocks from the shared segments into the caller's memory. Any number of threads
// take blocks of it, one after another; the caller who waits is one of them, because waking a thread
// costs more than copying a small block. Blocks that are on their way from a lower tier join as they arrive.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "api/client/block_reader.h"
#include "api/client/connection.h"
#include "api/client/op.h"
#include "api/client/ref.h"
#include "api/client/segment_map.h"

namespace terrace::client {

// Tells the daemon that a block is bad; the daemon checks for itself and drops it. Does not wait.
void ReportBadBlock(Connection* connection, uint32_t key_space_id, uint64_t generation,
                    const uint8_t key[32]);

// What a copying thread keeps between blocks. Owner: that thread.
struct CopyScratch {
  BlockReader reader;
  std::vector<Piece> target;
};

// Threads: any. Limits: none of its own; see CopyPool.
class LoadOp : public Op {
 public:
  LoadOp(Work op_work, const terrace_ref* refs, std::shared_ptr<Connection> connection,
         std::shared_ptr<SegmentMap> segments, uint32_t request_timeout_ms);

  // Takes and copies some of the blocks that are here, may wait for the daemon to get a segment's mapping.
  void CopySome(CopyScratch* scratch) { CopySome(scratch, n(), /*may_ask=*/true); }
  // True if there are blocks to be taken now.
  bool HasWork() const {
    return next_.load(std::memory_order_relaxed) < available_.load(std::memory_order_acquire);
  }
  // Takes all that is here and left and ends it.
  void EndRest(Reason reason);
  void Help(Deadline deadline) override;

  // For the Locator, one thread: the blocks that were on their way at first, in the caller's order; each of
  // them either arrives or fails, once.
  const std::vector<uint32_t>& pending() const { return pending_; }
  void Arrive(uint32_t block, const wire::Ref& place);
  void FailPending(uint32_t block, Reason reason);

  bool queued = false;  // of the CopyPool, under its lock

 private:
  bool CopySome(CopyScratch* scratch, uint32_t limit, bool may_ask);
  uint32_t Take(uint32_t most, uint32_t limit, uint32_t* begin);
  // The blocks that are here have positions 0, 1, ... in the order in which they came.
  uint32_t BlockAt(uint32_t position) const { return order_.empty() ? position : order_[position]; }
  Reason CopyOne(uint32_t i, CopyScratch* scratch, bool may_ask);
  Reason FindSegment(const Ref& ref, bool may_ask, std::shared_ptr<Segment>* segment);
  bool AllMapped(uint32_t begin, uint32_t end);

  std::vector<terrace_ref> refs_;   // of a pending block: written before it is available
  std::vector<uint32_t> pending_;   // constant after construction
  std::vector<uint32_t> order_;     // block at each position below available_; empty: all were here
  const std::shared_ptr<Connection> connection_;
  const std::shared_ptr<SegmentMap> segments_;
  const uint32_t request_timeout_ms_;
  const uint32_t blocks_per_take_;
  std::atomic<uint32_t> available_{0};  // positions below it may be taken
  std::atomic<uint32_t> next_{0};       // first position not taken
};

}  // namespace terrace::client
