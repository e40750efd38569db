// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// PrefixIndex: the single truth of which blocks are here and in which frame. A hash table in shards, with
// dense entries; one call answers a whole chain. Never blocks on I/O, has no global lock.
//
// Memory per block: 40 bytes of entry and 5 of bucket (load 0.8). The tables are as large as the most
// blocks there can ever be, and are touched only as far as they are used.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "kvstore/base/lazy_array.h"
#include "kvstore/base/mutex.h"
#include "kvstore/block_key.h"
#include "kvstore/frame_pool.h"
#include "kvstore/key_space.h"

namespace terrace::kv {

// Threads: any. Locks: one shard's at a time, for a few dozen instructions.
// Limits: capacity blocks (rounded up to the shards); an insert beyond it is kFull.
// Keys come from clients: buckets are chosen by a hash seeded per process.
class PrefixIndex {
 public:
  PrefixIndex(uint64_t capacity, uint64_t hash_seed);
  ~PrefixIndex();

  struct Found {
    BlockId block = kNoBlock;  // kNoBlock: not here
    FrameId frame = kNoFrame;
  };

  enum class Inserted { kYes, kPresent, kFull };
  // First writer wins. *block is the new entry, or the present one.
  Inserted Insert(KeySpaceId key_space, const BlockKey& key, FrameId frame, BlockId* block);

  // Finds the keys in order and pins what is found (pool != nullptr), each under its shard's lock, so
  // that nothing vanishes between. found.size() == keys.size(). With stop_at_miss the rest is left
  // kNoBlock. may_pin is asked before a block is pinned, with the bytes that this call has pinned and not
  // counted yet; false ends the search like a miss and sets *refused. Returns how many were found.
  uint32_t FindChain(KeySpaceId key_space, std::span<const BlockKey> keys, bool stop_at_miss,
                     FramePool* pool, absl::FunctionRef<bool(uint64_t)> may_pin, std::span<Found> found,
                     bool* refused) const;
  std::optional<Found> Find(KeySpaceId key_space, const BlockKey& key) const;

  // Takes the block out of sight if it still is in frame and allowed(frame) (asked under the shard's
  // lock: nobody can pin meanwhile). Its entry stays reserved until FreeEntry: children may name it.
  bool Remove(BlockId block, FrameId frame, absl::FunctionRef<bool(FrameId)> allowed);
  // The same block is now in another frame. False, nothing done, if it is gone or not allowed.
  bool Move(BlockId block, FrameId from, FrameId to, absl::FunctionRef<bool(FrameId)> allowed);
  void FreeEntry(BlockId block);

  struct Entry {
    BlockKey key;
    KeySpaceId key_space = 0;
    FrameId frame = kNoFrame;
  };
  // A copy; frame is kNoFrame when the block is not in sight.
  Entry Get(BlockId block) const;
  // All blocks in sight, shard by shard, called without a lock on copies. False from fn stops.
  void ForEach(absl::FunctionRef<bool(BlockId, const Entry&)> fn) const;

  uint64_t size() const;
  uint64_t capacity() const;  // largest BlockId + 1
  uint64_t TouchedBytes() const;  // memory of tables in use, by count

 private:
  struct Shard;
  static constexpr uint32_t kShards = 64;

  uint64_t Hash(KeySpaceId key_space, const BlockKey& key) const;

  const uint64_t seed_;
  uint32_t entries_per_shard_;
  uint32_t buckets_per_shard_;
  std::unique_ptr<Shard[]> shards_;
};

}  // namespace terrace::kv
