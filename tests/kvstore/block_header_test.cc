// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "kvstore/block_header.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <array>
#include <cstddef>

#include "testing/payload.h"

namespace terrace::kv {
namespace {

using testing::KeyOf;
using testing::Random;

constexpr uint64_t kPayloadBytes = 3 * kChecksumSegmentBytes + 5;

// A complete header that ends where readable memory ends: a read beyond it is a crash.
class BlockHeaderTest : public ::testing::Test {
 protected:
  static constexpr size_t kPage = 4096;

  BlockHeaderTest() {
    memory_ = static_cast<std::byte*>(
        mmap(nullptr, 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(memory_ + kPage, kPage, PROT_NONE);
    bytes_ = HeaderBytes(kPayloadBytes);
    header_ = reinterpret_cast<BlockHeader*>(memory_ + kPage - bytes_);
    digest_.fill(0x5A);
    Write(17);
  }
  ~BlockHeaderTest() override { munmap(memory_, 2 * kPage); }

  void Write(uint64_t generation) {
    header_->magic = kBlockHeaderMagic;
    header_->version = kBlockHeaderVersion;
    header_->payload_bytes = kPayloadBytes;
    header_->segment_bytes = kChecksumSegmentBytes;
    header_->n_checksums = 4;
    std::memcpy(header_->key_space_digest, digest_.data(), 32);
    std::memcpy(header_->key, key_.bytes.data(), 32);
    for (uint64_t i = 0; i < 4; ++i) header_->checksums()[i] = 0x1111 * (i + 1);
    header_->header_checksum = ComputeHeaderChecksum(*header_, generation, header_->checksums());
    StoreGeneration(header_, generation);
  }
  HeaderVerdict Check(uint64_t generation = 17, uint64_t payload_bytes = kPayloadBytes) const {
    return CheckHeader(header_, digest_.data(), key_.bytes.data(), generation, payload_bytes);
  }

  std::byte* memory_;
  uint64_t bytes_;
  BlockHeader* header_;
  std::array<uint8_t, 32> digest_;
  BlockKey key_ = KeyOf(3);
};

TEST_F(BlockHeaderTest, HeaderBytesHoldTheChecksumsInWholeUnits) {
  EXPECT_EQ(HeaderBytes(1), 192u);
  EXPECT_EQ(HeaderBytes(8 * kChecksumSegmentBytes), 192u);
  EXPECT_EQ(HeaderBytes(8 * kChecksumSegmentBytes + 1), 256u);
  EXPECT_EQ(HeaderBytes(1 << 20), 256u);
  EXPECT_EQ(HeaderBytes(2 << 20), 384u);
}

TEST_F(BlockHeaderTest, WholeHeaderIsOk) { EXPECT_EQ(Check(), HeaderVerdict::kOk); }

TEST_F(BlockHeaderTest, AnotherGenerationIsStaleNotCorrupt) {
  EXPECT_EQ(Check(16), HeaderVerdict::kStale);
  EXPECT_EQ(Check(18), HeaderVerdict::kStale);
  StoreGeneration(header_, 0);
  EXPECT_EQ(Check(17), HeaderVerdict::kStale);
  EXPECT_EQ(Check(0), HeaderVerdict::kStale) << "an empty frame must not match a ref of generation 0";
  Write(18);
  EXPECT_EQ(Check(18), HeaderVerdict::kOk);
}

TEST_F(BlockHeaderTest, ChecksumCoversTheGeneration) {
  StoreGeneration(header_, 18);  // as a flipped bit would: all else is of generation 17
  EXPECT_EQ(Check(18), HeaderVerdict::kCorrupt);
}

TEST_F(BlockHeaderTest, AnotherIdentityIsCorrupt) {
  const BlockKey other_key = KeyOf(4);
  EXPECT_EQ(CheckHeader(header_, digest_.data(), other_key.bytes.data(), 17, kPayloadBytes),
            HeaderVerdict::kCorrupt);
  digest_[31] ^= 1;
  EXPECT_EQ(Check(), HeaderVerdict::kCorrupt);
  digest_[31] ^= 1;
  EXPECT_EQ(Check(17, kPayloadBytes - 1), HeaderVerdict::kCorrupt);
}

TEST_F(BlockHeaderTest, EveryFlippedBitIsSeen) {
  auto* bytes = reinterpret_cast<uint8_t*>(header_);
  const size_t live = sizeof(BlockHeader) + 4 * sizeof(uint64_t);
  constexpr size_t kGeneration = offsetof(BlockHeader, generation);
  for (size_t bit = 0; bit < live * 8; ++bit) {
    bytes[bit / 8] = static_cast<uint8_t>(bytes[bit / 8] ^ 1u << bit % 8);
    const bool in_generation = bit / 8 >= kGeneration && bit / 8 < kGeneration + 8;
    EXPECT_EQ(Check(), in_generation ? HeaderVerdict::kStale : HeaderVerdict::kCorrupt) << "bit " << bit;
    bytes[bit / 8] = static_cast<uint8_t>(bytes[bit / 8] ^ 1u << bit % 8);
  }
  EXPECT_EQ(Check(), HeaderVerdict::kOk);
}

// The same for one who does not know what should be there. A generation of 0 holds nothing.
TEST_F(BlockHeaderTest, AWholeHeaderIsKnownByItself) {
  EXPECT_TRUE(IsWholeHeader(header_, bytes_));
  EXPECT_TRUE(IsWholeHeader(header_, bytes_ + 1000));
  EXPECT_FALSE(IsWholeHeader(header_, bytes_ - 64));
  EXPECT_FALSE(IsWholeHeader(header_, sizeof(BlockHeader) - 1));
  auto* bytes = reinterpret_cast<uint8_t*>(header_);
  const size_t live = sizeof(BlockHeader) + 4 * sizeof(uint64_t);
  for (size_t bit = 0; bit < live * 8; ++bit) {
    bytes[bit / 8] = static_cast<uint8_t>(bytes[bit / 8] ^ 1u << bit % 8);
    EXPECT_FALSE(IsWholeHeader(header_, bytes_)) << "bit " << bit;
    bytes[bit / 8] = static_cast<uint8_t>(bytes[bit / 8] ^ 1u << bit % 8);
  }
  StoreGeneration(header_, 0);
  EXPECT_FALSE(IsWholeHeader(header_, bytes_));
}

TEST_F(BlockHeaderTest, AScribbledHeaderThatNobodyKnowsIsNotReadBeyondItsEnd) {
  auto* bytes = reinterpret_cast<uint8_t*>(header_);
  Random random(12);
  for (int round = 0; round < 20000; ++round) {
    Write(17);
    if (round % 2 == 0) {
      for (size_t i = 24; i < bytes_; ++i) bytes[i] = static_cast<uint8_t>(random.Next());
    }
    header_->payload_bytes = random.Next() >> random.Below(64);
    header_->n_checksums = static_cast<uint32_t>(ChecksumCount(header_->payload_bytes));
    header_->segment_bytes = kChecksumSegmentBytes;
    if (header_->payload_bytes != kPayloadBytes) ASSERT_FALSE(IsWholeHeader(header_, bytes_));
  }
  Write(17);
  header_->payload_bytes = ~uint64_t{0};  // its number of checksums wraps round to 0
  header_->n_checksums = 0;
  EXPECT_FALSE(IsWholeHeader(header_, bytes_));
}

TEST_F(BlockHeaderTest, ScribbledHeaderIsNeverReadBeyondItsEnd) {
  auto* bytes = reinterpret_cast<uint8_t*>(header_);
  Random random(11);
  for (int round = 0; round < 20000; ++round) {
    Write(17);
    // Now all of it, now a few bytes, now only the counts; the generation stays, so that the check goes on.
    const uint64_t how = random.Below(3);
    if (how == 0) {
      for (size_t i = 0; i < bytes_; ++i) bytes[i] = static_cast<uint8_t>(random.Next());
    } else if (how == 1) {
      bytes[random.Below(bytes_)] = static_cast<uint8_t>(random.Next() | 1);
    } else {
      header_->n_checksums = static_cast<uint32_t>(random.Next() >> random.Below(64));
      header_->payload_bytes = random.Next() >> random.Below(64);
    }
    StoreGeneration(header_, 17);
    // The reader knows the length: that of its key space, whatever the header says.
    if (Check(17) == HeaderVerdict::kOk) {
      ASSERT_EQ(header_->n_checksums, 4u);
      ASSERT_EQ(header_->payload_bytes, kPayloadBytes);
    }
  }
  Write(17);
  header_->n_checksums = ~0u;
  EXPECT_EQ(Check(), HeaderVerdict::kCorrupt);
}

}  // namespace
}  // namespace terrace::kv
