// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What the next process finds of what the last one left: everything that was whole, and nothing else.
#include <algorithm>
#include <set>

#include "testing/warm_fixture.h"

namespace terrace::testing {
namespace {

using kv::FrameId;
using tiering::HostMemoryDir;
using tiering::HostTier;

class WarmAdoptTest : public WarmTest {};

TEST_F(WarmAdoptTest, EverythingIsThereAgain) {
  Start();
  const auto& small = Space(5000);
  const auto& large = Space(300'000);
  const auto& other = Space(70'000, 1);
  const size_t n_small = Fill(small, 0, 2000).size();
  const size_t n_large = Fill(large, 10'000, 60).size();
  ASSERT_EQ(n_small + n_large, 2060u);
  ASSERT_EQ(Fill(other, 20'000, 40).size(), 40u);
  const uint64_t charged = budget_->used();
  Start();
  EXPECT_EQ(tier_->adoption_ratio(), 0.0);
  EXPECT_TRUE(key_spaces_->List().empty()) << "key spaces come back with their blocks";
  const auto blocks = Adopt();
  EXPECT_EQ(blocks.size(), 2100u);
  EXPECT_EQ(key_spaces_->List().size(), 3u);
  std::vector<Block> of_small, of_large, of_other;
  for (const Block& block : blocks) {
    EXPECT_EQ(block.payload_bytes, block.key_space->identity.block_bytes);
    EXPECT_EQ(block.key_space->digest, block.key_space_digest);
    (block.payload_bytes == 5000 ? of_small : block.payload_bytes == 300'000 ? of_large : of_other).push_back(block);
  }
  EXPECT_EQ(CheckAll(of_small, 0, 2000), 2000u);
  EXPECT_EQ(CheckAll(of_large, 10'000, 60), 60u);
  EXPECT_EQ(CheckAll(of_other, 20'000, 40), 40u);
  for (const Block& block : of_other) EXPECT_EQ(block.key_space->tenant, 1);
  EXPECT_EQ(&Space(5000), of_small[0].key_space) << "opened by a client: the same";
  EXPECT_EQ(budget_->used(), charged) << "the same memory costs the same";
}

TEST_F(WarmAdoptTest, ItGoesOnAsBefore) {
  Start();
  for (int process = 0; process < 6; ++process) {
    SCOPED_TRACE(process);
    const auto blocks = Adopt();
    const auto& space = Space(100'000);
    ASSERT_EQ(CheckAll(blocks, 0, 10'000), blocks.size());
    // A third is freed, something else is stored until all is full.
    for (size_t i = 0; i < blocks.size(); i += 3) tier_->Retire(blocks[i].frame);
    const auto stored = Fill(space, static_cast<uint64_t>(process) * 1000, 1000);
    EXPECT_GT(stored.size(), 100u);
    for (const auto& [number, frame] : stored) ASSERT_TRUE(Holds(frame, space, KeyOf(number)));
    const auto usage = tier_->pool().GetUsage();
    EXPECT_EQ(usage.frames_in_use, blocks.size() - (blocks.size() + 2) / 3 + stored.size());
    EXPECT_GT(usage.used_bytes, 59u << 20) << "full";
    Start();
  }
}

TEST_F(WarmAdoptTest, GenerationsAreNeverUsedTwice) {
  std::set<uint64_t> seen;
  for (int process = 0; process < 5; ++process) {
    Start();
    Adopt();
    const auto& space = Space(65536);
    for (int i = 0; i < 20; ++i) {
      const FrameId frame = Store(space, 5);
      ASSERT_NE(frame, kv::kNoFrame);
      const uint64_t generation = tier_->pool().PlaceOf(frame).generation;
      EXPECT_TRUE(seen.insert(generation).second) << generation << " in process " << process;
      EXPECT_EQ(generation, *seen.rbegin()) << "they grow";
      tier_->Retire(frame);  // nothing of it is left to be seen by the next process
    }
  }
}

TEST_F(WarmAdoptTest, ParentsAreRemembered) {
  Start();
  const auto& space = Space(65536);
  Store(space, 1);
  Store(space, 2, KeyOf(1));
  const FrameId moved = Store(space, 3, KeyOf(2));
  const auto target = tier_->TryAllocate(0, 65536);
  ASSERT_TRUE(tier_->CopyFrame(moved, *target, space, KeyOf(3)));
  tier_->Retire(moved);
  Start();
  const auto blocks = Adopt();
  ASSERT_EQ(blocks.size(), 3u);
  for (const Block& block : blocks) {
    std::array<uint8_t, 24> expected{};
    const kv::BlockKey parent = KeyOf(block.key == KeyOf(2) ? 1 : 2);
    if (block.key != KeyOf(1)) std::copy_n(parent.bytes.begin(), expected.size(), expected.begin());
    EXPECT_EQ(block.parent_tag, expected);
  }
}

TEST_F(WarmAdoptTest, WhatWasInFlightIsFree) {
  Start();
  const auto& space = Space(65536);
  ASSERT_EQ(Fill(space, 0, 100).size(), 100u);
  for (int i = 0; i < 7; ++i) {
    const auto frame = tier_->TryAllocate(0, 65536);  // filling when the process ends
    ASSERT_TRUE(frame.has_value());
    FillPayload(KeyOf(1000), 0, {tier_->Payload(*frame), 65536});
  }
  Start();
  const auto blocks = Adopt();
  EXPECT_EQ(CheckAll(blocks, 0, 100), 100u);
  EXPECT_EQ(tier_->pool().GetUsage().frames_in_use, 100u);
  EXPECT_EQ(tier_->adoption().damaged, 0u);
}

TEST_F(WarmAdoptTest, WhatIsNotWantedIsFreed) {
  Start();
  Fill(Space(65536), 0, 100);
  Start();
  while (tier_->AdoptStep([](const Block& block) { return block.key == KeyOf(7); })) {
  }
  EXPECT_EQ(tier_->pool().GetUsage().frames_in_use, 1u);
  Start();
  EXPECT_EQ(CheckAll(Adopt(), 7, 1), 1u);
}

TEST_F(WarmAdoptTest, OneDaemonOneDirectory) {
  Start();
  const auto second = HostMemoryDir::Open(path_, run_dir_);
  ASSERT_TRUE(absl::IsAlreadyExists(second.status())) << second.status();
  EXPECT_NE(second.status().message().find(std::to_string(getpid())), absl::string_view::npos) << second.status();
  EXPECT_NE(second.status().message().find("need a run_dir or a host.memory_dir each"), absl::string_view::npos)
      << "says what to do: " << second.status();
  End();
  EXPECT_TRUE(HostMemoryDir::Open(path_, run_dir_).ok());
}

}  // namespace
}  // namespace terrace::testing
