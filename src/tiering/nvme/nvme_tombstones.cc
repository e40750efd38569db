// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>

#include "tiering/nvme/nvme_disk.h"

namespace terrace::tiering {

void NvmeTombstones::Add(const NvmeTombstone& tombstone) {
  MutexLock lock(&mu_);
  any_.store(true, std::memory_order_release);
  // A later flush of the same blocks covers what an earlier one did.
  std::erase_if(list_, [&](const NvmeTombstone& old) {
    return tombstone.all_spaces != 0 || (old.all_spaces == 0 && old.space_tag == tombstone.space_tag);
  });
  if (list_.size() + 1 > kNvmeMaxTombstones) {
    NvmeTombstone everything = tombstone;
    everything.all_spaces = 1;
    list_ = {everything};
    return;
  }
  list_.push_back(tombstone);
}

void NvmeTombstones::Set(std::vector<NvmeTombstone> tombstones) {
  MutexLock lock(&mu_);
  any_.store(!tombstones.empty(), std::memory_order_release);
  list_ = std::move(tombstones);
}

bool NvmeTombstones::Covers(const NvmePlace& place, uint32_t space_tag) const {
  if (!any_.load(std::memory_order_acquire)) return false;
  MutexLock lock(&mu_);
  for (const NvmeTombstone& tombstone : list_) {
    if (tombstone.all_spaces == 0 && tombstone.space_tag != space_tag) continue;
    if (place.sequence < tombstone.sequence ||
        (place.sequence == tombstone.sequence && place.page < tombstone.page)) {
      return true;
    }
  }
  return false;
}

bool NvmeTombstones::IsBefore(uint64_t sequence, uint64_t page) const {
  MutexLock lock(&mu_);
  return std::any_of(list_.begin(), list_.end(), [&](const NvmeTombstone& tombstone) {
    return sequence < tombstone.sequence || (sequence == tombstone.sequence && page < tombstone.page);
  });
}

std::vector<NvmeTombstone> NvmeTombstones::Prune(uint64_t oldest_sequence) {
  MutexLock lock(&mu_);
  std::erase_if(list_, [&](const NvmeTombstone& old) { return old.sequence < oldest_sequence; });
  any_.store(!list_.empty(), std::memory_order_release);
  return list_;
}

}  // namespace terrace::tiering
