// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// BlockLists: a few doubly linked lists of blocks from hot to cold, each block in one of them or in none.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "kvstore/base/lazy_array.h"
#include "kvstore/frame_pool.h"

namespace terrace::tiering {

// Owner: a policy. Threads: one at a time. Limits: n_lists below 255; 9 bytes a block.
class BlockLists {
 public:
  BlockLists(uint64_t max_blocks, uint32_t n_lists);

  static constexpr uint32_t kNoList = 255;
  // Of any number, also of blocks that there cannot be.
  uint32_t ListOf(kv::BlockId block) const {
    return block < max_blocks_ && list_[block] != 0 ? list_[block] - 1u : kNoList;
  }
  uint64_t Size(uint32_t list) const { return ends_[list].size; }

  // REQUIRES: in no list.
  void AddHot(uint32_t list, kv::BlockId block) { Link(list, block, list); }
  // Next to `hotter`, in its list. REQUIRES: hotter is in a list.
  void AddBehind(kv::BlockId hotter, kv::BlockId block) { Link(ListOf(hotter), block, NodeOf(hotter)); }
  // Nothing if it is in no list.
  void Remove(kv::BlockId block);

  kv::BlockId Coldest(uint32_t list) const { return BlockOf(nodes_[list].hotter); }
  kv::BlockId Hotter(kv::BlockId block) const { return BlockOf(nodes_[NodeOf(block)].hotter); }
  // The coldest that is allowed, or kNoBlock after kMaxLooks. Of blocks that were refused before, each call
  // asks about kProbes again, coldest first and round and round: a cold end full of pinned blocks costs that
  // many looks a call, not all of them, and what is let go as a whole is found by the next call.
  kv::BlockId FindCold(uint32_t list, absl::FunctionRef<bool(kv::BlockId)> allowed);

 private:
  static constexpr uint32_t kMaxLooks = 65536;
  static constexpr uint32_t kProbes = 4;
  struct Node {
    uint32_t hotter, colder;
  };
  struct Ends {
    uint64_t size = 0;
    uint32_t resume = 0;  // node up to which all was refused; the list's own: none was
    uint32_t probe = 0;   // a node before it, to be asked about again; the list's own: the coldest
  };
  // Node numbers: the lists' heads first, then the blocks. A head's colder is the hottest block.
  uint32_t NodeOf(kv::BlockId block) const { return block + n_lists_; }
  kv::BlockId BlockOf(uint32_t node) const { return node < n_lists_ ? kv::kNoBlock : node - n_lists_; }
  void Link(uint32_t list, kv::BlockId block, uint32_t hotter);

  const uint64_t max_blocks_;
  const uint32_t n_lists_;
  LazyArray<Node> nodes_;
  LazyArray<uint8_t> list_;  // + 1; 0: in none
  std::vector<Ends> ends_;
};

}  // namespace terrace::tiering
