// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What a Session is asked to copy between an engine's region and the tiers.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "gpu/copy_engine.h"
#include "kvstore/base/reason.h"
#include "kvstore/block_key.h"
#include "kvstore/key_space.h"
#include "tiering/policy/retention.h"

namespace terrace::tiering {

// What one session has under way; owned together with its operations.
struct RegionShare {
  static constexpr uint32_t kMaxOperations = 256;
  std::atomic<uint32_t> operations{0};
};

// Blocks from the pages of an engine's region. One batch of the copy engine.
struct RegionStoreRequest {
  std::shared_ptr<gpu::Region> region;
  const kv::KeySpace* key_space = nullptr;  // its block_bytes must be the region's page_bytes
  std::vector<kv::BlockKey> keys;
  std::vector<uint64_t> pages;            // as many
  std::optional<kv::BlockKey> parent;     // of the first; not with independent
  bool independent = false;               // no block has a parent; else each one's is the one before
  RetentionHint hint;
  uint32_t after_event = gpu::kNoEvent;
  // Called once, before or with done: no page is read any more.
  std::function<void()> sources_read;
  // Called exactly once, on any thread: a reason for each block, as for PutRequest.
  std::function<void(std::span<const Reason>)> done;
};

// Blocks into the pages of an engine's region. The blocks are held for the time of the load.
struct RegionLoadRequest {
  std::shared_ptr<gpu::Region> region;
  const kv::KeySpace* key_space = nullptr;
  std::vector<kv::BlockKey> keys;
  std::vector<uint64_t> pages;
  uint32_t after_event = gpu::kNoEvent;
  int64_t timeout_ns = 0;  // for what is pending
  std::function<void(uint32_t n_planes)> planes_done;  // optional, as CopyBatch: of all blocks of the request
  // Called exactly once, on any thread. kNone: the page holds the block, checked. Else its bytes are undefined.
  std::function<void(std::span<const Reason>)> done;
};

}  // namespace terrace::tiering
