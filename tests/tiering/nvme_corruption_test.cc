// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Damage at rest: every bit of a record's header, any bit of a payload, records that lie where others
// should; found by loads, by the scrubber and by an operator's check.
#include <cstdlib>

#include "testing/trials.h"
#include "tiering/nvme/nvme_format.h"
#include "tiering/nvme_fixture.h"

namespace terrace::testing {
namespace {

using tiering::kNvmePage;
using tiering::NvmeGeometry;

constexpr uint64_t kMiddle = 64 << 10;
constexpr uint64_t kRecord = kMiddle + kNvmePage;

class NvmeCorruptionTest : public ::testing::Test {
 protected:
  void SetUp() override { rig_.Open(); }
  MemoryDisk* disk() { return rig_.disks.Find("disk0").get(); }
  // The first segment that is used is segment 0; records lie one after another.
  uint64_t RecordOffset(uint64_t i) {
    return NvmeGeometry::Make(NvmeRig::kDevice, NvmeRig::kSegment).data_offset + i * kRecord;
  }
  NvmeRig rig_;
};

TEST_F(NvmeCorruptionTest, EveryFlippedBitOfAHeaderIsNoticed) {
  ASSERT_TRUE(rig_.Store(0, kMiddle));
  rig_.Close();  // the table names it, so that a restart brings it back after a drop
  rig_.Open();
  // All of the fields, and samples of the checksums and of the zeros behind them.
  constexpr uint64_t kFieldBits = sizeof(tiering::NvmeRecordHeader) * 8;
  for (uint64_t bit = 0; bit < kNvmePage * 8; bit += bit < kFieldBits ? Trials(1, 7) : Trials(61, 601)) {
    disk()->FlipBit(RecordOffset(0) + bit / 8, static_cast<int>(bit % 8));
    ASSERT_EQ(rig_.Load(0, kMiddle), Reason::kCorrupt) << "bit " << bit;
    ASSERT_EQ(rig_.AllFailures(), 1);
    ASSERT_FALSE(rig_.Has(0, kMiddle)) << "dropped";
    disk()->FlipBit(RecordOffset(0) + bit / 8, static_cast<int>(bit % 8));
    rig_.Kill();
    rig_.Open(false);
    rig_.RunNs(30'000'000);
    ASSERT_EQ(rig_.Load(0, kMiddle), Reason::kNone);
  }
}

TEST_F(NvmeCorruptionTest, FlippedBitsOfPayloadsAreNoticed) {
  const char* trials_text = std::getenv("TERRACE_FLIP_TRIALS");
  const int trials = trials_text != nullptr ? std::atoi(trials_text) : Trials(100'000, 10'000);
  Random random(7);
  constexpr uint64_t kBlocks = 50;
  int noticed = 0;
  uint64_t life = 0;
  for (int done = 0; done < trials;) {
    const uint64_t first = life++ * kBlocks;
    ASSERT_EQ(rig_.StoreMany(first, kBlocks, kMiddle), static_cast<int>(kBlocks));
    // Where they lie is found by their headers.
    const double before = rig_.AllFailures();
    uint64_t flipped = 0;
    for (uint64_t offset = RecordOffset(0); offset + kRecord <= NvmeRig::kDevice; offset += kNvmePage) {
      tiering::NvmeRecordHeader header;
      disk()->Read(offset, std::as_writable_bytes(std::span(&header, 1)));
      if (header.magic != tiering::kNvmeRecordMagic) continue;
      for (uint64_t i = first; i < first + kBlocks; ++i) {
        if (std::memcmp(header.key, KeyOf(i).bytes.data(), 32) != 0) continue;
        disk()->FlipBit(offset + kNvmePage + random.Below(kMiddle), static_cast<int>(random.Below(8)));
        ++flipped;
      }
    }
    ASSERT_EQ(flipped, kBlocks);
    for (uint64_t i = first; i < first + kBlocks; ++i) {
      ASSERT_EQ(rig_.Load(i, kMiddle), Reason::kCorrupt);
      ++noticed;
    }
    ASSERT_EQ(rig_.AllFailures(), before + static_cast<double>(kBlocks));
    done += static_cast<int>(kBlocks);
  }
  EXPECT_GE(noticed, trials);
}

TEST_F(NvmeCorruptionTest, RecordInAnothersPlaceIsNoticed) {
  ASSERT_EQ(rig_.StoreMany(0, 10, kMiddle), 10);
  disk()->CopyRange(RecordOffset(3), RecordOffset(7), kRecord);
  EXPECT_EQ(rig_.Load(7, kMiddle), Reason::kCorrupt);
  EXPECT_EQ(rig_.Failures("identity"), 1);
  EXPECT_EQ(rig_.Load(3, kMiddle), Reason::kNone);
}

TEST_F(NvmeCorruptionTest, RecordOfAnEarlierUseOfTheSegmentIsNoticed) {
  ASSERT_EQ(rig_.StoreMany(0, 10, kMiddle), 10);
  std::vector<std::byte> old(kRecord);
  disk()->Read(RecordOffset(5), old);
  // Round the ring until the segment is used again.
  const uint64_t n = rig_.Device().capacity_bytes / kRecord + 20;
  rig_.StoreMany(1000, n, kMiddle);
  std::vector<std::byte> page(kNvmePage);
  disk()->Read(RecordOffset(5), page);
  tiering::NvmeRecordHeader header;
  std::memcpy(&header, page.data(), sizeof(header));
  ASSERT_EQ(header.magic, tiering::kNvmeRecordMagic);
  disk()->Write(RecordOffset(5), old);
  uint64_t corrupt = 0;
  for (uint64_t i = 1000; i < 1000 + n; ++i) corrupt += rig_.Load(i, kMiddle) == Reason::kCorrupt ? 1 : 0;
  EXPECT_EQ(corrupt, 1u);
  EXPECT_EQ(rig_.Failures("stale"), 1);
  EXPECT_FALSE(rig_.Has(5, kMiddle));
}

TEST_F(NvmeCorruptionTest, ErasedRecordIsNoticed) {
  ASSERT_EQ(rig_.StoreMany(0, 10, kMiddle), 10);
  disk()->Write(RecordOffset(4), std::vector<std::byte>(kRecord));
  EXPECT_EQ(rig_.Load(4, kMiddle), Reason::kCorrupt);
  EXPECT_EQ(rig_.Failures("torn"), 1);
}

TEST_F(NvmeCorruptionTest, VerifyFindsWhatWasFlippedAndDropsIt) {
  ASSERT_EQ(rig_.StoreMany(0, 100, kMiddle), 100);
  for (const uint64_t i : {3u, 30u, 59u}) disk()->FlipBit(RecordOffset(i) + kNvmePage + 1000, 3);
  rig_.clock.StartTicking();
  const auto verified = rig_.tier->Verify(nullptr);
  rig_.clock.StopTicking();
  EXPECT_EQ(verified.blocks, 100u);
  EXPECT_EQ(verified.corrupt, 3u);
  EXPECT_EQ(rig_.Failures("checksum"), 3);
  EXPECT_FALSE(rig_.Has(30, kMiddle));
  EXPECT_EQ(rig_.Readable(0, 100, kMiddle), 97u);
}

TEST_F(NvmeCorruptionTest, ScrubberFindsWhatWasFlippedWithinItsPeriod) {
  rig_.Close();
  rig_.options.scrub_period_ns = 60'000'000'000;
  rig_.Open();
  ASSERT_EQ(rig_.StoreMany(0, 100, kMiddle), 100);
  rig_.RunNs(60'000'000'000);
  disk()->FlipBit(RecordOffset(42) + kNvmePage + 77, 1);
  const double before =
      MetricOf(*rig_.metrics, "terrace_scrub_bytes_total", {{"tier", "nvme"}});
  rig_.RunNs(2 * rig_.options.scrub_period_ns);
  EXPECT_FALSE(rig_.Has(42, kMiddle));
  EXPECT_EQ(rig_.Failures("checksum"), 1);
  EXPECT_EQ(rig_.Readable(0, 100, kMiddle), 99u);
  const double read = MetricOf(*rig_.metrics, "terrace_scrub_bytes_total", {{"tier", "nvme"}}) - before;
  EXPECT_LT(read, 3.5 * 100 * kRecord) << "slowly";
  EXPECT_GT(MetricOf(*rig_.metrics, "terrace_scrub_last_completed_timestamp_seconds", {{"tier", "nvme"}}), 0);
}

}  // namespace
}  // namespace terrace::testing
