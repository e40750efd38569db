// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// PutReceiver: the receiving end of one CacheService.Put stream, message by message. Knows the
// messages, not gRPC.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/reason.h"
#include "kvstore/block_key.h"
#include "kvstore/key_space.h"
#include "terrace/v1/kv.pb.h"
#include "tiering/tier_stack.h"

namespace terrace::api {

inline constexpr size_t kChunkBytesMax = 1 << 20;
inline constexpr int kKeysPerCallMax = 65536;
// gRPC's own buffers of a stream: one chunk being read and one decoded, or one made and one being
// sent.
inline constexpr uint64_t kStreamOverheadBytes = 2 * kChunkBytesMax;

// Bytes of the daemon's budget, given back at the end. Threads: one.
class StagingCharge {
 public:
  // ResourceExhausted, with what to do.
  static absl::StatusOr<StagingCharge> Make(tiering::TierStack* stack, uint64_t bytes);
  StagingCharge(StagingCharge&& other) noexcept;
  StagingCharge& operator=(StagingCharge&&) = delete;
  ~StagingCharge();

 private:
  StagingCharge(tiering::TierStack* stack, uint64_t bytes) : stack_(stack), bytes_(bytes) {}
  tiering::TierStack* stack_;
  uint64_t bytes_;
};

// Owner: the call. Threads: one; waits in OnChunk until a complete block is visible or refused.
// Limits: one block in memory (charged to the budget), kKeysPerCallMax blocks. Failure: a message
// that is out of order or of the wrong size ends the stream with InvalidArgument; wrong bytes are a
// reason.
class PutReceiver {
 public:
  // session, key_space and clock must outlive it.
  static absl::StatusOr<std::unique_ptr<PutReceiver>> Make(tiering::TierStack* stack,
                                                           tiering::Session* session,
                                                           const kv::KeySpace* key_space,
                                                           const Clock* clock);

  absl::Status OnBlock(const v1::PutBlock& block);
  absl::Status OnChunk(const v1::PutChunk& chunk);
  // The client has sent all. InvalidArgument in the middle of a block.
  absl::Status Finish() const;
  // One a complete block.
  const std::vector<Reason>& reasons() const { return reasons_; }

 private:
  PutReceiver(StagingCharge charge, tiering::Session* session, const kv::KeySpace* key_space,
              const Clock* clock);
  Reason StoreBlock();

  const StagingCharge charge_;
  tiering::Session* const session_;
  const kv::KeySpace* const key_space_;
  const Clock* const clock_;
  const std::unique_ptr<std::byte[]> payload_;  // block_bytes
  std::vector<Reason> reasons_;

  // The block being received.
  bool in_block_ = false;
  bool is_damaged_ = false;  // a chunk failed its checksum
  uint64_t received_bytes_ = 0;
  uint64_t checksum_ = 0;
  kv::BlockKey key_;
  std::optional<kv::BlockKey> parent_;
  tiering::RetentionHint hint_;
};

}  // namespace terrace::api
