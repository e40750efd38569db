// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// AdmissionPolicy: which of the blocks that leave host memory are worth a write to NVMe. The same code
// in the daemon and in the replayer: no bytes, no clock of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tiering/policy/retention.h"

namespace terrace::tiering {

// Threads: one at a time (its owner's lock).
class AdmissionPolicy {
 public:
  struct Candidate {
    uint64_t fingerprint = 0;
    uint64_t bytes = 0;
    uint32_t uses = 0;          // accesses while it was in host memory (EvictionPolicy::Uses)
    double reuse_chance = -1;   // EvictionPolicy::ReuseChance within StayNs; below 0: not known
    uint32_t depth = 0;         // blocks before it in its chain; kMaxDepth: as many or more
    RetentionHint hint;
    bool is_room_free = false;  // what is written now takes the place of nothing
  };
  static constexpr uint32_t kMaxDepth = 64;
  static constexpr uint32_t kMaxBefore = 256;  // see Decide
  enum class Decision { kAdmit, kRejectOnce /* not worth it yet */, kRejectBudget /* endurance */ };

  virtual ~AdmissionPolicy() = default;
  // A block is about to leave host memory and is not on NVMe. before: those before it in its chain, nearest
  // first, that are not on NVMe either, at most kMaxBefore: without them it could not be found once host
  // memory is lost. All of them are written, or none.
  virtual Decision Decide(const Candidate& candidate, std::span<const Candidate> before, int64_t now_ns) = 0;
  // So many of the blocks that were admitted were not written: the disk took no more at the moment.
  virtual void OnNotWritten(uint64_t blocks, uint64_t bytes) = 0;
  // A block was stored anew, so some engine has just computed it: if it was rejected, that was a mistake.
  virtual void OnStore(uint64_t fingerprint, int64_t now_ns) = 0;
  // A block was found on NVMe and loaded.
  virtual void OnHit(uint64_t fingerprint, int64_t now_ns) = 0;

  // How long a block that is written now will stay, as far as it can be told from what was admitted;
  // 0: not yet.
  virtual int64_t StayNs(int64_t now_ns) const = 0;

  struct Stats {
    uint64_t ghost_hits = 0;   // rejected, then wanted
    double open_ratio = 1.0;   // share of once-used candidates that is admitted now
  };
  virtual Stats GetStats() const = 0;

 protected:
  static uint64_t BytesOf(const Candidate& candidate, std::span<const Candidate> before) {
    uint64_t bytes = candidate.bytes;
    for (const Candidate& one : before) bytes += one.bytes;
    return bytes;
  }
};

struct AdmissionOptions {
  uint64_t capacity_bytes = 0;       // of the NVMe tier
  uint64_t write_bytes_per_day = 0;  // endurance; 0: no limit
  uint64_t expected_blocks = 0;      // of the NVMe tier
};
// The names that MakeAdmissionPolicy takes.
const std::vector<std::string>& AdmissionPolicyNames();
// name: "adaptive" (default), "all", "second_use". InvalidArgument names the choices.
absl::StatusOr<std::unique_ptr<AdmissionPolicy>> MakeAdmissionPolicy(absl::string_view name,
                                                                     const AdmissionOptions& options);

}  // namespace terrace::tiering
