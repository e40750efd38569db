// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// GuardedPolicy: lets another policy decide as long as it does not do worse than LRU would have done.
#pragma once

#include <cstdint>
#include <memory>

#include "kvstore/base/lazy_array.h"
#include "tiering/policy/eviction_policy.h"
#include "tiering/policy/ghost_list.h"
#include "tiering/policy/lru_policy.h"

namespace terrace::tiering {

// A shadow says what LRU would have hit: the fingerprints of a sample of all blocks, in the order of their
// use, as many as that share of what is held. Window by window its hits are compared with those that the
// sample really had. When the chosen policy has hit kMargin of the references less, LRU decides for some
// windows, twice as many after each fall-back; then the chosen policy is tried again.
// An LruPolicy is kept beside all the time, so that falling back costs nothing.
// Threads: one at a time. Limits: 21 bytes a block beside the chosen policy's, and 24 for each of kSample.
class GuardedPolicy final : public EvictionPolicy {
 public:
  GuardedPolicy(std::unique_ptr<EvictionPolicy> chosen, uint64_t max_blocks, uint64_t expected_blocks);

  void OnInsert(BlockId block, const Insert& insert, int64_t now_ns) override;
  void OnAccess(BlockId block, int64_t now_ns) override;
  void OnHint(BlockId block, const RetentionHint& hint, int64_t now_ns) override {
    chosen_->OnHint(block, hint, now_ns);
  }
  void OnErase(BlockId block, bool evicted) override;
  bool IsStale(BlockId block) const override { return chosen_->IsStale(block); }
  BlockId Victim(absl::FunctionRef<bool(BlockId)> allowed, int64_t now_ns) override;
  uint32_t Uses(BlockId block) const override { return chosen_->Uses(block); }
  double ReuseChance(BlockId block, int64_t now_ns, int64_t horizon_ns) const override {
    return chosen_->ReuseChance(block, now_ns, horizon_ns);
  }
  Stats GetStats() const override;

 private:
  static constexpr uint64_t kSample = 8192;      // blocks, about
  static constexpr uint64_t kMinWindow = 4096;   // references of the sample
  static constexpr double kMargin = 0.02;
  static constexpr uint64_t kFirstStay = 4, kLongestStay = 256;  // windows

  bool IsSampled(uint64_t fingerprint) const {
    return (fingerprint * 0xD1B54A32D192ED03ull) >> 32 < sample_limit_;
  }
  void Count(uint64_t fingerprint, bool is_hit);
  void EndWindow();

  const std::unique_ptr<EvictionPolicy> chosen_;
  LruPolicy lru_;
  const uint64_t sample_limit_;       // of 2^32
  LazyArray<uint64_t> fingerprints_;  // of known blocks of the sample; else 0
  GhostList shadow_;
  uint64_t held_ = 0;                 // of the sample
  bool is_full_ = false;              // something was evicted in this window or before
  bool uses_lru_ = false;
  uint64_t stay_ = kFirstStay, windows_left_ = 0;
  uint64_t references_ = 0, hits_ = 0, shadow_hits_ = 0;  // of this window
  uint64_t fallbacks_ = 0;
  double last_delta_ = 0;
};

}  // namespace terrace::tiering
