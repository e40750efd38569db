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
    ends_[list].resume = ends_[list].probe = list;
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
  Ends& ends = ends_[list];
  if (ends.resume == node) ends.resume = links.hotter;
  if (ends.probe == node) ends.probe = links.hotter;
  nodes_[links.hotter].colder = links.colder;
  nodes_[links.colder].hotter = links.hotter;
  list_[block] = 0;
  --ends.size;
}

BlockId BlockLists::FindCold(uint32_t list, absl::FunctionRef<bool(BlockId)> allowed) {
  Ends& ends = ends_[list];
  for (uint32_t n = 0; n < kProbes && ends.resume != list; ++n) {
    uint32_t node = ends.probe == list ? nodes_[list].hotter : ends.probe;
    if (node == ends.resume) {
      ends.probe = list;
      break;
    }
    if (allowed(BlockOf(node))) {
      ends.resume = node;
      ends.probe = list;
      return BlockOf(node);
    }
    ends.probe = nodes_[node].hotter;
  }
  bool from_start = ends.resume == list;
  uint32_t node = from_start ? nodes_[list].hotter : ends.resume;
  for (uint32_t looks = 0; looks < kMaxLooks; ++looks) {
    if (node == list) {
      ends.resume = ends.probe = list;
      if (from_start) return kNoBlock;
      from_start = true;
      node = nodes_[list].hotter;
      continue;
    }
    if (allowed(BlockOf(node))) {
      ends.resume = node;
      return BlockOf(node);
    }
    node = nodes_[node].hotter;
  }
  ends.resume = node;
  return kNoBlock;
}

}  // namespace terrace::tiering
