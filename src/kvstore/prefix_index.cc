// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "kvstore/prefix_index.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "kvstore/base/check.h"

namespace terrace::kv {
namespace {

// A bucket holds 0 (empty) or slot + 1 in its low bits and a tag from the hash above: a wrong entry is
// looked at once in 64 times only.
constexpr uint32_t kTagShift = 26;
constexpr uint32_t kSlotMask = (1u << kTagShift) - 1;

uint32_t Scale(uint64_t hash, uint32_t n) {  // 0 .. n-1, from the high bits
  return static_cast<uint32_t>((static_cast<unsigned __int128>(hash) * n) >> 64);
}
uint32_t Tag(uint64_t hash) { return static_cast<uint32_t>(hash & 63) << kTagShift; }

}  // namespace

struct alignas(64) PrefixIndex::Shard {
  mutable Mutex mu;
  std::unique_ptr<LazyArray<uint32_t>> buckets ABSL_PT_GUARDED_BY(mu);
  std::unique_ptr<LazyArray<Entry>> entries ABSL_PT_GUARDED_BY(mu);
  std::vector<uint32_t> free ABSL_GUARDED_BY(mu);  // slots given back
  uint32_t fresh ABSL_GUARDED_BY(mu) = 0;          // slots never used start here
  uint32_t count ABSL_GUARDED_BY(mu) = 0;          // in sight

  // For prefetching, unlocked: what they return is a guess and only ever an address to fetch. The words
  // are written with SetBucket and SetFrame, so that the guess is at least a whole one.
  uint32_t GuessBucket(uint32_t bucket) const ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return std::atomic_ref((*buckets)[bucket]).load(std::memory_order_relaxed);
  }
  FrameId GuessFrame(uint32_t slot) const ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return std::atomic_ref((*entries)[slot].frame).load(std::memory_order_relaxed);
  }
  void SetBucket(uint32_t bucket, uint32_t value) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    std::atomic_ref((*buckets)[bucket]).store(value, std::memory_order_relaxed);
  }
  void SetFrame(uint32_t slot, FrameId frame) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    std::atomic_ref((*entries)[slot].frame).store(frame, std::memory_order_relaxed);
  }
  const void* BucketAddress(uint32_t bucket) const ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return &(*buckets)[bucket];
  }
  const void* EntryAddress(uint32_t slot) const ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return &(*entries)[slot];
  }
  // The bucket that holds the key, or nullopt.
  std::optional<uint32_t> FindBucket(uint64_t hash, KeySpaceId key_space, const BlockKey& key) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    const auto n = static_cast<uint32_t>(buckets->size());
    for (uint32_t bucket = Scale(hash << 6, n);; bucket = bucket + 1 == n ? 0 : bucket + 1) {
      const uint32_t value = (*buckets)[bucket];
      if (value == 0) return std::nullopt;
      if ((value & ~kSlotMask) != Tag(hash)) continue;
      const Entry& entry = (*entries)[(value & kSlotMask) - 1];
      if (entry.key == key && entry.key_space == key_space) return bucket;
    }
  }
};

PrefixIndex::PrefixIndex(uint64_t capacity, uint64_t hash_seed)
    : seed_(hash_seed), shards_(new Shard[kShards]) {
  // Keys fall on shards at random: six standard deviations of room.
  const double mean = static_cast<double>(capacity) / kShards;
  const double most = mean + 6 * std::sqrt(mean) + 16;
  TERRACE_CHECK(most < kSlotMask - 1);
  entries_per_shard_ = static_cast<uint32_t>(most);
  buckets_per_shard_ = static_cast<uint32_t>(most * 1.25) + 1;
  for (uint32_t i = 0; i < kShards; ++i) {
    MutexLock lock(&shards_[i].mu);
    shards_[i].buckets = std::make_unique<LazyArray<uint32_t>>(buckets_per_shard_);
    shards_[i].entries = std::make_unique<LazyArray<Entry>>(entries_per_shard_);
  }
}

PrefixIndex::~PrefixIndex() = default;

// The top six bits choose the shard, the next ones the bucket, the lowest six are the tag.
uint64_t PrefixIndex::Hash(KeySpaceId key_space, const BlockKey& key) const {
  return XXH3_64bits_withSeed(key.bytes.data(), key.bytes.size(),
                              seed_ ^ (key_space * 0x9E3779B97F4A7C15ull));
}

PrefixIndex::Inserted PrefixIndex::Insert(KeySpaceId key_space, const BlockKey& key, FrameId frame,
                                          BlockId* block) {
  const uint64_t hash = Hash(key_space, key);
  const auto shard_number = static_cast<uint32_t>(hash >> 58);
  Shard& shard = shards_[shard_number];
  MutexLock lock(&shard.mu);
  if (const auto bucket = shard.FindBucket(hash, key_space, key)) {
    *block = (((*shard.buckets)[*bucket] & kSlotMask) - 1) * kShards + shard_number;
    return Inserted::kPresent;
  }
  uint32_t slot;
  if (!shard.free.empty()) {
    slot = shard.free.back();
    shard.free.pop_back();
  } else if (shard.fresh < entries_per_shard_) {
    slot = shard.fresh++;
  } else {
    return Inserted::kFull;
  }
  Entry& entry = (*shard.entries)[slot];
  entry.key = key;
  entry.key_space = key_space;
  shard.SetFrame(slot, frame);
  uint32_t bucket = Scale(hash << 6, buckets_per_shard_);
  while ((*shard.buckets)[bucket] != 0) bucket = bucket + 1 == buckets_per_shard_ ? 0 : bucket + 1;
  shard.SetBucket(bucket, (slot + 1) | Tag(hash));
  ++shard.count;
  *block = slot * kShards + shard_number;
  return Inserted::kYes;
}

uint32_t PrefixIndex::FindChain(KeySpaceId key_space, std::span<const BlockKey> keys, bool stop_at_miss,
                                FramePool* pool, absl::FunctionRef<bool(uint64_t)> may_pin,
                                std::span<Found> found, bool* refused) const {
  // The keys of a chain are scattered: the memory they need is fetched a group ahead of its use.
  constexpr size_t kGroup = 32;
  uint64_t hashes[kGroup];
  uint32_t guesses[kGroup];
  uint32_t total = 0;
  *refused = false;
  struct Pinned {  // counted at once, at whichever end: a shared counter costs more than all else for a key
    FramePool* const pool;
    uint64_t bytes = 0;
    ~Pinned() {
      if (bytes > 0) pool->CountPinned(bytes);
    }
  } pinned{pool};
  for (size_t start = 0; start < keys.size(); start += kGroup) {
    const size_t n = std::min(kGroup, keys.size() - start);
    for (size_t i = 0; i < n; ++i) {
      hashes[i] = Hash(key_space, keys[start + i]);
      const Shard& shard = shards_[hashes[i] >> 58];
      __builtin_prefetch(shard.BucketAddress(Scale(hashes[i] << 6, buckets_per_shard_)));
    }
    for (size_t i = 0; i < n; ++i) {
      const Shard& shard = shards_[hashes[i] >> 58];
      guesses[i] = shard.GuessBucket(Scale(hashes[i] << 6, buckets_per_shard_)) & kSlotMask;
      if (guesses[i] != 0) __builtin_prefetch(shard.EntryAddress(guesses[i] - 1));
    }
    for (size_t i = 0; i < n && pool != nullptr; ++i) {
      if (guesses[i] != 0) pool->Prefetch(shards_[hashes[i] >> 58].GuessFrame(guesses[i] - 1));
    }
    for (size_t i = 0; i < n; ++i) {
      const uint64_t hash = hashes[i];
      const auto shard_number = static_cast<uint32_t>(hash >> 58);
      const Shard& shard = shards_[shard_number];
      MutexLock lock(&shard.mu);
      const auto bucket = shard.FindBucket(hash, key_space, keys[start + i]);
      Found& out = found[start + i];
      out = {};
      if (bucket.has_value()) {
        const uint32_t slot = ((*shard.buckets)[*bucket] & kSlotMask) - 1;
        if (pool != nullptr && !may_pin(pinned.bytes)) {
          *refused = true;
          return total;
        }
        out = {slot * kShards + shard_number, (*shard.entries)[slot].frame};
        if (pool != nullptr) pool->PinUncounted(out.frame, &pinned.bytes);
        ++total;
      } else if (stop_at_miss) {
        return total;
      }
    }
  }
  return total;
}

std::optional<PrefixIndex::Found> PrefixIndex::Find(KeySpaceId key_space, const BlockKey& key) const {
  Found found;
  bool refused;
  FindChain(key_space, {&key, 1}, true, nullptr, [](uint64_t) { return true; }, {&found, 1}, &refused);
  if (found.block == kNoBlock) return std::nullopt;
  return found;
}

bool PrefixIndex::Remove(BlockId block, FrameId frame, absl::FunctionRef<bool(FrameId)> allowed) {
  Shard& shard = shards_[block % kShards];
  const uint32_t slot = block / kShards;
  MutexLock lock(&shard.mu);
  Entry& entry = (*shard.entries)[slot];
  if (entry.frame != frame || frame == kNoFrame || !allowed(frame)) return false;
  const auto at = shard.FindBucket(Hash(entry.key_space, entry.key), entry.key_space, entry.key);
  TERRACE_CHECK(at.has_value());
  // Backward shift: close the gap with entries that may stand here, so that searches need no tombstones.
  uint32_t gap = *at;
  const uint32_t n = buckets_per_shard_;
  for (uint32_t i = gap + 1 == n ? 0 : gap + 1;; i = i + 1 == n ? 0 : i + 1) {
    const uint32_t value = (*shard.buckets)[i];
    if (value == 0) break;
    const Entry& other = (*shard.entries)[(value & kSlotMask) - 1];
    const uint32_t home = Scale(Hash(other.key_space, other.key) << 6, n);
    const uint32_t from_home_to_gap = gap >= home ? gap - home : gap + n - home;
    const uint32_t from_home_to_here = i >= home ? i - home : i + n - home;
    if (from_home_to_gap < from_home_to_here) {
      shard.SetBucket(gap, value);
      gap = i;
    }
  }
  shard.SetBucket(gap, 0);
  shard.SetFrame(slot, kNoFrame);
  --shard.count;
  return true;
}

bool PrefixIndex::Move(BlockId block, FrameId from, FrameId to,
                       absl::FunctionRef<bool(FrameId)> allowed) {
  Shard& shard = shards_[block % kShards];
  MutexLock lock(&shard.mu);
  Entry& entry = (*shard.entries)[block / kShards];
  if (entry.frame != from || from == kNoFrame || !allowed(from)) return false;
  shard.SetFrame(block / kShards, to);
  return true;
}

void PrefixIndex::FreeEntry(BlockId block) {
  Shard& shard = shards_[block % kShards];
  MutexLock lock(&shard.mu);
  TERRACE_CHECK((*shard.entries)[block / kShards].frame == kNoFrame);
  shard.free.push_back(block / kShards);
}

PrefixIndex::Entry PrefixIndex::Get(BlockId block) const {
  const Shard& shard = shards_[block % kShards];
  MutexLock lock(&shard.mu);
  if (block / kShards >= shard.fresh) return {};
  return (*shard.entries)[block / kShards];
}

void PrefixIndex::ForEach(absl::FunctionRef<bool(BlockId, const Entry&)> fn) const {
  constexpr uint32_t kBatch = 256;
  std::vector<std::pair<BlockId, Entry>> batch;
  for (uint32_t s = 0; s < kShards; ++s) {
    const Shard& shard = shards_[s];
    for (uint32_t start = 0;; start += kBatch) {
      batch.clear();
      {
        MutexLock lock(&shard.mu);
        if (start >= shard.fresh) break;
        for (uint32_t slot = start; slot < std::min(start + kBatch, shard.fresh); ++slot) {
          const Entry& entry = (*shard.entries)[slot];
          if (entry.frame != kNoFrame) batch.emplace_back(slot * kShards + s, entry);
        }
      }
      for (const auto& [block, entry] : batch) {
        if (!fn(block, entry)) return;
      }
    }
  }
}

uint64_t PrefixIndex::size() const {
  uint64_t n = 0;
  for (uint32_t s = 0; s < kShards; ++s) {
    MutexLock lock(&shards_[s].mu);
    n += shards_[s].count;
  }
  return n;
}

uint64_t PrefixIndex::capacity() const { return static_cast<uint64_t>(entries_per_shard_) * kShards; }

uint64_t PrefixIndex::TouchedBytes() const {
  uint64_t entries = 0;
  for (uint32_t s = 0; s < kShards; ++s) {
    MutexLock lock(&shards_[s].mu);
    entries += shards_[s].fresh;
  }
  const uint64_t buckets = static_cast<uint64_t>(buckets_per_shard_) * kShards * sizeof(uint32_t);
  // Buckets are hit at random: nearly all pages are in use once there are a few thousand entries.
  return entries * sizeof(Entry) + std::min(buckets, entries * 4096);
}

}  // namespace terrace::kv
