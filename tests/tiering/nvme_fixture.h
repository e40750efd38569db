// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What tests of the NVMe tier share: a tier over disks in memory with faults, in virtual time, and blocks
// whose bytes are a function of their number.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gpu/host_block_copier.h"
#include "kvstore/base/memory_budget.h"
#include "kvstore/base/metrics.h"
#include "testing/fake_clock.h"
#include "testing/fault_device.h"
#include "testing/memory_device.h"
#include "testing/payload.h"
#include "tiering/nvme/nvme_tier.h"

namespace terrace::testing {

using tiering::BlockDeviceFactory;
using tiering::NvmeBlock;
using tiering::NvmeOptions;
using tiering::NvmeTier;
using tiering::TierState;

// Copies at once, on the caller's thread: nothing happens beside the test.
class InlineBlockCopier final : public gpu::BlockCopier {
 public:
  absl::Status Submit(gpu::CopyJob& job) override {
    const bool intact = CopyBlock({&job.source, 1}, {&job.target, 1}, job.identity_seed, job.check,
                                  job.checksums, CopyStores::kCached);
    job.done(job, intact);
    return absl::OkStatus();
  }
  void Drain() override {}
};

inline std::array<uint8_t, 32> DigestOf(uint8_t space) {
  std::array<uint8_t, 32> digest{};
  digest.fill(space);
  return digest;
}

inline NvmeBlock BlockOf(uint64_t number, uint64_t bytes, uint8_t space = 1) {
  return {.key_space_digest = DigestOf(space), .key = KeyOf(number), .payload_bytes = bytes};
}

inline double MetricOf(const MetricRegistry& metrics, const std::string& name,
                       const MetricRegistry::Labels& labels) {
  for (const auto& family : metrics.Snapshot()) {
    if (family.name != name) continue;
    for (const auto& series : family.series) {
      if (series.labels != labels) continue;
      if (series.counter != nullptr) return static_cast<double>(series.counter->Value());
      if (series.gauge != nullptr) return static_cast<double>(series.gauge->Value());
    }
  }
  ADD_FAILURE() << "no metric " << name;
  return -1;
}

// One device, no threads, virtual time. Everything happens in Run* and Settle.
class NvmeRig {
 public:
  static constexpr uint64_t kDevice = 64ull << 20;
  static constexpr uint64_t kSegment = 4ull << 20;

  explicit NvmeRig(uint64_t seed = 1, const DiskCosts& costs = {})
      : disks(&clock, costs), faults(std::make_shared<FaultScript>(seed)) {
    options.devices = {{.path = "disk0", .bytes = kDevice, .depth = 32}};
    options.segment_bytes = kSegment;
    options.io_memory_bytes = 8ull << 20;
    options.scrub_period_ns = 0;
    options.threads = false;
  }
  ~NvmeRig() {
    tier.reset();
    EXPECT_EQ(budget.used(), 0u) << "memory is still charged";
  }

  // A new process on the same disks.
  void Open(bool settle = true) {
    metrics = std::make_unique<MetricRegistry>();
    auto made = NvmeTier::Create(options, FaultyFactory(disks.Factory(), faults, &clock), &clock, &budget,
                                 metrics.get(), &copies);
    ASSERT_TRUE(made.ok()) << made.status();
    tier = *std::move(made);
    if (settle) Settle();
  }
  void Kill(uint64_t seed = 1) {
    disks.KillProcess(seed);
    tier.reset();
  }
  void LosePower(uint64_t seed) {
    disks.LosePower(seed);
    tier.reset();
  }
  // A clean end: lets time pass while the tier is being destroyed.
  void Close() {
    clock.StartTicking();
    tier.reset();
    clock.StopTicking();
  }

  // One round: time goes on to the next completion, at most by ns.
  void Round(int64_t ns = 1'000'000) {
    const int64_t now = clock.NowNs(), due = disks.NextDueNs();
    if (due > now) clock.AdvanceNs(std::min(ns, due == MemoryDevice::kNever ? ns : due - now));
    tier->Step();
  }
  void RunNs(int64_t ns) {
    const int64_t end = clock.NowNs() + ns;
    while (clock.NowNs() < end) Round(std::min<int64_t>(1'000'000, end - clock.NowNs()));
    tier->Step();
  }
  // Until nothing is left to do, as far as half a second goes.
  void Settle() { RunNs(500'000'000); }

  NvmeTier::Append Append(uint64_t number, uint64_t bytes, std::function<void(bool)> done,
                          uint8_t space = 1) {
    const NvmeBlock block = BlockOf(number, bytes, space);
    const auto payload = PayloadOf(block.key, bytes);
    const auto sums = ChecksumsOf(block.key_space_digest.data(), block.key, payload);
    std::optional<kv::BlockKey> parent;
    if (number > 0) parent = KeyOf(number - 1);
    return tier->TryAppend(block, parent, payload, sums, std::move(done));
  }
  // Appends, waiting for buffers as needed; true once the block is on disk.
  bool Store(uint64_t number, uint64_t bytes, uint8_t space = 1) {
    std::optional<bool> written;
    for (int i = 0; i < 2000; ++i) {
      const auto append = Append(number, bytes, [&](bool ok) { written = ok; }, space);
      if (append == NvmeTier::Append::kPresent) return true;
      if (append == NvmeTier::Append::kAccepted) break;
      if (append != NvmeTier::Append::kBusy) return false;
      Round();
    }
    for (int i = 0; i < 2000 && !written; ++i) Round();
    return written.value_or(false);
  }
  // Many at once.
  int StoreMany(uint64_t first, uint64_t n, uint64_t bytes, uint8_t space = 1) {
    int written = 0;
    for (uint64_t i = 0; i < n; ++i) {
      auto append = NvmeTier::Append::kBusy;
      for (int round = 0; round < 5000 && append == NvmeTier::Append::kBusy; ++round) {
        append = Append(first + i, bytes, [&](bool ok) { written += ok ? 1 : 0; }, space);
        if (append == NvmeTier::Append::kBusy) Round();
      }
    }
    Settle();
    return written;
  }
  bool Has(uint64_t number, uint64_t bytes, uint8_t space = 1) {
    return tier->Find(BlockOf(number, bytes, space)) == NvmeTier::Presence::kHere;
  }
  // The reason; kNone only if every byte is right.
  Reason Load(uint64_t number, uint64_t bytes, uint8_t space = 1) {
    const NvmeBlock block = BlockOf(number, bytes, space);
    std::vector<std::byte> target(bytes);
    std::optional<NvmeTier::ReadResult> result;
    tier->Read(block, target, [&](NvmeTier::ReadResult r) { result = std::move(r); });
    for (int i = 0; i < 10'000 && !result; ++i) Round();
    EXPECT_TRUE(result.has_value()) << "done was not called";
    if (!result) return Reason::kCancelled;
    if (result->reason == Reason::kNone) {
      EXPECT_TRUE(IsPayloadOf(block.key, target)) << "WRONG BYTES of block " << number;
      EXPECT_EQ(result->parent, number > 0 ? std::optional(KeyOf(number - 1)) : std::nullopt);
      EXPECT_EQ(result->checksums, ChecksumsOf(block.key_space_digest.data(), block.key, target));
    }
    return result->reason;
  }
  uint64_t Readable(uint64_t first, uint64_t n, uint64_t bytes, uint8_t space = 1) {
    uint64_t good = 0;
    for (uint64_t i = 0; i < n; ++i) good += Load(first + i, bytes, space) == Reason::kNone ? 1 : 0;
    return good;
  }
  NvmeTier::DeviceStats Device() const { return tier->GetStats().devices[0]; }
  double Failures(const std::string& reason) const {
    return MetricOf(*metrics, "terrace_integrity_failures_total", {{"tier", "nvme"}, {"reason", reason}});
  }
  double AllFailures() const {
    return Failures("checksum") + Failures("identity") + Failures("torn") + Failures("stale");
  }

  // Stands still until moved; while ticking every look at it moves it.
  class TestClock final : public Clock {
   public:
    int64_t NowNs() const override { return now_ns_ += is_ticking_ ? 20'000 : 0; }
    void AdvanceNs(int64_t ns) { now_ns_ += ns; }
    void StartTicking() { is_ticking_ = true; }
    void StopTicking() { is_ticking_ = false; }

   private:
    mutable int64_t now_ns_ = 1'000'000'000;
    bool is_ticking_ = false;
  };
  TestClock clock;
  MemoryDisks disks;
  std::shared_ptr<FaultScript> faults;
  NvmeOptions options;
  MemoryBudget budget{1ull << 30};
  InlineBlockCopier copies;
  std::unique_ptr<MetricRegistry> metrics;
  std::unique_ptr<NvmeTier> tier;
};

}  // namespace terrace::testing
