// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// UseHistory: the latest uses of blocks by fingerprint, of those that are here and of those that left.
// From it a policy learns how long blocks rest between uses, whether or not they were kept meanwhile.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "kvstore/base/lazy_array.h"

namespace terrace::tiering {

// A rest is the time from one use of a block to its next. It is open until the block is used again; when
// the ring is full the oldest rest is forgotten, open or not.
// Owner: a policy. Threads: one at a time. Limits: `capacity` rests (a power of two), 16 bytes each and 8
// for the table of open ones. Times in ticks of 2^20 ns, modulo 2^32.
class UseHistory {
 public:
  struct Rest {
    uint64_t fingerprint;
    uint32_t start;
    uint8_t kind;  // of use; see ReuseModel
    uint8_t uses;  // earlier ones known of, saturating
    uint8_t turn;  // see ChainContext
    uint8_t is_open;
  };
  static_assert(sizeof(Rest) == 16);
  static constexpr uint32_t kNone = ~0u;

  UseHistory(uint64_t capacity, uint32_t n_boundaries);

  // The open rest of a block, or kNone. Places are reused: At(place) is only valid until Begin.
  uint32_t Find(uint64_t fingerprint) const;
  Rest& At(uint32_t place) { return ring_[place]; }
  // Ends an open rest.
  void Close(uint32_t place);
  // The block's newest use. REQUIRES: it has no open rest. Returns its place.
  uint32_t Begin(const Rest& rest);
  // True if `place` still is the open rest of this block.
  bool IsOpen(uint32_t place, uint64_t fingerprint) const {
    return place != kNone && ring_[place].fingerprint == fingerprint && ring_[place].is_open != 0;
  }

  // Calls passed(kind, i) for every rest that is still open and has become as old as boundaries[i] since
  // the last call. boundaries: ascending, the same in every call. Constant work a rest and boundary.
  void Age(uint32_t now, const std::vector<uint32_t>& boundaries,
           absl::FunctionRef<void(uint8_t kind, uint32_t boundary)> passed);

  uint64_t capacity() const { return mask_ + 1; }

 private:
  uint32_t Slot(uint64_t fingerprint) const {
    return static_cast<uint32_t>((fingerprint * 0x9E3779B97F4A7C15ull) >> slot_shift_);
  }
  void Forget(uint32_t place);  // out of the table

  const uint32_t mask_;
  const int slot_shift_;
  LazyArray<Rest> ring_;
  std::vector<uint32_t> table_;     // open rests: place + 1 by fingerprint, linear probing; 0: empty
  uint64_t end_ = 0;                // number of rests ever begun; the next one's place is end_ & mask_
  std::vector<uint64_t> cursors_;   // by boundary: rests before it have passed it or were closed
};

}  // namespace terrace::tiering
