// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Loads into regions of blocks that are on their way from a disk: copied as they come, whole, and not waited for
// longer than the client or its connection lives.
#include <gtest/gtest.h>

#include <algorithm>

#include "testing/engine_rig.h"
#include "testing/region_client.h"
#include "testing/slow_disk.h"

namespace terrace::testing {
namespace {

constexpr uint64_t kChain = 8;  // blocks a chain
constexpr uint64_t kChains = 60;
constexpr uint32_t kSecondUs = 1'000'000;

class EngineRegionPendingTest : public ::testing::Test {
 protected:
  // Chains of which some lie on disk alone, all stored from the region.
  void SetUp() override {
    client_ = rig_.Client();
    const auto space = client_->Open(memory_.page_bytes());
    ASSERT_TRUE(space.ok());
    space_ = *space;
    key_space_ = rig_.stack()->FindKeySpace(0, space_.id);
    auto registered = RegionClient(client_.get()).Register(memory_);
    ASSERT_TRUE(registered.ok()) << registered.status();
    region_ = *std::move(registered);
    for (uint64_t first = 0; first < kChains * kChain; first += kChain) {
      for (uint64_t i = 0; i < kChain; ++i) {
        memory_.Write(i, PayloadOf(KeyOf(first + i), 0, memory_.page_bytes()));
      }
      const auto reasons = RegionClient(client_.get())
                               .Run(wire::Type::kRegionStore,
                                    RegionStoreBody(region_.id, space_, KeysOf(first, kChain), 0));
      ASSERT_TRUE(reasons.ok()) << reasons.status();
      ASSERT_EQ(*reasons, std::vector<Reason>(kChain, Reason::kNone));
      ASSERT_TRUE(WaitForRoom(rig_.stack()));
    }
    for (uint64_t first = 0; first < kChains * kChain; first += kChain) {
      const auto keys = KeysOf(first, kChain);
      if (std::all_of(keys.begin(), keys.end(), [&](const kv::BlockKey& key) {
            return IsOnDiskOnly(rig_.stack(), *key_space_, key);
          })) {
        on_disk_.push_back(first);
      }
    }
    ASSERT_GE(on_disk_.size(), 2u);
    memory_.Clear();
  }
  void TearDown() override {
    disk_.Release();
    client_.reset();
    EXPECT_EQ(rig_.WhatIsLeft(20'000), "");
  }
  // Their loads from the disk begin.
  void Ask(uint64_t first) {
    const auto found = client_->Lookup(space_, KeysOf(first, kChain), wire::kLookupMayWait);
    ASSERT_TRUE(found.ok()) << found.status();
    ASSERT_EQ(found->done.n_here, kChain);
  }
  absl::StatusOr<std::vector<Reason>> LoadKeys(uint64_t first, uint32_t timeout_us) {
    return RegionClient(client_.get())
        .Run(wire::Type::kRegionLoad, RegionLoadBody(region_.id, space_, KeysOf(first, kChain), 0, 3, timeout_us));
  }
  bool Holds(uint64_t page, uint64_t key) const {
    return memory_.Read(page) == PayloadOf(KeyOf(key), 0, memory_.page_bytes());
  }

  RegionMemory memory_;
  SlowDisk disk_;
  EngineRig rig_{[this](api::Config* config) {
    disk_.PutUnder(&config->stack);
    config->stack.nvme.read_deadline_ns = 10'000'000'000;
  }};
  std::unique_ptr<RawClient> client_;
  OpenSpace space_;
  const kv::KeySpace* key_space_ = nullptr;
  RegionClient::Registered region_;
  std::vector<uint64_t> on_disk_;
};

TEST_F(EngineRegionPendingTest, WhatComesFromADiskIsLoadedWhole) {
  disk_.DelayReads(50'000'000, 3);  // in several parts
  Ask(on_disk_[0]);
  const auto reasons = LoadKeys(on_disk_[0], 20 * kSecondUs);
  ASSERT_TRUE(reasons.ok()) << reasons.status();
  EXPECT_EQ(*reasons, std::vector<Reason>(kChain, Reason::kNone));
  for (uint64_t i = 0; i < kChain; ++i) EXPECT_TRUE(Holds(i, on_disk_[0] + i)) << i;
  EXPECT_EQ(region_.Progress(3) & 0xffffffff, memory_.layout().planes.size());
}

TEST_F(EngineRegionPendingTest, NoPlaneIsToldBeforeAllBlocksHaveIt) {
  disk_.HangReads(4);
  Ask(on_disk_[0]);
  RegionClient regions(client_.get());
  const uint32_t id = regions.Send(
      wire::Type::kRegionLoad, RegionLoadBody(region_.id, space_, KeysOf(on_disk_[0], kChain), 0, 3, 20 * kSecondUs));
  EXPECT_TRUE(Eventually([&] { return Holds(0, on_disk_[0]); })) << "what is here is not waited with";
  EXPECT_EQ(region_.Progress(3), uint64_t{id} << 32);
  disk_.Release();
  ASSERT_TRUE(regions.Answer(id).ok());
  for (uint64_t i = 0; i < kChain; ++i) EXPECT_TRUE(Holds(i, on_disk_[0] + i)) << i;
  EXPECT_EQ(region_.Progress(3), uint64_t{id} << 32 | memory_.layout().planes.size());
}

TEST_F(EngineRegionPendingTest, WhatDoesNotComeInTimeIsAMissAndTheRestIsThere) {
  disk_.HangReads(2);
  Ask(on_disk_[0]);
  const auto reasons = LoadKeys(on_disk_[0], kSecondUs / 2);
  ASSERT_TRUE(reasons.ok()) << reasons.status();
  for (uint64_t i = 0; i < kChain; ++i) {
    if ((*reasons)[i] == Reason::kNone) {
      EXPECT_TRUE(Holds(i, on_disk_[0] + i)) << i;
    } else {
      EXPECT_EQ((*reasons)[i], Reason::kDeadline) << i;
    }
  }
  EXPECT_EQ(reasons->back(), Reason::kDeadline);
  EXPECT_EQ(region_.Progress(3) & 0xffffffff, 0u);
}

TEST_F(EngineRegionPendingTest, AReadThatFailsIsAMissWithItsReason) {
  disk_.FailReads(0);
  Ask(on_disk_[0]);
  const auto reasons = LoadKeys(on_disk_[0], 20 * kSecondUs);
  ASSERT_TRUE(reasons.ok()) << reasons.status();
  EXPECT_EQ((*reasons)[0], Reason::kIoError);
}

TEST_F(EngineRegionPendingTest, NobodyWaitsForWhoHasGone) {
  disk_.HangReads(0);
  Ask(on_disk_[0]);
  RegionClient(client_.get())
      .Send(wire::Type::kRegionLoad, RegionLoadBody(region_.id, space_, KeysOf(on_disk_[0], kChain), 0, 3,
                                                    wire::kMaxLocateUs));
  EXPECT_TRUE(Eventually([&] { return region_.Progress(3) != 0; }));  // it has begun
  client_->Disconnect();
  EXPECT_TRUE(Eventually([&] { return rig_.Metric("terrace_regions") == 0; })) << "the region is still held";
}

}  // namespace
}  // namespace terrace::testing
