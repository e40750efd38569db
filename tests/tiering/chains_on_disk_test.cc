// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Which blocks the demoter puts on disk: all that come while the disk has room, and chains as a whole, so that
// the disk is of use when host memory is lost; and what is said of blocks while the disk is being read back.
// In virtual time; nothing runs but what the test steps.
#include <gtest/gtest.h>

#include "testing/fault_device.h"
#include "testing/memory_device.h"
#include "testing/test_stack.h"

namespace terrace::tiering {
namespace {

using testing::IsPayloadOf;
using testing::KeyOf;
using testing::SmallStackOptions;
using testing::TestStack;

constexpr uint64_t kBlockBytes = 256 << 10;
constexpr uint64_t kHead = 8, kTail = 12;  // blocks

class ChainsOnDiskTest : public ::testing::Test {
 protected:
  void Open(uint64_t disk_bytes) {
    auto options = SmallStackOptions(48 << 20);
    options.nvme.devices = {{.path = "/disk", .bytes = disk_bytes}};
    options.nvme.segment_bytes = 4 << 20;
    options.nvme.io_memory_bytes = 8 << 20;
    options.budget_bytes += (8 << 20) + (4 << 20);
    options.threads = false;
    options.device_factory = testing::FaultyFactory(disks_.Factory(), faults_, &clock_);
    metrics_ = std::make_unique<MetricRegistry>();
    auto made = TierStack::Create(options, &clock_, metrics_.get());
    TERRACE_CHECK(made.ok());
    stack_ = *std::move(made);
    session_ = stack_->OpenSession(0);
    space_ = &TestStack::Open(session_.get(), kBlockBytes);
    Step(50);
  }
  // The process ends, and its host memory with it.
  void LoseHostMemory() {
    session_ = nullptr;
    disks_.KillProcess(1);
    stack_ = nullptr;
  }
  ~ChainsOnDiskTest() override { session_ = nullptr; }

  void Step(int times) {
    for (int i = 0; i < times; ++i) {
      stack_->Step();
      clock_.AdvanceNs(1'000'000);
    }
  }
  // One head that all chains share, and tails of their own: chain c goes on with blocks 1000 * (c + 1) ...
  static std::vector<kv::BlockKey> Chain(uint64_t chain) {
    std::vector<kv::BlockKey> keys;
    for (uint64_t i = 0; i < kHead; ++i) keys.push_back(KeyOf(i));
    for (uint64_t i = 0; i < kTail; ++i) keys.push_back(KeyOf(1000 * (chain + 1) + i));
    return keys;
  }
  // What an engine does with a prompt: asks, computes and stores what is missing. Ten milliseconds each.
  void Ask(const std::vector<kv::BlockKey>& keys) {
    const auto answer = session_->Lookup(space_->id, keys, LookupMode::kPrefix, Session::kNewLease);
    ASSERT_TRUE(answer.ok()) << answer.status();
    for (size_t i = answer->n_prefix; i < keys.size(); ++i) {
      const auto parent = i == 0 ? std::nullopt : std::optional(keys[i - 1]);
      const Reason reason = TestStack::Store(session_.get(), *space_, keys[i], parent);
      ASSERT_TRUE(reason == Reason::kNone || reason == Reason::kDuplicate) << ReasonName(reason);
      Step(1);
    }
    if (answer->lease_id != 0) ASSERT_TRUE(session_->Release(answer->lease_id).ok());
    Step(10);
  }
  bool IsOnDisk(const kv::BlockKey& key) const {
    const auto info = stack_->Stat(*space_, key);
    return info.has_value() && info->tier == "nvme";
  }
  // Leading blocks that a lookup finds.
  uint64_t Found(const std::vector<kv::BlockKey>& keys) {
    const auto answer =
        session_->Lookup(space_->id, keys, {.lease = Session::kNewLease, .may_wait = true});
    EXPECT_TRUE(answer.ok()) << answer.status();
    Step(200);
    if (answer->lease_id != 0) EXPECT_TRUE(session_->Release(answer->lease_id).ok());
    Step(10);
    return answer->n_prefix;
  }

  testing::FakeClock clock_;
  testing::MemoryDisks disks_{&clock_};
  std::shared_ptr<testing::FaultScript> faults_ = std::make_shared<testing::FaultScript>(1);
  std::unique_ptr<MetricRegistry> metrics_;
  std::unique_ptr<TierStack> stack_;
  std::unique_ptr<Session> session_;
  const kv::KeySpace* space_ = nullptr;
};

TEST_F(ChainsOnDiskTest, WhatLiesOnDiskIsFoundWhenHostMemoryIsLost) {
  constexpr uint64_t kChains = 60;  // 180 MiB of tails into 48 MiB
  Open(512 << 20);
  for (uint64_t chain = 0; chain < kChains; ++chain) Ask(Chain(chain));
  Step(300);
  for (uint64_t i = 0; i < kHead; ++i) {
    const auto info = stack_->Stat(*space_, KeyOf(i));
    ASSERT_TRUE(info.has_value() && info->tier == "host") << "the shared head never left host memory";
  }
  LoseHostMemory();
  Open(512 << 20);
  const uint64_t on_disk = stack_->Stats().nvme->blocks;
  ASSERT_GT(on_disk, kChains * kTail / 2);
  uint64_t found = kHead;
  for (uint64_t chain = 0; chain < kChains; ++chain) {
    const uint64_t leading = Found(Chain(chain));
    EXPECT_GE(leading, kHead) << "chain " << chain;
    found += leading - std::min(leading, kHead);
  }
  EXPECT_GE(found * 100, on_disk * 95) << "of " << on_disk << " blocks on disk";
}

TEST_F(ChainsOnDiskTest, WhileADiskReadsItsIndexBackWhatMayBeOnItIsNoColdMiss) {
  Open(512 << 20);
  for (uint64_t chain = 0; chain < 40; ++chain) Ask(Chain(chain));
  Step(300);
  LoseHostMemory();
  const int slow = faults_->Add({.kind = testing::FaultKind::kDelay, .op = IoOp::kRead, .delay_ns = 300'000'000});
  Open(512 << 20);
  ASSERT_LT(stack_->Stats().nvme->devices[0].recovery_ratio, 1.0);
  EXPECT_GT(faults_->Fired(slow), 0u);
  const auto why = [&](const kv::BlockKey& key) {
    const auto answer = session_->Lookup(space_->id, {&key, 1}, LookupMode::kPrefix, Session::kNewLease);
    EXPECT_EQ(answer->n_here, 0u);
    return answer->places[0].reason;
  };
  EXPECT_EQ(why(KeyOf(0)), Reason::kTierOffline);
  EXPECT_EQ(why(KeyOf(77'777'777)), Reason::kTierOffline) << "who knows";
  faults_->AllOff();
  Step(1000);
  ASSERT_EQ(stack_->Stats().nvme->devices[0].recovery_ratio, 1.0);
  EXPECT_GE(Found(Chain(0)), kHead);
  EXPECT_EQ(why(KeyOf(77'777'777)), Reason::kCold);
}

TEST_F(ChainsOnDiskTest, ADiskWithRoomTakesWhateverLeavesHostMemory) {
  constexpr uint64_t kChains = 20;
  constexpr uint64_t kLong = 80;  // far deeper than what is worth a write
  Open(1 << 30);
  std::vector<kv::BlockKey> all;
  for (uint64_t chain = 0; chain < kChains; ++chain) {  // 400 MiB, asked for once
    std::vector<kv::BlockKey> keys;
    for (uint64_t i = 0; i < kLong; ++i) keys.push_back(KeyOf(1000 * (chain + 1) + i));
    Ask(keys);
    all.insert(all.end(), keys.begin(), keys.end());
  }
  Step(300);
  uint64_t kept = 0;
  for (const kv::BlockKey& key : all) kept += stack_->Stat(*space_, key).has_value();
  EXPECT_GE(kept * 100, all.size() * 98);
}

TEST_F(ChainsOnDiskTest, AFullDiskTakesWhatIsWorthIt) {
  constexpr uint64_t kLong = 80;
  Open(64 << 20);
  uint64_t written = 0;
  for (uint64_t chain = 0; chain < 40; ++chain) {  // 800 MiB, asked for once
    if (chain == 20) written = stack_->Stats().nvme->devices[0].written_bytes;
    std::vector<kv::BlockKey> keys;
    for (uint64_t i = 0; i < kLong; ++i) keys.push_back(KeyOf(1000 * (chain + 1) + i));
    Ask(keys);
  }
  Step(300);
  written = stack_->Stats().nvme->devices[0].written_bytes - written;
  EXPECT_LT(written, 20 * kLong * kBlockBytes / 2) << "blocks that nobody came back for";
}

}  // namespace
}  // namespace terrace::tiering
