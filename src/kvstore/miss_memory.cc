// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "kvstore/miss_memory.h"

#include "kvstore/base/block_copy.h"
#include "kvstore/base/check.h"

namespace terrace::kv {
namespace {

constexpr Reason kCodes[] = {Reason::kCold,     Reason::kEvicted, Reason::kCorrupt,    Reason::kFlushed,
                             Reason::kDeadline, Reason::kIoError, Reason::kTierOffline};

}  // namespace

uint64_t MissMemory::Hash(KeySpaceId key_space, const BlockKey& key) const {
  return Checksum64(key.bytes.data(), key.bytes.size(), seed_ + key_space);
}

void MissMemory::Remember(KeySpaceId key_space, const BlockKey& key, Reason reason) {
  uint32_t code = 0;
  for (uint32_t i = 1; i < std::size(kCodes); ++i) code = kCodes[i] == reason ? i : code;
  TERRACE_CHECK(code != 0);
  const uint64_t hash = Hash(key_space, key);
  table_[hash % table_.size()].store(static_cast<uint32_t>(hash >> 32) << 3 | code,
                                     std::memory_order_relaxed);
}

Reason MissMemory::Recall(KeySpaceId key_space, const BlockKey& key) const {
  const uint64_t hash = Hash(key_space, key);
  const uint32_t value = table_[hash % table_.size()].load(std::memory_order_relaxed);
  const bool same = (value & ~7u) == static_cast<uint32_t>(hash >> 32) << 3;
  return same && (value & 7) < std::size(kCodes) ? kCodes[value & 7] : Reason::kCold;
}

}  // namespace terrace::kv
