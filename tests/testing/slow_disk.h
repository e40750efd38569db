// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// SlowDisk: a disk in memory below a daemon's small host memory, in real time. Its reads wait or fail as
// the test says. (Not by fault_device.h itself: the names in payload.h are others than the API tests'.)
#pragma once

#include <cstdint>
#include <memory>

#include "kvstore/block_key.h"
#include "kvstore/key_space.h"
#include "tiering/tier_stack.h"

namespace terrace::testing {

// Owner: the test; must outlive the tier stacks that it was put under. Threads: any.
class SlowDisk {
 public:
  SlowDisk();
  ~SlowDisk();
  SlowDisk(const SlowDisk&) = delete;

  // About so much host memory for blocks; what leaves it goes to the disk.
  void PutUnder(tiering::TierStackOptions* options, uint64_t host_bytes = 48 << 20);

  // From now on, but for the first `skip` reads: they take so much longer; fail with EIO; do not end
  // until Release.
  void DelayReads(int64_t delay_ns, uint64_t skip = 0);
  void FailReads(uint64_t skip = 0);
  void HangReads(uint64_t skip = 0);
  // How many reads it has befallen.
  uint64_t Fired() const;
  // The disk is sound again, and what hangs goes on.
  void Release();

 private:
  struct Impl;
  const std::unique_ptr<Impl> impl_;
};

inline bool IsOnDiskOnly(tiering::TierStack* stack, const kv::KeySpace& key_space, const kv::BlockKey& key) {
  const auto info = stack->Stat(key_space, key);
  return info.has_value() && info->tier == "nvme";
}

// Waits until what had to leave host memory has left: whoever stores faster than the disk takes it loses
// blocks, as he should. False: it does not.
bool WaitForRoom(tiering::TierStack* stack);

}  // namespace terrace::testing
