// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Contract of CopyEngine: right bytes, right verdicts, planes in order. Part of copy_engine_contract.h.
#pragma once

#include "contract/copy_engine_fixture.h"

namespace terrace::gpu {

template <typename Rig>
class CopyEngineCopies : public CopyEngineTest<Rig> {
 protected:
  using CopyEngineTest<Rig>::rig_;
  using CopyEngineTest<Rig>::engine_;
  using CopyEngineTest<Rig>::kSeed;

  // Pages n - 1, n - 3, ...: not all, and not in order.
  static std::vector<uint64_t> SomePages(const RegionLayout& layout) {
    std::vector<uint64_t> pages;
    for (uint64_t page = layout.n_pages; page > 0; page -= std::min<uint64_t>(page, 2)) pages.push_back(page - 1);
    return pages;
  }
  void StoresPages(const NamedLayout& named, bool on_device, size_t skew) {
    ModelledMemory memory(rig_, named.allocation_bytes);
    const auto region = memory.memory().MakeRegion(named.layout);
    const std::vector<uint64_t> pages = SomePages(named.layout);
    Frames frames(rig_, pages.size(), region->page_bytes(), on_device, skew);
    CopyBatch batch = MakeBatch(region, Direction::kStore, pages, frames, kSeed);
    Outcome outcome;
    TERRACE_RUN_BATCH(engine_, batch, outcome);
    ASSERT_TRUE(outcome.status().ok()) << outcome.status();
    for (size_t i = 0; i < pages.size(); ++i) {
      const std::vector<std::byte> expected = memory.ModelPage(named.layout, pages[i]);
      EXPECT_TRUE(outcome.pages()[i].intact);
      EXPECT_TRUE(frames.Read(i) == expected) << "page " << pages[i];
      EXPECT_EQ(outcome.pages()[i].checksums, ChecksumsUnder(kSeed + i, expected)) << "page " << pages[i];
      EXPECT_TRUE(frames.GuardsAreWhole(i)) << "page " << pages[i];
    }
    EXPECT_TRUE(memory.IsAsModelled()) << "a store writes into the engine's memory";
  }
  void LoadsPages(const NamedLayout& named, bool on_device, size_t skew) {
    ModelledMemory memory(rig_, named.allocation_bytes);
    const auto region = memory.memory().MakeRegion(named.layout);
    const std::vector<uint64_t> pages = SomePages(named.layout);
    Frames frames(rig_, pages.size(), region->page_bytes(), on_device, skew);
    std::vector<std::vector<std::byte>> payloads;
    CopyBatch batch = MakeLoad(region, pages, frames, this->kSeed, 7000, &payloads);
    Outcome outcome;
    TERRACE_RUN_BATCH(engine_, batch, outcome);
    ASSERT_TRUE(outcome.status().ok()) << outcome.status();
    EXPECT_EQ(outcome.intact_count(), pages.size());
    for (size_t i = 0; i < pages.size(); ++i) memory.SetModelPage(named.layout, pages[i], payloads[i]);
    EXPECT_TRUE(memory.IsAsModelled());
    for (size_t i = 0; i < pages.size(); ++i) {
      EXPECT_TRUE(frames.Read(i) == payloads[i] && frames.GuardsAreWhole(i)) << "a load writes into a frame";
    }
  }
};

TYPED_TEST_SUITE_P(CopyEngineCopies);

TYPED_TEST_P(CopyEngineCopies, StoresEveryLayout) {
  for (const NamedLayout& named : layouts::All()) {
    SCOPED_TRACE(named.name);
    this->StoresPages(named, false, 0);
    if (this->HasFatalFailure()) return;
  }
}

TYPED_TEST_P(CopyEngineCopies, LoadsEveryLayout) {
  for (const NamedLayout& named : layouts::All()) {
    SCOPED_TRACE(named.name);
    this->LoadsPages(named, false, 0);
    if (this->HasFatalFailure()) return;
  }
}

TYPED_TEST_P(CopyEngineCopies, FramesMayLieAnywhere) {
  const size_t skews[] = {1, 8, 37};
  size_t n_layouts = 0;
  for (const NamedLayout& named : layouts::All()) {
    ++n_layouts;
    for (size_t i = 0; i < testing::Trials<size_t>(3, 1); ++i) {
      const size_t skew = skews[(n_layouts + i) % 3];
      SCOPED_TRACE(named.name);
      SCOPED_TRACE(skew);
      this->StoresPages(named, false, skew);
      this->LoadsPages(named, false, skew);
      if (this->HasFatalFailure()) return;
    }
  }
}

TYPED_TEST_P(CopyEngineCopies, FramesOnTheDevice) {
  if (!this->rig_.has_device_frames()) {
    const NamedLayout named = layouts::All().front();
    ModelledMemory memory(this->rig_, named.allocation_bytes);
    const auto region = memory.memory().MakeRegion(named.layout);
    Frames frames(this->rig_, 1, region->page_bytes());
    const uint64_t page = 0;
    CopyBatch batch = MakeBatch(region, Direction::kStore, {&page, 1}, frames, this->kSeed);
    batch.frames_on_device = true;
    EXPECT_TRUE(absl::IsInvalidArgument(this->engine_->Submit(batch)));
    return;
  }
  for (const NamedLayout& named : layouts::All()) {
    SCOPED_TRACE(named.name);
    this->StoresPages(named, true, 0);
    this->LoadsPages(named, true, 0);
    if (this->HasFatalFailure()) return;
  }
}

// Groups of layers with pages of different sizes on the same allocation: each a region of its own.
TYPED_TEST_P(CopyEngineCopies, HybridGroupsShareAllocations) {
  const uint64_t sizes[] = {40 * 16384, 40 * 16384};
  ModelledMemory memory(this->rig_, sizes);
  RegionLayout full, window;
  full.n_pages = 40;
  full.planes = {{0, 0, 16384, 16384}, {1, 0, 16384, 16384}};
  window.n_pages = 20;  // twice the bytes: page p lies where the full group's pages 2p and 2p + 1 do
  window.planes = {{0, 0, 32768, 32768}, {1, 0, 32768, 24576}};
  const auto full_region = memory.memory().MakeRegion(full);
  const auto window_region = memory.memory().MakeRegion(window);
  const std::vector<uint64_t> full_pages = {0, 1, 2, 9, 31}, window_pages = {19, 2, 7};  // disjoint
  Frames full_frames(this->rig_, full_pages.size(), full_region->page_bytes());
  Frames window_frames(this->rig_, window_pages.size(), window_region->page_bytes());
  std::vector<std::vector<std::byte>> full_payloads, window_payloads;
  CopyBatch full_load = MakeLoad(full_region, full_pages, full_frames, this->kSeed, 1, &full_payloads);
  CopyBatch window_load = MakeLoad(window_region, window_pages, window_frames, this->kSeed, 50, &window_payloads);
  Outcome full_outcome, window_outcome;
  full_load.done = full_outcome.Taker();
  window_load.done = window_outcome.Taker();
  ASSERT_TRUE(this->engine_->Submit(full_load).ok());
  ASSERT_TRUE(this->engine_->Submit(window_load).ok());
  ASSERT_TRUE(full_outcome.Wait() && window_outcome.Wait());
  EXPECT_EQ(full_outcome.intact_count(), full_pages.size());
  EXPECT_EQ(window_outcome.intact_count(), window_pages.size());
  for (size_t i = 0; i < full_pages.size(); ++i) memory.SetModelPage(full, full_pages[i], full_payloads[i]);
  for (size_t i = 0; i < window_pages.size(); ++i) memory.SetModelPage(window, window_pages[i], window_payloads[i]);
  EXPECT_TRUE(memory.IsAsModelled());
}

TYPED_TEST_P(CopyEngineCopies, AFlippedBitIsFoundInItsPageOnly) {
  size_t n_layouts = 0;
  for (const NamedLayout& named : layouts::All()) {
    SCOPED_TRACE(named.name);
    ModelledMemory memory(this->rig_, named.allocation_bytes);
    const auto region = memory.memory().MakeRegion(named.layout);
    const uint64_t page_bytes = region->page_bytes();
    std::vector<uint64_t> pages;
    for (uint64_t page = 0; page < named.layout.n_pages; ++page) pages.push_back(page);
    Frames frames(this->rig_, pages.size(), page_bytes);
    const uint64_t places[] = {0, page_bytes / 2, page_bytes - 1, std::min<uint64_t>(65536, page_bytes - 1)};
    ++n_layouts;
    for (size_t n = 0; n < testing::Trials<size_t>(4, 1); ++n) {
      const uint64_t place = places[(n_layouts + n) % 4];
      std::vector<std::vector<std::byte>> payloads;
      CopyBatch batch = MakeLoad(region, pages, frames, this->kSeed, 7000 + place, &payloads);
      const size_t bad = place % pages.size();
      std::vector<std::byte> damaged = payloads[bad];
      damaged[place] ^= std::byte{0x10};
      frames.Write(bad, damaged);
      Outcome outcome;
      TERRACE_RUN_BATCH(this->engine_, batch, outcome);
      ASSERT_TRUE(outcome.status().ok()) << "a wrong byte is a page's verdict: " << outcome.status();
      for (size_t i = 0; i < pages.size(); ++i) {
        EXPECT_EQ(outcome.pages()[i].intact, i != bad) << "byte " << place << " of page " << bad << ": page " << i;
        if (i != bad) memory.SetModelPage(named.layout, pages[i], payloads[i]);
      }
      memory.AdoptPage(named.layout, pages[bad]);
      EXPECT_TRUE(memory.IsAsModelled());
    }
  }
}

TYPED_TEST_P(CopyEngineCopies, ChecksumsAreBoundToTheBlock) {
  const NamedLayout named = layouts::All()[1];
  ModelledMemory memory(this->rig_, named.allocation_bytes);
  const auto region = memory.memory().MakeRegion(named.layout);
  const std::vector<uint64_t> pages = {3, 4, 5, 6};
  Frames frames(this->rig_, pages.size(), region->page_bytes());
  std::vector<std::vector<std::byte>> payloads;
  CopyBatch batch = MakeLoad(region, pages, frames, this->kSeed, 1, &payloads);
  batch.pages[0].identity_seed ^= 1;                                    // another block's
  std::swap(batch.pages[1].checksums[0], batch.pages[1].checksums[1]);  // segments that have changed places
  batch.pages[2].checksums.back() ^= 1ull << 63;
  Outcome outcome;
  TERRACE_RUN_BATCH(this->engine_, batch, outcome);
  ASSERT_TRUE(outcome.status().ok());
  EXPECT_FALSE(outcome.pages()[0].intact);
  EXPECT_FALSE(outcome.pages()[1].intact);
  EXPECT_FALSE(outcome.pages()[2].intact);
  EXPECT_TRUE(outcome.pages()[3].intact);
}

// Same bytes stored and loaded again: what a store computes is what a load expects, whatever the means.
TYPED_TEST_P(CopyEngineCopies, WhatWasStoredIsLoadedElsewhere) {
  for (const NamedLayout& named : layouts::All()) {
    SCOPED_TRACE(named.name);
    ModelledMemory memory(this->rig_, named.allocation_bytes);
    const auto region = memory.memory().MakeRegion(named.layout);
    const uint64_t half = named.layout.n_pages / 2;
    std::vector<uint64_t> from, to;
    for (uint64_t page = 0; page < half; ++page) {
      from.push_back(page);
      to.push_back(named.layout.n_pages - 1 - page);
    }
    Frames frames(this->rig_, half, region->page_bytes());
    CopyBatch store = MakeBatch(region, Direction::kStore, from, frames, this->kSeed);
    Outcome stored, loaded;
    TERRACE_RUN_BATCH(this->engine_, store, stored);
    ASSERT_EQ(stored.intact_count(), half);
    CopyBatch load = MakeBatch(region, Direction::kLoad, to, frames, this->kSeed);
    for (size_t i = 0; i < half; ++i) load.pages[i].checksums = stored.pages()[i].checksums;
    TERRACE_RUN_BATCH(this->engine_, load, loaded);
    ASSERT_EQ(loaded.intact_count(), half);
    for (size_t i = 0; i < half; ++i) {
      memory.SetModelPage(named.layout, to[i], memory.ModelPage(named.layout, from[i]));
    }
    EXPECT_TRUE(memory.IsAsModelled());
  }
}

// The number grows to that of all planes, before done, and whenever it is said the bytes are there.
TYPED_TEST_P(CopyEngineCopies, PlanesAreDoneWhenItSaysSo) {
  for (const NamedLayout& named : layouts::All()) {
    SCOPED_TRACE(named.name);
    ModelledMemory memory(this->rig_, named.allocation_bytes);
    const auto region = memory.memory().MakeRegion(named.layout);
    const std::vector<uint64_t> pages = this->SomePages(named.layout);
    Frames frames(this->rig_, pages.size(), region->page_bytes());
    std::vector<std::vector<std::byte>> payloads;
    CopyBatch batch = MakeLoad(region, pages, frames, this->kSeed, 7000, &payloads);
    for (size_t i = 0; i < pages.size(); ++i) memory.SetModelPage(named.layout, pages[i], payloads[i]);
    Mutex mu;
    uint32_t told = 0;
    std::string wrong;
    Outcome outcome;
    batch.planes_done = [&](uint32_t n) {
      MutexLock lock(&mu);
      if (n <= told) wrong += "not growing; ";
      if (n > named.layout.planes.size()) wrong += "too many; ";
      if (outcome.times() != 0) wrong += "after done; ";
      for (uint32_t p = told; p < n && wrong.empty(); ++p) {
        const Plane& plane = named.layout.planes[p];
        for (const uint64_t page : pages) {
          const std::vector<std::byte> real = memory.RealPiece(plane, page);
          const auto at =
              memory.model(plane.allocation).begin() + static_cast<ptrdiff_t>(plane.offset + page * plane.stride);
          if (!std::equal(real.begin(), real.end(), at)) wrong += "plane not there; ";
        }
      }
      told = n;
    };
    TERRACE_RUN_BATCH(this->engine_, batch, outcome);
    MutexLock lock(&mu);
    EXPECT_EQ(wrong, "");
    EXPECT_EQ(told, named.layout.planes.size());
    EXPECT_EQ(outcome.intact_count(), pages.size());
  }
}

// Of a large load the first planes are said to be done long before the last ones. A thread that is put aside in the
// middle of the first planes makes one load an exception, so several are tried.
TYPED_TEST_P(CopyEngineCopies, PlanesAreDoneOneAfterAnother) {
  const NamedLayout named =
      layouts::Make("layers", {.n_allocations = 16, .stride = 65536, .bytes = 65536, .n_pages = 48});
  ModelledMemory memory(this->rig_, named.allocation_bytes);
  const auto region = memory.memory().MakeRegion(named.layout);
  std::vector<uint64_t> pages;
  for (uint64_t page = 0; page < named.layout.n_pages; ++page) pages.push_back(page);
  Frames frames(this->rig_, pages.size(), region->page_bytes());
  bool seen = false;
  for (int attempt = 0; attempt < 50 && !seen; ++attempt) {
    std::vector<std::vector<std::byte>> payloads;
    CopyBatch batch = MakeLoad(region, pages, frames, this->kSeed, 1, &payloads);
    Mutex mu;
    std::vector<uint32_t> told;
    batch.planes_done = [&](uint32_t n) {
      MutexLock lock(&mu);
      told.push_back(n);
    };
    Outcome outcome;
    TERRACE_RUN_BATCH(this->engine_, batch, outcome);
    MutexLock lock(&mu);
    seen = told.size() >= 3 && told.front() <= 8;
  }
  EXPECT_TRUE(seen) << "48 MiB arrive in one go";
}

TYPED_TEST_P(CopyEngineCopies, PlanesOfADamagedPageAreNotDone) {
  const NamedLayout named =
      layouts::Make("layers", {.n_allocations = 8, .stride = 40'000, .bytes = 40'000, .n_pages = 6});
  ModelledMemory memory(this->rig_, named.allocation_bytes);
  const auto region = memory.memory().MakeRegion(named.layout);
  const std::vector<uint64_t> pages = {5, 0, 3};
  Frames frames(this->rig_, pages.size(), region->page_bytes());
  for (const uint64_t place : {0, 70'000, 319'999}) {
    SCOPED_TRACE(place);
    std::vector<std::vector<std::byte>> payloads;
    CopyBatch batch = MakeLoad(region, pages, frames, this->kSeed, place, &payloads);
    std::vector<std::byte> damaged = payloads[1];
    damaged[place] ^= std::byte{1};
    frames.Write(1, damaged);
    Mutex mu;
    uint32_t told = 0;
    batch.planes_done = [&](uint32_t n) {
      MutexLock lock(&mu);
      told = n;
    };
    Outcome outcome;
    TERRACE_RUN_BATCH(this->engine_, batch, outcome);
    // Planes that end before the segment with the wrong byte.
    const uint64_t segment_begin = place / kChecksumSegmentBytes * kChecksumSegmentBytes;
    MutexLock lock(&mu);
    EXPECT_LE(told, segment_begin / 40'000);
    EXPECT_FALSE(outcome.pages()[1].intact);
    EXPECT_EQ(outcome.intact_count(), 2u);
  }
}

TYPED_TEST_P(CopyEngineCopies, StoresDoNotTellOfPlanes) {
  const NamedLayout named = layouts::All().front();
  ModelledMemory memory(this->rig_, named.allocation_bytes);
  const auto region = memory.memory().MakeRegion(named.layout);
  const uint64_t page = 1;
  Frames frames(this->rig_, 1, region->page_bytes());
  CopyBatch batch = MakeBatch(region, Direction::kStore, {&page, 1}, frames, this->kSeed);
  std::atomic<int> told{0};
  batch.planes_done = [&](uint32_t) { told.fetch_add(1); };
  Outcome outcome;
  TERRACE_RUN_BATCH(this->engine_, batch, outcome);
  EXPECT_EQ(told.load(), 0);
  EXPECT_EQ(outcome.intact_count(), 1u);
}

// A store reads and a load writes after what the engine's stream had to do when it recorded the event.
TYPED_TEST_P(CopyEngineCopies, BatchesWaitForTheEnginesStream) {
  if (!this->rig_.has_events()) GTEST_SKIP() << "host memory has no events";
  const NamedLayout named = layouts::Make("one", {.stride = 100'000, .bytes = 100'000, .n_pages = 4});
  for (const Direction direction : {Direction::kStore, Direction::kLoad}) {
    ModelledMemory memory(this->rig_, named.allocation_bytes, 2);
    const auto region = memory.memory().MakeRegion(named.layout);
    ASSERT_EQ(region->event_count(), 2u);
    const std::vector<uint64_t> pages = {2};
    Frames frames(this->rig_, 1, region->page_bytes());
    const std::vector<std::byte> late = RandomBytes(5, 100'000);
    memory.memory().HoldThenWrite(1, 0, 200'000, late);
    std::vector<std::vector<std::byte>> payloads;
    CopyBatch batch = direction == Direction::kLoad ? MakeLoad(region, pages, frames, this->kSeed, 9, &payloads)
                                                    : MakeBatch(region, direction, pages, frames, this->kSeed);
    batch.after_event = 1;
    Outcome outcome, other;
    batch.done = outcome.Taker();
    ASSERT_TRUE(this->engine_->Submit(batch).ok());
    // A batch that waits for nothing is not held up by the one that waits.
    Frames other_frames(this->rig_, 1, region->page_bytes());
    const uint64_t other_page = 0;
    CopyBatch free = MakeBatch(region, Direction::kLoad, {&other_page, 1}, other_frames, this->kSeed);
    other_frames.Write(0, memory.ModelPage(named.layout, 0));
    free.pages[0].checksums = ChecksumsUnder(this->kSeed, memory.ModelPage(named.layout, 0));
    if (direction == Direction::kStore) TERRACE_RUN_BATCH(this->engine_, free, other);
    EXPECT_EQ(outcome.times(), 0) << "it did not wait";
    memory.memory().Release();
    ASSERT_TRUE(outcome.Wait());
    EXPECT_EQ(outcome.intact_count(), 1u) << outcome.status();
    if (direction == Direction::kStore) {
      EXPECT_TRUE(frames.Read(0) == late);
      EXPECT_EQ(outcome.pages()[0].checksums, ChecksumsUnder(this->kSeed, late));
    } else {
      EXPECT_TRUE(memory.RealPiece(named.layout.planes[0], 2) == payloads[0]);
    }
  }
}

REGISTER_TYPED_TEST_SUITE_P(CopyEngineCopies, StoresEveryLayout, LoadsEveryLayout, FramesMayLieAnywhere,
                            FramesOnTheDevice, HybridGroupsShareAllocations, AFlippedBitIsFoundInItsPageOnly,
                            ChecksumsAreBoundToTheBlock, WhatWasStoredIsLoadedElsewhere, PlanesAreDoneWhenItSaysSo,
                            PlanesAreDoneOneAfterAnother, PlanesOfADamagedPageAreNotDone, StoresDoNotTellOfPlanes,
                            BatchesWaitForTheEnginesStream);

}  // namespace terrace::gpu
