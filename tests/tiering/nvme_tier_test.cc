// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The NVMe tier without faults: what was appended is found and read, what is there is not written twice,
// the ring goes round, limits hold, and the same on a real file with threads.
#include <stdlib.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <thread>

#include "tiering/nvme_fixture.h"

namespace terrace::testing {
namespace {

constexpr uint64_t kSmall = 10'000, kMiddle = 64 << 10, kLarge = 1 << 20;

TEST(NvmeTierTest, WhatWasAppendedIsFoundAndRead) {
  NvmeRig rig;
  rig.Open();
  EXPECT_EQ(rig.tier->GetStats().state, TierState::kOnline);
  EXPECT_FALSE(rig.Has(1, kSmall));
  EXPECT_EQ(rig.Load(1, kSmall), Reason::kEvicted);
  ASSERT_TRUE(rig.Store(1, kSmall));
  ASSERT_TRUE(rig.Store(2, kMiddle));
  ASSERT_TRUE(rig.Store(3, kLarge));
  ASSERT_TRUE(rig.Store(0, 1));
  EXPECT_EQ(rig.Load(1, kSmall), Reason::kNone);
  EXPECT_EQ(rig.Load(2, kMiddle), Reason::kNone);
  EXPECT_EQ(rig.Load(3, kLarge), Reason::kNone);
  EXPECT_EQ(rig.Load(0, 1), Reason::kNone);
  EXPECT_FALSE(rig.Has(1, kMiddle)) << "another length is another block";
  EXPECT_FALSE(rig.Has(1, kSmall, 2)) << "another key space is another block";
  EXPECT_EQ(rig.AllFailures(), 0);
}

TEST(NvmeTierTest, WhatIsThereIsNotWrittenTwice) {
  NvmeRig rig;
  rig.Open();
  EXPECT_EQ(rig.Append(1, kSmall, [](bool) {}), NvmeTier::Append::kAccepted);
  EXPECT_EQ(rig.Append(1, kSmall, [](bool) {}), NvmeTier::Append::kBusy) << "its write is under way";
  rig.Settle();
  EXPECT_EQ(rig.Append(1, kSmall, [](bool) {}), NvmeTier::Append::kPresent);
}

TEST(NvmeTierTest, WrongPayloadIsNotTaken) {
  NvmeRig rig;
  rig.Open();
  const NvmeBlock block = BlockOf(1, kMiddle);
  auto payload = PayloadOf(block.key, kMiddle);
  const auto sums = ChecksumsOf(block.key_space_digest.data(), block.key, payload);
  payload[777] ^= std::byte{1};
  EXPECT_EQ(rig.tier->TryAppend(block, std::nullopt, payload, sums, [](bool) { FAIL(); }),
            NvmeTier::Append::kCorrupt);
  ASSERT_TRUE(rig.Store(2, kMiddle));
  EXPECT_FALSE(rig.Has(1, kMiddle));
  rig.Close();
  rig.Open();
  EXPECT_EQ(rig.Load(2, kMiddle), Reason::kNone);
  EXPECT_FALSE(rig.Has(1, kMiddle));
}

TEST(NvmeTierTest, TooLargeIsRefused) {
  NvmeRig rig;
  rig.Open();
  EXPECT_EQ(rig.Append(1, rig.options.io_memory_bytes / 4 + 1, [](bool) {}), NvmeTier::Append::kTooLarge);
  EXPECT_TRUE(rig.Store(2, rig.options.io_memory_bytes / 4));
  EXPECT_EQ(rig.Load(2, rig.options.io_memory_bytes / 4), Reason::kNone);
}

TEST(NvmeTierTest, RingGoesRoundAndIndexStaysBounded) {
  NvmeRig rig;
  rig.Open();
  const uint64_t capacity = rig.Device().capacity_bytes;
  const uint64_t n = 4 * capacity / kMiddle;
  EXPECT_EQ(rig.StoreMany(0, n, kMiddle), static_cast<int>(n));
  const auto stats = rig.tier->GetStats();
  EXPECT_LE(stats.used_bytes, capacity);
  EXPECT_GE(stats.used_bytes, capacity * 3 / 4);
  EXPECT_LE(stats.index_bytes, stats.blocks * 64);
  EXPECT_EQ(rig.Readable(n - 100, 100, kMiddle), 100u) << "the youngest are there";
  EXPECT_EQ(rig.Readable(0, 100, kMiddle), 0u) << "the oldest are not";
  EXPECT_EQ(rig.AllFailures(), 0);
}

TEST(NvmeTierTest, WhatIsHitAgainAndAgainSurvivesTheRing) {
  NvmeRig rig;
  rig.Open();
  const uint64_t n = rig.Device().capacity_bytes / kMiddle;
  constexpr uint64_t kHot = 1'000'000;
  ASSERT_EQ(rig.StoreMany(kHot, 20, kMiddle), 20);
  for (uint64_t round = 0; round < 16; ++round) {  // four times round the ring
    EXPECT_EQ(rig.Readable(kHot, 20, kMiddle), 20u) << "round " << round;
    rig.StoreMany(round * n, n / 4, kMiddle);
  }
  EXPECT_EQ(rig.Readable(kHot, 20, kMiddle), 20u);
  EXPECT_EQ(rig.AllFailures(), 0);
}

TEST(NvmeTierTest, WhatWasHitEarlyInItsStayOnlyIsNotWrittenAgain) {
  NvmeRig rig;
  rig.Open();
  const uint64_t n = rig.Device().capacity_bytes / kMiddle;
  constexpr uint64_t kHot = 1'000'000;
  ASSERT_EQ(rig.StoreMany(kHot, 20, kMiddle), 20);
  EXPECT_EQ(rig.Readable(kHot, 20, kMiddle), 20u);
  rig.StoreMany(0, n / 2, kMiddle);
  for (uint64_t i = 0; i < 20; ++i) EXPECT_TRUE(rig.Has(kHot + i, kMiddle)) << "its stay is not over";
  rig.StoreMany(n, n, kMiddle);
  for (uint64_t i = 0; i < 20; ++i) EXPECT_FALSE(rig.Has(kHot + i, kMiddle));
}

TEST(NvmeTierTest, ADiskHasFreeRoomUntilTheRingHasGoneRound) {
  NvmeRig rig;
  rig.Open();
  const uint64_t n = rig.Device().capacity_bytes / kMiddle;
  EXPECT_TRUE(rig.tier->HasFreeRoom(BlockOf(0, kMiddle)));
  rig.StoreMany(0, n / 2, kMiddle);
  EXPECT_TRUE(rig.tier->HasFreeRoom(BlockOf(0, kMiddle)));
  rig.StoreMany(n, n, kMiddle);
  EXPECT_FALSE(rig.tier->HasFreeRoom(BlockOf(0, kMiddle)));
  rig.Close();
  rig.Open();
  EXPECT_FALSE(rig.tier->HasFreeRoom(BlockOf(0, kMiddle))) << "a new process finds it full";
  EXPECT_GT(rig.tier->Flush(std::nullopt), 0u);
  rig.Settle();
  EXPECT_TRUE(rig.tier->HasFreeRoom(BlockOf(0, kMiddle))) << "it was emptied";
}

TEST(NvmeTierTest, ReinsertionNeverTakesMoreThanHalfOfTheWrites) {
  NvmeRig rig;
  rig.Open();
  const uint64_t n = rig.Device().capacity_bytes / kMiddle;
  rig.StoreMany(0, n, kMiddle);
  const uint64_t before = rig.Device().written_bytes;
  for (uint64_t i = 0; i < n; ++i) rig.Load(i, kMiddle);
  const int written = rig.StoreMany(n, n, kMiddle);
  EXPECT_EQ(written, static_cast<int>(n)) << "new blocks come in all the same";
  const double share = static_cast<double>(rig.Device().written_bytes - before) /
                       static_cast<double>(n * kMiddle);
  EXPECT_GT(share, 1.2) << "something was reinserted";
  EXPECT_LT(share, 2.3);
}

TEST(NvmeTierTest, DropTakesOneBlock) {
  NvmeRig rig;
  rig.Open();
  ASSERT_EQ(rig.StoreMany(0, 3, kSmall), 3);
  EXPECT_TRUE(rig.tier->Drop(BlockOf(1, kSmall)));
  EXPECT_FALSE(rig.tier->Drop(BlockOf(1, kSmall)));
  EXPECT_TRUE(rig.Has(0, kSmall));
  EXPECT_FALSE(rig.Has(1, kSmall));
  EXPECT_TRUE(rig.Store(1, kSmall));
  EXPECT_EQ(rig.Load(1, kSmall), Reason::kNone);
}

TEST(NvmeTierTest, WriteBudgetHoldsAndFills) {
  NvmeRig rig;
  rig.options.write_bytes_per_day = 80ull << 20;
  rig.Open();
  const int first = rig.StoreMany(0, 1000, kMiddle);
  const uint64_t written = rig.Device().written_bytes;
  EXPECT_GT(first, 100);
  EXPECT_LE(written, (80ull << 20) / 8 + (1 << 20));
  EXPECT_EQ(rig.Append(2000, kMiddle, [](bool) {}), NvmeTier::Append::kBudget);
  EXPECT_LT(rig.tier->GetStats().write_budget_bytes, kMiddle + 4096);
  rig.clock.AdvanceNs(86'400'000'000'000 / 24);
  EXPECT_TRUE(rig.Store(2000, kMiddle));
}

TEST(NvmeTierTest, WriteBudgetIsNotResetByCrashes) {
  NvmeRig rig;
  rig.options.write_bytes_per_day = 80ull << 20;
  int written = 0;
  for (int life = 0; life < 5; ++life) {
    rig.Open();
    written += rig.StoreMany(static_cast<uint64_t>(life) * 1000, 300, kMiddle);
    rig.Kill();
  }
  EXPECT_LE(static_cast<uint64_t>(written) * kMiddle, (80ull << 20) / 8);
}

TEST(NvmeTierTest, NoMemoryForTheIndexIsARefusal) {
  NvmeRig rig;
  rig.Open();
  const uint64_t left = rig.budget.limit() - rig.budget.used() - 10'000;
  ASSERT_TRUE(rig.budget.TryCharge(left));
  auto append = NvmeTier::Append::kAccepted;
  int taken = 0;
  for (uint64_t i = 0; i < 2000 && append != NvmeTier::Append::kBudget; ++i) {
    append = rig.Append(i, kSmall, [&](bool ok) { taken += ok ? 1 : 0; });
    rig.Round();
  }
  EXPECT_EQ(append, NvmeTier::Append::kBudget);
  rig.Settle();
  EXPECT_GT(taken, 50);
  EXPECT_EQ(rig.tier->GetStats().blocks, static_cast<uint64_t>(taken));
  rig.budget.Release(left);
}

TEST(NvmeTierTest, SeveralDevicesShareTheBlocks) {
  NvmeRig rig;
  rig.options.devices.push_back({.path = "disk1", .bytes = NvmeRig::kDevice, .depth = 32});
  rig.options.devices.push_back({.path = "disk2", .bytes = NvmeRig::kDevice, .depth = 32});
  rig.Open();
  ASSERT_EQ(rig.StoreMany(0, 300, kMiddle), 300);
  const auto stats = rig.tier->GetStats();
  ASSERT_EQ(stats.devices.size(), 3u);
  for (const auto& device : stats.devices) EXPECT_GT(device.blocks, 60u);
  EXPECT_EQ(rig.Readable(0, 300, kMiddle), 300u);
  EXPECT_GT(rig.tier->EstimateReadNs(1 << 20), 0);
}

// A real file, real threads, whatever I/O this machine has.
class RealFile : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::TempDir() + "/nvme_tier_XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    directory_ = name;
    options_.devices = {{.path = directory_ + "/disk", .bytes = 128ull << 20}};
    options_.segment_bytes = 8ull << 20;
    options_.io_memory_bytes = 16ull << 20;
  }
  void TearDown() override {
    tier_.reset();
    std::filesystem::remove_all(directory_);
  }
  void Open() {
    tier_.reset();
    metrics_ = std::make_unique<MetricRegistry>();
    auto made = NvmeTier::Create(options_, tiering::OpenBlockDevice, Clock::Real(), &budget_, metrics_.get(),
                                 &copies_);
    ASSERT_TRUE(made.ok()) << made.status();
    tier_ = *std::move(made);
    ASSERT_TRUE(Until([&] { return tier_->GetStats().state == TierState::kOnline; }))
        << tier_->GetStats().devices[0].detail;
  }
  template <typename F>
  static bool Until(F&& condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));  // poll
    }
    return true;
  }
  bool Store(uint64_t number, uint64_t bytes, std::atomic<int>* written, std::atomic<int>* settled) {
    const NvmeBlock block = BlockOf(number, bytes);
    const auto payload = PayloadOf(block.key, bytes);
    const auto sums = ChecksumsOf(block.key_space_digest.data(), block.key, payload);
    auto append = NvmeTier::Append::kBusy;
    Until([&] {
      append = tier_->TryAppend(block, std::nullopt, payload, sums, [=](bool ok) {
        written->fetch_add(ok ? 1 : 0);
        settled->fetch_add(1);
      });
      return append != NvmeTier::Append::kBusy;
    });
    return append == NvmeTier::Append::kAccepted;
  }
  Reason Load(uint64_t number, uint64_t bytes) {
    const NvmeBlock block = BlockOf(number, bytes);
    std::vector<std::byte> target(bytes);
    std::atomic<int> reason{-1};
    tier_->Read(block, target, [&](NvmeTier::ReadResult r) { reason.store(static_cast<int>(r.reason)); });
    EXPECT_TRUE(Until([&] { return reason.load() >= 0; }));
    if (reason.load() == 0) {
      EXPECT_TRUE(IsPayloadOf(block.key, target));
    }
    return static_cast<Reason>(reason.load());
  }

  std::string directory_;
  NvmeOptions options_;
  MemoryBudget budget_{1ull << 30};
  gpu::HostBlockCopier copies_{1, 64};
  std::unique_ptr<MetricRegistry> metrics_;
  std::unique_ptr<NvmeTier> tier_;
};

TEST_F(RealFile, ManyThreadsStoreAndLoadAndARestartKeepsAll) {
  Open();
  constexpr uint64_t kEach = 150;
  std::atomic<int> written{0}, settled{0};
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < kEach; ++i) EXPECT_TRUE(Store(t * kEach + i, kMiddle, &written, &settled));
    });
  }
  for (auto& thread : threads) thread.join();
  tier_->Kick();
  ASSERT_TRUE(Until([&] { return settled.load() == 4 * kEach; }));
  EXPECT_EQ(written.load(), static_cast<int>(4 * kEach));
  for (uint64_t i = 0; i < 4 * kEach; ++i) EXPECT_EQ(Load(i, kMiddle), Reason::kNone) << i;
  EXPECT_TRUE(tier_->Checkpoint(10'000'000'000));
  const auto verified = tier_->Verify(nullptr);
  EXPECT_EQ(verified.blocks, 4 * kEach);
  EXPECT_EQ(verified.corrupt, 0u);
  Open();
  for (uint64_t i = 0; i < 4 * kEach; ++i) EXPECT_EQ(Load(i, kMiddle), Reason::kNone) << i;
}

}  // namespace
}  // namespace terrace::testing
