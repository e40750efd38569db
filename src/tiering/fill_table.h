// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// FillTable: blocks whose bytes are being copied in from engines at the moment.
#pragma once

#include <map>
#include <utility>

#include "kvstore/base/mutex.h"
#include "kvstore/block_key.h"
#include "kvstore/key_space.h"

namespace terrace::tiering {

// Owner: TierStack. Threads: any. Limits: as many as stores may be under way.
class FillTable {
 public:
  void Begin(const kv::KeySpace& key_space, const kv::BlockKey& key) {
    MutexLock lock(&mu_);
    ++stores_[{key_space.id, key}];
  }
  // REQUIRES: Begin for it.
  void End(const kv::KeySpace& key_space, const kv::BlockKey& key) {
    MutexLock lock(&mu_);
    const auto it = stores_.find({key_space.id, key});
    if (--it->second == 0) stores_.erase(it);
  }
  bool Has(const kv::KeySpace& key_space, const kv::BlockKey& key) const {
    MutexLock lock(&mu_);
    return stores_.contains({key_space.id, key});
  }

 private:
  mutable Mutex mu_;
  std::map<std::pair<kv::KeySpaceId, kv::BlockKey>, int> stores_ ABSL_GUARDED_BY(mu_);  // how many of each
};

}  // namespace terrace::tiering
