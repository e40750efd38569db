// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// LoadOp: copies leased blocks from the shared segments into the caller's memory. Any number of threads
// take blocks of it, one after another; the caller who waits is one of them, because waking a thread
// costs more than copying a small block.
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

  // Takes and copies some blocks. may_ask: may wait for the daemon to get a segment's mapping.
  // False: all blocks are taken.
  bool CopySome(CopyScratch* scratch, bool may_ask);
  // Takes all that is left and ends it.
  void EndRest(Reason reason);
  void Help(Deadline deadline) override;

 private:
  uint32_t Take(uint32_t most, uint32_t* begin);
  Reason CopyOne(uint32_t i, CopyScratch* scratch, bool may_ask);
  Reason FindSegment(const Ref& ref, bool may_ask, std::shared_ptr<Segment>* segment);
  bool AllMapped();

  const std::vector<terrace_ref> refs_;
  const std::shared_ptr<Connection> connection_;
  const std::shared_ptr<SegmentMap> segments_;
  const uint32_t request_timeout_ms_;
  const uint32_t blocks_per_take_;
  std::atomic<uint64_t> next_{0};  // first block not taken; may run past n()
};

}  // namespace terrace::client
