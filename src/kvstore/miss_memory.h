// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// MissMemory: why blocks that were here are not any more. A fixed table of fingerprints: old entries are
// overwritten, so "cold" means: never here, or too long ago to remember. A collision can only give a
// wrong *reason* (one in 2^29 a lookup), never a wrong answer.
#pragma once

#include <atomic>
#include <cstdint>

#include "kvstore/base/lazy_array.h"
#include "kvstore/base/reason.h"
#include "kvstore/block_key.h"
#include "kvstore/key_space.h"

namespace terrace::kv {

// Threads: any, no lock. Limit: entries, 4 bytes each.
class MissMemory {
 public:
  MissMemory(uint64_t entries, uint64_t hash_seed) : seed_(hash_seed), table_(entries) {}

  // reason: kEvicted, kCorrupt, kFlushed, kDeadline, kIoError or kTierOffline.
  void Remember(KeySpaceId key_space, const BlockKey& key, Reason reason);
  // The remembered reason, else kCold.
  Reason Recall(KeySpaceId key_space, const BlockKey& key) const;

 private:
  uint64_t Hash(KeySpaceId key_space, const BlockKey& key) const;

  const uint64_t seed_;
  LazyArray<std::atomic<uint32_t>> table_;  // fingerprint << 3 | reason code; 0: empty
};

}  // namespace terrace::kv
