// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// GhostList: fingerprints of blocks that left, the latest `limit` of them.
#pragma once

#include <cstdint>
#include <vector>

namespace terrace::tiering {

// Owner: a policy. Threads: one at a time. Limits: `capacity`; 8 bytes each and 8 for the table, taken as
// they are used. Two fingerprints of 64 bits that are equal by chance are one block: harmless here.
class GhostList {
 public:
  explicit GhostList(uint64_t capacity);
  // The oldest go where there are more.
  void SetLimit(uint64_t limit);
  // The newest. If it is there already it is made so.
  void Add(uint64_t fingerprint);
  bool Remove(uint64_t fingerprint);  // true if it was there
  bool Contains(uint64_t fingerprint) const { return Find(fingerprint) != kNone; }
  uint64_t size() const { return size_; }

 private:
  static constexpr uint32_t kNone = ~0u;
  uint32_t Home(uint64_t fingerprint) const {
    return static_cast<uint32_t>((fingerprint * 0x9E3779B97F4A7C15ull) >> 32) &
           (static_cast<uint32_t>(table_.size()) - 1);
  }
  uint32_t Find(uint64_t fingerprint) const;  // slot of the table
  void Empty(uint32_t slot);
  void DropOldest();
  void Grow();

  const uint64_t capacity_;
  uint64_t limit_;
  // A ring in the order of addition; removed ones stay as zeros until they are the oldest.
  std::vector<uint64_t> ring_;
  uint64_t begin_ = 0, end_ = 0;
  std::vector<uint32_t> table_;  // place in the ring + 1, by fingerprint, linear probing
  uint64_t size_ = 0;
};

}  // namespace terrace::tiering
