// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The kernels' code on a warp of the processor: checksums equal xxHash's and CopyBlock's for every length, and every
// byte lands where it belongs, whatever the pieces' sizes and alignments.
#include "gpu/cuda/kernels/xxh3_lanes.h"

#include <xxhash.h>

#include <cstring>
#include <random>
#include <vector>

#include "gpu/softcuda/kernels.h"
#include "gtest/gtest.h"
#include "kvstore/base/block_copy.h"

namespace terrace::gpu {
namespace {

struct PlainMemory {
  std::byte* Map(uint64_t address, uint64_t) { return reinterpret_cast<std::byte*>(address); }
};

uint64_t Address(const void* at) { return reinterpret_cast<uint64_t>(at); }

std::vector<uint8_t> RandomBytes(size_t bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<uint8_t> made(bytes + 8);
  for (size_t i = 0; i < bytes; i += 8) {
    const uint64_t value = random();
    std::memcpy(made.data() + i, &value, 8);
  }
  made.resize(bytes);
  return made;
}

// The checksum of one segment, read where it lies.
uint64_t LanesChecksum(const uint8_t* data, uint64_t bytes, uint64_t seed) {
  const PlaneEntry plane{Address(data), bytes, 0, bytes};
  const BlockEntry block{0, 0, seed};
  uint64_t checksum = 0;
  const CopyTable table{&plane, &block, &checksum, bytes, 1, 1, 0, 1};
  EXPECT_TRUE((softcuda::RunCopyKernel<SegmentWork::kChecksum, true>(PlainMemory(), table)));
  return checksum;
}

TEST(Xxh3Lanes, EqualsXxHashForEveryLength) {
  const std::vector<uint8_t> data = RandomBytes(kSegmentBytes + 64, 1);
  std::mt19937_64 random(2);
  uint64_t seed = 0;  // XXH3 without a seed, too
  for (uint32_t bytes = 1; bytes <= kSegmentBytes;
       bytes += bytes < 3200 ? 1 : 1 + static_cast<uint32_t>(random() % 97)) {
    const uint8_t* const at = data.data() + random() % 48;
    ASSERT_EQ(LanesChecksum(at, bytes, seed), XXH3_64bits_withSeed(at, bytes, seed)) << bytes << " bytes, " << seed;
    seed = random();
  }
  ASSERT_EQ(LanesChecksum(data.data(), kSegmentBytes, seed),
            XXH3_64bits_withSeed(data.data(), kSegmentBytes, seed));
}

TEST(Xxh3Lanes, EveryBitCounts) {
  std::vector<uint8_t> data = RandomBytes(5000, 3);
  for (const uint32_t bytes : {3u, 16u, 100u, 240u, 241u, 1024u, 1025u, 1089u, 5000u}) {
    const uint64_t right = LanesChecksum(data.data(), bytes, 7);
    for (uint32_t at = 0; at < bytes; at += bytes < 300 ? 1 : 13) {
      data[at] ^= 0x10;
      EXPECT_NE(LanesChecksum(data.data(), bytes, 7), right) << at << " of " << bytes;
      data[at] ^= 0x10;
    }
  }
}

// Pages scattered over planes, and the blocks of them.
struct Layout {
  std::vector<PlaneEntry> planes;  // base: offset into memory until it is placed
  uint64_t page_bytes = 0;
  uint64_t memory_bytes = 0;
};

Layout RandomLayout(std::mt19937_64& random, uint64_t n_pages) {
  Layout layout;
  const bool aligned = random() % 2 == 0;
  const uint64_t unit = aligned ? 16 : 1;
  for (uint64_t n = 1 + random() % 12; n > 0; --n) {
    const uint64_t bytes = unit * (1 + random() % (random() % 3 == 0 ? 40 : 30'000 / unit));
    const uint64_t stride = bytes + unit * (random() % 20);
    layout.planes.push_back({layout.memory_bytes + unit * (random() % 20), stride, layout.page_bytes, bytes});
    layout.memory_bytes = layout.planes.back().base + stride * n_pages;
    layout.page_bytes += bytes;
  }
  return layout;
}

class SegmentCopy : public testing::TestWithParam<int> {};

TEST_P(SegmentCopy, GathersAndScattersWithCopyBlocksChecksums) {
  std::mt19937_64 random(static_cast<uint64_t>(GetParam()));
  constexpr uint64_t kPages = 5;
  Layout layout = RandomLayout(random, kPages);
  std::vector<uint8_t> memory = RandomBytes(layout.memory_bytes + 16, random());
  const std::vector<uint8_t> before = memory;
  uint8_t* const start = memory.data() + (16 - Address(memory.data()) % 16) % 16;
  for (PlaneEntry& plane : layout.planes) plane.base += Address(start);
  const uint32_t n_segments = static_cast<uint32_t>(ChecksumCount(layout.page_bytes));
  // Frames with guards around them, which nothing may touch.
  constexpr uint64_t kGuard = 48;
  const uint64_t pitch = (layout.page_bytes + kGuard + 15) / 16 * 16 + (random() % 3 == 0 ? 1 : 0);
  std::vector<uint8_t> frames(pitch * kPages + 16, 0xA5);
  std::vector<BlockEntry> blocks;
  for (uint64_t i = 0; i < kPages; ++i) {
    blocks.push_back({(i * 2) % kPages, Address(frames.data()) + i * pitch, random()});
  }
  std::vector<uint64_t> checksums(n_segments * kPages);
  const CopyTable table{layout.planes.data(), blocks.data(), checksums.data(), layout.page_bytes,
                        static_cast<uint32_t>(layout.planes.size()), kPages, 0, n_segments};
  ASSERT_TRUE((softcuda::RunCopyKernel<SegmentWork::kGather, true>(PlainMemory(), table)));
  ASSERT_EQ(memory, before);
  for (uint64_t i = 0; i < kPages; ++i) {
    std::vector<Piece> pieces;
    for (const PlaneEntry& plane : layout.planes) {
      pieces.push_back({reinterpret_cast<std::byte*>(plane.base + blocks[i].page * plane.stride), plane.bytes});
    }
    std::vector<uint8_t> expected(layout.page_bytes);
    const Piece whole{reinterpret_cast<std::byte*>(expected.data()), expected.size()};
    std::vector<uint64_t> expected_checksums(n_segments);
    CopyBlock(pieces, {&whole, 1}, blocks[i].seed, CopyCheck::kCompute, expected_checksums, CopyStores::kCached);
    const uint8_t* const frame = frames.data() + i * pitch;
    ASSERT_EQ(std::memcmp(frame, expected.data(), expected.size()), 0);
    for (uint64_t g = layout.page_bytes; g < pitch; ++g) ASSERT_EQ(frame[g], 0xA5);
    ASSERT_TRUE(std::equal(expected_checksums.begin(), expected_checksums.end(), &checksums[i * n_segments]));
  }
  // Back, a range of segments at a time, into memory that holds something else.
  const std::vector<uint64_t> stored = checksums;
  for (uint32_t i = 0; i < kPages; ++i) {
    for (const PlaneEntry& plane : layout.planes) {
      std::memset(reinterpret_cast<void*>(plane.base + i * plane.stride), 0x77, plane.bytes);
    }
  }
  for (uint32_t first = 0; first < n_segments;) {
    const uint32_t n = 1 + static_cast<uint32_t>(random() % (n_segments - first));
    std::vector<BlockEntry> part = blocks;
    for (BlockEntry& block : part) block.frame += uint64_t{first} * kSegmentBytes;
    std::vector<uint64_t> found(n * kPages);
    CopyTable back = table;
    back.blocks = part.data();
    back.checksums = found.data();
    back.first_segment = first;
    back.n_segments = n;
    ASSERT_TRUE((softcuda::RunCopyKernel<SegmentWork::kScatter, true>(PlainMemory(), back)));
    for (uint32_t i = 0; i < kPages; ++i) {
      ASSERT_TRUE(std::equal(found.begin() + i * n, found.begin() + (i + 1) * n, &stored[i * n_segments + first]));
    }
    first += n;
  }
  ASSERT_EQ(memory, before);
}

INSTANTIATE_TEST_SUITE_P(Seeds, SegmentCopy, testing::Range(1, 60));

TEST(SegmentCopy, WithoutChecksumsItOnlyCopies) {
  std::vector<uint8_t> data = RandomBytes(200'000, 9), frame(200'000, 0);
  const PlaneEntry plane{Address(data.data()), data.size(), 0, data.size()};
  const BlockEntry block{0, Address(frame.data()), 1};
  std::vector<uint64_t> checksums(4, 42);
  const CopyTable table{&plane, &block, checksums.data(), data.size(), 1, 1, 0, 4};
  ASSERT_TRUE((softcuda::RunCopyKernel<SegmentWork::kGather, false>(PlainMemory(), table)));
  EXPECT_EQ(frame, data);
  EXPECT_EQ(checksums, std::vector<uint64_t>(4, 42));
}

}  // namespace
}  // namespace terrace::gpu
