// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Memory that fails: random bits of the arena flip, in payloads, headers and checksums. No wrong byte is
// ever served, and each flip that touches a block is found at its next reading, counted once, and costs
// that block alone.
#include <gtest/gtest.h>

#include "kvstore/frame_pool.h"
#include "testing/arena_access.h"
#include "testing/test_stack.h"

namespace terrace::tiering {
namespace {

using testing::ArenaAccess;
using testing::KeyOf;
using testing::KeysOf;
using testing::Random;
using testing::SmallStackOptions;
using testing::TestStack;

constexpr uint64_t kSizes[] = {4096, 5000, 65536, 70'000, 200'000};
constexpr uint64_t kKeysPerSize = 16;

class BitFlipTest : public ::testing::Test {
 protected:
  BitFlipTest() {
    for (const uint64_t bytes : kSizes) spaces_.push_back(&TestStack::Open(session_.get(), bytes));
    for (size_t s = 0; s < spaces_.size(); ++s) TestStack::StoreChain(session_.get(), *spaces_[s], 0, kKeysPerSize);
  }
  BlockPlace PlaceOf(const kv::KeySpace& space, uint64_t number) {
    const auto key = KeyOf(number);
    const auto answer = session_->Lookup(space.id, {&key, 1}, LookupMode::kPrefix, Session::kNewLease);
    EXPECT_EQ(answer->n_here, 1u);
    EXPECT_TRUE(session_->Release(answer->lease_id).ok());
    return answer->places[0];
  }
  // The bytes that make up a block: its payload, then its header with the checksums.
  uint64_t LiveBytes(const kv::KeySpace& space) {
    const uint64_t bytes = space.identity.block_bytes;
    return bytes + sizeof(kv::BlockHeader) + 8 * ChecksumCount(bytes);
  }
  std::byte& LiveByte(const kv::KeySpace& space, const BlockPlace& place, uint64_t at) {
    const auto& segment = arena_.Find(0, place.segment_id);
    if (at < space.identity.block_bytes) return segment.payload[place.payload_offset + at];
    return segment.headers[place.header_offset * kv::kHeaderUnit + at - space.identity.block_bytes];
  }
  double Integrity() { return stack_.Metric("terrace_integrity_failures_total"); }

  TestStack stack_{SmallStackOptions(32 << 20)};
  std::unique_ptr<Session> session_ = stack_->OpenSession(0);
  ArenaAccess arena_{stack_.stack.get()};
  std::vector<const kv::KeySpace*> spaces_;
};

TEST_F(BitFlipTest, HundredThousandFlipsServeNoWrongByte) {
  Random random(20261122);
  uint64_t wrong = 0, undetected = 0;
  constexpr int kFlips = 100'000;
  std::vector<std::byte> out;
  for (int flip = 0; flip < kFlips; ++flip) {
    // Mostly small blocks: what is read back for each flip adds up.
    const kv::KeySpace& space = *spaces_[random.OneIn(20) ? 2 + random.Below(3) : random.Below(2)];
    const uint64_t number = random.Below(kKeysPerSize);
    const BlockPlace place = PlaceOf(space, number);
    // One flip in four hits the header, though it is a small part of the block.
    const uint64_t payload = space.identity.block_bytes;
    const uint64_t at = random.OneIn(4) ? payload + random.Below(LiveBytes(space) - payload) : random.Below(payload);
    LiveByte(space, place, at) ^= std::byte{1} << static_cast<int>(random.Below(8));

    out.assign(payload, std::byte{0});
    const absl::Status read = stack_->ReadLeased(space, KeyOf(number), place, out);
    if (read.ok()) {
      ++undetected;
      wrong += !testing::IsPayloadOf(KeyOf(number), out);
    } else {
      ASSERT_TRUE(absl::IsDataLoss(read)) << read;
    }
    ASSERT_EQ(TestStack::Ask(session_.get(), space, KeyOf(number)), Reason::kCorrupt);
    const std::optional<kv::BlockKey> parent = number == 0 ? std::nullopt : std::optional(KeyOf(number - 1));
    ASSERT_EQ(TestStack::Store(session_.get(), space, KeyOf(number), parent), Reason::kNone);
  }
  EXPECT_EQ(wrong, 0u);
  EXPECT_EQ(undetected, 0u);
  EXPECT_EQ(Integrity(), kFlips);
  EXPECT_EQ(stack_->Verify().corrupt, 0u);
  EXPECT_EQ(stack_->Stats().tiers[0].blocks, std::size(kSizes) * kKeysPerSize);
}

TEST_F(BitFlipTest, VerifyFindsEveryBadBlockOnce) {
  Random random(7);
  for (int round = 0; round < 20; ++round) {
    uint64_t hit = 0;
    for (const kv::KeySpace* space : spaces_) {
      for (uint64_t number = 0; number < kKeysPerSize; ++number) {
        if (!random.OneIn(3)) continue;
        ++hit;
        LiveByte(*space, PlaceOf(*space, number), random.Below(LiveBytes(*space))) ^= std::byte{1};
      }
    }
    const double before = Integrity();
    const VerifyReport report = stack_->Verify();
    ASSERT_EQ(report.blocks, std::size(kSizes) * kKeysPerSize);
    ASSERT_EQ(report.corrupt, hit);
    ASSERT_EQ(Integrity() - before, static_cast<double>(hit));
    ASSERT_EQ(stack_->Verify().corrupt, 0u);
    for (const kv::KeySpace* space : spaces_) {
      for (uint64_t number = 0; number < kKeysPerSize; ++number) {
        const Reason stored = TestStack::Store(session_.get(), *space, KeyOf(number));
        ASSERT_TRUE(stored == Reason::kNone || stored == Reason::kDuplicate);
      }
    }
  }
}

TEST_F(BitFlipTest, AReportOfABadBlockDropsIt) {
  const kv::KeySpace& space = *spaces_[3];
  const BlockPlace place = PlaceOf(space, 5);
  LiveByte(space, place, 66'000) ^= std::byte{16};
  EXPECT_FALSE(stack_->CheckReported(space, KeyOf(5), place.generation + 1)) << "a report about another generation";
  EXPECT_TRUE(stack_->CheckReported(space, KeyOf(5), place.generation));
  EXPECT_FALSE(stack_->CheckReported(space, KeyOf(5), place.generation));
  EXPECT_EQ(TestStack::Ask(session_.get(), space, KeyOf(5)), Reason::kCorrupt);
  EXPECT_EQ(Integrity(), 1);
}

// Flips beside the blocks (free frames, the rest of header units, room between frames) harm nobody, not
// even the next block that comes to lie there.
TEST_F(BitFlipTest, FlipsInFreeMemoryHarmNobody) {
  Random random(9);
  for (int round = 0; round < 30; ++round) {
    ASSERT_EQ(stack_->Flush(nullptr), std::size(kSizes) * kKeysPerSize);
    const auto& segment = arena_.Find(0, 1);
    for (int i = 0; i < 3000; ++i) {
      segment.payload[random.Below(segment.payload.size())] ^= std::byte{1} << static_cast<int>(random.Below(8));
      // Headers lie at the start of each extent's 64 KiB.
      const uint64_t extent = random.Below(segment.headers.size() / kv::kHeaderBytesPerExtent);
      segment.headers[extent * kv::kHeaderBytesPerExtent + random.Below(4096)] ^=
          std::byte{1} << static_cast<int>(random.Below(8));
    }
    for (const kv::KeySpace* space : spaces_) TestStack::StoreChain(session_.get(), *space, 0, kKeysPerSize);
    ASSERT_EQ(stack_->Verify().corrupt, 0u);
  }
  EXPECT_EQ(Integrity(), 0);
}

// A bad block that is found when blocks are moved to make room counts like any other.
TEST(BitFlipEvacuationTest, ABadBlockFoundWhileMovingIsCounted) {
  TestStack stack(SmallStackOptions(32 << 20));
  auto session = stack->OpenSession(0);
  ArenaAccess arena(stack.stack.get());
  const auto& small = TestStack::Open(session.get(), 65536);
  const auto& large = TestStack::Open(session.get(), 4 << 20);
  uint64_t n = 0;
  while (stack.Metric("terrace_evictions_total") == 0) {
    ASSERT_EQ(TestStack::Store(session.get(), small, KeyOf(n++)), Reason::kNone);
  }
  std::vector<uint64_t> bad;
  for (uint64_t i = 1; i < n; i += 2) {
    const auto key = KeyOf(i);
    const auto answer = session->Lookup(small.id, {&key, 1}, LookupMode::kPrefix, Session::kNewLease);
    const auto& segment = arena.Find(0, answer->places[0].segment_id);
    segment.payload[answer->places[0].payload_offset + i] ^= std::byte{1};
    ASSERT_TRUE(session->Release(answer->lease_id).ok());
    bad.push_back(i);
  }
  ASSERT_EQ(TestStack::Store(session.get(), large, KeyOf(1)), Reason::kNone);
  const double found_by_moving = stack.Metric("terrace_integrity_failures_total");
  EXPECT_GT(found_by_moving, 0);
  double dropped = 0;
  for (const uint64_t i : bad) dropped += TestStack::Ask(session.get(), small, KeyOf(i)) == Reason::kCorrupt;
  // Why a block went may be forgotten: the memory of misses is a table in which entries overwrite others.
  EXPECT_LE(dropped, found_by_moving);
  EXPECT_GE(dropped, found_by_moving - 3);
  stack->Verify();
  EXPECT_EQ(stack.Metric("terrace_integrity_failures_total"), static_cast<double>(bad.size()));
}

// A parent that fails its check goes before its children. Its entry lives on as their parent and is
// freed with the last of them: else the index would fill up with such.
TEST(BitFlipLinksTest, CorruptParentsDoNotLeak) {
  TestStack stack(SmallStackOptions(32 << 20));
  auto session = stack->OpenSession(0);
  ArenaAccess arena(stack.stack.get());
  const auto& space = TestStack::Open(session.get(), 65536);
  // More rounds than the index has entries (one a page of the arena).
  const uint64_t rounds = (40ull << 20) / kv::kFrameAlign;
  for (uint64_t round = 0; round < rounds; ++round) {
    const uint64_t parent = round * 2, child = parent + 1;
    ASSERT_EQ(TestStack::Store(session.get(), space, KeyOf(parent)), Reason::kNone);
    ASSERT_EQ(TestStack::Store(session.get(), space, KeyOf(child), KeyOf(parent)), Reason::kNone);
    const auto key = KeyOf(parent);
    const auto answer = session->Lookup(space.id, {&key, 1}, LookupMode::kPrefix, Session::kNewLease);
    arena.Find(0, answer->places[0].segment_id).payload[answer->places[0].payload_offset] ^= std::byte{1};
    ASSERT_TRUE(stack->CheckReported(space, key, answer->places[0].generation));
    ASSERT_TRUE(session->Release(answer->lease_id).ok());
  }
  EXPECT_EQ(stack.Metric("terrace_integrity_failures_total"), static_cast<double>(rounds));
  EXPECT_EQ(stack.Metric("terrace_store_blocks_total", "reason", "budget"), 0);
}

}  // namespace
}  // namespace terrace::tiering
