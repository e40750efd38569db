// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Disks that fail, hang, fill up, lie and forget: the reason is told, nothing waits for them, nothing
// wrong is served, and they come back by themselves.
#include <cerrno>

#include "testing/trials.h"
#include "tiering/nvme/nvme_format.h"
#include "tiering/nvme_fixture.h"

namespace terrace::testing {
namespace {

using tiering::IoOp;

constexpr uint64_t kMiddle = 64 << 10;
constexpr uint64_t kData = 4ull << 20;  // beyond superblocks, state and tables

class NvmeFaultTest : public ::testing::Test {
 protected:
  void SetUp() override { rig_.Open(); }
  double Metric(const std::string& name, const MetricRegistry::Labels& labels) {
    return MetricOf(*rig_.metrics, name, labels);
  }
  double StateGauge(const std::string& state) {
    return Metric("terrace_tier_state", {{"tier", "nvme"}, {"state", state}});
  }
  NvmeRig rig_;
};

TEST_F(NvmeFaultTest, FailedWriteMakesItReadOnlyUntilWritesWork) {
  ASSERT_EQ(rig_.StoreMany(0, 50, kMiddle), 50);
  const int rule = rig_.faults->Add({.kind = FaultKind::kError, .op = IoOp::kWrite, .error = EIO});
  std::optional<bool> written;
  ASSERT_EQ(rig_.Append(100, kMiddle, [&](bool ok) { written = ok; }), NvmeTier::Append::kAccepted);
  rig_.RunNs(200'000'000);
  EXPECT_EQ(written, std::optional(false));
  EXPECT_FALSE(rig_.Has(100, kMiddle));
  EXPECT_EQ(rig_.tier->GetStats().state, TierState::kReadOnly);
  EXPECT_EQ(StateGauge("readonly"), 1);
  EXPECT_EQ(StateGauge("online"), 0);
  EXPECT_GT(Metric("terrace_io_errors_total", {{"device", "disk0"}, {"op", "write"}}), 0);
  EXPECT_NE(rig_.Device().detail.find("Input/output error"), std::string::npos) << rig_.Device().detail;
  EXPECT_EQ(rig_.Append(101, kMiddle, [](bool) {}), NvmeTier::Append::kOffline);
  EXPECT_EQ(rig_.Readable(0, 50, kMiddle), 50u) << "reads go on";
  rig_.RunNs(10'000'000'000);
  EXPECT_EQ(rig_.tier->GetStats().state, TierState::kReadOnly);
  EXPECT_GT(rig_.faults->Fired(rule), 2u) << "it was tried again";
  rig_.faults->AllOff();
  rig_.RunNs(3'000'000'000);
  EXPECT_EQ(rig_.tier->GetStats().state, TierState::kOnline);
  EXPECT_TRUE(rig_.Store(100, kMiddle));
  rig_.Kill();
  rig_.Open();
  EXPECT_EQ(rig_.Load(100, kMiddle), Reason::kNone);
}

TEST_F(NvmeFaultTest, NoSpaceOnWriteEndsByItself) {
  rig_.faults->Add({.kind = FaultKind::kError, .op = IoOp::kWrite, .limit = 3, .error = ENOSPC});
  rig_.Append(1, kMiddle, [](bool) {});
  rig_.RunNs(100'000'000);
  EXPECT_EQ(rig_.tier->GetStats().state, TierState::kReadOnly);
  EXPECT_NE(rig_.Device().detail.find("No space"), std::string::npos) << rig_.Device().detail;
  rig_.RunNs(10'000'000'000);
  EXPECT_EQ(rig_.tier->GetStats().state, TierState::kOnline);
  EXPECT_TRUE(rig_.Store(1, kMiddle));
}

TEST_F(NvmeFaultTest, NoSpaceAtOpenIsTriedAgain) {
  rig_.Close();
  rig_.faults->FailOpen(absl::ResourceExhaustedError("no space left for 64 MiB"));
  rig_.Open();
  EXPECT_EQ(rig_.tier->GetStats().state, TierState::kOffline);
  EXPECT_EQ(rig_.Device().detail, "no space left for 64 MiB");
  EXPECT_EQ(StateGauge("offline"), 1);
  EXPECT_EQ(rig_.Load(1, kMiddle), Reason::kEvicted);
  rig_.faults->FailOpen(absl::OkStatus());
  rig_.RunNs(3'000'000'000);
  EXPECT_EQ(rig_.tier->GetStats().state, TierState::kOnline);
  EXPECT_TRUE(rig_.Store(1, kMiddle));
}

TEST_F(NvmeFaultTest, FailedSyncLosesWhatWasNotSynced) {
  rig_.options.checkpoint_ns = 100'000'000;
  rig_.Close();
  rig_.Open();
  rig_.faults->Add({.kind = FaultKind::kError, .op = IoOp::kSync, .limit = 1});
  ASSERT_EQ(rig_.StoreMany(0, 20, kMiddle), 20);
  rig_.RunNs(1'000'000'000);
  EXPECT_GT(Metric("terrace_io_errors_total", {{"device", "disk0"}, {"op", "sync"}}), 0);
  EXPECT_EQ(rig_.Readable(0, 20, kMiddle), 0u) << "what was not synced counts as lost";
  rig_.RunNs(5'000'000'000);
  EXPECT_EQ(rig_.tier->GetStats().state, TierState::kOnline);
  EXPECT_EQ(rig_.StoreMany(100, 20, kMiddle), 20);
  EXPECT_EQ(rig_.Readable(100, 20, kMiddle), 20u);
}

TEST_F(NvmeFaultTest, FailedReadsAreMissesThenTheDeviceIsOffline) {
  ASSERT_EQ(rig_.StoreMany(0, 50, kMiddle), 50);
  rig_.faults->Add({.kind = FaultKind::kError, .op = IoOp::kRead});
  EXPECT_EQ(rig_.Load(0, kMiddle), Reason::kIoError);
  for (uint64_t i = 1; i < 20; ++i) rig_.Load(i, kMiddle);
  EXPECT_EQ(rig_.tier->GetStats().state, TierState::kOffline);
  EXPECT_EQ(rig_.tier->Find(BlockOf(1, kMiddle)), NvmeTier::Presence::kOffline);
  EXPECT_EQ(rig_.Load(1, kMiddle), Reason::kTierOffline);
  EXPECT_EQ(rig_.Append(100, kMiddle, [](bool) {}), NvmeTier::Append::kOffline);
  rig_.RunNs(10'000'000'000);
  EXPECT_EQ(rig_.tier->GetStats().state, TierState::kOffline);
  rig_.faults->AllOff();
  rig_.RunNs(5'000'000'000);
  EXPECT_EQ(rig_.tier->GetStats().state, TierState::kOnline);
  EXPECT_EQ(rig_.Readable(0, 50, kMiddle), 50u) << "nothing is lost";
}

TEST_F(NvmeFaultTest, HungReadIsAMissAtTheDeadlineAndTheTargetIsLeftAlone) {
  ASSERT_EQ(rig_.StoreMany(0, 50, kMiddle), 50);
  const int rule = rig_.faults->Add({.kind = FaultKind::kHang, .op = IoOp::kRead});
  std::vector<std::byte> target(kMiddle, std::byte{0x77});
  const int64_t before = rig_.clock.NowNs();
  std::optional<Reason> reason;
  rig_.tier->Read(BlockOf(1, kMiddle), target, [&](NvmeTier::ReadResult r) { reason = r.reason; });
  for (int i = 0; i < 10'000 && !reason; ++i) rig_.Round();
  EXPECT_EQ(reason, std::optional(Reason::kDeadline));
  EXPECT_GE(rig_.clock.NowNs() - before, rig_.options.read_deadline_ns);
  EXPECT_LE(rig_.clock.NowNs() - before, rig_.options.read_deadline_ns + 10'000'000);
  rig_.RunNs(5'000'000'000);
  EXPECT_EQ(rig_.tier->GetStats().state, TierState::kOffline);
  EXPECT_EQ(rig_.Device().detail, "a request hangs");
  EXPECT_EQ(rig_.Load(2, kMiddle), Reason::kTierOffline) << "at once, not at a deadline";
  EXPECT_GT(rig_.faults->Fired(rule), 0u);
  rig_.faults->AllOff();
  rig_.faults->ReleaseHung();
  rig_.RunNs(5'000'000'000);
  EXPECT_EQ(target, std::vector<std::byte>(kMiddle, std::byte{0x77})) << "the late read went elsewhere";
  EXPECT_EQ(rig_.tier->GetStats().state, TierState::kOnline);
  EXPECT_EQ(rig_.Readable(0, 50, kMiddle), 50u);
}

TEST_F(NvmeFaultTest, LoadOvertakenByTheRingIsAMissAndNoFault) {
  ASSERT_EQ(rig_.StoreMany(0, 20, kMiddle), 20);
  const int rule = rig_.faults->Add({.kind = FaultKind::kHang, .op = IoOp::kRead, .limit = 1});
  std::vector<std::byte> target(kMiddle);
  std::optional<Reason> reason;
  rig_.tier->Read(BlockOf(1, kMiddle), target, [&](NvmeTier::ReadResult r) { reason = r.reason; });
  rig_.Round();
  ASSERT_EQ(rig_.faults->Fired(rule), 1u);
  rig_.StoreMany(1000, rig_.Device().capacity_bytes / kMiddle, kMiddle);  // its segment is used again
  ASSERT_EQ(reason, std::nullopt) << "still within the deadline";
  rig_.faults->ReleaseHung();
  rig_.RunNs(10'000'000);
  EXPECT_EQ(reason, std::optional(Reason::kEvicted));
  EXPECT_EQ(rig_.AllFailures(), 0);
}

TEST_F(NvmeFaultTest, HungWriteMakesItOfflineAndComesBack) {
  ASSERT_EQ(rig_.StoreMany(0, 50, kMiddle), 50);
  rig_.faults->Add({.kind = FaultKind::kHang, .op = IoOp::kWrite, .limit = 1});
  std::optional<bool> written;
  rig_.Append(100, kMiddle, [&](bool ok) { written = ok; });
  rig_.RunNs(6'000'000'000);
  EXPECT_EQ(rig_.tier->GetStats().state, TierState::kOffline);
  EXPECT_EQ(written, std::nullopt) << "nobody knows yet";
  rig_.faults->ReleaseHung();
  rig_.RunNs(5'000'000'000);
  EXPECT_EQ(written, std::optional(true));
  EXPECT_EQ(rig_.tier->GetStats().state, TierState::kOnline);
  EXPECT_EQ(rig_.Load(100, kMiddle), Reason::kNone);
}

TEST_F(NvmeFaultTest, EndWithHungRequestsAnswersEverybody) {
  ASSERT_EQ(rig_.StoreMany(0, 50, kMiddle), 50);
  rig_.faults->Add({.kind = FaultKind::kHang});
  int answers = 0;
  std::vector<std::byte> target(kMiddle);
  for (uint64_t i = 0; i < 10; ++i) {
    rig_.tier->Read(BlockOf(i, kMiddle), target, [&](NvmeTier::ReadResult r) {
      EXPECT_EQ(r.reason, Reason::kTierOffline);
      ++answers;
    });
    rig_.Append(100 + i, kMiddle, [&](bool ok) {
      EXPECT_FALSE(ok);
      ++answers;
    });
  }
  rig_.RunNs(100'000'000);
  rig_.Close();
  EXPECT_EQ(answers, 20);
}

TEST_F(NvmeFaultTest, SlowReadsMissTheirDeadlineAndFastOnesDoNot) {
  ASSERT_EQ(rig_.StoreMany(0, 50, kMiddle), 50);
  const int rule = rig_.faults->Add(
      {.kind = FaultKind::kDelay, .op = IoOp::kRead, .probability = 0.3, .delay_ns = 3'000'000'000});
  int late = 0, good = 0;
  for (uint64_t i = 0; i < 50; ++i) {
    const Reason reason = rig_.Load(i, kMiddle);
    late += reason == Reason::kDeadline ? 1 : 0;
    good += reason == Reason::kNone ? 1 : 0;
  }
  EXPECT_EQ(late + good, 50);
  EXPECT_EQ(static_cast<uint64_t>(late), rig_.faults->Fired(rule));
  EXPECT_GT(good, 20);
  EXPECT_EQ(rig_.tier->GetStats().state, TierState::kOnline) << "slow is not hung";
}

TEST_F(NvmeFaultTest, DeviceThatDisappearsIsOpenedAgain) {
  ASSERT_EQ(rig_.StoreMany(0, 50, kMiddle), 50);
  rig_.Close();
  rig_.Open();
  rig_.faults->Add({.kind = FaultKind::kError, .error = ENODEV});
  rig_.faults->FailOpen(absl::UnavailableError("No such device"));
  for (uint64_t i = 0; i < 20; ++i) rig_.Load(i, kMiddle);
  rig_.RunNs(10'000'000'000);
  EXPECT_EQ(rig_.tier->GetStats().state, TierState::kOffline);
  EXPECT_EQ(rig_.Device().detail, "No such device");
  rig_.faults->AllOff();
  rig_.faults->FailOpen(absl::OkStatus());
  rig_.RunNs(5'000'000'000);
  EXPECT_EQ(rig_.tier->GetStats().state, TierState::kOnline);
  EXPECT_EQ(rig_.Readable(0, 50, kMiddle), 50u) << "recovered from what is on it";
  EXPECT_TRUE(rig_.Store(100, kMiddle));
}

TEST_F(NvmeFaultTest, OneOfTwoDevicesFailsTheOtherServes) {
  rig_.Close();
  rig_.options.devices.push_back({.path = "disk1", .bytes = NvmeRig::kDevice, .depth = 32});
  rig_.Open();
  ASSERT_EQ(rig_.StoreMany(0, 100, kMiddle), 100);
  rig_.disks.Find("disk1")->Write(0, std::vector<std::byte>(1 << 20, std::byte{0x11}));  // found at open
  rig_.Kill();
  rig_.Open();
  const auto stats = rig_.tier->GetStats();
  EXPECT_EQ(stats.devices[0].state, TierState::kOnline);
  EXPECT_EQ(stats.devices[1].state, TierState::kOffline);
  EXPECT_EQ(stats.state, TierState::kOnline);
  const uint64_t left = rig_.Readable(0, 100, kMiddle);
  EXPECT_GT(left, 20u);
  EXPECT_LT(left, 80u);
  EXPECT_EQ(rig_.StoreMany(200, 100, kMiddle), 100) << "the other one takes all";
  EXPECT_EQ(rig_.Readable(200, 100, kMiddle), 100u);
}

TEST_F(NvmeFaultTest, ReadsOvertakeWrites) {
  ASSERT_EQ(rig_.StoreMany(0, 50, kMiddle), 50);
  int writes_done = 0, reads_done = 0, writes_before_reads = 0;
  uint64_t accepted = 0;
  while (rig_.Append(1000 + accepted, kMiddle, [&](bool) { ++writes_done; }) == NvmeTier::Append::kAccepted) {
    ++accepted;
  }
  ASSERT_GT(accepted, 30u);
  std::vector<std::vector<std::byte>> targets(20, std::vector<std::byte>(kMiddle));
  for (uint64_t i = 0; i < 20; ++i) {
    rig_.tier->Read(BlockOf(i, kMiddle), targets[i], [&](NvmeTier::ReadResult r) {
      EXPECT_EQ(r.reason, Reason::kNone);
      ++reads_done;
      writes_before_reads = writes_done;
    });
  }
  rig_.Settle();
  EXPECT_EQ(reads_done, 20);
  EXPECT_LT(writes_before_reads, static_cast<int>(accepted)) << "all were written before the last read";
}

// Lies of the disk. Whatever is read is right or a miss, and the miss is counted.
struct Lie {
  const char* name;
  FaultKind kind;
  IoOp op;
  const char* reasons;  // one of these counters must move, separated by commas
};

class NvmeLieTest : public ::testing::TestWithParam<Lie> {};

TEST_P(NvmeLieTest, IsNoticed) {
  for (uint64_t seed = 1; seed <= Trials<uint64_t>(10, 3); ++seed) {
    NvmeRig rig(seed);
    rig.Open();
    ASSERT_EQ(rig.StoreMany(0, 100, kMiddle), 100);
    // Old content of the ring for what is lost to show.
    const uint64_t n = rig.Device().capacity_bytes / (kMiddle + 4096);
    rig.StoreMany(1000, n, kMiddle);
    const int rule = rig.faults->Add(
        {.kind = GetParam().kind, .op = GetParam().op, .offset_begin = kData, .probability = 0.5});
    rig.StoreMany(100'000, 200, kMiddle);
    if (GetParam().op == IoOp::kWrite) rig.faults->AllOff();
    uint64_t good = 0, bad = 0;
    for (uint64_t i = 0; i < 200; ++i) {
      const Reason reason = rig.Load(100'000 + i, kMiddle);  // checks the bytes
      (reason == Reason::kNone ? good : bad) += 1;
    }
    rig.faults->AllOff();
    ASSERT_GT(rig.faults->Fired(rule), 0u) << "seed " << seed;
    EXPECT_GT(bad, 0u) << "seed " << seed;
    EXPECT_GT(rig.AllFailures(), 0) << "seed " << seed;
    double counted = 0;
    for (const char* reason : {"checksum", "identity", "torn", "stale"}) {
      if (std::string(GetParam().reasons).find(reason) != std::string::npos) counted += rig.Failures(reason);
    }
    EXPECT_GT(counted, 0) << "seed " << seed;
    // Still working.
    EXPECT_EQ(rig.StoreMany(200'000, 50, kMiddle), 50);
    EXPECT_EQ(rig.Readable(200'000, 50, kMiddle), 50u);
  }
}

const Lie kLies[] = {
    {"TornWrite", FaultKind::kTornWrite, IoOp::kWrite, "checksum,torn,stale"},
    {"MisdirectedWrite", FaultKind::kMisdirectedWrite, IoOp::kWrite, "identity,stale,checksum,torn"},
    {"LostWrite", FaultKind::kLostWrite, IoOp::kWrite, "stale,torn,identity"},
    {"FlippedInWriting", FaultKind::kFlipOnWrite, IoOp::kWrite, "checksum"},
    {"MisdirectedRead", FaultKind::kMisdirectedRead, IoOp::kRead, "identity,torn"},
    {"FlippedInReading", FaultKind::kFlipOnRead, IoOp::kRead, "checksum"},
};
INSTANTIATE_TEST_SUITE_P(All, NvmeLieTest, ::testing::ValuesIn(kLies),
                         [](const auto& lie) { return std::string(lie.param.name); });

}  // namespace
}  // namespace terrace::testing
