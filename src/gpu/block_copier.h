// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// BlockCopier seam: copies blocks from place to place in host memory, off the caller's thread, checking
// them on the way. Used for stores and for what disks deliver. Engines' pages are CopyEngine's (copy_engine.h).
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kvstore/base/block_copy.h"

namespace terrace::gpu {

// One block to copy. Sources and targets must stay valid until done was called.
struct CopyJob {
  Piece source{}, target{};  // equal lengths
  uint64_t identity_seed = 0;
  CopyCheck check = CopyCheck::kVerify;
  std::vector<uint64_t> checksums;  // in for kVerify, out for kCompute: one a segment
  // Called exactly once, on a thread of the engine. intact: checksums held (always, for kCompute).
  std::function<void(CopyJob& job, bool intact)> done;
};

// Threads: any. Jobs finish in any order, each exactly once.
class BlockCopier {
 public:
  virtual ~BlockCopier() = default;
  // ResourceExhausted when the queue is full, Unavailable when closing: then done is not called and the
  // job is left as it was.
  virtual absl::Status Submit(CopyJob& job) = 0;
  // Waits until all submitted jobs have called done.
  virtual void Drain() = 0;
};

}  // namespace terrace::gpu
