// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// GpuTier: what is promoted, found, dropped and given up, and that every byte is the block's. On host memory in
// place of a GPU's.
#include "tiering/gpu_tier.h"

#include <gtest/gtest.h>

#include <deque>

#include "kvstore/base/block_copy.h"
#include "testing/fake_clock.h"
#include "testing/host_gpus.h"
#include "testing/payload.h"

namespace terrace::tiering {
namespace {

using testing::KeyOf;

constexpr uint64_t kBlock = 256 << 10;

class GpuTierTest : public ::testing::Test {
 protected:
  struct Source {
    std::vector<std::byte> bytes;
    std::vector<uint64_t> checksums;
  };
  void SetUp() override { Make(4 << 20); }
  void Make(uint64_t bytes) {
    auto made = GpuTier::Create({.bytes = bytes, .policy = "lru"}, &gpus_, &clock_, [this](GpuTier::Departure gone) {
      departed_.push_back(gone.key);
      departed_parents_.push_back(gone.parent);
      departed_as_of_ = gone.as_of_flushes;
      if (hold_departures_) {
        held_.push_back(std::move(gone.done));
      } else {
        gone.done();
      }
    });
    ASSERT_TRUE(made.ok()) << made.status();
    tier_ = *std::move(made);
  }
  std::unique_ptr<kv::KeySpace> NewKeySpace(kv::KeySpaceId id, kv::TenantId tenant, uint64_t bytes) {
    auto made = std::make_unique<kv::KeySpace>();
    made->id = id;
    made->tenant = tenant;
    made->identity.block_bytes = bytes;
    made->digest[0] = static_cast<uint8_t>(id);
    return made;
  }
  static Source SourceOf(const kv::KeySpace& space, uint64_t number) {
    const uint64_t bytes = space.identity.block_bytes;
    Source source{testing::PayloadOf(KeyOf(number), bytes), std::vector<uint64_t>(ChecksumCount(bytes))};
    const Piece piece{source.bytes.data(), bytes};
    CopyBlock({&piece, 1}, {}, IdentitySeed(space.digest.data(), KeyOf(number).bytes.data(), bytes),
              CopyCheck::kCompute, source.checksums, CopyStores::kCached);
    return source;
  }
  void Offer(const kv::KeySpace& space, uint64_t number, const Source& source, uint32_t as_of_flushes) {
    ++offered_;
    const auto parent_of = [&]() -> std::optional<kv::BlockKey> {
      if (!has_parents_) return std::nullopt;
      return KeyOf(1000 + number);
    };
    tier_->Offer(space, KeyOf(number), parent_of, const_cast<std::byte*>(source.bytes.data()), source.checksums,
                 as_of_flushes, [this] { ++released_; });
  }
  // One load of a block from host memory.
  void Load(const kv::KeySpace& space, uint64_t number, const Source& source) {
    Offer(space, number, source, space.flushes.load());
    gpus_.engine(0)->Drain();
    EXPECT_EQ(released_.load(), offered_) << "the frame is let go of exactly once";
  }
  void Promote(const kv::KeySpace& space, uint64_t number) {
    const Source source = SourceOf(space, number);
    Load(space, number, source);
    Load(space, number, source);
  }
  // Found, and every byte right.
  bool Has(const kv::KeySpace& space, uint64_t number) {
    const auto found = tier_->Find(space, KeyOf(number));
    if (!found.has_value()) return false;
    const Source source = SourceOf(space, number);
    EXPECT_EQ(std::memcmp(found->frame, source.bytes.data(), source.bytes.size()), 0);
    EXPECT_EQ(found->checksums, source.checksums);
    tier_->Unpin(found->slot);
    return true;
  }
  int CountHere(const kv::KeySpace& space, uint64_t n) {
    int here = 0;
    for (uint64_t i = 0; i < n; ++i) here += Has(space, i);
    return here;
  }

  testing::FakeClock clock_;
  testing::HostGpus gpus_;
  std::unique_ptr<kv::KeySpace> space_ = NewKeySpace(1, 0, kBlock);
  std::vector<kv::BlockKey> departed_;
  std::vector<std::optional<kv::BlockKey>> departed_parents_;
  uint32_t departed_as_of_ = 0;
  bool has_parents_ = false;
  bool hold_departures_ = false;
  std::deque<std::function<void()>> held_;
  std::atomic<int> released_{0};
  int offered_ = 0;
  std::unique_ptr<GpuTier> tier_;
};

TEST_F(GpuTierTest, TheSecondLoadPromotesNotTheFirst) {
  const Source source = SourceOf(*space_, 1);
  Load(*space_, 1, source);
  EXPECT_FALSE(Has(*space_, 1)) << "one conversation's block";
  Load(*space_, 1, source);
  EXPECT_TRUE(Has(*space_, 1));
  EXPECT_FALSE(Has(*space_, 2));
  Load(*space_, 1, source);
  EXPECT_EQ(tier_->GetStats().promoted, 1u) << "it is here already";
  EXPECT_EQ(tier_->GetStats().used_bytes, kBlock);
}

TEST_F(GpuTierTest, AKeyOfAnotherKeySpaceIsAnotherBlock) {
  const auto other = NewKeySpace(2, 0, kBlock);
  Promote(*space_, 1);
  EXPECT_FALSE(Has(*other, 1));
}

TEST_F(GpuTierTest, AHostFrameThatChangedIsNotPromoted) {
  Source source = SourceOf(*space_, 1);
  source.bytes[100'000] ^= std::byte{1};
  Load(*space_, 1, source);
  Load(*space_, 1, source);
  EXPECT_FALSE(tier_->Find(*space_, KeyOf(1)).has_value());
  EXPECT_EQ(tier_->GetStats().failed_promotions, 1u);
  EXPECT_EQ(tier_->GetStats().used_bytes, 0u);
  Promote(*space_, 1);
  EXPECT_TRUE(Has(*space_, 1)) << "the good bytes are taken";
}

TEST_F(GpuTierTest, TheBudgetHoldsAndTheColdestGoFirst) {
  for (uint64_t i = 0; i < 16; ++i) Promote(*space_, i);
  EXPECT_EQ(tier_->GetStats().used_bytes, tier_->GetStats().capacity_bytes);
  ASSERT_TRUE(Has(*space_, 0));
  const Source hot = SourceOf(*space_, 100);
  for (int i = 0; i < 3; ++i) Load(*space_, 100, hot);
  EXPECT_TRUE(Has(*space_, 100)) << "room was made at one load, taken at the next";
  ASSERT_EQ(departed_.size(), 1u);
  EXPECT_EQ(departed_[0], KeyOf(1)) << "block 0 was used a moment ago";
  EXPECT_EQ(CountHere(*space_, 16), 15);
  EXPECT_LE(tier_->GetStats().used_bytes, tier_->GetStats().capacity_bytes);
}

TEST_F(GpuTierTest, AHeldBlockKeepsItsMemoryWhateverHappens) {
  for (uint64_t i = 0; i < 16; ++i) Promote(*space_, i);
  const auto held = tier_->Find(*space_, KeyOf(3));
  ASSERT_TRUE(held.has_value());
  space_->flushes.fetch_add(1);
  tier_->Flush(space_.get());
  EXPECT_EQ(CountHere(*space_, 16), 0);
  for (uint64_t i = 100; i < 120; ++i) Promote(*space_, i);
  const Source source = SourceOf(*space_, 3);
  EXPECT_EQ(std::memcmp(held->frame, source.bytes.data(), kBlock), 0) << "overwritten under a reader";
  tier_->Unpin(held->slot);
  EXPECT_EQ(tier_->GetStats().used_bytes, tier_->GetStats().blocks * kBlock) << "its memory came back";
}

TEST_F(GpuTierTest, ABlockOnItsWayUpWhenItsKeySpaceIsFlushedDoesNotArrive) {
  const Source source = SourceOf(*space_, 1);
  Load(*space_, 1, source);
  Offer(*space_, 1, source, space_->flushes.fetch_add(1));
  gpus_.engine(0)->Drain();
  EXPECT_FALSE(Has(*space_, 1));
  EXPECT_EQ(tier_->GetStats().used_bytes, 0u);
}

TEST_F(GpuTierTest, ADepartureKnowsWhichFlushesItsBlockHasSeen) {
  space_->flushes = 5;
  for (uint64_t i = 0; i < 16; ++i) Promote(*space_, i);
  space_->flushes = 6;  // between here and the tier's own Flush a block may be chosen to go
  Promote(*space_, 100);
  ASSERT_EQ(departed_.size(), 1u);
  EXPECT_EQ(departed_as_of_, 5u) << "it would be stored in host memory after it was flushed";
}

TEST_F(GpuTierTest, ADepartureNamesItsBlocksParent) {
  for (uint64_t i = 0; i < 16; ++i) {
    has_parents_ = i != 1;
    Promote(*space_, i);
  }
  for (uint64_t i = 100; i < 106; ++i) Promote(*space_, i);
  ASSERT_GE(departed_.size(), 3u);
  for (size_t d = 0; d < departed_.size(); ++d) {
    EXPECT_EQ(departed_[d], KeyOf(d)) << "the coldest first";
    EXPECT_EQ(departed_parents_[d], d == 1 ? std::nullopt : std::optional(KeyOf(1000 + d))) << d;
  }
}

TEST_F(GpuTierTest, ADroppedBlockIsNotFoundAgain) {
  Promote(*space_, 1);
  const auto found = tier_->Find(*space_, KeyOf(1));
  ASSERT_TRUE(found.has_value());
  EXPECT_TRUE(tier_->Drop(found->slot));
  EXPECT_FALSE(Has(*space_, 1));
  EXPECT_FALSE(tier_->Drop(found->slot)) << "another load found it, too";
  tier_->Unpin(found->slot);
  EXPECT_EQ(tier_->GetStats().used_bytes, 0u);
  EXPECT_EQ(tier_->GetStats().dropped, 1u);
}

TEST_F(GpuTierTest, MemoryIsClearedBeforeAnotherTenantGetsIt) {
  for (uint64_t i = 0; i < 16; ++i) Promote(*space_, i);
  const auto other = NewKeySpace(2, 1, kBlock);
  const Source source = SourceOf(*other, 7);
  for (int i = 0; i < 3; ++i) Load(*other, 7, source);
  EXPECT_FALSE(Has(*other, 7)) << "all memory is the first tenant's";
  EXPECT_EQ(gpus_.zeroed(), 0);
  tier_->Step();
  EXPECT_EQ(gpus_.zeroed(), 1);
  Load(*other, 7, source);
  ASSERT_TRUE(Has(*other, 7));
  const auto found = tier_->Find(*other, KeyOf(7));
  const std::byte* after = found->frame + kBlock;  // its neighbour in the slab
  EXPECT_TRUE(std::all_of(after, after + kBlock, [](std::byte b) { return b == std::byte{0}; }));
  tier_->Unpin(found->slot);
}

TEST_F(GpuTierTest, SlabsChangeTheSizeOfTheirBlocks) {
  for (uint64_t i = 0; i < 16; ++i) Promote(*space_, i);
  const auto large = NewKeySpace(2, 0, 1 << 20);
  const Source source = SourceOf(*large, 7);
  for (int i = 0; i < 3; ++i) Load(*large, 7, source);
  tier_->Step();
  Load(*large, 7, source);
  EXPECT_TRUE(Has(*large, 7));
  EXPECT_EQ(CountHere(*space_, 16), 8) << "one of two slabs";
}

TEST_F(GpuTierTest, MemoryOfABlockThatIsCopiedDownIsNotReusedMeanwhile) {
  hold_departures_ = true;
  for (uint64_t i = 0; i < 16; ++i) Promote(*space_, i);
  const Source hot = SourceOf(*space_, 100);
  for (int i = 0; i < 3; ++i) Load(*space_, 100, hot);
  EXPECT_FALSE(Has(*space_, 100)) << "what makes room for it is still being read";
  ASSERT_FALSE(held_.empty());
  for (auto& done : held_) done();
  held_.clear();
  Load(*space_, 100, hot);
  EXPECT_TRUE(Has(*space_, 100));
  hold_departures_ = false;
}

TEST_F(GpuTierTest, BlocksThatCanNeverFitAreLeftAlone) {
  const auto huge = NewKeySpace(2, 0, 16 << 20);
  Promote(*space_, 1);
  Promote(*huge, 1);
  EXPECT_TRUE(Has(*space_, 1)) << "nothing makes room for it";
  EXPECT_FALSE(Has(*huge, 1));
}

TEST_F(GpuTierTest, AGpuOutOfServiceTakesNothing) {
  gpus_.Break(absl::UnavailableError("fenced"));
  Promote(*space_, 1);
  EXPECT_FALSE(Has(*space_, 1));
  EXPECT_EQ(tier_->GetStats().failed_promotions, 0u);
}

TEST_F(GpuTierTest, WithoutMemoryThereIsNoTier) {
  gpus_.SetFull(true);
  const auto made = GpuTier::Create({.bytes = 64 << 20}, &gpus_, &clock_, [](GpuTier::Departure gone) { gone.done(); });
  EXPECT_TRUE(absl::IsResourceExhausted(made.status())) << made.status();
  const auto tiny = GpuTier::Create({.bytes = 1 << 20}, &gpus_, &clock_, [](GpuTier::Departure gone) { gone.done(); });
  EXPECT_TRUE(absl::IsInvalidArgument(tiny.status())) << tiny.status();
}

}  // namespace
}  // namespace terrace::tiering
