// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// StagingRing: the shared memory in which blocks wait for the daemon to copy them in, used as a ring.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "api/client/result.h"

namespace terrace::client {

// Hands out contiguous room, oldest given back first. Only as much of it as keeps two blocks and about
// 8 MiB under way is used: what the daemon reads then still lies in the cache the cores share.
// Owner: StoreQueue. Threads: the store thread only.
class StagingRing {
 public:
  StagingRing() = default;
  ~StagingRing();
  StagingRing(const StagingRing&) = delete;

  Result Map(int fd, uint64_t bytes);  // takes no descriptor over; once
  uint64_t bytes() const { return bytes_; }

  // Room for `bytes`, as an offset; nothing if there is none until more is given back.
  std::optional<uint64_t> Take(uint64_t bytes);
  // Gives back the oldest room taken.
  void GiveBackOldest(uint64_t offset, uint64_t bytes);
  std::byte* At(uint64_t offset) const { return memory_ + offset; }

 private:
  static uint64_t Rounded(uint64_t bytes);
  std::byte* memory_ = nullptr;
  uint64_t bytes_ = 0;
  uint64_t used_bytes_ = 0;         // of the mapping, by the present window
  uint64_t head_ = 0, tail_ = 0;    // next room, oldest room
  uint64_t taken_ = 0;              // pieces of room under way
};

}  // namespace terrace::client
