// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/policy/s3fifo_policy.h"

namespace terrace::tiering {

uint32_t S3FifoPolicy::ListOfNew(BlockId block, const Insert& insert) {
  records_[block] = {insert.fingerprint, 0};
  if (!ghosts_.Remove(insert.fingerprint)) return kSmall;
  ++ghost_hits_;
  return kMain;
}

uint32_t S3FifoPolicy::ListAfterUse(BlockId block, uint32_t /*list*/) {
  records_[block].frequency = static_cast<uint8_t>(std::min(records_[block].frequency + 1, 3));
  return kStay;
}

void S3FifoPolicy::OnGone(BlockId block, uint32_t list, bool evicted) {
  if (list != kSmall || !evicted) return;
  ghosts_.SetLimit(4*lists_.Size(kMain) + 64);
  ghosts_.Add(records_[block].fingerprint);
}

BlockId S3FifoPolicy::FindIn(uint32_t list, absl::FunctionRef<bool(BlockId)> allowed) {
  // Each step takes a block out of the small queue or a count from one of the main queue. Blocks with
  // children only move with the others: they are not refused but used, as their children are.
  for (uint64_t steps = 0; steps < 4096; ++steps) {
    const BlockId block = lists_.FindCold(list, allowed);
    if (block == kNoBlock || records_[block].frequency <= (list == kSmall ? 1 : 0)) return block;
    if (list == kMain) --records_[block].frequency;
    if (list == kSmall) records_[block].frequency = 0;
    lists_.Remove(block);
    lists_.AddHot(kMain, block);
  }
  return kNoBlock;
}

BlockId S3FifoPolicy::Victim(absl::FunctionRef<bool(BlockId)> allowed, int64_t /*now_ns*/) {
  const uint64_t held = lists_.Size(kSmall) + lists_.Size(kMain);
  const uint32_t first = lists_.Size(kSmall) * 10 >= held ? kSmall : kMain;
  for (const uint32_t list : {first, first == kSmall ? kMain : kSmall}) {
    const BlockId block = FindIn(list, allowed);
    if (block != kNoBlock) return block;
  }
  return lists_.FindCold(kMain, allowed);
}

}  // namespace terrace::tiering
