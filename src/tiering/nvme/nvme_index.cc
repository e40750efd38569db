// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/nvme/nvme_index.h"

#include <bit>

#include "kvstore/base/check.h"

namespace terrace::tiering {
namespace {

struct ChunkPlace {
  uint32_t chunk, offset, size;
};

ChunkPlace PlaceOf(uint32_t i, uint32_t first) {
  if (i < first) return {0, i, first};
  const auto chunk = static_cast<uint32_t>(std::bit_width(i / first));
  const uint32_t size = first << (chunk - 1);
  return {chunk, i - size, size};
}

}  // namespace

NvmeIndex::NvmeIndex(const NvmeGeometry& geometry, MemoryBudget* budget)
    : entry_bits_(std::countr_zero(geometry.max_entries)),
      max_entries_(geometry.max_entries),
      budget_(budget),
      segments_(geometry.segments) {
  TERRACE_CHECK(std::has_single_bit(geometry.max_entries));
  TERRACE_CHECK((static_cast<uint64_t>(geometry.segments) << entry_bits_) <= UINT32_MAX);
  for (int i = 0; i < 1 << kShardBits; ++i) shards_.push_back(std::make_unique<Shard>(this));
}

NvmeIndex::~NvmeIndex() { budget_->Release(charged_.load()); }

NvmeIndex::Entry& NvmeIndex::EntryOf(uint32_t id) const {
  const ChunkPlace place = PlaceOf(id & (max_entries_ - 1), kFirstChunk);
  return segments_[id >> entry_bits_].chunks[place.chunk][place.offset];
}

NvmeIndex::Found NvmeIndex::Describe(uint32_t id) const {
  const Entry& entry = EntryOf(id);
  const uint16_t pages = entry.pages.load(std::memory_order_relaxed);
  Found found;
  found.id = id;
  found.place.segment = id >> entry_bits_;
  found.place.page = entry.page;
  found.place.sequence = sequence(found.place.segment);
  found.pages = pages & kPagesMask;
  found.space_tag = entry.space_tag;
  found.fingerprint = entry.fingerprint;
  found.was_hit = (pages & kHit) != 0;
  return found;
}

std::optional<NvmeIndex::Found> NvmeIndex::Find(uint64_t fingerprint, bool mark_hit) {
  Shard& shard = ShardOf(fingerprint);
  MutexLock lock(&shard.mu);
  const auto it = shard.set.find(fingerprint);
  if (it == shard.set.end()) return std::nullopt;
  if (mark_hit) EntryOf(*it).pages.fetch_or(kHit, std::memory_order_relaxed);
  return Describe(*it);
}

bool NvmeIndex::Contains(uint64_t fingerprint) const {
  Shard& shard = ShardOf(fingerprint);
  MutexLock lock(&shard.mu);
  return shard.set.contains(fingerprint);
}

void NvmeIndex::Forget(Shard& shard, Set::iterator it) {
  Entry& entry = EntryOf(*it);
  const uint16_t pages = entry.pages.fetch_and(kPagesMask, std::memory_order_relaxed) & kPagesMask;
  blocks_.fetch_sub(1, std::memory_order_relaxed);
  of_space_[entry.space_tag % of_space_.size()].fetch_sub(1, std::memory_order_relaxed);
  segments_[*it >> entry_bits_].live.fetch_sub(1, std::memory_order_release);
  used_pages_.fetch_sub(pages, std::memory_order_relaxed);
  shard.set.erase(it);
}

bool NvmeIndex::Drop(uint64_t fingerprint, uint32_t id) {
  Shard& shard = ShardOf(fingerprint);
  MutexLock lock(&shard.mu);
  const auto it = shard.set.find(fingerprint);
  if (it == shard.set.end() || (id != kNone && *it != id)) return false;
  Forget(shard, it);
  return true;
}

uint64_t NvmeIndex::DropSpace(std::optional<uint32_t> space_tag) {
  uint64_t dropped = 0;
  for (const auto& shard : shards_) {
    MutexLock lock(&shard->mu);
    for (auto it = shard->set.begin(); it != shard->set.end();) {
      const auto next = std::next(it);
      if (!space_tag || EntryOf(*it).space_tag == *space_tag) {
        Forget(*shard, it);
        ++dropped;
      }
      it = next;
    }
  }
  return dropped;
}

uint32_t NvmeIndex::Reserve(uint32_t segment) {
  Segment& s = segments_[segment];
  const uint32_t i = s.count.load(std::memory_order_relaxed);
  if (i >= max_entries_) return kNone;
  const ChunkPlace place = PlaceOf(i, kFirstChunk);
  if (!s.chunks[place.chunk]) {
    const uint64_t bytes = place.size * kChargedPerEntry;
    if (!budget_->TryCharge(bytes)) return kNone;
    charged_.fetch_add(bytes, std::memory_order_relaxed);
    s.chunks[place.chunk] = std::make_unique<Entry[]>(place.size);
  }
  s.count.store(i + 1, std::memory_order_release);
  return segment << entry_bits_ | i;
}

void NvmeIndex::Expect(uint64_t blocks) {
  for (const auto& shard : shards_) {
    MutexLock lock(&shard->mu);
    shard->set.reserve(blocks >> kShardBits);
  }
}

bool NvmeIndex::Publish(uint32_t id, const NvmeEntry& data, uint32_t replaces,
                        absl::FunctionRef<bool()> allowed) {
  Entry& entry = EntryOf(id);
  entry.fingerprint = data.fingerprint;
  entry.space_tag = data.space_tag;
  entry.page = data.page;
  entry.pages.store(data.pages & kPagesMask, std::memory_order_relaxed);
  Shard& shard = ShardOf(data.fingerprint);
  MutexLock lock(&shard.mu);
  if (!allowed()) return false;
  const auto it = shard.set.find(data.fingerprint);
  if (replaces != kNone && (it == shard.set.end() || *it != replaces)) return false;
  if (it != shard.set.end()) {
    const Found old = Describe(*it), now = Describe(id);
    if (old.place.sequence > now.place.sequence ||
        (old.place.sequence == now.place.sequence && old.place.page >= now.place.page)) {
      return false;
    }
    Forget(shard, it);
  }
  shard.set.insert(id);
  entry.pages.fetch_or(kLive, std::memory_order_relaxed);
  blocks_.fetch_add(1, std::memory_order_relaxed);
  of_space_[data.space_tag % of_space_.size()].fetch_add(1, std::memory_order_relaxed);
  segments_[id >> entry_bits_].live.fetch_add(1, std::memory_order_release);
  used_pages_.fetch_add(data.pages, std::memory_order_relaxed);
  return true;
}

void NvmeIndex::ForgetHits(uint32_t segment) {
  const uint32_t count = entry_count(segment);
  for (uint32_t i = 0; i < count; ++i) {
    EntryOf(segment << entry_bits_ | i).pages.fetch_and(static_cast<uint16_t>(~kHit), std::memory_order_relaxed);
  }
}

void NvmeIndex::DropSegment(uint32_t segment) {
  const uint32_t count = entry_count(segment);
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t id = segment << entry_bits_ | i;
    const Entry& entry = EntryOf(id);
    if ((entry.pages.load(std::memory_order_relaxed) & kLive) != 0) Drop(entry.fingerprint, id);
  }
}

void NvmeIndex::ResetSegment(uint32_t segment, uint64_t sequence) {
  Segment& s = segments_[segment];
  DropSegment(segment);
  // Whoever has just taken an entry out may still hold its shard: nobody looks at the entries after this.
  for (const auto& shard : shards_) MutexLock lock(&shard->mu);
  uint64_t bytes = 0;
  for (uint32_t chunk = 0; chunk < s.chunks.size(); ++chunk) {
    if (s.chunks[chunk]) bytes += (chunk == 0 ? kFirstChunk : kFirstChunk << (chunk - 1)) * kChargedPerEntry;
    s.chunks[chunk].reset();
  }
  charged_.fetch_sub(bytes, std::memory_order_relaxed);
  budget_->Release(bytes);
  s.count.store(0, std::memory_order_release);
  s.sequence.store(sequence, std::memory_order_release);
}

std::optional<NvmeIndex::Found> NvmeIndex::At(uint32_t segment, uint32_t i) const {
  const uint32_t id = segment << entry_bits_ | i;
  if ((EntryOf(id).pages.load(std::memory_order_relaxed) & kLive) == 0) return std::nullopt;
  return Describe(id);
}

std::vector<NvmeEntry> NvmeIndex::Table(uint32_t segment) const {
  std::vector<NvmeEntry> table;
  const uint32_t count = entry_count(segment);
  for (uint32_t i = 0; i < count; ++i) {
    if (const auto found = At(segment, i)) {
      table.push_back({.fingerprint = found->fingerprint,
                       .space_tag = found->space_tag,
                       .page = static_cast<uint16_t>(found->place.page),
                       .pages = static_cast<uint16_t>(found->pages)});
    }
  }
  return table;
}

}  // namespace terrace::tiering
