// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// I4 under load: while threads insert, remove and find, a frame that was found and pinned keeps the
// bytes of its key until it is unpinned. Frames here are cells of memory filled from their block's key.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <thread>

#include "kvstore/base/mutex.h"
#include "kvstore/prefix_index.h"
#include "testing/payload.h"

namespace terrace::kv {
namespace {

using testing::KeyOf;
using testing::Random;

constexpr uint64_t kKeys = 600;
constexpr uint64_t kFrames = 512;
constexpr size_t kCell = 256;

TEST(PrefixIndexStressTest, APinnedFrameKeepsItsBytes) {
  MemoryBudget budget(1 << 30);
  FramePool pool(64, 0, &budget);
  pool.AddSegment(1, 0, kFrames * 4096 / kExtentBytes);
  PrefixIndex index(kKeys, 5);
  std::vector<std::array<std::byte, kCell>> cells(kFrames);
  const auto cell = [&](FrameId frame) -> std::array<std::byte, kCell>& {
    return cells[pool.PlaceOf(frame).payload_offset / 4096];
  };
  Mutex catalog_mu;  // as in the catalogue: removing is serialised, finding is not
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> served{0}, wrong{0}, stored{0}, removed{0}, removed_pinned{0};

  const auto writer = [&](uint64_t seed) {
    Random random(seed);
    while (!stop.load()) {
      const uint64_t number = random.Below(kKeys);
      if (random.OneIn(2)) {
        bool no_metadata;
        const auto frame = pool.Allocate(0, 4096, &no_metadata);
        if (!frame.has_value()) continue;
        testing::FillPayload(KeyOf(number), 0, cell(*frame));
        pool.MakeReady(*frame, pool.NextGeneration());
        BlockId block;
        MutexLock lock(&catalog_mu);
        if (index.Insert(1, KeyOf(number), *frame, &block) == PrefixIndex::Inserted::kYes) {
          stored.fetch_add(1);
        } else if (pool.Retire(*frame)) {
          pool.Recycle(*frame);
        }
      } else {
        MutexLock lock(&catalog_mu);
        const auto found = index.Find(1, KeyOf(number));
        if (!found.has_value()) continue;
        const bool even_pinned = random.OneIn(3);
        const bool gone = index.Remove(found->block, found->frame,
                                       [&](FrameId f) { return even_pinned || !pool.IsPinned(f); });
        if (!gone) continue;
        removed.fetch_add(1);
        index.FreeEntry(found->block);
        if (pool.Retire(found->frame)) {
          pool.Recycle(found->frame);
        } else {
          removed_pinned.fetch_add(1);
        }
      }
    }
  };
  const auto reader = [&](uint64_t seed) {
    Random random(seed);
    std::vector<PrefixIndex::Found> found(40);
    while (!stop.load()) {
      const uint64_t first = random.Below(kKeys - found.size());
      const auto keys = testing::KeysOf(first, found.size());
      bool refused;
      index.FindChain(1, keys, false, &pool, [](uint64_t) { return true; }, found, &refused);
      for (size_t i = 0; i < found.size(); ++i) {
        if (found[i].block == kNoBlock) continue;
        for (int look = 0; look < 3; ++look) {
          if (!testing::IsPayloadOf(keys[i], cell(found[i].frame))) wrong.fetch_add(1);
        }
        served.fetch_add(1);
        if (pool.Unpin(found[i].frame)) pool.Recycle(found[i].frame);
      }
    }
  };
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < 3; ++i) threads.emplace_back(writer, i + 1);
  for (uint64_t i = 0; i < 3; ++i) threads.emplace_back(reader, i + 101);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while ((served.load() < 200'000 || removed_pinned.load() < 200) && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
  stop.store(true);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong.load(), 0u);
  EXPECT_GT(served.load(), 10'000u);
  EXPECT_GT(removed_pinned.load(), 0u) << "no frame was retired while pinned: the test did not test it";
  EXPECT_EQ(pool.pinned_bytes(), 0u);
  EXPECT_EQ(pool.GetUsage().frames_in_use, index.size()) << "frames leaked";
  EXPECT_EQ(stored.load() - removed.load(), index.size());
}

}  // namespace
}  // namespace terrace::kv
