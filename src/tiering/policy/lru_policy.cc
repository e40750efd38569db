// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/policy/lru_policy.h"

namespace terrace::tiering {

LruPolicy::LruPolicy(uint64_t capacity) : nodes_(capacity + 1) {}

void LruPolicy::LinkBehind(uint32_t node, uint32_t hotter) {
  const uint32_t colder = nodes_[hotter].colder;
  nodes_[node].hotter = hotter;
  nodes_[node].colder = colder;
  nodes_[hotter].colder = node;
  nodes_[colder].hotter = node;
}

void LruPolicy::Unlink(uint32_t node) {
  nodes_[nodes_[node].hotter].colder = nodes_[node].colder;
  nodes_[nodes_[node].colder].hotter = nodes_[node].hotter;
  nodes_[node] = {0, 0, 0, 0};
}

void LruPolicy::OnInsert(BlockId block, const Insert& insert, int64_t /*now_ns*/) {
  const BlockId parent = insert.parent;
  const uint32_t node = block + 1;
  if (In(node)) Unlink(node);
  const bool has_parent = parent != kNoBlock && In(parent + 1);
  LinkBehind(node, has_parent ? parent + 1 : 0);
  nodes_[node].tick = has_parent ? nodes_[parent + 1].tick : ++tick_ & kTickMask;
  if (has_parent) ++tick_;
}

void LruPolicy::OnAccess(BlockId block, int64_t /*now_ns*/) {
  const uint32_t node = block + 1;
  if (node >= nodes_.size() || !In(node)) return;
  const uint32_t uses = nodes_[node].uses;
  Unlink(node);
  LinkBehind(node, 0);
  nodes_[node].tick = ++tick_ & kTickMask;
  nodes_[node].uses = (uses < 3 ? uses + 1 : 3) & 3;
}

uint32_t LruPolicy::Uses(BlockId block) const {
  return block + 1 < nodes_.size() && In(block + 1) ? nodes_[block + 1].uses : 0;
}

void LruPolicy::OnErase(BlockId block, bool /*evicted*/) {
  if (In(block + 1)) Unlink(block + 1);
}

bool LruPolicy::IsStale(BlockId block) const { return ((tick_ - nodes_[block + 1].tick) & kTickMask) > kStaleTicks; }

BlockId LruPolicy::Victim(absl::FunctionRef<bool(BlockId)> allowed, int64_t /*now_ns*/) {
  uint32_t node = nodes_[0].hotter;
  for (int looks = 0; node != 0 && looks < kMaxLook; ++looks) {
    if (allowed(node - 1)) return node - 1;
    node = nodes_[node].hotter;
  }
  return kNoBlock;
}

}  // namespace terrace::tiering
