// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "kvstore/base/block_copy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <xxhash.h>

#include <algorithm>

#include "testing/payload.h"
#include "testing/scribbling_process.h"

namespace terrace {

// The two builds of the loop, behind the dispatch of CopyBlock.
namespace copy_portable {
bool CopyBlock(std::span<const Piece> source, std::span<const Piece> target, uint64_t identity_seed,
               CopyCheck check, std::span<uint64_t> checksums, CopyStores stores);
}
namespace copy_avx2 {
bool CopyBlock(std::span<const Piece> source, std::span<const Piece> target, uint64_t identity_seed,
               CopyCheck check, std::span<uint64_t> checksums, CopyStores stores);
}

namespace {

using testing::KeyOf;
using testing::PayloadOf;
using testing::Random;

constexpr size_t kSegment = kChecksumSegmentBytes;

// One contiguous buffer cut at random places into pieces that lie scattered, with odd alignments and
// guard bytes around each.
class Scattered {
 public:
  Scattered(size_t total, Random* random, bool with_empty) {
    size_t left = total;
    std::vector<size_t> sizes;
    while (left > 0) {
      if (with_empty && random->OneIn(4)) sizes.push_back(0);
      const size_t most = random->OneIn(3) ? left : std::min<size_t>(left, 1 + random->Below(9000));
      const size_t size = 1 + random->Below(most);
      sizes.push_back(size);
      left -= size;
    }
    if (with_empty) sizes.push_back(0);
    memory_.resize(total + sizes.size() * 128 + 128, kGuard);
    size_t at = 0;
    for (const size_t size : sizes) {
      at += 1 + random->Below(64);
      pieces_.push_back({memory_.data() + at, size});
      at += size;
    }
  }
  std::span<const Piece> pieces() const { return pieces_; }
  void Scatter(std::span<const std::byte> bytes) {
    for (const Piece& piece : pieces_) {
      if (piece.bytes > 0) std::memcpy(piece.base, bytes.data(), piece.bytes);
      bytes = bytes.subspan(piece.bytes);
    }
  }
  std::vector<std::byte> Gather() const {
    std::vector<std::byte> out;
    for (const Piece& piece : pieces_) out.insert(out.end(), piece.base, piece.base + piece.bytes);
    return out;
  }
  // Bytes outside all pieces that were written.
  size_t OverrunBytes() const {
    std::vector<std::byte> rest = memory_;
    for (const Piece& piece : pieces_) {
      std::fill_n(rest.begin() + (piece.base - memory_.data()), piece.bytes, kGuard);
    }
    return static_cast<size_t>(std::count_if(rest.begin(), rest.end(), [](std::byte b) { return b != kGuard; }));
  }

 private:
  static constexpr std::byte kGuard{0xA5};
  std::vector<std::byte> memory_;
  std::vector<Piece> pieces_;
};

struct Case {
  const char* name;
  decltype(&CopyBlock) copy;
};

class BlockCopyTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (GetParam().copy == copy_avx2::CopyBlock && !__builtin_cpu_supports("avx2")) {
      GTEST_SKIP() << "this processor has no AVX2";
    }
  }
  static bool Copy(std::span<const Piece> source, std::span<const Piece> target, uint64_t seed, CopyCheck check,
                   std::span<uint64_t> checksums, CopyStores stores = CopyStores::kCached) {
    return GetParam().copy(source, target, seed, check, checksums, stores);
  }
  static Piece Whole(std::vector<std::byte>& bytes) { return {bytes.data(), bytes.size()}; }
};

TEST_P(BlockCopyTest, ScatteredToScatteredEqualsMemcpy) {
  const size_t sizes[] = {1, 7, 63, 64, 65, 1023, 1024, 1025, 4096, 24576, kSegment - 1, kSegment,
                          kSegment + 1, 3 * kSegment + 12345, 8 * kSegment};
  Random random(20260801);
  for (const size_t size : sizes) {
    for (int round = 0; round < 6; ++round) {
      SCOPED_TRACE(::testing::Message() << size << " bytes, round " << round);
      const auto bytes = PayloadOf(KeyOf(size + round), size);
      Scattered source(size, &random, round % 2 == 1), target(size, &random, round % 2 == 1);
      source.Scatter(bytes);
      std::vector<uint64_t> checksums(ChecksumCount(size));
      const CopyStores stores = round % 3 == 0 ? CopyStores::kStreaming : CopyStores::kCached;
      ASSERT_TRUE(Copy(source.pieces(), target.pieces(), 99, CopyCheck::kCompute, checksums, stores));
      ASSERT_EQ(target.Gather(), bytes);
      ASSERT_EQ(target.OverrunBytes(), 0u);
      ASSERT_EQ(source.Gather(), bytes);
      // The cut does not matter for the checksums: they are those of the bytes.
      ASSERT_TRUE(Copy(target.pieces(), {}, 99, CopyCheck::kVerify, checksums));
    }
  }
}

TEST_P(BlockCopyTest, ChecksumIsSeededXxh3OfEachSegment) {
  auto bytes = PayloadOf(KeyOf(5), 2 * kSegment + 777);
  const Piece source = Whole(bytes);
  std::vector<uint64_t> checksums(3);
  ASSERT_TRUE(Copy({&source, 1}, {}, 1234567, CopyCheck::kCompute, checksums));
  for (size_t i = 0; i < 3; ++i) {
    const size_t n = std::min(kSegment, bytes.size() - i * kSegment);
    EXPECT_EQ(checksums[i], XXH3_64bits_withSeed(bytes.data() + i * kSegment, n,
                                                 1234567 + i * 0x9E3779B97F4A7C15ull));
  }
}

TEST_P(BlockCopyTest, AChangedBitInAnySegmentIsSeen) {
  auto bytes = PayloadOf(KeyOf(6), 4 * kSegment + 100);
  const Piece source = Whole(bytes);
  std::vector<uint64_t> checksums(5);
  std::vector<std::byte> out(bytes.size());
  const Piece target = Whole(out);
  ASSERT_TRUE(Copy({&source, 1}, {}, 7, CopyCheck::kCompute, checksums));
  for (size_t segment = 0; segment < 5; ++segment) {
    const size_t first = segment * kSegment;
    const size_t last = std::min(first + kSegment, bytes.size()) - 1;
    for (const size_t at : {first, (first + last) / 2, last}) {
      for (const int bit : {0, 7}) {
        bytes[at] ^= std::byte{1} << bit;
        EXPECT_FALSE(Copy({&source, 1}, {&target, 1}, 7, CopyCheck::kVerify, checksums)) << at;
        EXPECT_FALSE(Copy({&source, 1}, {}, 7, CopyCheck::kVerify, checksums)) << at;
        bytes[at] ^= std::byte{1} << bit;
      }
    }
    checksums[segment] ^= 1;
    EXPECT_FALSE(Copy({&source, 1}, {&target, 1}, 7, CopyCheck::kVerify, checksums)) << segment;
    checksums[segment] ^= 1;
  }
  EXPECT_TRUE(Copy({&source, 1}, {&target, 1}, 7, CopyCheck::kVerify, checksums));
  EXPECT_EQ(out, bytes);
}

TEST_P(BlockCopyTest, SwappedAndMisplacedSegmentsAreSeen) {
  auto bytes = PayloadOf(KeyOf(7), 3 * kSegment);
  const Piece source = Whole(bytes);
  std::vector<uint64_t> checksums(3);
  ASSERT_TRUE(Copy({&source, 1}, {}, 7, CopyCheck::kCompute, checksums));
  // The right bytes in the wrong order, with their checksums moved along.
  const Piece swapped[] = {{bytes.data() + kSegment, kSegment}, {bytes.data(), kSegment},
                           {bytes.data() + 2 * kSegment, kSegment}};
  std::vector<uint64_t> moved = {checksums[1], checksums[0], checksums[2]};
  EXPECT_FALSE(Copy(swapped, {}, 7, CopyCheck::kVerify, moved));
  EXPECT_FALSE(Copy(swapped, {}, 7, CopyCheck::kVerify, checksums));
  const Piece repeated[] = {{bytes.data(), kSegment}, {bytes.data(), kSegment}, {bytes.data(), kSegment}};
  EXPECT_FALSE(Copy(repeated, {}, 7, CopyCheck::kVerify, checksums));
}

TEST_P(BlockCopyTest, ChecksumsOfEqualBytesDifferByIdentity) {
  auto bytes = PayloadOf(KeyOf(8), 1000);
  const Piece source = Whole(bytes);
  uint8_t digest[32] = {}, other_digest[32] = {};
  other_digest[31] = 1;
  const auto key = KeyOf(8);
  auto other_key = key;
  other_key.bytes[31] ^= 0x80;
  const uint64_t seed = IdentitySeed(digest, key.bytes.data(), 1000);
  std::vector<uint64_t> checksums(1);
  ASSERT_TRUE(Copy({&source, 1}, {}, seed, CopyCheck::kCompute, checksums));
  const uint64_t foreign[] = {IdentitySeed(digest, other_key.bytes.data(), 1000),
                              IdentitySeed(other_digest, key.bytes.data(), 1000),
                              IdentitySeed(digest, key.bytes.data(), 1001),
                              IdentitySeed(key.bytes.data(), digest, 1000)};
  for (const uint64_t other : foreign) {
    EXPECT_NE(other, seed);
    EXPECT_FALSE(Copy({&source, 1}, {}, other, CopyCheck::kVerify, checksums));
  }
  EXPECT_TRUE(Copy({&source, 1}, {}, seed, CopyCheck::kVerify, checksums));
}

// Leaves the seed all over the stack below its caller: two words in four, the others zero, as XXH3's state
// (which knows by its seed whether its secret is made) and no other secret would leave it.
__attribute__((noinline)) void LeaveOnTheStack(uint64_t seed, int shift) {
  volatile uint64_t words[4096];
  for (int i = 0; i < 4096; ++i) words[i] = (i + shift) % 4 < 2 ? seed : 0;
}

TEST_P(BlockCopyTest, ChecksumsDoNotDependOnWhatTheStackHeld) {
  auto bytes = PayloadOf(KeyOf(12), 1000);
  const Piece source = Whole(bytes);
  const uint64_t seed = 0x123456789ABCDEFull;
  const uint64_t expected = XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
  for (int shift = 0; shift < 4; ++shift) {
    std::vector<uint64_t> checksums(1);
    LeaveOnTheStack(seed, shift);
    ASSERT_TRUE(Copy({&source, 1}, {}, seed, CopyCheck::kCompute, checksums));
    EXPECT_EQ(checksums[0], expected);
  }
}

TEST_P(BlockCopyTest, TargetShorterThanSourceIsRefused) {
  auto bytes = PayloadOf(KeyOf(9), 5000);
  std::vector<std::byte> out(4999, std::byte{1});
  const Piece source = Whole(bytes), target = Whole(out);
  std::vector<uint64_t> checksums(1);
  EXPECT_FALSE(Copy({&source, 1}, {&target, 1}, 7, CopyCheck::kCompute, checksums));
}

// A source in a client's memory may change at any instant. What arrived is what the checksums say, or
// the copy is refused; it must never be one thing that was checked and another that was copied.
TEST_P(BlockCopyTest, WhatWasCheckedIsWhatArrived) {
  constexpr size_t kBytes = 8 * 1024;
  const auto bytes = PayloadOf(KeyOf(10), kBytes);
  // Words written by one thread and read by the loop under test: the race is the point. The writer is
  // a child process, as a client is, so that it is none in the sense of the language.
  std::byte* shared = testing::MapShared(kBytes);
  std::memcpy(shared, bytes.data(), kBytes);
  const Piece good{const_cast<std::byte*>(bytes.data()), kBytes};
  std::vector<uint64_t> checksums(1);
  ASSERT_TRUE(Copy({&good, 1}, {}, 7, CopyCheck::kCompute, checksums));

  const testing::ScribblingProcess scribbler(shared, kBytes);
  std::vector<std::byte> out(kBytes + 32);
  std::byte* aligned = out.data() + (32 - reinterpret_cast<uintptr_t>(out.data()) % 32);
  int passed = 0, refused = 0;
  for (int i = 0; i < 400'000 && (passed < 6000 || refused < 2000); ++i) {
    const Piece source{shared, kBytes}, target{aligned, kBytes};
    const CopyStores stores = i % 2 == 0 ? CopyStores::kStreaming : CopyStores::kCached;
    if (Copy({&source, 1}, {&target, 1}, 7, CopyCheck::kVerify, checksums, stores)) {
      ++passed;
      ASSERT_TRUE(Copy({&target, 1}, {}, 7, CopyCheck::kVerify, checksums)) << "after " << i << " copies";
    } else {
      ++refused;
    }
  }
  EXPECT_GT(passed, 0);
  EXPECT_GT(refused, 0) << "the scribbler did nothing";
  testing::UnmapShared(shared, kBytes);
}

INSTANTIATE_TEST_SUITE_P(Builds, BlockCopyTest,
                         ::testing::Values(Case{"Dispatched", CopyBlock},
                                           Case{"Portable", copy_portable::CopyBlock},
                                           Case{"Avx2", copy_avx2::CopyBlock}),
                         [](const auto& info) { return info.param.name; });

TEST(BlockCopyBuildsTest, PortableAndAvx2Agree) {
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP() << "this processor has no AVX2";
  Random random(42);
  for (int round = 0; round < 300; ++round) {
    const size_t size = 1 + random.Below(3 * kSegment);
    const auto bytes = PayloadOf(KeyOf(round), size);
    Scattered source(size, &random, false), target(size, &random, false);
    source.Scatter(bytes);
    const uint64_t seed = random.Next();
    std::vector<uint64_t> portable(ChecksumCount(size)), avx2(ChecksumCount(size));
    ASSERT_TRUE(copy_portable::CopyBlock(source.pieces(), {}, seed, CopyCheck::kCompute, portable,
                                         CopyStores::kCached));
    ASSERT_TRUE(copy_avx2::CopyBlock(source.pieces(), target.pieces(), seed, CopyCheck::kCompute, avx2,
                                     CopyStores::kStreaming));
    ASSERT_EQ(portable, avx2) << size << " bytes";
    ASSERT_EQ(target.Gather(), bytes);
  }
}

}  // namespace
}  // namespace terrace
