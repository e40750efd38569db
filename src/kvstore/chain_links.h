// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// ChainLinks: which block is the parent of which, so that no parent goes before its child. By BlockId,
// 8 bytes a block.
#pragma once

#include <cstdint>

#include "kvstore/base/lazy_array.h"
#include "kvstore/frame_pool.h"

namespace terrace::kv {

// Owner: the catalogue. Threads: under its mutex only. A parent's BlockId must stay reserved
// (PrefixIndex::FreeEntry not called) while it has children.
class ChainLinks {
 public:
  explicit ChainLinks(uint64_t capacity) : links_(capacity) {}

  void Add(BlockId block, BlockId parent);  // parent: kNoBlock if there is none
  // Ends the block's tie to its parent. REQUIRES: no children. Returns the parent or kNoBlock.
  BlockId Remove(BlockId block);
  BlockId Parent(BlockId block) const { return links_[block].parent_plus_one - 1; }
  bool HasChildren(BlockId block) const { return links_[block].children != 0; }
  uint32_t ChildCount(BlockId block) const { return links_[block].children; }
  // For a block that was added without one.
  void SetParent(BlockId block, BlockId parent);

 private:
  struct Link {
    uint32_t parent_plus_one;  // 0: none
    uint32_t children;
  };
  LazyArray<Link> links_;
};

}  // namespace terrace::kv
