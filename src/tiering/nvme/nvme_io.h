// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// NvmeIo: the requests that one store has on its way to its device, each with what to do when it is
// done. NvmeReadArena: the memory that reads go to.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>

#include "kvstore/base/clock.h"
#include "tiering/io/block_device.h"
#include "tiering/nvme/nvme_metrics.h"

namespace terrace::tiering {

// Owner: NvmeStore. Threads: the store's own. Limits: the device's depth. Failure: errno to the
// call-back; a request that hangs stays in flight, and its buffer stays with it.
class NvmeIo {
 public:
  using Done = std::function<void(int error)>;
  NvmeIo(const Clock* clock, NvmeDeviceMetrics* metrics) : clock_(clock), metrics_(metrics) {}

  // nullptr: none. REQUIRES: nothing is in flight.
  void Attach(BlockDevice* device);
  BlockDevice* device() const { return device_; }
  // Whether a request would find room and leave `kept` for others.
  bool has_room(size_t kept) const {
    return device_ != nullptr && in_flight_.size() + (device_->depth() > 2 * kept ? kept : 0) < device_->depth();
  }
  // False: no room now. done is called from Poll.
  bool Submit(IoOp op, uint64_t offset, std::span<std::byte> buffer, Done done);
  // Hands over, waits up to wait_ns for a result, and calls the call-backs. Returns how many.
  size_t Poll(int64_t wait_ns);
  // After the device is gone: everything that was in flight fails.
  void FailAll();

  size_t in_flight() const { return in_flight_.size(); }
  size_t reads_in_flight() const { return reads_; }
  // Start of the oldest request, a sync's half a minute later. INT64_MAX: nothing is in flight.
  int64_t oldest_start_ns() const;

 private:
  struct Pending {
    IoOp op;
    int64_t start_ns;
    size_t bytes;
    Done done;
  };
  const Clock* const clock_;
  NvmeDeviceMetrics* const metrics_;
  BlockDevice* device_ = nullptr;
  uint64_t next_tag_ = 1;  // grows: the first in the map is the oldest
  size_t reads_ = 0;
  std::map<uint64_t, Pending> in_flight_;
};

// Ranges of whole pages of one piece of memory, first fit. Owner: NvmeStore. Threads: the store's own.
class NvmeReadArena {
 public:
  explicit NvmeReadArena(std::span<std::byte> memory);
  // Empty: no range of this size is free.
  std::span<std::byte> Take(uint64_t bytes);
  void Give(std::span<std::byte> range);
  uint64_t free_bytes() const { return free_bytes_; }
  uint64_t bytes() const { return memory_.size(); }

 private:
  const std::span<std::byte> memory_;
  uint64_t free_bytes_;
  std::map<uint64_t, uint64_t> free_;  // offset -> bytes; no two touch
};

}  // namespace terrace::tiering
