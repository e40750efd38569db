// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Every block that a lookup asks for is one hit or one miss with the true reason, also where it was answered
// "pending" and comes late or never; and what is said of key spaces that are known from a disk alone.
// In virtual time; nothing runs but what the test steps.
#include <gtest/gtest.h>

#include "kvstore/base/check.h"
#include "testing/fault_device.h"
#include "testing/memory_device.h"
#include "testing/test_stack.h"

namespace terrace::tiering {
namespace {

using testing::FaultKind;
using testing::KeyOf;
using testing::KeysOf;
using testing::SmallStackOptions;
using testing::TestStack;

constexpr uint64_t kBlockBytes = 256 << 10;
constexpr size_t kBlocks = 10;

// A disk with chains on it, the first of them whole, and a daemon that has just begun with nothing else.
class PendingReasonsTest : public ::testing::Test {
 protected:
  PendingReasonsTest() {
    Open();
    // Twice what host memory takes: the first chain leaves it.
    for (uint64_t i = 0; i < 400; ++i) {
      const auto parent = i % kBlocks == 0 ? std::nullopt : std::optional(KeyOf(i - 1));
      EXPECT_EQ(TestStack::Store(session_.get(), *space_, KeyOf(i), parent), Reason::kNone) << i;
      Step(1);
    }
    Step(100);
    session_ = nullptr;
    disks_.KillProcess(1);
    Open();  // host memory went with the process
  }
  ~PendingReasonsTest() override {
    session_ = nullptr;
    other_ = nullptr;
  }

  void Open() {
    auto options = SmallStackOptions(48 << 20);
    options.nvme.devices = {{.path = "/disk", .bytes = 256 << 20}};
    options.nvme.io_memory_bytes = 8 << 20;
    options.nvme.read_deadline_ns = 50'000'000;
    options.budget_bytes += (8 << 20) + (4 << 20);
    options.admission_policy = "all";
    options.threads = false;
    options.device_factory = testing::FaultyFactory(disks_.Factory(), faults_, &clock_);
    stack_ = nullptr;
    metrics_ = std::make_unique<MetricRegistry>();
    auto made = TierStack::Create(options, &clock_, metrics_.get());
    TERRACE_CHECK(made.ok());
    stack_ = *std::move(made);
    session_ = stack_->OpenSession(0);
    space_ = &TestStack::Open(session_.get(), kBlockBytes);
    for (int i = 0; i < 100 && stack_->Stats().nvme->devices[0].recovery_ratio < 1; ++i) Step(50);
    Step(50);
  }
  void Step(int times) {
    for (int i = 0; i < times; ++i) {
      stack_->Step();
      clock_.AdvanceNs(1'000'000);
    }
  }
  LookupAnswer AskForAll(Session* session) {
    const auto keys = KeysOf(0, kBlocks);
    const auto answer = session->Lookup(space_->id, keys, {.lease = Session::kNewLease, .may_wait = true});
    EXPECT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->n_pending, kBlocks);
    return *answer;
  }
  // Three lookups wait for the same blocks: one keeps its lease, one gives it up, one ends with its session.
  void AskThrice() {
    other_ = stack_->OpenSession(0);
    AskForAll(session_.get());
    EXPECT_TRUE(session_->Release(AskForAll(session_.get()).lease_id).ok());
    AskForAll(other_.get());
    other_ = nullptr;
    EXPECT_EQ(Hits() + Misses(), 0) << "not known yet";
  }
  // The sum of all series of a family, or of those with the label.
  double Metric(const std::string& name, const std::string& label = "", const std::string& value = "") const {
    double sum = 0;
    bool is_known = false;
    for (const auto& family : metrics_->Snapshot()) {
      if (family.name != name) continue;
      for (const auto& series : family.series) {
        bool matches = label.empty();
        for (const auto& [n, v] : series.labels) matches |= n == label && v == value;
        if (!matches) continue;
        is_known = true;
        sum += static_cast<double>(series.counter->Value());
      }
    }
    EXPECT_TRUE(is_known) << "no metric " << name << " with " << label << "=" << value;
    return sum;
  }
  double Hits() { return Metric("terrace_hit_blocks_total"); }
  double Misses() { return Metric("terrace_miss_blocks_total"); }
  double Misses(Reason reason) {
    return Metric("terrace_miss_blocks_total", "reason", std::string(ReasonName(reason)));
  }
  double Failed(Reason reason) {
    return Metric("terrace_promotion_failures_total", "reason", std::string(ReasonName(reason)));
  }
  Reason WhyNot(const kv::KeySpace& space, uint64_t number) {
    return TestStack::Ask(session_.get(), space, KeyOf(number));
  }

  testing::FakeClock clock_;
  testing::MemoryDisks disks_{&clock_};
  std::shared_ptr<testing::FaultScript> faults_ = std::make_shared<testing::FaultScript>(1);
  std::unique_ptr<MetricRegistry> metrics_;
  std::unique_ptr<TierStack> stack_;
  std::unique_ptr<Session> session_, other_;
  const kv::KeySpace* space_ = nullptr;
};

TEST_F(PendingReasonsTest, WhatArrivesIsAHitOfEachLookupOnce) {
  AskThrice();
  Step(200);
  EXPECT_EQ(Metric("terrace_lookup_blocks_total"), 3.0 * kBlocks);
  EXPECT_EQ(Metric("terrace_hit_blocks_total", "tier", "nvme"), 3.0 * kBlocks);
  EXPECT_EQ(Metric("terrace_hit_tokens_total", "tier", "nvme"), 3.0 * kBlocks * 16);
  EXPECT_EQ(Hits(), 3.0 * kBlocks);
  EXPECT_EQ(Misses(), 0);
}

TEST_F(PendingReasonsTest, WhatIsCorruptOnDiskIsAMissOfEachLookupOnce) {
  faults_->Add({.kind = FaultKind::kFlipOnRead, .op = IoOp::kRead, .min_bytes = kBlockBytes});
  AskThrice();
  Step(200);
  EXPECT_GT(Failed(Reason::kCorrupt), 5) << "but for flips in the padding";
  EXPECT_EQ(Misses(Reason::kCorrupt), 3 * Failed(Reason::kCorrupt));
  EXPECT_EQ(Misses(), Misses(Reason::kCorrupt));
  EXPECT_EQ(Hits() + Misses(), Metric("terrace_lookup_blocks_total"));
}

TEST_F(PendingReasonsTest, WhatADiskCannotReadIsAMissOfEachLookupOnce) {
  faults_->Add({.kind = FaultKind::kError, .op = IoOp::kRead, .error = EIO});
  AskThrice();
  Step(200);
  EXPECT_GT(Misses(Reason::kIoError), 0);
  EXPECT_EQ(Misses(Reason::kIoError) + Misses(Reason::kTierOffline), 3.0 * kBlocks);
  EXPECT_EQ(Hits(), 0);
  EXPECT_EQ(Misses(), 3.0 * kBlocks);
}

TEST_F(PendingReasonsTest, WhatIsNotInTimeIsAMissOfEachLookupOnce) {
  faults_->Add({.kind = FaultKind::kHang, .op = IoOp::kRead});
  AskThrice();
  Step(200);
  EXPECT_GT(Misses(Reason::kDeadline), 0);
  EXPECT_EQ(Misses(Reason::kDeadline) + Misses(Reason::kTierOffline), 3.0 * kBlocks);
  EXPECT_EQ(Misses(), 3.0 * kBlocks);
  session_ = nullptr;
  faults_->AllOff();
  faults_->ReleaseHung();
  Step(100);
}

TEST_F(PendingReasonsTest, WhatWasFlushedMeanwhileIsAMiss) {
  AskThrice();
  stack_->Flush(space_);
  Step(200);
  EXPECT_EQ(Hits() + Misses(), 3.0 * kBlocks);
  EXPECT_EQ(Misses(Reason::kFlushed), 3 * Failed(Reason::kFlushed));
  EXPECT_GT(Misses(Reason::kFlushed), 0);
}

TEST_F(PendingReasonsTest, CorruptionIsSaidWhereNothingOfTheKeySpaceEverCame) {
  faults_->Add({.kind = FaultKind::kFlipOnRead, .op = IoOp::kRead, .min_bytes = kBlockBytes});
  const LookupAnswer answer = AskForAll(session_.get());
  const auto keys = KeysOf(0, kBlocks);
  size_t n_corrupt = 0;
  for (const kv::BlockKey& key : keys) {
    Reason reason = Reason::kPending;
    const auto set = [&reason](std::vector<BlockPlace> places) { reason = places[0].reason; };
    EXPECT_TRUE(session_->Locate(space_->id, {&key, 1}, 1'000'000'000, set).ok());
    for (int i = 0; i < 2000 && reason == Reason::kPending; ++i) Step(1);
    EXPECT_TRUE(reason == Reason::kNone || reason == Reason::kCorrupt) << ReasonName(reason);
    n_corrupt += reason == Reason::kCorrupt;
  }
  EXPECT_EQ(static_cast<double>(n_corrupt), Failed(Reason::kCorrupt));
  EXPECT_GT(n_corrupt, 5u);
  EXPECT_TRUE(session_->Release(answer.lease_id).ok());
}

TEST_F(PendingReasonsTest, AKeySpaceWithBlocksOnDiskIsNotEmpty) {
  EXPECT_EQ(WhyNot(*space_, 12'345), Reason::kCold);
  const auto& other = TestStack::Open(session_.get(), kBlockBytes, "another");
  EXPECT_EQ(WhyNot(other, 12'345), Reason::kKeySpaceEmpty) << "nothing of it is on the disk";
  // Nor is it compared with others that have blocks here.
  auto identity = TestStack::Identity(kBlockBytes);
  identity.hash = "another hash";
  const auto third = session_->OpenKeySpace(identity);
  ASSERT_TRUE(third.ok());
  ASSERT_EQ(TestStack::Store(session_.get(), **third, KeyOf(500)), Reason::kNone);
  EXPECT_EQ(WhyNot(*space_, 12'345), Reason::kCold);
  stack_->Flush(space_);
  EXPECT_EQ(WhyNot(*space_, 12'345), Reason::kHashDiffers) << "it has none any more";
}

}  // namespace
}  // namespace terrace::tiering
