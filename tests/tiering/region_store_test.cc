// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Stores from and loads into an engine's region through TierStack, with shared memory as the engine's: what is
// stored is what comes back, byte by byte; what is refused says why; nothing is held at the end.
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "testing/arena_access.h"
#include "testing/region_fixture.h"

namespace terrace::tiering {
namespace {

using testing::KeyOf;
using testing::KeysOf;
using testing::LoadRequestOf;
using testing::Outcome;
using testing::PayloadOf;
using testing::RegionMemory;
using testing::StoreRequestOf;
using testing::TestStack;

class RegionStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto opened = session_->OpenRegion({}, memory_.layout(), memory_.handles(), {});
    ASSERT_TRUE(opened.ok()) << opened.status();
    region_ = *std::move(opened);
  }
  void TearDown() override {
    region_.reset();
    stack_->WaitForStores();
    // The last who held the region may still be letting go of it.
    for (int i = 0; i < 2000 && stack_.Metric("terrace_regions") != 0; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));  // poll
    }
    EXPECT_EQ(stack_.Metric("terrace_regions"), 0);
    EXPECT_EQ(stack_->Stats().tiers[0].pinned_bytes, 0u) << "something is still held";
  }
  // The bytes of keys first, first + 1 ... in pages 0, 1 ...
  void FillPages(uint64_t first, size_t n, uint64_t variant = 0) {
    for (size_t i = 0; i < n; ++i) memory_.Write(i, PayloadOf(KeyOf(first + i), memory_.page_bytes(), variant));
  }
  std::vector<Reason> StoreKeys(uint64_t first, size_t n) {
    return testing::Store(session_.get(), StoreRequestOf(region_, space_, KeysOf(first, n), 0));
  }
  std::vector<Reason> LoadKeys(uint64_t first, size_t n) {
    return testing::Load(session_.get(), LoadRequestOf(region_, space_, KeysOf(first, n), 0));
  }
  bool Holds(uint64_t page, uint64_t number, uint64_t variant = 0) const {
    return memory_.Read(page) == PayloadOf(KeyOf(number), memory_.page_bytes(), variant);
  }
  static std::vector<Reason> All(size_t n, Reason reason) { return std::vector<Reason>(n, reason); }

  RegionMemory memory_;
  TestStack stack_;
  std::unique_ptr<Session> session_ = stack_->OpenSession(0);
  const kv::KeySpace& space_ = TestStack::Open(session_.get(), memory_.page_bytes());
  std::shared_ptr<gpu::Region> region_;
};

TEST_F(RegionStoreTest, WhatIsStoredComesBackByteByByte) {
  FillPages(0, 20);
  EXPECT_EQ(StoreKeys(0, 20), All(20, Reason::kNone));
  for (uint64_t i = 0; i < 20; ++i) EXPECT_TRUE(stack_.Serves(session_.get(), space_, KeyOf(i))) << i;
  memory_.Clear();
  EXPECT_EQ(LoadKeys(0, 20), All(20, Reason::kNone));
  for (uint64_t i = 0; i < 20; ++i) EXPECT_TRUE(Holds(i, i)) << i;
  const double bytes = 20.0 * static_cast<double>(memory_.page_bytes());
  EXPECT_EQ(stack_.Metric("terrace_transfer_bytes_total", "src", "engine"), bytes);
  EXPECT_EQ(stack_.Metric("terrace_transfer_bytes_total", "dst", "engine"), bytes);
  EXPECT_EQ(stack_.Metric("terrace_regions", "memory", "engine"), 1);
}

TEST_F(RegionStoreTest, NothingBesideThePagesOfALoadIsTouched) {
  FillPages(0, 3);
  ASSERT_EQ(StoreKeys(0, 3), All(3, Reason::kNone));
  memory_.Clear();
  ASSERT_EQ(testing::Load(session_.get(), LoadRequestOf(region_, space_, {KeyOf(1)}, 7)), All(1, Reason::kNone));
  EXPECT_TRUE(Holds(7, 1));
  memory_.Write(7, std::vector<std::byte>(memory_.page_bytes(), std::byte{0xA5}));
  EXPECT_TRUE(std::all_of(memory_.data(), memory_.data() + memory_.bytes(),
                          [](std::byte b) { return b == std::byte{0xA5}; }));
}

TEST_F(RegionStoreTest, BlocksThatPutStoredAreLoadedAndTheOtherWayRound) {
  ASSERT_EQ(TestStack::Store(session_.get(), space_, KeyOf(1)), Reason::kNone);
  EXPECT_EQ(LoadKeys(1, 1), All(1, Reason::kNone));
  EXPECT_TRUE(Holds(0, 1));
}

TEST_F(RegionStoreTest, TheFirstWriterWins) {
  ASSERT_EQ(TestStack::Store(session_.get(), space_, KeyOf(1), KeyOf(0)), Reason::kNone);
  FillPages(0, 3, 9);  // other bytes
  EXPECT_EQ(StoreKeys(0, 3), (std::vector<Reason>{Reason::kNone, Reason::kDuplicate, Reason::kNone}));
  EXPECT_TRUE(stack_.Serves(session_.get(), space_, KeyOf(1), 0));
  EXPECT_TRUE(stack_.Serves(session_.get(), space_, KeyOf(2), 9));
  // One key twice in a request.
  auto twice = StoreRequestOf(region_, space_, {KeyOf(50), KeyOf(50)}, 0);
  twice.independent = true;
  EXPECT_EQ(testing::Store(session_.get(), std::move(twice)),
            (std::vector<Reason>{Reason::kNone, Reason::kDuplicate}));
}

TEST_F(RegionStoreTest, StoresAtOnceOfTheSameBlocksAgreeOnOneWriter) {
  FillPages(100, 10);
  std::vector<std::unique_ptr<Outcome>> outcomes;
  for (int i = 0; i < 8; ++i) {
    outcomes.push_back(std::make_unique<Outcome>());
    auto request = StoreRequestOf(region_, space_, KeysOf(100, 10), 0);
    request.done = [outcome = outcomes.back().get()](std::span<const Reason> reasons) { outcome->Set(reasons); };
    ASSERT_TRUE(session_->StoreRegion(std::move(request)).ok());
  }
  std::vector<int> writers(10);
  for (const auto& outcome : outcomes) {
    const std::vector<Reason> reasons = outcome->Wait();
    ASSERT_EQ(reasons.size(), 10u);
    for (size_t i = 0; i < 10; ++i) {
      writers[i] += reasons[i] == Reason::kNone;
      EXPECT_TRUE(reasons[i] == Reason::kNone || reasons[i] == Reason::kDuplicate) << ReasonName(reasons[i]);
    }
  }
  EXPECT_EQ(writers, std::vector<int>(10, 1));
}

TEST_F(RegionStoreTest, ChildrenAreBehindTheirParents) {
  FillPages(0, 4);
  auto request = StoreRequestOf(region_, space_, KeysOf(1, 3), 1);
  ASSERT_EQ(TestStack::Store(session_.get(), space_, KeyOf(0)), Reason::kNone);
  request.parent = KeyOf(0);
  ASSERT_EQ(testing::Store(session_.get(), std::move(request)), All(3, Reason::kNone));
  for (uint64_t i = 0; i < 4; ++i) {
    const auto info = stack_->Stat(space_, KeyOf(i));
    ASSERT_TRUE(info.has_value());
    EXPECT_EQ(info->has_children, i < 3) << i;
  }
  auto alone = StoreRequestOf(region_, space_, KeysOf(20, 2), 0);
  alone.independent = true;
  ASSERT_EQ(testing::Store(session_.get(), std::move(alone)), All(2, Reason::kNone));
  EXPECT_FALSE(stack_->Stat(space_, KeyOf(20))->has_children);
}

TEST_F(RegionStoreTest, SourcesAreReadBeforeTheEndIsTold) {
  FillPages(0, 5);
  std::atomic<int> read{0}, read_at_end{-1};
  Outcome outcome;
  auto request = StoreRequestOf(region_, space_, KeysOf(0, 5), 0);
  request.sources_read = [&] { read.fetch_add(1); };
  request.done = [&](std::span<const Reason> reasons) {
    read_at_end = read.load();
    outcome.Set(reasons);
  };
  ASSERT_TRUE(session_->StoreRegion(std::move(request)).ok());
  EXPECT_EQ(outcome.Wait(), All(5, Reason::kNone));
  EXPECT_EQ(read_at_end.load(), 1);
  EXPECT_EQ(read.load(), 1);
}

TEST_F(RegionStoreTest, PlanesAreThereWhenTheyAreSaidToBe) {
  FillPages(0, 16);
  ASSERT_EQ(StoreKeys(0, 16), All(16, Reason::kNone));
  memory_.Clear();
  auto request = LoadRequestOf(region_, space_, KeysOf(0, 16), 0);
  std::vector<uint32_t> told;
  bool all_right = true;
  request.planes_done = [&](uint32_t n_planes) {
    told.push_back(n_planes);
    for (uint64_t page = 0; page < 16; ++page) {
      const auto whole = PayloadOf(KeyOf(page), memory_.page_bytes());
      for (size_t plane = 0; plane < n_planes; ++plane) {
        const auto piece = memory_.ReadPlane(plane, page);
        all_right &= std::equal(piece.begin(), piece.end(),
                                whole.begin() + static_cast<ptrdiff_t>(plane * piece.size()));
      }
    }
  };
  ASSERT_EQ(testing::Load(session_.get(), std::move(request)), All(16, Reason::kNone));
  EXPECT_TRUE(all_right);
  ASSERT_FALSE(told.empty());
  EXPECT_TRUE(std::is_sorted(told.begin(), told.end()));
  EXPECT_EQ(told.back(), 6u);
}

TEST_F(RegionStoreTest, ABlockThatIsNotHereHasAReasonAndNoPlaneIsTold) {
  FillPages(0, 2);
  ASSERT_EQ(StoreKeys(0, 2), All(2, Reason::kNone));
  memory_.Clear();
  auto request = LoadRequestOf(region_, space_, KeysOf(0, 3), 0);
  std::atomic<int> told{0};
  request.planes_done = [&](uint32_t) { told.fetch_add(1); };
  EXPECT_EQ(testing::Load(session_.get(), std::move(request)),
            (std::vector<Reason>{Reason::kNone, Reason::kNone, Reason::kCold}));
  EXPECT_EQ(told.load(), 0);
  EXPECT_TRUE(Holds(0, 0) && Holds(1, 1));
}

TEST_F(RegionStoreTest, FlippedBitsAreFoundAndTheBlockIsDropped) {
  testing::ArenaAccess arena(stack_.stack.get());
  FillPages(0, 4);
  ASSERT_EQ(StoreKeys(0, 4), All(4, Reason::kNone));
  const auto flip = [&](uint64_t number, bool in_header) {
    const auto answer = session_->Lookup(space_.id, KeysOf(number, 1), LookupMode::kPrefix, Session::kNewLease);
    ASSERT_EQ(answer->n_here, 1u);
    const BlockPlace& place = answer->places[0];
    const auto& segment = arena.Find(0, place.segment_id);
    if (in_header) {
      segment.headers[place.header_offset * kv::kHeaderUnit + sizeof(kv::BlockHeader) + 1] ^= std::byte{4};
    } else {
      segment.payload[place.payload_offset + place.payload_bytes - 1] ^= std::byte{1};
    }
    ASSERT_TRUE(session_->Release(answer->lease_id).ok());
  };
  flip(1, false);
  flip(2, true);
  EXPECT_EQ(LoadKeys(0, 4),
            (std::vector<Reason>{Reason::kNone, Reason::kCorrupt, Reason::kCorrupt, Reason::kNone}));
  EXPECT_EQ(stack_.Metric("terrace_integrity_failures_total", "tier", "host"), 2);
  EXPECT_EQ(TestStack::Ask(session_.get(), space_, KeyOf(1)), Reason::kCorrupt);
  EXPECT_TRUE(Holds(0, 0) && Holds(3, 3));
  // They can be stored again.
  FillPages(0, 4);
  EXPECT_EQ(StoreKeys(0, 4),
            (std::vector<Reason>{Reason::kDuplicate, Reason::kNone, Reason::kNone, Reason::kDuplicate}));
}

TEST_F(RegionStoreTest, AFencedRegionIsNotTouched) {
  FillPages(0, 3);
  ASSERT_EQ(StoreKeys(0, 3), All(3, Reason::kNone));
  memory_.Clear();
  region_->Fence();
  EXPECT_EQ(LoadKeys(0, 3), All(3, Reason::kCancelled));
  EXPECT_EQ(StoreKeys(10, 3), All(3, Reason::kCancelled));
  EXPECT_TRUE(std::all_of(memory_.data(), memory_.data() + memory_.bytes(),
                          [](std::byte b) { return b == std::byte{0xA5}; }));
  EXPECT_EQ(stack_.Metric("terrace_region_failed_batches_total", "reason", "cancelled"), 2);
}

TEST_F(RegionStoreTest, WhatWasReadOfARegionThatWasFencedMeanwhileIsNotStored) {
  FillPages(0, 3);
  auto request = StoreRequestOf(region_, space_, KeysOf(0, 3), 0);
  request.sources_read = [this] { region_->Fence(); };  // after the copy, before anything is visible
  EXPECT_EQ(testing::Store(session_.get(), std::move(request)), All(3, Reason::kCancelled));
  EXPECT_EQ(stack_->Stats().tiers[0].blocks, 0u);
  EXPECT_EQ(stack_->Stats().tiers[0].used_bytes, 0u) << "frames were not given back";
}

TEST_F(RegionStoreTest, WhatDoesNotFitIsRefusedAtOnce) {
  const auto refused = [&](RegionStoreRequest request) {
    request.done = [](std::span<const Reason>) { ADD_FAILURE() << "done was called"; };
    EXPECT_EQ(session_->StoreRegion(std::move(request)).code(), absl::StatusCode::kInvalidArgument);
  };
  const auto good = [&] { return StoreRequestOf(region_, space_, KeysOf(0, 2), 0); };
  auto request = good();
  request.pages[1] = 64;
  refused(std::move(request));
  request = good();
  request.pages.pop_back();
  refused(std::move(request));
  request = good();
  request.keys.clear();
  request.pages.clear();
  refused(std::move(request));
  request = good();
  request.after_event = 0;
  refused(std::move(request));
  request = good();
  request.region = nullptr;
  refused(std::move(request));
  request = good();
  request.key_space = &TestStack::Open(session_.get(), memory_.page_bytes() * 2, "larger");
  refused(std::move(request));
  request = good();
  request.independent = true;
  request.parent = KeyOf(9);
  refused(std::move(request));
  auto load = LoadRequestOf(region_, space_, KeysOf(0, 2), 0);
  load.pages[1] = 0;  // two blocks for one page
  EXPECT_EQ(session_->LoadRegion(std::move(load)).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(RegionStoreTest, WhatCannotBeReachedIsSaidSo) {
  gpu::DeviceUuid uuid{};
  uuid[3] = std::byte{7};
  EXPECT_EQ(session_->OpenRegion(uuid, memory_.layout(), memory_.handles(), {}).status().code(),
            absl::StatusCode::kFailedPrecondition);
  const gpu::EventHandle event{};
  EXPECT_EQ(session_->OpenRegion({}, memory_.layout(), memory_.handles(), {&event, 1}).status().code(),
            absl::StatusCode::kInvalidArgument);
  auto options = testing::SmallStackOptions();
  options.host_regions = false;
  TestStack without(options);
  const auto session = without->OpenSession(0);
  EXPECT_EQ(session->OpenRegion({}, memory_.layout(), memory_.handles(), {}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(RegionStoreTest, AFullTierMakesRoomAndLoadsMeanwhileAreWhole) {
  // 144 KiB pages, 64 MiB: some 430 blocks. Ten times as many come by, while the newest are loaded.
  const size_t n = 60;
  uint64_t loaded = 0;
  for (uint64_t round = 0; round < 60; ++round) {
    FillPages(round * n, n);
    ASSERT_EQ(StoreKeys(round * n, n), All(n, Reason::kNone)) << round;
    memory_.Clear();
    const uint64_t back = round < 3 ? round : 3;
    const std::vector<Reason> reasons = LoadKeys((round - back) * n, n);
    for (size_t i = 0; i < n; ++i) {
      if (reasons[i] != Reason::kNone) continue;
      ++loaded;
      ASSERT_TRUE(Holds(i, (round - back) * n + i)) << "WRONG BYTES in round " << round << " block " << i;
    }
  }
  EXPECT_GT(loaded, 30 * n);
  EXPECT_GT(stack_.Metric("terrace_evictions_total"), 0);
}

TEST_F(RegionStoreTest, AFlushTakesWhatSetOutBeforeItAndTheRestStays) {
  FillPages(0, 10);
  ASSERT_EQ(StoreKeys(0, 10), All(10, Reason::kNone));
  EXPECT_EQ(stack_->Flush(&space_), 10u);
  EXPECT_EQ(LoadKeys(0, 1)[0], Reason::kFlushed);
  EXPECT_EQ(StoreKeys(0, 10), All(10, Reason::kNone));
}

TEST_F(RegionStoreTest, AfterDrainNothingIsStoredAndLoadsGoOn) {
  FillPages(0, 2);
  ASSERT_EQ(StoreKeys(0, 1), All(1, Reason::kNone));
  stack_->Drain();
  EXPECT_EQ(StoreKeys(1, 1), All(1, Reason::kCancelled));
  EXPECT_EQ(LoadKeys(0, 1), All(1, Reason::kNone));
}

TEST_F(RegionStoreTest, TheStackEndsWithOperationsUnderWay) {
  FillPages(0, 64);
  std::atomic<int> ended{0};
  int begun = 0;
  for (int i = 0; i < 30; ++i) {
    auto store = StoreRequestOf(region_, space_, KeysOf(static_cast<uint64_t>(i) * 1000, 64), 0);
    store.done = [&](std::span<const Reason>) { ended.fetch_add(1); };
    begun += session_->StoreRegion(std::move(store)).ok();
    auto load = LoadRequestOf(region_, space_, KeysOf(static_cast<uint64_t>(i) * 500, 64), 0);
    load.done = [&](std::span<const Reason>) { ended.fetch_add(1); };
    begun += session_->LoadRegion(std::move(load)).ok();
  }
  session_.reset();
  region_->Fence();
  stack_->WaitForStores();
  EXPECT_GE(begun, 2);
  EXPECT_EQ(ended.load(), begun);
  session_ = stack_->OpenSession(0);
}

TEST_F(RegionStoreTest, TooMuchAtOnceIsRefusedAndItsRoomComesBack) {
  FillPages(0, 64);
  std::vector<std::unique_ptr<Outcome>> outcomes;
  int refused = 0;
  for (uint64_t i = 0; i < RegionShare::kMaxOperations + 50; ++i) {
    auto outcome = std::make_unique<Outcome>();
    auto request = StoreRequestOf(region_, space_, KeysOf(i * 64, 64), 0);
    request.independent = true;
    request.done = [outcome = outcome.get()](std::span<const Reason> reasons) { outcome->Set(reasons); };
    const absl::Status begun = session_->StoreRegion(std::move(request));
    if (begun.ok()) {
      outcomes.push_back(std::move(outcome));
    } else {
      EXPECT_EQ(begun.code(), absl::StatusCode::kResourceExhausted);
      ++refused;
    }
  }
  for (const auto& outcome : outcomes) EXPECT_EQ(outcome->Wait().size(), 64u);
  EXPECT_GT(refused, 0);  // a quarter of 64 MiB holds less than two of them at a time
  EXPECT_EQ(stack_.Metric("terrace_store_blocks_total", "reason", "overload"), refused * 64);
  EXPECT_EQ(StoreKeys(1 << 20, 10), All(10, Reason::kNone));
}

}  // namespace
}  // namespace terrace::tiering
