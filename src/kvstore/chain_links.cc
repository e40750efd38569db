// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "kvstore/chain_links.h"

#include "kvstore/base/check.h"

namespace terrace::kv {

void ChainLinks::Add(BlockId block, BlockId parent) {
  links_[block] = {parent + 1, 0};  // kNoBlock + 1 == 0
  if (parent != kNoBlock) ++links_[parent].children;
}

void ChainLinks::SetParent(BlockId block, BlockId parent) {
  TERRACE_CHECK(Parent(block) == kNoBlock && parent != kNoBlock);
  links_[block].parent_plus_one = parent + 1;
  ++links_[parent].children;
}

BlockId ChainLinks::Remove(BlockId block) {
  TERRACE_CHECK(links_[block].children == 0);
  const BlockId parent = Parent(block);
  links_[block] = {0, 0};
  if (parent != kNoBlock) {
    TERRACE_CHECK(links_[parent].children > 0);
    --links_[parent].children;
  }
  return parent;
}

}  // namespace terrace::kv
