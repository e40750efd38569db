// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What an NVMe device brings back after an end of any kind, and which contents it takes for its own.
#include "testing/trials.h"
#include "tiering/nvme/nvme_format.h"
#include "tiering/nvme_fixture.h"

namespace terrace::testing {
namespace {

using tiering::kNvmePage;
using tiering::NvmeGeometry;

constexpr uint64_t kMiddle = 64 << 10, kSmall = 5000;

class NvmeRecoveryTest : public ::testing::Test {
 protected:
  std::shared_ptr<MemoryDisk> disk() { return rig_.disks.Find("disk0"); }
  NvmeGeometry geometry() { return NvmeGeometry::Make(NvmeRig::kDevice, NvmeRig::kSegment); }
  // Asks for everything first: what was seen before the end.
  uint64_t Visible(uint64_t n, uint64_t bytes) {
    uint64_t visible = 0;
    for (uint64_t i = 0; i < n; ++i) visible += rig_.Has(i, bytes) ? 1 : 0;
    return visible;
  }
  NvmeRig rig_;
};

TEST_F(NvmeRecoveryTest, CleanEndKeepsEverything) {
  rig_.Open();
  ASSERT_EQ(rig_.StoreMany(0, 500, kMiddle), 500);
  ASSERT_EQ(rig_.StoreMany(1000, 100, kSmall), 100);
  rig_.Close();
  rig_.Open();
  EXPECT_EQ(rig_.Readable(0, 500, kMiddle), 500u);
  EXPECT_EQ(rig_.Readable(1000, 100, kSmall), 100u);
  EXPECT_EQ(rig_.Device().recovery_ratio, 1.0);
  EXPECT_EQ(rig_.AllFailures(), 0);
}

TEST_F(NvmeRecoveryTest, CleanEndWritesWhatStillStandsInBuffers) {
  rig_.Open();
  int written = 0;
  for (uint64_t i = 0; i < 10; ++i) {
    ASSERT_EQ(rig_.Append(i, kSmall, [&](bool ok) { written += ok ? 1 : 0; }), NvmeTier::Append::kAccepted);
  }
  rig_.Close();
  EXPECT_EQ(written, 10);
  rig_.Open();
  EXPECT_EQ(rig_.Readable(0, 10, kSmall), 10u);
}

TEST_F(NvmeRecoveryTest, KilledProcessKeepsWhatWasVisible) {
  for (uint64_t seed = 1; seed <= Trials<uint64_t>(20, 5); ++seed) {
    NvmeRig rig(seed, {.jitter_ns = 2'000'000, .seed = seed});
    if (seed % 2 == 0) rig.options.checkpoint_ns = 500'000;  // while appends are under way
    rig.Open();
    Random random(seed);
    const uint64_t n = 200 + random.Below(3000);
    for (uint64_t i = 0; i < n; ++i) {
      while (rig.Append(i, kMiddle, [](bool) {}) == NvmeTier::Append::kBusy) rig.Round();
    }
    for (uint64_t i = random.Below(20); i > 0; --i) rig.Round();
    std::vector<uint64_t> visible;
    for (uint64_t i = 0; i < n; ++i) {
      if (rig.Has(i, kMiddle)) visible.push_back(i);
    }
    rig.Kill(seed);
    rig.Open();
    uint64_t kept = 0;
    for (const uint64_t i : visible) kept += rig.Load(i, kMiddle) == Reason::kNone ? 1 : 0;
    EXPECT_EQ(kept, visible.size()) << "seed " << seed;
    // And it goes on from there, again and again.
    EXPECT_EQ(rig.StoreMany(100'000, 50, kMiddle), 50);
    rig.Kill(seed + 1);
    rig.Open();
    EXPECT_EQ(rig.Readable(100'000, 50, kMiddle), 50u) << "seed " << seed;
  }
}

TEST_F(NvmeRecoveryTest, RestartsDoNotEatTheRing) {
  rig_.Open();
  ASSERT_EQ(rig_.StoreMany(0, 500, kMiddle), 500);
  for (uint64_t life = 0; life < 100; ++life) {
    rig_.Kill(life);
    rig_.Open();
    EXPECT_TRUE(rig_.Store(10'000 + life, kSmall));
  }
  EXPECT_EQ(rig_.Readable(0, 500, kMiddle), 500u);
  EXPECT_EQ(rig_.Readable(10'000, 100, kSmall), 100u);
}

TEST_F(NvmeRecoveryTest, KilledInRecoveryAgainAndAgain) {
  rig_.Open();
  ASSERT_EQ(rig_.StoreMany(0, 600, kMiddle), 600);
  rig_.Kill();
  for (int rounds = 1; rounds < 40; ++rounds) {
    rig_.Open(false);
    for (int i = 0; i < rounds; ++i) rig_.Round(20'000);
    rig_.Kill(static_cast<uint64_t>(rounds));
  }
  rig_.Open();
  EXPECT_EQ(rig_.Readable(0, 600, kMiddle), 600u);
}

TEST_F(NvmeRecoveryTest, PowerLossKeepsWhatACheckpointPromised) {
  for (uint64_t seed = 1; seed <= Trials<uint64_t>(20, 5); ++seed) {
    NvmeRig rig(seed);
    rig.options.checkpoint_ns = 100'000'000;
    rig.Open();
    ASSERT_EQ(rig.StoreMany(0, 300, kMiddle), 300);
    rig.RunNs(1'000'000'000);  // a checkpoint is due
    for (uint64_t i = 1000; i < 1100; ++i) rig.Append(i, kMiddle, [](bool) {});
    for (uint64_t i = seed % 7; i > 0; --i) rig.Round();
    rig.LosePower(seed);
    rig.Open();
    EXPECT_EQ(rig.Readable(0, 300, kMiddle), 300u) << "seed " << seed;
    rig.Readable(1000, 100, kMiddle);  // no wrong bytes
  }
}

TEST_F(NvmeRecoveryTest, CheckpointDoesNotCoverWhatIsStillOnItsWay) {
  rig_.options.checkpoint_ns = 100'000'000;
  rig_.Open();
  ASSERT_EQ(rig_.StoreMany(0, 10, kMiddle), 10);
  const int rule = rig_.faults->Add(
      {.kind = FaultKind::kHang, .op = tiering::IoOp::kWrite, .offset_begin = geometry().data_offset, .limit = 1});
  ASSERT_EQ(rig_.Append(100, kMiddle, [](bool) {}), NvmeTier::Append::kAccepted);
  rig_.RunNs(60'000'000);
  ASSERT_EQ(rig_.faults->Fired(rule), 1u);
  ASSERT_EQ(rig_.StoreMany(200, 20, kMiddle), 20);  // and checkpoints meanwhile
  rig_.faults->ReleaseHung();
  rig_.RunNs(10'000'000);
  ASSERT_TRUE(rig_.Has(100, kMiddle));
  rig_.Kill();
  rig_.Open();
  EXPECT_EQ(rig_.Load(100, kMiddle), Reason::kNone);
  EXPECT_EQ(rig_.Readable(200, 20, kMiddle), 20u);
}

TEST_F(NvmeRecoveryTest, BlocksAreFoundWhileTheRestIsStillRead) {
  rig_.Open();
  ASSERT_EQ(rig_.StoreMany(0, 800, kMiddle), 800);
  rig_.Close();
  rig_.Open(false);
  bool partly = false;
  for (int i = 0; i < 1000 && rig_.tier->GetStats().state != TierState::kOnline; ++i) {
    rig_.Round(20'000);
    const auto stats = rig_.Device();
    if (stats.blocks > 0 && stats.blocks < 800 && stats.recovery_ratio < 1) {
      partly = true;
      EXPECT_EQ(rig_.Append(5000, kMiddle, [](bool) {}), NvmeTier::Append::kBusy);
    }
  }
  EXPECT_TRUE(partly);
  EXPECT_EQ(rig_.Device().blocks, 800u);
}

TEST_F(NvmeRecoveryTest, DamagedTablesAreReplacedByReadingRecords) {
  rig_.Open();
  ASSERT_EQ(rig_.StoreMany(0, 800, kMiddle), 800);
  rig_.Close();
  for (uint32_t i = 0; i < geometry().segments; ++i) {
    disk()->FlipBit(geometry().slot_offset(i) + 17 * i % 300, static_cast<int>(i % 8));
  }
  rig_.Open();
  EXPECT_EQ(rig_.Readable(0, 800, kMiddle), 800u);
  // The tables are written anew.
  rig_.Close();
  rig_.Open();
  EXPECT_EQ(rig_.Readable(0, 800, kMiddle), 800u);
}

TEST_F(NvmeRecoveryTest, OneOfTwoSuperblocksAndStatesIsEnough) {
  rig_.Open();
  ASSERT_EQ(rig_.StoreMany(0, 50, kMiddle), 50);
  rig_.Close();
  disk()->FlipBit(9, 1);
  rig_.Open();
  EXPECT_EQ(rig_.Readable(0, 50, kMiddle), 50u);
  rig_.Close();
  disk()->FlipBit(tiering::kNvmeStateOffset + 20, 1);
  rig_.Open();
  EXPECT_EQ(rig_.Readable(0, 50, kMiddle), 50u);
}

TEST_F(NvmeRecoveryTest, FlushSurvivesACrash) {
  rig_.Open();
  ASSERT_EQ(rig_.StoreMany(0, 100, kMiddle, 1), 100);
  ASSERT_EQ(rig_.StoreMany(0, 100, kMiddle, 2), 100);
  EXPECT_EQ(rig_.tier->Flush(DigestOf(1)), 100u);
  ASSERT_EQ(rig_.StoreMany(50, 10, kMiddle, 1), 10);
  for (int life = 0; life < 3; ++life) {
    rig_.Kill();
    rig_.Open();
    EXPECT_EQ(rig_.Readable(0, 100, kMiddle, 1), 10u) << "those that came after the flush";
    EXPECT_EQ(rig_.Readable(0, 100, kMiddle, 2), 100u);
  }
  EXPECT_EQ(rig_.tier->Flush(std::nullopt), 110u);
  rig_.Settle();
  rig_.Kill();
  rig_.Open();
  EXPECT_EQ(rig_.tier->GetStats().blocks, 0u);
  EXPECT_TRUE(rig_.Store(1, kMiddle));
  rig_.Close();
  rig_.Open();
  EXPECT_EQ(rig_.Load(1, kMiddle), Reason::kNone);
  EXPECT_EQ(rig_.tier->GetStats().blocks, 1u);
}

// Their records are whole on disk for long; only the flush's position keeps them from coming back.
TEST_F(NvmeRecoveryTest, WhatWasFlushedStaysAwayWhateverIsFlushedNext) {
  rig_.options.checkpoint_ns = 500'000;  // the table says that nothing is wanted of what was flushed
  rig_.Open();
  ASSERT_EQ(rig_.StoreMany(0, 5, kMiddle, 2), 5);
  ASSERT_EQ(rig_.StoreMany(0, 5, kMiddle, 1), 5);
  for (uint64_t life = 1; life <= 4; ++life) {
    rig_.tier->Flush(DigestOf(1));
    rig_.Settle();
    rig_.Kill(life);
    rig_.Open();
    EXPECT_EQ(rig_.Readable(0, 5, kMiddle, 1), 0u) << "life " << life;
    EXPECT_EQ(rig_.Readable(0, 5, kMiddle, 2), 5u) << "life " << life;
  }
  ASSERT_EQ(rig_.StoreMany(0, 5, kMiddle, 1), 5) << "what comes after it stays";
  rig_.Settle();
  rig_.Kill(5);
  rig_.Open();
  EXPECT_EQ(rig_.Readable(0, 5, kMiddle, 1), 5u);
}

TEST_F(NvmeRecoveryTest, FlushDuringRecoveryCounts) {
  rig_.Open();
  ASSERT_EQ(rig_.StoreMany(0, 500, kMiddle), 500);
  rig_.Kill();
  rig_.Open(false);
  for (int i = 0; i < 1000 && rig_.Device().blocks == 0; ++i) rig_.Round(20'000);
  ASSERT_GT(rig_.Device().blocks, 0u);
  rig_.tier->Flush(std::nullopt);
  rig_.Settle();
  EXPECT_EQ(rig_.tier->GetStats().blocks, 0u);
  EXPECT_TRUE(rig_.Store(1000, kMiddle)) << "what comes after it stays";
  rig_.Kill();
  rig_.Open();
  EXPECT_EQ(rig_.tier->GetStats().blocks, 1u);
  EXPECT_EQ(rig_.Load(1000, kMiddle), Reason::kNone);
}

TEST_F(NvmeRecoveryTest, AppendUnderWayAtAFlushDoesNotAppear) {
  rig_.Open();
  std::optional<bool> written;
  ASSERT_EQ(rig_.Append(1, kMiddle, [&](bool ok) { written = ok; }), NvmeTier::Append::kAccepted);
  rig_.tier->Flush(std::nullopt);
  rig_.Settle();
  EXPECT_EQ(written, std::optional(false));
  EXPECT_FALSE(rig_.Has(1, kMiddle));
}

TEST_F(NvmeRecoveryTest, ForeignContentIsRefusedAndLeftAlone) {
  rig_.Open();
  rig_.Close();
  std::vector<std::byte> other(kNvmePage, std::byte{0x5a}), after(kNvmePage);
  const std::vector<std::byte> zeros(tiering::kNvmeSlotsOffset);
  disk()->Write(0, zeros);
  disk()->Write(kNvmePage, other);
  rig_.Open();
  EXPECT_EQ(rig_.tier->GetStats().state, TierState::kOffline);
  EXPECT_NE(rig_.Device().detail.find("not Terrace's"), std::string::npos) << rig_.Device().detail;
  EXPECT_EQ(rig_.Append(1, kSmall, [](bool) {}), NvmeTier::Append::kOffline);
  rig_.RunNs(10'000'000'000);
  disk()->Read(kNvmePage, after);
  EXPECT_EQ(after, other) << "nothing was written";
  // It is made free: taken at the next try, without a restart.
  disk()->Write(0, zeros);
  rig_.RunNs(3'000'000'000);
  EXPECT_TRUE(rig_.Store(1, kSmall));
}

TEST_F(NvmeRecoveryTest, OtherVersionIsReformatted) {
  rig_.Open();
  ASSERT_EQ(rig_.StoreMany(0, 50, kMiddle), 50);
  rig_.Close();
  std::vector<std::byte> page(kNvmePage);
  disk()->Read(0, page);
  tiering::NvmeSuperblock super;
  std::memcpy(&super, page.data(), sizeof(super));
  super.version = tiering::kNvmeVersion + 1;
  tiering::EncodeSuperblock(super, page);
  disk()->Write(0, page);
  disk()->Write(tiering::kNvmeSuperCopy, page);
  rig_.Open();
  EXPECT_EQ(rig_.tier->GetStats().state, TierState::kOnline);
  EXPECT_EQ(rig_.Readable(0, 50, kMiddle), 0u);
  EXPECT_EQ(rig_.StoreMany(0, 50, kMiddle), 50);
  rig_.Kill();
  rig_.Open();
  EXPECT_EQ(rig_.Readable(0, 50, kMiddle), 50u);
  EXPECT_EQ(rig_.tier->GetStats().blocks, 50u);
}

TEST_F(NvmeRecoveryTest, OtherSizeIsReformatted) {
  rig_.Open();
  ASSERT_EQ(rig_.StoreMany(0, 50, kMiddle), 50);
  rig_.Close();
  for (const uint64_t bytes : {NvmeRig::kDevice * 2, NvmeRig::kDevice / 2}) {
    rig_.options.devices[0].bytes = bytes;
    rig_.Open();
    EXPECT_EQ(rig_.tier->GetStats().state, TierState::kOnline);
    EXPECT_EQ(rig_.tier->GetStats().blocks, 0u);
    EXPECT_EQ(rig_.StoreMany(0, 50, kMiddle), 50);
    EXPECT_EQ(rig_.Readable(0, 50, kMiddle), 50u);
    rig_.Close();
  }
}

TEST_F(NvmeRecoveryTest, RecordsOfAnotherDeviceAreNotTaken) {
  // Device 1 was copied over device 0's data, segment by segment, tables included.
  NvmeRig other(2);
  other.clock.AdvanceNs(12345);  // another device id
  other.Open();
  ASSERT_EQ(other.StoreMany(0, 100, kMiddle), 100);
  other.Close();
  rig_.Open();
  ASSERT_EQ(rig_.StoreMany(1000, 100, kMiddle), 100);
  rig_.Close();
  std::vector<std::byte> data(NvmeRig::kDevice - tiering::kNvmeSlotsOffset);
  other.disks.Find("disk0")->Read(tiering::kNvmeSlotsOffset, data);
  disk()->Write(tiering::kNvmeSlotsOffset, data);
  rig_.Open();
  EXPECT_EQ(rig_.tier->GetStats().blocks, 0u);
  EXPECT_EQ(rig_.Readable(0, 100, kMiddle), 0u);
  EXPECT_EQ(rig_.StoreMany(0, 100, kMiddle), 100);
  EXPECT_EQ(rig_.Readable(0, 100, kMiddle), 100u);
}

TEST_F(NvmeRecoveryTest, TooSmallADeviceSaysSo) {
  rig_.options.devices[0].bytes = 4 << 20;
  rig_.Open();
  EXPECT_EQ(rig_.tier->GetStats().state, TierState::kOffline);
  EXPECT_NE(rig_.Device().detail.find("too small"), std::string::npos) << rig_.Device().detail;
}

TEST_F(NvmeRecoveryTest, CheckpointsCostAtMostAFewPercentOfTheWrites) {
  rig_.options.checkpoint_ns = 1'000'000;
  rig_.Open();
  const uint64_t n = 3 * rig_.Device().capacity_bytes / kMiddle;
  ASSERT_EQ(rig_.StoreMany(0, n, kMiddle), static_cast<int>(n));
  const double ratio =
      static_cast<double>(rig_.Device().written_bytes) / static_cast<double>(n * (kMiddle + kNvmePage));
  EXPECT_LT(ratio, 1.04);
}

}  // namespace
}  // namespace terrace::testing
