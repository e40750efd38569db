// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/copy_planner.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "gpu/host_region.h"
#include "kvstore/base/block_copy.h"

namespace terrace::gpu {
namespace {

TEST(CutBatch, EveryByteIsInOneChunkAndChunksAreBounded) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 2000; ++round) {
    const auto n_blocks = static_cast<uint32_t>(1 + random() % (random() % 2 == 0 ? 8 : 4096));
    const uint64_t page_bytes = 1 + random() % (random() % 2 == 0 ? 100'000 : 3'000'000);
    const uint64_t chunk_bytes = 1 + random() % 9'000'000;
    const bool by_planes = random() % 2 == 0;
    const auto n_segments = static_cast<uint32_t>(ChecksumCount(page_bytes));
    std::vector<int> covered(size_t{n_blocks} * n_segments);
    uint32_t last_first = 0, last_block = 0;
    for (const CopyChunk& chunk : CutBatch(n_blocks, page_bytes, chunk_bytes, by_planes)) {
      const uint64_t segment = std::min<uint64_t>(page_bytes, kChecksumSegmentBytes);
      const uint64_t items = uint64_t{chunk.n_blocks} * chunk.n_segments;
      ASSERT_TRUE(items == 1 || items * segment <= chunk_bytes) << items << " segments";
      ASSERT_LE(items, kMaxChunkItems);
      ASSERT_LE(chunk.first_block + chunk.n_blocks, n_blocks);
      ASSERT_LE(chunk.first_segment + chunk.n_segments, n_segments);
      for (uint32_t b = 0; b < chunk.n_blocks; ++b) {
        for (uint32_t s = 0; s < chunk.n_segments; ++s) {
          ++covered[size_t{chunk.first_block + b} * n_segments + chunk.first_segment + s];
        }
      }
      if (by_planes) {
        ASSERT_GE(chunk.first_segment, last_first) << "early planes of all pages come first";
      } else {
        ASSERT_GE(chunk.first_block, last_block);
      }
      last_first = chunk.first_segment;
      last_block = chunk.first_block;
    }
    ASSERT_EQ(std::count(covered.begin(), covered.end(), 1), static_cast<ptrdiff_t>(covered.size()));
  }
}

// What a list of copies does, byte by byte.
std::map<uint64_t, uint64_t> Effect(const std::vector<CopyOp>& ops) {
  std::map<uint64_t, uint64_t> effect;
  for (const CopyOp& op : ops) {
    for (uint32_t row = 0; row < op.rows; ++row) {
      for (uint64_t i = 0; i < op.bytes; ++i) {
        const bool is_new =
            effect.emplace(op.frame_side + row * op.frame_pitch + i, op.page_side + row * op.page_pitch + i).second;
        EXPECT_TRUE(is_new) << "written twice";
      }
    }
  }
  return effect;
}

TEST(AddRun, MergesWithoutChangingWhatIsCopied) {
  std::mt19937_64 random(2);
  for (int round = 0; round < 500; ++round) {
    std::vector<CopyOp> plain, merged;
    uint64_t frame = 1000;
    uint64_t page = 100'000, bytes = 8;
    for (uint64_t n = 1 + random() % 40; n > 0; --n) {
      if (random() % 4 == 0) bytes = 1 + random() % 16;
      switch (random() % 4) {
        case 0: page = 100'000 + random() % 50'000; break;
        case 1: frame += random() % 3 * 7; break;
        case 2: page += 24; break;  // regular
        default: break;             // goes on
      }
      CopyOp op;
      op.page_side = page;
      op.frame_side = frame;
      op.bytes = bytes;
      plain.push_back(op);
      AddRun(merged, page, frame, bytes);
      page += bytes;
      frame += bytes;
    }
    FinishOps(merged);
    ASSERT_EQ(Effect(merged), Effect(plain));
    ASSERT_LE(merged.size(), plain.size());
    for (const CopyOp& op : merged) {
      ASSERT_TRUE(op.rows == 1 || op.rows >= kMinRows);
      if (op.rows > 1) ASSERT_TRUE(op.page_pitch >= op.bytes && op.frame_pitch >= op.bytes);
    }
  }
}

TEST(AddRun, RegularPiecesAreOneCopyWithRowsAndAdjoiningOnesOneRun) {
  std::vector<CopyOp> ops;
  for (uint64_t i = 0; i < 20; ++i) AddRun(ops, 5000 + i * 4096, 100 + i * 2048, 2048);
  FinishOps(ops);
  ASSERT_EQ(ops.size(), 1u);
  EXPECT_EQ(ops[0].rows, 20u);
  EXPECT_EQ(ops[0].page_pitch, 4096u);
  EXPECT_EQ(ops[0].frame_pitch, 2048u);
  ops.clear();
  for (uint64_t i = 0; i < 20; ++i) AddRun(ops, 5000 + i * 2048, 100 + i * 2048, 2048);
  FinishOps(ops);
  ASSERT_EQ(ops.size(), 1u);
  EXPECT_EQ(ops[0].rows, 1u);
  EXPECT_EQ(ops[0].bytes, 20u * 2048);
}

TEST(ShapeOf, SeesPlanesAndPagesThatAdjoin) {
  std::vector<std::byte> memory(1 << 20);
  const std::span<std::byte> allocations[] = {memory};
  RegionLayout layout;
  layout.n_pages = 8;
  layout.planes = {{0, 0, 65536, 16384}, {0, 16384, 65536, 16384}, {0, 600'000, 16384, 8192}};
  CopyBatch batch;
  batch.region = HostRegion::Wrap(layout, allocations).value();
  batch.pages.resize(4);
  std::vector<std::byte> frames(4 * 40960);
  for (size_t i = 0; i < 4; ++i) {
    batch.pages[i].page = i;
    batch.pages[i].frame = frames.data() + i * 40960;
  }
  CopyShape shape = ShapeOf(batch);
  EXPECT_EQ(shape.page_run_bytes, 40960u / 2) << "two runs of three planes";
  EXPECT_EQ(shape.frame_run_bytes, 4 * 40960u);
  EXPECT_EQ(shape.batch_bytes, 4 * 40960u);
  layout.planes = {{0, 0, 40960, 40960}};
  batch.region = HostRegion::Wrap(layout, allocations).value();
  EXPECT_EQ(ShapeOf(batch).page_run_bytes, 4 * 40960u) << "pages one after another in both";
  batch.pages[2].page = 6;
  EXPECT_EQ(ShapeOf(batch).page_run_bytes, 4 * 40960u / 3);
  EXPECT_EQ(ShapeOf(batch).frame_run_bytes, 4 * 40960u);
}

CopyShape Big(uint64_t run_bytes, Direction direction = Direction::kStore) {
  return {.direction = direction, .page_run_bytes = run_bytes, .frame_run_bytes = 1 << 20, .batch_bytes = 64 << 20};
}

TEST(CopyPlanner, BeginsWithKernelsForSmallRunsAndCopyEnginesForLargeOnes) {
  CopyPlanner planner({.kernels = true, .staging = true});
  EXPECT_EQ(planner.Choose(Big(8192)), CopyMeans::kStaged);
  EXPECT_EQ(planner.Choose(Big(27 * 1024)), CopyMeans::kStaged);
  EXPECT_EQ(planner.Choose(Big(32 * 1024)), CopyMeans::kCopyEngine);
  EXPECT_EQ(planner.Choose(Big(1 << 20, Direction::kLoad)), CopyMeans::kCopyEngine);
  CopyShape small = Big(8192);
  small.batch_bytes = 100'000;
  EXPECT_EQ(planner.Choose(small), CopyMeans::kDirect) << "one launch, least latency";
  CopyShape scattered = Big(8192);
  scattered.frame_run_bytes = 8192;
  EXPECT_EQ(planner.Choose(scattered), CopyMeans::kDirect) << "staging does not make these frames larger";
  CopyShape on_device = Big(8192);
  on_device.frames_on_device = true;
  EXPECT_EQ(planner.Choose(on_device), CopyMeans::kDirect);
}

TEST(CopyPlanner, TakesWhatThereIs) {
  CopyPlanner bare({});
  CopyPlanner no_staging({.kernels = true});
  CopyPlanner told({.kernels = true, .staging = false, .only = CopyMeans::kStaged});
  for (int i = 0; i < 10'000; ++i) {
    ASSERT_EQ(bare.Choose(Big(512)), CopyMeans::kCopyEngine);
    ASSERT_NE(no_staging.Choose(Big(512)), CopyMeans::kStaged);
    ASSERT_NE(told.Choose(Big(512)), CopyMeans::kStaged);
  }
  CopyPlanner only({.kernels = true, .staging = true, .only = CopyMeans::kDirect});
  for (int i = 0; i < 1000; ++i) ASSERT_EQ(only.Choose(Big(1 << 20)), CopyMeans::kDirect);
}

// A machine on which each means has a rate of its own.
struct Machine {
  double rates[kCopyMeansCount];  // bytes a microsecond
  // Copies chunks of 4 MiB; how often each means was taken.
  std::array<int, kCopyMeansCount> Run(CopyPlanner& planner, const CopyShape& shape, int chunks) const {
    std::array<int, kCopyMeansCount> taken{};
    constexpr uint64_t kBytes = 4 << 20;
    for (int i = 0; i < chunks; ++i) {
      const auto means = static_cast<size_t>(planner.Choose(shape));
      ++taken[means];
      planner.Record(shape, static_cast<CopyMeans>(means), kBytes, static_cast<int64_t>(kBytes / rates[means] * 1000));
    }
    return taken;
  }
};

TEST(CopyPlanner, FindsTheBestMeansWhateverItBelievedFirst) {
  for (size_t best = 0; best < kCopyMeansCount; ++best) {
    Machine machine{{20'000, 20'000, 20'000}};
    machine.rates[best] = 40'000;
    for (const uint64_t run : {2048ull, 8192ull, 40'000ull, 1'000'000ull}) {
      CopyPlanner planner({.kernels = true, .staging = true});
      machine.Run(planner, Big(run), 20'000);
      const auto taken = machine.Run(planner, Big(run), 10'000);
      EXPECT_GT(taken[best], 9'700) << "best " << best << ", runs of " << run;
      EXPECT_LT(taken[best], 10'000) << "it goes on trying the others";
      EXPECT_NEAR(planner.Rate(Big(run), static_cast<CopyMeans>(best)), 40'000, 100);
    }
  }
}

TEST(CopyPlanner, FollowsAMachineThatChanges) {
  CopyPlanner planner({.kernels = true, .staging = true});
  Machine{{50'000, 10'000, 10'000}}.Run(planner, Big(1 << 20), 1000);
  EXPECT_EQ(planner.Choose(Big(1 << 20)), CopyMeans::kCopyEngine);
  const Machine changed{{5'000, 30'000, 10'000}};  // the copy engines are busy with something else
  changed.Run(planner, Big(1 << 20), 20'000);
  EXPECT_GT(changed.Run(planner, Big(1 << 20), 1000)[static_cast<size_t>(CopyMeans::kDirect)], 950);
}

TEST(CopyPlanner, WhatIsMuchSlowerIsTriedSeldom) {
  CopyPlanner planner({.kernels = true, .staging = true});
  const Machine machine{{4'000, 40'000, 38'000}};
  machine.Run(planner, Big(4096), 20'000);
  const auto taken = machine.Run(planner, Big(4096), 10'000);
  EXPECT_GE(taken[0], 1);
  EXPECT_LE(taken[0], 4);
  EXPECT_GT(taken[2], 50) << "what is nearly as good is looked at often";
}

TEST(CopyPlanner, DirectionsAndSizesAreKeptApart) {
  CopyPlanner planner({.kernels = true, .staging = true});
  Machine{{1'000, 60'000, 1'000}}.Run(planner, Big(1 << 20, Direction::kStore), 5000);
  EXPECT_EQ(planner.Choose(Big(1 << 20, Direction::kStore)), CopyMeans::kDirect);
  EXPECT_EQ(planner.Choose(Big(1 << 20, Direction::kLoad)), CopyMeans::kCopyEngine);
  EXPECT_EQ(planner.Choose(Big(40'000, Direction::kStore)), CopyMeans::kCopyEngine);
}

TEST(CopyPlanner, NonsenseIsNotRecorded) {
  CopyPlanner planner({.kernels = true, .staging = true});
  const double before = planner.Rate(Big(8192), CopyMeans::kStaged);
  planner.Record(Big(8192), CopyMeans::kStaged, 0, 100);
  planner.Record(Big(8192), CopyMeans::kStaged, 100, 0);
  planner.Record(Big(8192), CopyMeans::kStaged, 100, -5);
  EXPECT_EQ(planner.Rate(Big(8192), CopyMeans::kStaged), before);
}

}  // namespace
}  // namespace terrace::gpu
