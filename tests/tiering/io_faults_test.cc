// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The disk in memory and the faults do what fault tests and the simulator rely on: each fault really
// happens, is counted, and harms nothing else.
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "testing/fake_clock.h"
#include "testing/fault_device.h"
#include "testing/memory_device.h"

namespace terrace::testing {
namespace {

using tiering::BlockDevice;
using tiering::IoOp;
using tiering::IoResult;
using tiering::kIoAlign;

constexpr uint64_t kBytes = 4 << 20;
constexpr size_t kBlock = 16 << 10;

class IoFaultsTest : public ::testing::Test {
 protected:
  IoFaultsTest() : buffer_(static_cast<std::byte*>(std::aligned_alloc(kIoAlign, kBytes)), kBytes) {}
  ~IoFaultsTest() override {
    device_.reset();
    std::free(buffer_.data());
  }
  void Open() {
    device_.reset();
    auto device = FaultyFactory(disks_.Factory(), faults_, &clock_)({.path = "d", .bytes = kBytes, .depth = 16});
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = std::move(*device);
  }
  std::span<std::byte> Part(uint64_t i) { return buffer_.subspan(i * kBlock, kBlock); }
  MemoryDisk* disk() { return disks_.Find("d").get(); }

  void Submit(IoOp op, uint64_t i) {
    ASSERT_TRUE(device_->Submit({op, i * kBlock, op == IoOp::kSync ? std::span<std::byte>() : Part(i), i}));
  }
  // Results that come within a virtual second.
  std::map<uint64_t, int> Take(int64_t within_ns = 1'000'000'000) {
    std::map<uint64_t, int> errors;
    for (int64_t passed_ns = 0; passed_ns <= within_ns; passed_ns += 1'000'000) {
      IoResult results[16];
      const size_t n = device_->Poll(results, 0);
      for (size_t i = 0; i < n; ++i) errors[results[i].tag] = results[i].error;
      clock_.AdvanceNs(1'000'000);
    }
    return errors;
  }
  int Do(IoOp op, uint64_t i) {
    Submit(op, i);
    const auto errors = Take(20'000'000);
    return errors.count(i) == 0 ? ETIMEDOUT : errors.at(i);
  }
  int Write(uint64_t i, uint64_t number) {
    FillPayload(KeyOf(number), 0, Part(i));
    return Do(IoOp::kWrite, i);
  }
  // Whether block i on the disk, seen past all faults, is that of the number.
  bool DiskHas(uint64_t i, uint64_t number) {
    std::vector<std::byte> data(kBlock);
    disk()->Read(i * kBlock, data);
    return IsPayloadOf(KeyOf(number), data);
  }
  size_t DifferingBits(std::span<const std::byte> data, uint64_t number) {
    const std::vector<std::byte> expected = PayloadOf(KeyOf(number), data.size());
    size_t bits = 0;
    for (size_t i = 0; i < data.size(); ++i) bits += __builtin_popcount(static_cast<unsigned>(data[i] ^ expected[i]));
    return bits;
  }

  FakeClock clock_;
  MemoryDisks disks_{&clock_};
  std::shared_ptr<FaultScript> faults_ = std::make_shared<FaultScript>(42);
  std::unique_ptr<BlockDevice> device_;
  std::span<std::byte> buffer_;
};

// ---- MemoryDevice ----

TEST_F(IoFaultsTest, TimeIsWhatTheCostsSay) {
  const DiskCosts costs = {.latency_ns = 100'000, .read_bytes_per_s = 1e9, .write_bytes_per_s = 5e8};
  MemoryDevice device(std::make_shared<MemoryDisk>(kBytes), &clock_, 16, costs);
  EXPECT_EQ(device.NextDueNs(), MemoryDevice::kNever);
  const int64_t start_ns = clock_.NowNs();
  ASSERT_TRUE(device.Submit({IoOp::kRead, 0, buffer_.subspan(0, 1 << 20), 1}));
  ASSERT_TRUE(device.Submit({IoOp::kWrite, 0, buffer_.subspan(0, 1 << 20), 2}));
  EXPECT_EQ(device.NextDueNs() - start_ns, (1 << 20) + 100'000) << "latency, and the bytes at 1 GB/s";
  IoResult results[2];
  EXPECT_EQ(device.Poll(results, 1'000'000'000), 0u) << "a Poll in virtual time does not wait";
  clock_.AdvanceNs(device.NextDueNs() - start_ns);
  ASSERT_EQ(device.Poll(results, 0), 1u);
  EXPECT_EQ(results[0].tag, 1u);
  EXPECT_EQ(device.NextDueNs() - start_ns, (1 << 20) * 3 + 100'000) << "after the first one's bytes, at 0.5 GB/s";
}

TEST_F(IoFaultsTest, JitterLetsRequestsOvertake) {
  MemoryDevice device(std::make_shared<MemoryDisk>(kBytes), &clock_, 16, {.jitter_ns = 10'000'000});
  for (uint64_t i = 0; i < 16; ++i) ASSERT_TRUE(device.Submit({IoOp::kRead, i * kBlock, Part(i), i}));
  std::vector<uint64_t> order;
  for (int i = 0; i < 100'000 && order.size() < 16; ++i) {
    IoResult result;
    if (device.Poll({&result, 1}, 0) == 1) order.push_back(result.tag);
    clock_.AdvanceNs(10'000);
  }
  ASSERT_EQ(order.size(), 16u);
  EXPECT_FALSE(std::is_sorted(order.begin(), order.end()));
}

TEST_F(IoFaultsTest, SyncedDataSurvivesPowerLossAndSomeOfTheRestDoesNot) {
  uint64_t kept = 0, lost = 0, torn = 0;
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    Open();
    for (uint64_t i = 0; i < 8; ++i) ASSERT_EQ(Write(i, 100 + i), 0);
    ASSERT_EQ(Do(IoOp::kSync, 0), 0);
    EXPECT_EQ(disk()->unsynced_pages(), 0u);
    for (uint64_t i = 4; i < 8; ++i) ASSERT_EQ(Write(i, 200 + i), 0);
    disks_.LosePower(seed);
    for (uint64_t i = 0; i < 4; ++i) ASSERT_TRUE(DiskHas(i, 100 + i)) << "synced";
    for (uint64_t i = 4; i < 8; ++i) {
      std::vector<std::byte> data(kBlock);
      disk()->Read(i * kBlock, data);
      const std::vector<std::byte> old_data = PayloadOf(KeyOf(100 + i), kBlock);
      const std::vector<std::byte> new_data = PayloadOf(KeyOf(200 + i), kBlock);
      for (size_t page = 0; page < kBlock; page += 4096) {
        const bool is_old = std::memcmp(&data[page], &old_data[page], 4096) == 0;
        const bool is_new = std::memcmp(&data[page], &new_data[page], 4096) == 0;
        ++(is_old ? lost : is_new ? kept : torn);
        for (size_t at = page; at < page + 4096; at += 512) {
          ASSERT_TRUE(std::memcmp(&data[at], &old_data[at], 512) == 0 ||
                      std::memcmp(&data[at], &new_data[at], 512) == 0);
        }
      }
    }
    EXPECT_EQ(Do(IoOp::kRead, 0), EIO) << "the old device is dead";
  }
  EXPECT_GT(kept, 60u);
  EXPECT_GT(lost, 60u);
  EXPECT_GT(torn, 30u);
}

TEST_F(IoFaultsTest, ASyncKeepsWhatWasThereWhenItBegan) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    MemoryDisk disk(kBytes);
    const auto write = [&](uint64_t number) { disk.Write(0, PayloadOf(KeyOf(number), 4096)); };
    write(1);
    const uint64_t mark = disk.BeginSync();
    write(2);
    disk.FinishSync(mark);
    EXPECT_EQ(disk.unsynced_pages(), 1u) << "written after the sync began";
    disk.LosePower(seed);
    std::vector<std::byte> data(4096);
    disk.Read(0, data);
    const std::vector<std::byte> one = PayloadOf(KeyOf(1), 4096), two = PayloadOf(KeyOf(2), 4096);
    for (size_t at = 0; at < 4096; at += 512) {
      ASSERT_TRUE(std::memcmp(&data[at], &one[at], 512) == 0 || std::memcmp(&data[at], &two[at], 512) == 0);
    }
  }
}

TEST_F(IoFaultsTest, AKilledProcessLosesOnlyWhatWasInFlight) {
  bool is_part_seen = false;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Open();
    ASSERT_EQ(Write(0, seed), 0);
    ASSERT_EQ(Write(1, 1), 0);
    FillPayload(KeyOf(1000 + seed), 0, Part(1));
    Submit(IoOp::kWrite, 1);
    disks_.KillProcess(seed);
    EXPECT_EQ(Take().at(1), EIO);
    EXPECT_EQ(Write(0, 9999), EIO);
    EXPECT_TRUE(DiskHas(0, seed)) << "not synced, but the kernel has it";
    is_part_seen |= !DiskHas(1, 1) && !DiskHas(1, 1000 + seed);
  }
  EXPECT_TRUE(is_part_seen);
  Open();
  EXPECT_EQ(Write(0, 1), 0);
}

// ---- FaultDevice ----

TEST_F(IoFaultsTest, ErrorsComeWhereAndAsOftenAsTheRuleSays) {
  Open();
  const int rule = faults_->Add({.op = IoOp::kRead, .offset_begin = 2 * kBlock, .offset_end = 3 * kBlock,
                                 .skip = 1, .limit = 2, .error = ENOSPC});
  EXPECT_EQ(Do(IoOp::kRead, 2), 0) << "skipped";
  EXPECT_EQ(Do(IoOp::kRead, 1), 0);
  EXPECT_EQ(Do(IoOp::kRead, 3), 0);
  EXPECT_EQ(Do(IoOp::kWrite, 2), 0);
  EXPECT_EQ(Do(IoOp::kRead, 2), ENOSPC);
  faults_->SetOn(rule, false);
  EXPECT_EQ(Do(IoOp::kRead, 2), 0);
  faults_->SetOn(rule, true);
  EXPECT_EQ(Do(IoOp::kRead, 2), ENOSPC);
  EXPECT_EQ(Do(IoOp::kRead, 2), 0) << "twice was the limit";
  EXPECT_EQ(faults_->Fired(rule), 2u);
  faults_->Add({.op = IoOp::kSync});
  EXPECT_EQ(Do(IoOp::kSync, 0), EIO);
  faults_->AllOff();
  EXPECT_EQ(Do(IoOp::kSync, 0), 0);
  EXPECT_EQ(faults_->Fired(), 3u);
}

TEST_F(IoFaultsTest, ProbabilityIsWhatItSays) {
  Open();
  const int rule = faults_->Add({.probability = 0.25});
  uint64_t errors = 0;
  for (int i = 0; i < 400; ++i) errors += Do(IoOp::kRead, 1) == EIO;
  EXPECT_EQ(errors, faults_->Fired(rule));
  EXPECT_GT(errors, 60u);
  EXPECT_LT(errors, 140u);
}

TEST_F(IoFaultsTest, ADelayedRequestIsLateAndOthersAreNot) {
  Open();
  faults_->Add({.kind = FaultKind::kDelay, .offset_end = kBlock, .delay_ns = 3'000'000'000});
  Submit(IoOp::kRead, 0);
  Submit(IoOp::kRead, 1);
  EXPECT_EQ(Take(2'900'000'000), (std::map<uint64_t, int>{{1, 0}}));
  EXPECT_EQ(Take(200'000'000), (std::map<uint64_t, int>{{0, 0}}));
}

TEST_F(IoFaultsTest, AHungRequestWaitsForItsRelease) {
  Open();
  ASSERT_EQ(Write(0, 5), 0);
  const int rule = faults_->Add({.kind = FaultKind::kHang, .limit = 1});
  std::memset(Part(0).data(), 0, kBlock);
  Submit(IoOp::kRead, 0);
  Submit(IoOp::kRead, 1);
  EXPECT_EQ(Take(60'000'000'000), (std::map<uint64_t, int>{{1, 0}}));
  EXPECT_EQ(faults_->Fired(rule), 1u);
  for (uint64_t i = 1; i < 16; ++i) Submit(IoOp::kRead, i);
  EXPECT_FALSE(device_->Submit({IoOp::kRead, 0, Part(20), 99})) << "it takes up room";
  EXPECT_EQ(Take().size(), 15u);
  faults_->ReleaseHung();
  EXPECT_EQ(Take(), (std::map<uint64_t, int>{{0, 0}}));
  EXPECT_EQ(DifferingBits(Part(0), 5), 0u);
}

TEST_F(IoFaultsTest, ADeviceWithHungRequestsCanBeClosed) {
  Open();
  faults_->Add({.kind = FaultKind::kHang});
  Submit(IoOp::kWrite, 0);
  Submit(IoOp::kSync, 1);
  EXPECT_TRUE(Take().empty());
  Open();
}

TEST_F(IoFaultsTest, LostWritesLeaveWhatWasThere) {
  Open();
  ASSERT_EQ(Write(3, 1), 0);
  const int lost = faults_->Add({.kind = FaultKind::kLostWrite});
  EXPECT_EQ(Write(3, 2), 0) << "it claims success";
  EXPECT_TRUE(DiskHas(3, 1));
  EXPECT_EQ(faults_->Fired(lost), 1u);
  EXPECT_EQ(Do(IoOp::kSync, 0), 0);
  EXPECT_EQ(disk()->unsynced_pages(), 0u) << "syncs are lost only where a rule says so";
  faults_->AllOff();
  ASSERT_EQ(Write(3, 3), 0);
  faults_->Add({.kind = FaultKind::kLostWrite, .op = IoOp::kSync});
  EXPECT_EQ(Do(IoOp::kSync, 0), 0);
  EXPECT_EQ(disk()->unsynced_pages(), kBlock / 4096);
}

TEST_F(IoFaultsTest, MisdirectedRequestsGoElsewhere) {
  Open();
  for (uint64_t i = 0; i < kBytes / kBlock; ++i) ASSERT_EQ(Write(i, i), 0);
  const int reads = faults_->Add({.kind = FaultKind::kMisdirectedRead});
  EXPECT_EQ(Do(IoOp::kRead, 7), 0);
  EXPECT_GT(DifferingBits(Part(7), 7), 1000u);
  EXPECT_EQ(faults_->Fired(reads), 1u);
  faults_->AllOff();
  faults_->Add({.kind = FaultKind::kMisdirectedWrite});
  EXPECT_EQ(Write(7, 777), 0);
  EXPECT_TRUE(DiskHas(7, 7));
  std::vector<std::byte> all(kBytes);
  disk()->Read(0, all);
  size_t places = 0;
  for (size_t at = 0; at + kBlock <= kBytes; at += kIoAlign) {
    places += IsPayloadOf(KeyOf(777), {&all[at], kBlock});
  }
  EXPECT_EQ(places, 1u);
}

TEST_F(IoFaultsTest, AFlippedBitIsOneBit) {
  Open();
  ASSERT_EQ(Write(1, 1), 0);
  const int on_read = faults_->Add({.kind = FaultKind::kFlipOnRead});
  EXPECT_EQ(Do(IoOp::kRead, 1), 0);
  EXPECT_EQ(DifferingBits(Part(1), 1), 1u);
  EXPECT_TRUE(DiskHas(1, 1));
  faults_->SetOn(on_read, false);
  faults_->Add({.kind = FaultKind::kFlipOnWrite});
  EXPECT_EQ(Write(2, 2), 0);
  EXPECT_EQ(DifferingBits(Part(2), 2), 0u) << "the caller's buffer is not touched";
  EXPECT_EQ(Do(IoOp::kRead, 2), 0);
  EXPECT_EQ(DifferingBits(Part(2), 2), 1u);
}

TEST_F(IoFaultsTest, ATornWriteIsPartNewAndPartOld) {
  Open();
  ASSERT_EQ(Write(1, 1), 0);
  const int torn = faults_->Add({.kind = FaultKind::kTornWrite});
  uint64_t some = 0;
  for (uint64_t round = 0; round < 50; ++round) {
    EXPECT_EQ(Write(1, 1000 + round), 0);
    EXPECT_FALSE(DiskHas(1, 1000 + round));
    std::vector<std::byte> data(kBlock);
    disk()->Read(kBlock, data);
    const std::vector<std::byte> expected = PayloadOf(KeyOf(1000 + round), kBlock);
    for (size_t at = 0; at < kBlock; at += 512) some += std::memcmp(&data[at], &expected[at], 512) == 0;
  }
  EXPECT_EQ(faults_->Fired(torn), 50u);
  EXPECT_GT(some, 200u);
}

TEST_F(IoFaultsTest, OpeningFailsWhileItIsToldTo) {
  Open();
  device_.reset();
  faults_->FailOpen(absl::UnavailableError("read-only"));
  const auto factory = FaultyFactory(disks_.Factory(), faults_, &clock_);
  EXPECT_TRUE(absl::IsUnavailable(factory({.path = "d", .bytes = kBytes}).status()));
  faults_->FailOpen(absl::OkStatus());
  EXPECT_TRUE(factory({.path = "d", .bytes = kBytes}).ok());
}

TEST_F(IoFaultsTest, EqualSeedsGiveEqualFaults) {
  const auto run = [](uint64_t seed) {
    FakeClock clock;
    MemoryDisks disks(&clock);
    auto faults = std::make_shared<FaultScript>(seed);
    faults->Add({.kind = FaultKind::kError, .probability = 0.5});
    auto device = *FaultyFactory(disks.Factory(), faults, &clock)({.path = "d", .bytes = kBytes, .depth = 1});
    auto* page = static_cast<std::byte*>(std::aligned_alloc(kIoAlign, kIoAlign));
    std::string outcome;
    for (int i = 0; i < 64; ++i) {
      IoResult result;
      device->Submit({IoOp::kRead, 0, {page, kIoAlign}, 0});
      while (device->Poll({&result, 1}, 0) == 0) clock.AdvanceNs(10'000);
      outcome += result.error == 0 ? '.' : 'E';
    }
    std::free(page);
    return outcome;
  };
  EXPECT_EQ(run(1), run(1));
  EXPECT_NE(run(1), run(2));
}

}  // namespace
}  // namespace terrace::testing
