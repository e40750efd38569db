// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// LoadRates: how fast blocks of a key space came from a tier, as measured. Answers whether loading is worth
// while against computing again.
#pragma once

#include <cstdint>

#include "absl/container/flat_hash_map.h"
#include "kvstore/base/mutex.h"
#include "kvstore/key_space.h"

namespace terrace::tiering {

// Moving averages over recent loads. Owner: TierStack. Threads: any. Limit: one entry a key space.
class LoadRates {
 public:
  // bytes of one key space came in ns, waiting in queues not counted.
  void Observe(kv::KeySpaceId key_space, uint64_t bytes, int64_t ns) {
    if (ns <= 0) return;
    MutexLock lock(&mu_);
    double& rate = bytes_per_ns_[key_space];
    const double now = static_cast<double>(bytes) / static_cast<double>(ns);
    rate = rate == 0 ? now : rate + (now - rate) / 16;
  }
  // 0: nothing was measured.
  double BytesPerSecond(kv::KeySpaceId key_space) const {
    MutexLock lock(&mu_);
    const auto it = bytes_per_ns_.find(key_space);
    return it == bytes_per_ns_.end() ? 0 : it->second * 1e9;
  }

 private:
  mutable Mutex mu_;
  absl::flat_hash_map<kv::KeySpaceId, double> bytes_per_ns_ ABSL_GUARDED_BY(mu_);
};

}  // namespace terrace::tiering
