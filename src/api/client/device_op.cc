// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/device_op.h"

namespace terrace::client {

bool DeviceOp::Begin() {
  if (EnterMemory()) return true;
  for (uint32_t i = 0; i < n(); ++i) {
    SetReason(i, Reason::kCancelled);
    Count(Reason::kCancelled);
  }
  device()->GiveBackMark(mark_);
  Finish(n());
  return false;
}

void DeviceOp::EndBlocks(uint32_t begin, const std::vector<Reason>& reasons) {
  for (size_t k = 0; k < reasons.size(); ++k) {
    SetReason(begin + static_cast<uint32_t>(k), reasons[k]);
    Count(reasons[k]);
  }
  left_ -= static_cast<uint32_t>(reasons.size());
  if (left_ == 0) {
    device()->GiveBackMark(mark_);
    LeaveMemory();
  }
  Finish(static_cast<uint32_t>(reasons.size()));
}

void DeviceOp::NoteRead(uint32_t count) {
  read_ += count;
  if (read_ == n()) SetSourcesRead();
}

void DeviceOp::EndRest(Reason reason) {
  const uint32_t begin = next;
  next = n();
  if (begin < n()) EndBlocks(begin, std::vector<Reason>(n() - begin, reason));
}

void DeviceOp::Count(Reason reason) {
  Stats& stats = *work.stats;
  stats.AddReason(reason);
  const bool copied = reason == Reason::kNone;
  if (is_load()) {
    Stats::Add(copied ? stats.load_blocks : stats.load_failed_blocks, 1);
    if (copied) Stats::Add(stats.load_bytes, work.key_space->block_bytes());
    return;
  }
  Stats::Add(copied                         ? stats.store_blocks
             : reason == Reason::kDuplicate ? stats.store_duplicate_blocks
                                            : stats.store_failed_blocks,
             1);
  if (copied) Stats::Add(stats.store_bytes, work.key_space->block_bytes());
}

}  // namespace terrace::client
