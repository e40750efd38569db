// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "kvstore/frame_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "testing/payload.h"

namespace terrace::kv {
namespace {

using testing::Random;

constexpr uint64_t kUnlimited = 1ull << 40;

// The pool does not count what is in use by itself, so the test does (I3).
class FramePoolTest : public ::testing::Test {
 protected:
  FrameId Allocate(TenantId tenant, uint64_t bytes) {
    bool no_metadata = false;
    const auto frame = pool_.Allocate(tenant, bytes, &no_metadata);
    EXPECT_FALSE(no_metadata);
    return frame.value_or(kNoFrame);
  }
  FrameId Fill(TenantId tenant, uint64_t bytes, BlockId block = 1) {
    const FrameId frame = Allocate(tenant, bytes);
    if (frame != kNoFrame) {
      pool_.MakeReady(frame, pool_.NextGeneration());
      pool_.SetBlock(frame, block);
    }
    return frame;
  }
  void Free(FrameId frame) {
    if (pool_.Retire(frame)) pool_.Recycle(frame);
  }

  MemoryBudget budget_{kUnlimited};
  FramePool pool_{1 << 12, 64, &budget_};
};

TEST(ShapeForTest, WasteIsSmallForAnySizeAndNothingExceedsItsRoom) {
  Random random(3);
  std::vector<uint64_t> sizes = {1, 4095, 4096, 4097, 12288, 65536, 98304, 196608, 1 << 20, (1 << 20) + 1,
                                 1572864, 2 << 20, 3 << 20, 5 << 20, 7340032, 64 << 20, 1 << 30};
  for (int i = 0; i < 3000; ++i) sizes.push_back(1 + random.Below(uint64_t{1} << (4 + random.Below(25))));
  for (const uint64_t size : sizes) {
    const SlabShape shape = ShapeFor(size);
    SCOPED_TRACE(size);
    ASSERT_GE(shape.stride, size);
    ASSERT_LT(shape.stride, size + kFrameAlign);
    ASSERT_EQ(shape.stride % kFrameAlign, 0u);
    ASSERT_GE(shape.frames, 1u);
    ASSERT_LE(shape.frames, 4096u);  // the id's width
    ASSERT_LE(shape.frames * shape.stride, shape.extents * kExtentBytes);
    ASSERT_LE(shape.frames * HeaderBytes(size), shape.extents * kHeaderBytesPerExtent);
    // Two block lengths of one stride share slabs: their headers must be of one length, too.
    ASSERT_EQ(HeaderBytes(shape.stride), HeaderBytes(size));
    const double waste = 1 - static_cast<double>(shape.frames * shape.stride) /
                                 static_cast<double>(shape.extents * kExtentBytes);
    // The worst are just over 8 MiB: one frame of a slab and the better part of an extent.
    ASSERT_LE(waste, size <= (1 << 20) ? 0.06 : 0.111);
  }
  EXPECT_EQ(ShapeFor(2 << 20).extents, 2u);
  EXPECT_EQ(ShapeFor(2 << 20).frames, 1u);
  EXPECT_EQ(ShapeFor(4096).frames, 256u);
}

TEST_F(FramePoolTest, FramesDoNotOverlapAndStayInTheirSegment) {
  pool_.AddSegment(5, 0, 16);
  pool_.AddSegment(9, 0, 16);
  std::map<std::pair<uint32_t, uint64_t>, uint64_t> payloads, headers;  // segment, first -> last
  for (const uint64_t bytes : {4096ull, 98304ull, 2ull << 20, 12345ull, 1ull << 20}) {
    for (int i = 0; i < 5; ++i) {
      const FrameId frame = Allocate(0, bytes);
      ASSERT_NE(frame, kNoFrame);
      const auto place = pool_.PlaceOf(frame);
      payloads[{place.segment_id, place.payload_offset}] = place.payload_offset + bytes;
      const uint64_t header = place.header_offset * kHeaderUnit;
      headers[{place.segment_id, header}] = header + HeaderBytes(bytes);
    }
  }
  EXPECT_EQ(payloads.size(), 25u);
  EXPECT_EQ(headers.size(), 25u);
  for (const auto* ranges : {&payloads, &headers}) {
    const uint64_t end = 16 * (ranges == &payloads ? kExtentBytes : kHeaderBytesPerExtent);
    std::pair<uint32_t, uint64_t> before{0, 0};
    for (const auto& [first, last] : *ranges) {
      EXPECT_TRUE(first.first == 5 || first.first == 9);
      EXPECT_LE(last, end);
      if (before.first == first.first) EXPECT_LE(before.second, first.second);
      before = {first.first, last};
    }
  }
}

TEST_F(FramePoolTest, StatesOfAFrame) {
  pool_.AddSegment(1, 0, 16);
  const FrameId frame = Fill(0, 2 << 20, 77);
  EXPECT_EQ(pool_.PlaceOf(frame).block, 77u);
  EXPECT_NE(pool_.PlaceOf(frame).generation, 0u);
  EXPECT_FALSE(pool_.IsPinned(frame));
  pool_.Pin(frame);
  pool_.Pin(frame);
  EXPECT_EQ(pool_.Pins(frame), 2u);
  EXPECT_EQ(pool_.pinned_bytes(), 2u << 20) << "two pins of one frame hold its bytes once";
  EXPECT_FALSE(pool_.Retire(frame)) << "a pinned frame is not free";
  EXPECT_FALSE(pool_.Unpin(frame));
  EXPECT_TRUE(pool_.Unpin(frame)) << "the last pin of a draining frame frees it";
  EXPECT_EQ(pool_.pinned_bytes(), 0u);
  EXPECT_EQ(pool_.GetUsage().frames_in_use, 1u) << "not free before Recycle";
  pool_.Recycle(frame);
  EXPECT_EQ(pool_.GetUsage().frames_in_use, 0u);
}

TEST_F(FramePoolTest, UnpinOfAReadyFrameDoesNotFreeIt) {
  pool_.AddSegment(1, 0, 16);
  const FrameId frame = Fill(0, 4096);
  pool_.Pin(frame);
  EXPECT_FALSE(pool_.Unpin(frame));
  EXPECT_TRUE(pool_.Retire(frame));
  pool_.Recycle(frame);
}

TEST_F(FramePoolTest, MistakesOfOursAbort) {
  pool_.AddSegment(1, 0, 16);
  const FrameId frame = Fill(0, 4096);
  EXPECT_DEATH((void)pool_.Unpin(frame), "check_failed");
  pool_.Pin(frame);
  EXPECT_DEATH(pool_.Recycle(frame), "check_failed");
  EXPECT_FALSE(pool_.Retire(frame));
  EXPECT_DEATH((void)pool_.Retire(frame), "check_failed") << "retired twice";
  EXPECT_DEATH(pool_.AddSegment(1, 0, 16), "check_failed");
}

TEST_F(FramePoolTest, EmptySlabChangesSize) {
  pool_.AddSegment(1, 0, 2);
  const FrameId large = Fill(0, 2 << 20);
  ASSERT_NE(large, kNoFrame);
  EXPECT_EQ(Allocate(0, 4096), kNoFrame) << "both extents are taken";
  Free(large);
  std::vector<FrameId> small;
  for (FrameId f; (f = Fill(0, 4096)) != kNoFrame;) small.push_back(f);
  EXPECT_EQ(small.size(), 512u);
  EXPECT_EQ(Allocate(0, 2 << 20), kNoFrame);
  const FrameId last = small.back();
  small.pop_back();
  for (const FrameId f : small) Free(f);
  EXPECT_EQ(Allocate(0, 2 << 20), kNoFrame) << "one 4 KiB frame is still in use";
  Free(last);
  EXPECT_NE(Fill(0, 2 << 20), kNoFrame);
}

TEST_F(FramePoolTest, SegmentsBelongToOneTenant) {
  pool_.AddSegment(1, 0, 2);
  EXPECT_EQ(Allocate(1, 4096), kNoFrame);
  const FrameId frame = Fill(0, 4096);
  EXPECT_EQ(pool_.TenantOf(frame), 0);
  EXPECT_TRUE(pool_.SameShape(frame, 0, 4000));
  EXPECT_FALSE(pool_.SameShape(frame, 1, 4000));
  EXPECT_FALSE(pool_.SameShape(frame, 0, 5000));
  EXPECT_EQ(pool_.RemoveEmptySegment(std::nullopt, std::nullopt), std::nullopt) << "in use";
  Free(frame);
  EXPECT_EQ(pool_.RemoveEmptySegment(std::nullopt, TenantId{0}), std::nullopt) << "excepted";
  EXPECT_EQ(pool_.RemoveEmptySegment(TenantId{1}, std::nullopt), std::nullopt) << "of another tenant";
  EXPECT_EQ(pool_.RemoveEmptySegment(TenantId{0}, std::nullopt), 1u);
  EXPECT_EQ(Allocate(0, 4096), kNoFrame);
}

TEST_F(FramePoolTest, EvacuationNamesOnlyWhatMayMoveAndClosesTheSlab) {
  pool_.AddSegment(1, 0, 3);
  std::vector<FrameId> frames;
  for (int i = 0; i < 768; ++i) frames.push_back(Fill(0, 4096, static_cast<BlockId>(i)));
  ASSERT_NE(frames.back(), kNoFrame);
  EXPECT_EQ(pool_.BeginEvacuation(frames[0]), std::nullopt) << "there is no room elsewhere";
  // Two thirds of every slab go.
  std::vector<FrameId> kept;
  for (size_t i = 0; i < frames.size(); ++i) {
    if (i % 3 == 0) {
      kept.push_back(frames[i]);
    } else {
      Free(frames[i]);
    }
  }
  pool_.Pin(kept[0]);  // its slab may not be chosen
  const uint64_t pinned_extent = pool_.PlaceOf(kept[0]).payload_offset / kExtentBytes;
  const auto evacuation = pool_.BeginEvacuation(kept[1]);
  ASSERT_TRUE(evacuation.has_value());
  EXPECT_THAT(evacuation->frames, ::testing::SizeIs(::testing::AllOf(::testing::Ge(85u), ::testing::Le(86u))));
  const uint64_t from = pool_.PlaceOf(evacuation->frames[0]).payload_offset / kExtentBytes;
  EXPECT_NE(from, pinned_extent);
  for (const FrameId source : evacuation->frames) {
    EXPECT_EQ(pool_.PlaceOf(source).payload_offset / kExtentBytes, from);
    const FrameId target = Fill(0, 4096, pool_.PlaceOf(source).block);
    ASSERT_NE(target, kNoFrame);
    EXPECT_NE(pool_.PlaceOf(target).payload_offset / kExtentBytes, from) << "into the slab being emptied";
    Free(source);
  }
  const auto before = pool_.GetUsage();
  EXPECT_EQ(before.extents_in_slabs, 3u) << "closed: not given back before the evacuation ends";
  pool_.EndEvacuation(*evacuation);
  EXPECT_EQ(pool_.GetUsage().extents_in_slabs, 2u);
  EXPECT_NE(Fill(0, 1 << 20), kNoFrame) << "the extent is there for another size";
  EXPECT_FALSE(pool_.Unpin(kept[0]));
}

TEST_F(FramePoolTest, EvacuationThatEndsEarlyOpensTheSlabAgain) {
  pool_.AddSegment(1, 0, 2);
  std::vector<FrameId> frames;
  for (int i = 0; i < 512; ++i) frames.push_back(Fill(0, 4096));
  for (int i = 0; i < 512; i += 2) Free(frames[i]);
  const auto evacuation = pool_.BeginEvacuation(frames[1]);
  ASSERT_TRUE(evacuation.has_value());
  pool_.EndEvacuation(*evacuation);
  int refilled = 0;
  while (Fill(0, 4096) != kNoFrame) ++refilled;
  EXPECT_EQ(refilled, 256) << "all free places of both slabs can be had again";
}

TEST_F(FramePoolTest, AFillInProgressKeepsItsSlab) {
  pool_.AddSegment(1, 0, 2);
  std::vector<FrameId> frames;
  for (int i = 0; i < 512; ++i) frames.push_back(Fill(0, 4096));
  for (int i = 0; i < 512; ++i) {
    if (i % 8 != 1) Free(frames[i]);
  }
  const FrameId filling_one = Allocate(0, 4096);
  std::vector<FrameId> others;
  FrameId filling_two = Allocate(0, 4096);
  // One unfinished fill in each slab.
  while (filling_two != kNoFrame && pool_.PlaceOf(filling_two).payload_offset / kExtentBytes ==
                                        pool_.PlaceOf(filling_one).payload_offset / kExtentBytes) {
    others.push_back(filling_two);
    filling_two = Allocate(0, 4096);
  }
  ASSERT_NE(filling_two, kNoFrame);
  EXPECT_EQ(pool_.BeginEvacuation(frames[1]), std::nullopt);
  for (const FrameId f : others) pool_.Recycle(f);
  pool_.Recycle(filling_one);
  EXPECT_TRUE(pool_.BeginEvacuation(frames[1]).has_value());
}

TEST(FramePoolBudgetTest, TablesAndHeadersAreChargedAndGivenBack) {
  MemoryBudget budget(1 << 20);
  {
    FramePool pool(64, 64, &budget);
    pool.AddSegment(1, 0, 16);
    bool no_metadata = false;
    const auto frame = pool.Allocate(0, 4096, &no_metadata);
    ASSERT_TRUE(frame.has_value());
    const uint64_t with_slab = budget.used();
    EXPECT_GE(with_slab, 256 * (64 + 192u)) << "overhead and header of each of 256 frames";
    pool.Recycle(*frame);
    const uint64_t without = budget.used();
    EXPECT_EQ(without, 256 * 192u) << "header pages stay touched as long as the segment lives";
    ASSERT_TRUE(pool.Allocate(0, 4096, &no_metadata).has_value());
    EXPECT_EQ(budget.used(), with_slab) << "and are not charged twice";
    std::vector<FrameId> frames;
    while (const auto more = pool.Allocate(0, 4096, &no_metadata)) frames.push_back(*more);
    EXPECT_TRUE(no_metadata) << "16 slabs of 4 KiB blocks take more than 1 MiB of tables";
    EXPECT_LE(budget.used(), budget.limit());
    const uint64_t full = budget.used();
    EXPECT_FALSE(pool.Allocate(0, 4096, &no_metadata).has_value());
    EXPECT_EQ(budget.used(), full) << "a refused slab charges nothing";
  }
  EXPECT_EQ(budget.used(), 0u);
}

TEST(FramePoolBudgetTest, AdoptedSlabsAreLikeOthers) {
  MemoryBudget budget(kUnlimited);
  uint64_t charged = 0;
  std::vector<FramePool::SlabPlace> places;
  {
    FramePool pool(16, 64, &budget);
    pool.AddSegment(7, 1, 32);
    bool no_metadata;
    for (const uint64_t bytes : {uint64_t{4096}, uint64_t{70'000}, uint64_t{3} << 20}) {
      const auto frame = pool.Allocate(1, bytes, &no_metadata);
      ASSERT_TRUE(frame.has_value());
      places.push_back(pool.SpanOf(*frame).place);
    }
    charged = budget.used();
  }
  ASSERT_EQ(budget.used(), 0u);
  FramePool pool(16, 64, &budget);
  uint64_t expected = 0;
  for (const auto& place : places) expected += pool.BytesOf(ShapeFor(place.stride));
  EXPECT_EQ(expected, charged);
  const auto firsts = pool.AdoptSegment(7, 1, 32, places);
  ASSERT_EQ(firsts.size(), 3u);
  EXPECT_EQ(budget.used(), charged);
  bool no_metadata;
  std::vector<FrameId> all;
  for (size_t i = 0; i < firsts.size(); ++i) {
    ASSERT_NE(firsts[i], kNoFrame);
    const auto span = pool.SpanOf(firsts[i]);
    EXPECT_EQ(span.segment_id, 7u);
    EXPECT_EQ(span.place.first_extent, places[i].first_extent);
    EXPECT_EQ(span.place.stride, places[i].stride);
    EXPECT_EQ(pool.TenantOf(firsts[i]), 1);
    // None of it is handed out: a new frame comes from elsewhere.
    const auto fresh = pool.Allocate(1, places[i].stride, &no_metadata);
    ASSERT_TRUE(fresh.has_value());
    const auto fresh_place = pool.SpanOf(*fresh).place;
    EXPECT_FALSE(fresh_place.first_extent >= span.place.first_extent &&
                 fresh_place.first_extent < span.place.first_extent + span.shape.extents);
    pool.Recycle(*fresh);
    for (uint32_t n = 0; n < span.shape.frames; ++n) all.push_back(firsts[i] + n);
  }
  EXPECT_EQ(pool.GetUsage().frames_in_use, all.size());
  EXPECT_FALSE(pool.RemoveEmptySegment(std::nullopt, std::nullopt).has_value());
  // Every other frame holds a block.
  for (size_t i = 0; i < all.size(); ++i) {
    if (i % 2 == 0) {
      pool.MakeReady(all[i], 100 + i);
      EXPECT_EQ(pool.PlaceOf(all[i]).generation, 100 + i);
    } else {
      pool.Recycle(all[i]);
    }
  }
  EXPECT_EQ(pool.GetUsage().frames_in_use, (all.size() + 1) / 2);
  const auto again = pool.Allocate(1, 4096, &no_metadata);
  EXPECT_EQ(pool.SpanOf(*again).place.first_extent, places[0].first_extent) << "what was free is used";
  pool.Recycle(*again);
  for (size_t i = 0; i < all.size(); i += 2) {
    ASSERT_TRUE(pool.Retire(all[i]));
    pool.Recycle(all[i]);
  }
  EXPECT_EQ(pool.GetUsage().extents_in_slabs, 0u);
  EXPECT_TRUE(pool.RemoveEmptySegment(std::nullopt, std::nullopt).has_value());
  EXPECT_EQ(budget.used(), 0u);
}

TEST(FramePoolBudgetTest, WhatCannotBeAdoptedIsLeftOut) {
  MemoryBudget budget(kUnlimited);
  FramePool pool(2, 64, &budget);
  const FramePool::SlabPlace places[] = {{0, 3 << 20}, {2, 4096}, {30, 3 << 20}, {32, 4096}, {~0u, 4096},
                                         {4, 4096}, {5, 4096}};
  const auto firsts = pool.AdoptSegment(1, 0, 32, places);
  EXPECT_NE(firsts[0], kNoFrame);
  EXPECT_EQ(firsts[1], kNoFrame) << "over another one";
  EXPECT_EQ(firsts[2], kNoFrame) << "beyond the end";
  EXPECT_EQ(firsts[3], kNoFrame);
  EXPECT_EQ(firsts[4], kNoFrame);
  EXPECT_NE(firsts[5], kNoFrame);
  EXPECT_EQ(firsts[6], kNoFrame) << "no slab number left";
  EXPECT_EQ(pool.GetUsage().extents_in_slabs, 4u);
  MemoryBudget small(pool.BytesOf(ShapeFor(4096)) * 3 / 2);
  FramePool poor(16, 64, &small);
  const FramePool::SlabPlace two[] = {{0, 4096}, {1, 4096}};
  const auto some = poor.AdoptSegment(1, 0, 32, two);
  EXPECT_NE(some[0], kNoFrame);
  EXPECT_EQ(some[1], kNoFrame) << "no memory for its tables";
}

TEST(FramePoolBudgetTest, SlabsHaveALimit) {
  MemoryBudget budget(kUnlimited);
  FramePool pool(3, 0, &budget);
  pool.AddSegment(1, 0, 16);
  bool no_metadata = false;
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(pool.Allocate(0, 1 << 20, &no_metadata).has_value());
  EXPECT_FALSE(pool.Allocate(0, 1 << 20, &no_metadata).has_value());
}

// Operation lists: after each of thousands of random operations the counts and places are those of a
// model that knows only what was handed out.
class FramePoolModelTest : public ::testing::TestWithParam<uint64_t> {};

TEST_P(FramePoolModelTest, AccountingHoldsAfterEveryOperation) {
  Random random(GetParam());
  MemoryBudget budget(kUnlimited);
  FramePool pool(1 << 10, 64, &budget);
  constexpr uint64_t kSizes[] = {4096, 10000, 65536, 200000, 1 << 20, 3 << 20};
  struct Held {
    TenantId tenant;
    uint64_t bytes, generation;
    uint32_t pins;
    enum { kFilling, kReady, kDraining } state;
    std::pair<uint32_t, uint64_t> place;
  };
  std::map<FrameId, Held> held;
  std::map<uint32_t, TenantId> segments;
  std::set<std::pair<uint32_t, uint64_t>> places;
  std::set<uint64_t> generations;
  uint32_t next_segment = 1;
  const auto pick = [&]() { return std::next(held.begin(), static_cast<long>(random.Below(held.size()))); };
  const auto release = [&](std::map<FrameId, Held>::iterator it) {
    pool.Recycle(it->first);
    places.erase(it->second.place);
    held.erase(it);
  };

  for (int step = 0; step < 6000; ++step) {
    const uint64_t what = random.Below(100);
    if (what < 2 && segments.size() < 6) {
      const auto tenant = static_cast<TenantId>(random.Below(2));
      pool.AddSegment(next_segment, tenant, static_cast<uint32_t>(4 + random.Below(20)));
      segments[next_segment++] = tenant;
    } else if (what < 4) {
      const auto gone = pool.RemoveEmptySegment(std::nullopt, std::nullopt);
      bool any_empty = false;
      for (const auto& [id, tenant] : segments) {
        any_empty |= std::none_of(held.begin(), held.end(),
                                  [id = id](const auto& h) { return h.second.place.first == id; });
      }
      ASSERT_EQ(gone.has_value(), any_empty);
      if (gone.has_value()) {
        ASSERT_TRUE(std::none_of(held.begin(), held.end(),
                                 [&](const auto& h) { return h.second.place.first == *gone; }));
        segments.erase(*gone);
      }
    } else if (what < 50) {
      const auto tenant = static_cast<TenantId>(random.Below(2));
      const uint64_t bytes = kSizes[random.Below(std::size(kSizes))];
      bool no_metadata;
      const auto frame = pool.Allocate(tenant, bytes, &no_metadata);
      if (frame.has_value()) {
        ASSERT_FALSE(held.contains(*frame)) << "handed out twice";
        const auto at = pool.PlaceOf(*frame);
        ASSERT_EQ(segments.at(at.segment_id), tenant);
        ASSERT_EQ(at.generation, 0u);
        ASSERT_EQ(at.block, kNoBlock);
        ASSERT_TRUE(places.emplace(at.segment_id, at.payload_offset).second);
        held[*frame] = {tenant, bytes, 0, 0, Held::kFilling, {at.segment_id, at.payload_offset}};
      }
    } else if (!held.empty() && what < 70) {
      const auto it = pick();
      if (it->second.state == Held::kFilling) {
        if (random.OneIn(4)) {
          release(it);
        } else {
          it->second.generation = pool.NextGeneration();
          ASSERT_TRUE(generations.insert(it->second.generation).second);
          pool.MakeReady(it->first, it->second.generation);
          pool.SetBlock(it->first, it->first);
          it->second.state = Held::kReady;
        }
      } else if (it->second.state == Held::kReady) {
        it->second.state = Held::kDraining;
        ASSERT_EQ(pool.Retire(it->first), it->second.pins == 0);
        if (it->second.pins == 0) release(it);
      }
    } else if (!held.empty() && what < 80) {
      const auto it = pick();
      if (it->second.state == Held::kReady) {
        pool.Pin(it->first);
        ++it->second.pins;
      }
    } else if (!held.empty() && what < 95) {
      const auto it = pick();
      if (it->second.pins > 0) {
        --it->second.pins;
        const bool last = it->second.state == Held::kDraining && it->second.pins == 0;
        ASSERT_EQ(pool.Unpin(it->first), last);
        if (last) release(it);
      }
    } else if (!held.empty()) {
      const auto it = pick();
      if (it->second.state == Held::kReady) {
        if (const auto evacuation = pool.BeginEvacuation(it->first)) {
          for (const FrameId frame : evacuation->frames) {
            const Held& one = held.at(frame);
            ASSERT_EQ(one.state, Held::kReady);
            ASSERT_EQ(one.pins, 0u);
            ASSERT_EQ(one.tenant, it->second.tenant);
          }
          pool.EndEvacuation(*evacuation);
        }
      }
    }

    uint64_t used = 0, pinned = 0;
    for (const auto& [frame, one] : held) {
      used += ShapeFor(one.bytes).stride;
      if (one.pins > 0) pinned += ShapeFor(one.bytes).stride;
      ASSERT_EQ(pool.Pins(frame), one.pins);
      if (one.state != Held::kFilling) ASSERT_EQ(pool.PlaceOf(frame).generation, one.generation);
    }
    const auto usage = pool.GetUsage();
    ASSERT_EQ(usage.frames_in_use, held.size()) << "step " << step;
    ASSERT_EQ(usage.used_bytes, used);
    ASSERT_EQ(usage.pinned_bytes, pinned);
    ASSERT_LE(usage.frames_in_use, usage.frames);
    ASSERT_LE(usage.extents_in_slabs, usage.extents);
  }
  for (auto& [frame, one] : held) {
    if (one.state == Held::kReady && pool.Retire(frame)) pool.Recycle(frame);
    if (one.state == Held::kFilling) pool.Recycle(frame);
    for (; one.pins > 0; --one.pins) {
      if (pool.Unpin(frame)) pool.Recycle(frame);
    }
  }
  const auto usage = pool.GetUsage();
  EXPECT_EQ(usage.frames_in_use, 0u);
  EXPECT_EQ(usage.frames, 0u) << "every empty slab gave its extents back";
  EXPECT_EQ(usage.extents_in_slabs, 0u);
}

INSTANTIATE_TEST_SUITE_P(Seeds, FramePoolModelTest, ::testing::Range<uint64_t>(1, 7));

}  // namespace
}  // namespace terrace::kv
