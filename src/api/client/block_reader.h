// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// BlockReader: reads one block out of shared memory that another process may change at any moment, and
// says whether the bytes are right.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "api/client/segment_map.h"
#include "kvstore/base/block_copy.h"
#include "kvstore/base/reason.h"

namespace terrace::client {

// Identity, generation and checksums are checked against a private copy of the header; the generation is
// read again after the bytes (sequence lock, see kvstore/block_header.h).
// Owner: one per copying thread; keeps room for a header between calls. Threads: one.
class BlockReader {
 public:
  // kNone: the target holds the block (an empty target: the block was checked in place).
  // kStale: the frame holds something else by now. kCorrupt: it claims to be the block, but is not.
  Reason Read(const Segment& segment, const wire::Ref& ref, const uint8_t digest[32],
              const uint8_t key[32], uint64_t block_bytes, std::span<const Piece> target);

 private:
  std::vector<uint64_t> header_copy_;
};

}  // namespace terrace::client
