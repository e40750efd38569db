// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/policy/block_lists.h"

#include <algorithm>

namespace terrace::tiering {

using kv::BlockId;
using kv::kNoBlock;

BlockLists::BlockLists(uint64_t max_blocks, uint32_t n_lists)
    : max_blocks_(max_blocks),
      n_lists_(n_lists),
      nodes_(max_blocks + n_lists),
      list_(max_blocks),
      ends_(n_lists) {
  for (uint32_t list = 0; list < n_lists; ++list) {
    nodes_[list] = {list, list};
    ends_[list].resume = list;
  }
}

void BlockLists::Link(uint32_t list, BlockId block, uint32_t hotter) {
  const uint32_t node = NodeOf(block);
  const uint32_t colder = nodes_[hotter].colder;
  nodes_[node] = {hotter, colder};
  nodes_[hotter].colder = node;
  nodes_[colder].hotter = node;
  list_[block] = static_cast<uint8_t>(list + 1);
  ++ends_[list].size;
}

void BlockLists::Remove(BlockId block) {
  const uint32_t list = ListOf(block);
  if (list == kNoList) return;
  const uint32_t node = NodeOf(block);
  const Node links = nodes_[node];
  if (ends_[list].resume == node) ends_[list].resume = links.hotter;
  nodes_[links.hotter].colder = links.colder;
  nodes_[links.colder].hotter = links.hotter;
  list_[block] = 0;
  --ends_[list].size;
}

BlockId BlockLists::FindCold(uint32_t list, absl::FunctionRef<bool(BlockId)> allowed) {
  Ends& ends = ends_[list];
  bool from_start = ends.resume == list || ends.credit == 0;
  // Faster than refusals add to it in ordinary work (about one a call): else it would never run out.
  if (!from_start) ends.credit -= std::min(ends.credit, 4u);
  uint32_t node = from_start ? nodes_[list].hotter : ends.resume;
  if (from_start) ends.credit = 0;
  for (uint32_t looks = 0; looks < kMaxLooks; ++looks) {
    if (node == list) {
      if (from_start) return kNoBlock;
      from_start = true;
      ends.credit = 0;
      node = nodes_[list].hotter;
      continue;
    }
    if (allowed(BlockOf(node))) {
      ends.resume = node;
      return BlockOf(node);
    }
    ++ends.credit;
    node = nodes_[node].hotter;
  }
  ends.resume = node;
  return kNoBlock;
}

}  // namespace terrace::tiering
