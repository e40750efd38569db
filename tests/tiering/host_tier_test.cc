// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/host_tier.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <set>

#include "testing/payload.h"

namespace terrace::tiering {
namespace {

using kv::FrameId;
using testing::KeyOf;

class HostTierTest : public ::testing::Test {
 protected:
  void Make(uint64_t arena_bytes, uint64_t segment_bytes = 16 << 20, bool prefault = false) {
    tier_ = std::make_unique<HostTier>(
        HostTier::Options{.segment_bytes = segment_bytes, .arena_bytes = arena_bytes, .prefault = prefault,
                          .huge_pages = true},
        &budget_, [this](kv::TenantId, uint32_t id) { gone_.push_back(id); });
  }
  const kv::KeySpace& Space(uint64_t block_bytes, kv::TenantId tenant = 0) {
    kv::KeySpaceIdentity identity;
    identity.block_bytes = block_bytes;
    return **key_spaces_.Open(tenant, tenant == 0 ? "a" : "b", identity);
  }
  // A frame with the payload of a key, header written and ready. kNoFrame: no room.
  FrameId Store(const kv::KeySpace& space, uint64_t number) {
    const auto frame = tier_->TryAllocate(space.tenant, space.identity.block_bytes);
    if (!frame.has_value()) return kv::kNoFrame;
    const std::span<std::byte> payload{tier_->Payload(*frame), space.identity.block_bytes};
    testing::FillPayload(KeyOf(number), 0, payload);
    const auto checksums = testing::ChecksumsOf(space.digest.data(), KeyOf(number), payload);
    tier_->pool().MakeReady(*frame, tier_->WriteHeader(*frame, space, KeyOf(number), checksums));
    return *frame;
  }
  bool Holds(FrameId frame, const kv::KeySpace& space, uint64_t number) {
    std::vector<std::byte> out(space.identity.block_bytes);
    return tier_->Check(frame, space, KeyOf(number), out) && testing::IsPayloadOf(KeyOf(number), out);
  }

  MemoryBudget budget_{uint64_t{1} << 40};
  kv::KeySpaceTable key_spaces_{100};
  std::vector<uint32_t> gone_;
  std::unique_ptr<HostTier> tier_;
};

TEST_F(HostTierTest, ABlockIsItselfAndNoOther) {
  Make(64 << 20);
  const auto& space = Space(100'000);
  const FrameId frame = Store(space, 1);
  EXPECT_TRUE(Holds(frame, space, 1));
  EXPECT_FALSE(tier_->Check(frame, space, KeyOf(2), {}));
  EXPECT_FALSE(tier_->Check(frame, Space(100'001), KeyOf(1), {}));
  EXPECT_FALSE(tier_->Check(frame, Space(100'000, 1), KeyOf(1), {})) << "another tenant";
  tier_->Payload(frame)[99'999] ^= std::byte{1};
  EXPECT_FALSE(tier_->Check(frame, space, KeyOf(1), {}));
}

TEST_F(HostTierTest, AFreedFrameHoldsNothing) {
  Make(64 << 20);
  const auto& space = Space(4096);
  const FrameId keep = Store(space, 1), frame = Store(space, 2);
  tier_->pool().Pin(frame);
  tier_->Retire(frame);
  EXPECT_TRUE(Holds(frame, space, 2)) << "a pinned frame is whole until it is let go";
  tier_->Unpin(frame);
  EXPECT_FALSE(tier_->Check(frame, space, KeyOf(2), {}));
  EXPECT_TRUE(Holds(keep, space, 1));
}

// Headers lie packed at the start of their extents; those of another block size lie elsewhere, over what
// was a header's checksums before.
TEST_F(HostTierTest, RoomChangesBetweenAllSizes) {
  Make(32 << 20);
  const uint64_t sizes[] = {2 << 20, 4096, 3 << 20, 65536, 1 << 20, 5000, 8 << 20, 300'000};
  for (int round = 0; round < 3; ++round) {
    for (const uint64_t bytes : sizes) {
      SCOPED_TRACE(bytes);
      const auto& space = Space(bytes);
      std::vector<FrameId> frames;
      for (FrameId f; (f = Store(space, frames.size())) != kv::kNoFrame;) frames.push_back(f);
      ASSERT_GE(frames.size() * kv::ShapeFor(bytes).stride, 24u << 20);
      for (size_t i = 0; i < frames.size(); i += 1 + frames.size() / 50) ASSERT_TRUE(Holds(frames[i], space, i));
      for (const FrameId f : frames) tier_->Retire(f);
    }
  }
  EXPECT_EQ(tier_->pool().GetUsage().frames_in_use, 0u);
}

TEST_F(HostTierTest, CopyFrameMovesABlockAndRefusesABadOne) {
  Make(64 << 20);
  const auto& space = Space(200'000);
  const FrameId source = Store(space, 1);
  const auto target = tier_->TryAllocate(0, 200'000);
  ASSERT_TRUE(tier_->CopyFrame(source, *target, space, KeyOf(1)));
  EXPECT_TRUE(Holds(*target, space, 1));
  EXPECT_NE(tier_->pool().PlaceOf(*target).generation, tier_->pool().PlaceOf(source).generation);
  tier_->Payload(source)[0] ^= std::byte{1};
  const auto other = tier_->TryAllocate(0, 200'000);
  EXPECT_FALSE(tier_->CopyFrame(source, *other, space, KeyOf(1)));
  tier_->Abandon(*other);
  EXPECT_FALSE(tier_->Check(*other, space, KeyOf(1), {}));
}

TEST_F(HostTierTest, ArenaAndBudgetAreLimits) {
  Make(48 << 20);
  const auto& space = Space(1 << 20);
  std::vector<FrameId> frames;
  for (FrameId f; (f = Store(space, frames.size())) != kv::kNoFrame;) frames.push_back(f);
  EXPECT_EQ(frames.size(), 48u);
  EXPECT_FALSE(tier_->TryAllocate(0, 100 << 20).has_value()) << "larger than the arena";
  for (const FrameId f : frames) tier_->Retire(f);
  EXPECT_TRUE(tier_->GiveUpEmptySegment(0));
  EXPECT_EQ(gone_.size(), 1u);
  tier_.reset();
  EXPECT_EQ(budget_.used(), 0u) << "all is given back";
}

TEST_F(HostTierTest, EmptySegmentsOfOthersGoFirst) {
  Make(48 << 20);
  const auto& a = Space(4096, 0);
  const auto& b = Space(4096, 1);
  const FrameId of_a = Store(a, 1), of_b = Store(b, 2);
  const uint32_t segment_a = tier_->pool().PlaceOf(of_a).segment_id;
  const uint32_t segment_b = tier_->pool().PlaceOf(of_b).segment_id;
  EXPECT_NE(segment_a, segment_b) << "tenants do not share segments";
  EXPECT_FALSE(tier_->FindSegment(segment_a, 1).has_value());
  EXPECT_FALSE(tier_->GiveUpEmptySegment(0)) << "none is empty";
  tier_->Retire(of_a);
  tier_->Retire(of_b);
  EXPECT_TRUE(tier_->GiveUpEmptySegment(0));
  EXPECT_EQ(gone_, std::vector<uint32_t>{segment_b});
  EXPECT_FALSE(tier_->FindSegment(segment_b, 1).has_value());
  EXPECT_TRUE(tier_->GiveUpEmptySegment(0));
  EXPECT_EQ(gone_.back(), segment_a);
}

TEST_F(HostTierTest, HeadersCostTheirPagesOnly) {
  Make(256 << 20, 128 << 20);
  const auto& space = Space(2 << 20);
  const FrameId frame = Store(space, 1);
  const auto fds = tier_->FindSegment(tier_->pool().PlaceOf(frame).segment_id, 0);
  ASSERT_TRUE(fds.has_value());
  struct stat headers {};
  ASSERT_EQ(fstat(fds->headers, &headers), 0);
  // A huge page would take 2 MiB for the 384 bytes of one header: a sixteenth of the arena in all.
  EXPECT_LE(headers.st_blocks * 512, 4096);
  close(fds->payload);
  close(fds->headers);
}

TEST_F(HostTierTest, PrefaultPaysForPagesInTheBackground) {
  Make(64 << 20, 16 << 20, true);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (tier_->prefaulted_bytes() < (64 << 20) && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
  EXPECT_EQ(tier_->prefaulted_bytes(), 64u << 20);
  const uint64_t charged = budget_.used();
  const auto& space = Space(1 << 20);
  std::vector<FrameId> frames;
  for (FrameId f; (f = Store(space, frames.size())) != kv::kNoFrame;) frames.push_back(f);
  EXPECT_EQ(frames.size(), 64u) << "what was prefaulted is used";
  EXPECT_LE(budget_.used(), charged + (1 << 20)) << "and not charged again";
}

TEST_F(HostTierTest, ALargerBlockThanASegmentGetsASegmentOfItsOwn) {
  Make(128 << 20);
  const auto& space = Space(40 << 20);
  const FrameId frame = Store(space, 1);
  ASSERT_NE(frame, kv::kNoFrame);
  EXPECT_TRUE(Holds(frame, space, 1));
}

// Segments come and go for as long as the daemon lives; a number must not come again while an older
// segment still has it (ids are looked up modulo the size of a table).
TEST_F(HostTierTest, SegmentsMayComeAndGoForEver) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "about numbers, not memory; 66,000 mappings take minutes under a sanitizer";
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
  GTEST_SKIP() << "about numbers, not memory; 66,000 mappings take minutes under a sanitizer";
#endif
#endif
  Make(8 << 20, 2 << 20);
  const auto& a = Space(4096, 0);
  const auto& b = Space(4096, 1);
  const FrameId kept = Store(a, 1);
  const std::byte* place = tier_->Payload(kept);
  for (int i = 0; i < 66'000; ++i) {
    const auto frame = tier_->TryAllocate(1, 4096);
    ASSERT_TRUE(frame.has_value()) << i;
    tier_->Abandon(*frame);
    ASSERT_TRUE(tier_->GiveUpEmptySegment(0));
    ASSERT_EQ(tier_->Payload(kept), place) << "after " << i << " segments";
  }
  EXPECT_TRUE(Holds(kept, a, 1));
  EXPECT_NE(Store(b, 2), kv::kNoFrame);
}

}  // namespace
}  // namespace terrace::tiering
