// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// BlockFetcher: the blocks of one CacheService.Get, one after the other, wherever they lie. Some are asked
// for ahead, so that a lower tier is at work on the next ones while one is being sent.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/reason.h"
#include "kvstore/block_key.h"
#include "kvstore/key_space.h"
#include "tiering/tier_stack.h"

namespace terrace::api {

// Owner: the call. Threads: one; waits in Next. Limits: kAheadBytes (at least one block) under lease at a
// time; kWaitNs for a block. Failure: a block that is not here, or not whole, or late, is a reason.
class BlockFetcher {
 public:
  static constexpr uint64_t kAheadBytes = 64ull << 20;
  static constexpr size_t kAheadBlocks = 64;
  static constexpr int64_t kWaitNs = 20'000'000'000;  // below the time after which a stream counts as stalled

  // left_ns: until the call's deadline, 0 or less when it is over or the client has gone.
  // All must outlive it.
  BlockFetcher(tiering::TierStack* stack, tiering::Session* session, const kv::KeySpace* key_space,
               std::span<const kv::BlockKey> keys, const Clock* clock, std::function<int64_t()> left_ns);
  ~BlockFetcher();
  BlockFetcher(const BlockFetcher&) = delete;

  // Copies the next block out. REQUIRES: called at most once a key. NotFound: the session has lost its
  // key space.
  absl::StatusOr<Reason> Next(std::span<std::byte> target);

 private:
  absl::Status LookAhead();
  void EndLease();
  // Waits for a block on its way.
  absl::StatusOr<tiering::BlockPlace> Await(const kv::BlockKey& key);

  tiering::TierStack* const stack_;
  tiering::Session* const session_;
  const kv::KeySpace* const key_space_;
  const std::span<const kv::BlockKey> keys_;
  const Clock* const clock_;
  const std::function<int64_t()> left_ns_;
  size_t next_ = 0;                          // key
  size_t begin_ = 0;                         // key of places_[0]
  std::vector<tiering::BlockPlace> places_;  // of the keys looked up last
  uint64_t lease_id_ = 0;                    // that holds them; 0: none
};

}  // namespace terrace::api
