// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Seeded histories of one NVMe device against a model: appends of all sizes, loads, drops, flushes, kills,
// power losses, clean ends, errors, hangs and lies of the disk. Every byte that is served is compared; every
// call-back is counted; nothing flushed comes back; what was visible before a kill is there after it.
// A failure names the seed: TERRACE_SIM_SEED=n runs it alone.
#include <cstdlib>
#include <map>
#include <set>

#include "tiering/nvme_fixture.h"

namespace terrace::testing {
namespace {

constexpr uint64_t kSizes[] = {1, 4096, 9'000, 64 << 10, 200'000, 1 << 20};
constexpr uint64_t kKeys = 80;

class NvmeSim {
 public:
  explicit NvmeSim(uint64_t seed) : random_(seed), rig_(seed, Costs(seed)) {
    rig_.options.devices[0].bytes = 16ull << 20;
    rig_.options.segment_bytes = random_.OneIn(2) ? 1 << 20 : 2 << 20;
    rig_.options.io_memory_bytes = 4 << 20;
    rig_.options.checkpoint_ns = 50'000'000;
    rig_.options.scrub_period_ns = random_.OneIn(3) ? 5'000'000'000 : 0;
    rig_.options.read_deadline_ns = 200'000'000;
    rig_.options.retry_ns = 100'000'000;
    rig_.Open();
  }

  void Run(int steps) {
    for (int i = 0; i < steps && !::testing::Test::HasFailure(); ++i) Act();
    EndFaults();
    CheckPending();
    EXPECT_EQ(rig_.tier->GetStats().state, TierState::kOnline) << rig_.Device().detail;
    // It still takes and gives.
    EXPECT_TRUE(rig_.Store(1'000'000, 9000));
    EXPECT_EQ(rig_.Load(1'000'000, 9000), Reason::kNone);
    const auto stats = rig_.tier->GetStats();
    EXPECT_LE(stats.used_bytes, stats.capacity_bytes);
  }
  uint64_t loads_good() const { return loads_good_; }

 private:
  static DiskCosts Costs(uint64_t seed) {
    return {.latency_ns = 50'000, .jitter_ns = seed % 2 == 0 ? 400'000 : 0, .seed = seed};
  }
  uint64_t SizeOf(uint64_t key) const { return kSizes[key % std::size(kSizes)]; }
  uint8_t SpaceOf(uint64_t key) const { return static_cast<uint8_t>(1 + key % 3); }

  void Act() {
    const uint64_t dice = random_.Below(1000);
    if (dice < 500) {
      Append();
    } else if (dice < 750) {
      Load();
    } else if (dice < 900) {
      for (uint64_t i = random_.Below(10); i > 0; --i) rig_.Round();
    } else if (dice < 930) {
      const uint64_t key = random_.Below(kKeys);
      rig_.tier->Drop(BlockOf(key, SizeOf(key), SpaceOf(key)));
    } else if (dice < 940) {
      Flush();
    } else if (dice < 955) {
      rig_.RunNs(static_cast<int64_t>(random_.Below(300'000'000)));
    } else if (dice < 980) {
      AddFault();
    } else if (dice < 990) {
      EndFaults();
    } else {
      End();
    }
  }

  void Append() {
    const uint64_t key = random_.Below(kKeys);
    ++appends_;
    const auto append = rig_.Append(key, SizeOf(key), [this](bool) { ++appends_done_; }, SpaceOf(key));
    if (append != NvmeTier::Append::kAccepted) {
      --appends_;
    } else {
      since_flush_.insert(key);
    }
  }

  void Load() {
    const uint64_t key = random_.Below(kKeys);
    const auto reason = rig_.Load(key, SizeOf(key), SpaceOf(key));  // compares the bytes
    if (reason != Reason::kNone) return;
    ++loads_good_;
    EXPECT_TRUE(since_flush_.contains(key)) << "block " << key << " came back after a flush";
  }

  void Flush() {
    EndFaults();  // a flush is kept once the disk has taken it
    const uint8_t space = static_cast<uint8_t>(1 + random_.Below(3));
    const bool all = random_.OneIn(3);
    rig_.tier->Flush(all ? std::nullopt : std::optional(DigestOf(space)));
    std::erase_if(since_flush_, [&](uint64_t key) { return all || SpaceOf(key) == space; });
    rig_.Settle();
  }

  void AddFault() {
    if (!may_lie_) return;
    static constexpr FaultKind kKinds[] = {FaultKind::kError,           FaultKind::kDelay,
                                           FaultKind::kHang,            FaultKind::kTornWrite,
                                           FaultKind::kMisdirectedWrite, FaultKind::kMisdirectedRead,
                                           FaultKind::kLostWrite,       FaultKind::kFlipOnRead,
                                           FaultKind::kFlipOnWrite};
    has_lied_ = true;
    rig_.faults->Add({.kind = kKinds[random_.Below(std::size(kKinds))],
                      .offset_begin = 2ull << 20,  // the device stays recognisable
                      .probability = 0.2,
                      .limit = 1 + random_.Below(20),
                      .delay_ns = static_cast<int64_t>(random_.Below(400'000'000))});
  }

  void EndFaults() {
    rig_.faults->AllOff();
    rig_.faults->ReleaseHung();
    for (int i = 0; i < 50 && rig_.tier->GetStats().state != TierState::kOnline; ++i) rig_.RunNs(200'000'000);
    rig_.Settle();
  }

  void CheckPending() { EXPECT_EQ(appends_done_, appends_) << "a call-back is missing or came twice"; }

  void End() {
    rig_.faults->AllOff();
    std::vector<uint64_t> visible;
    for (uint64_t key = 0; key < kKeys; ++key) {
      if (rig_.Has(key, SizeOf(key), SpaceOf(key))) visible.push_back(key);
    }
    const uint64_t how = random_.Below(3);
    if (how == 0) {
      rig_.Kill(random_.Next());
    } else if (how == 1) {
      rig_.LosePower(random_.Next());
    } else {
      rig_.faults->ReleaseHung();
      rig_.Close();
    }
    CheckPending();
    rig_.Open();
    if (how == 1) has_lied_ = true;  // headers may be there without their payload
    if (has_lied_) return;
    // The ring goes on after the restart and may have used its oldest segment meanwhile, one of a few.
    uint64_t kept = 0;
    for (const uint64_t key : visible) {
      const Reason reason = rig_.Load(key, SizeOf(key), SpaceOf(key));
      EXPECT_TRUE(reason == Reason::kNone || reason == Reason::kEvicted) << ReasonName(reason);
      kept += reason == Reason::kNone ? 1 : 0;
    }
    EXPECT_GE(kept, visible.size() / 2) << "how " << how;
  }

  Random random_;
  NvmeRig rig_;
  uint64_t appends_ = 0, appends_done_ = 0, loads_good_ = 0;
  const bool may_lie_ = random_.OneIn(2);
  bool has_lied_ = false;  // the disk has: what is visible need not be there
  std::set<uint64_t> since_flush_;
};

TEST(NvmeSimTest, Histories) {
  const char* text = std::getenv("TERRACE_SIM_SEED");
  const uint64_t first = text != nullptr ? std::strtoull(text, nullptr, 10) : 1;
  const uint64_t last = text != nullptr ? first : 100;
  uint64_t good = 0;
  for (uint64_t seed = first; seed <= last && !HasFailure(); ++seed) {
    SCOPED_TRACE(::testing::Message() << "TERRACE_SIM_SEED=" << seed);
    NvmeSim sim(seed);
    sim.Run(400);
    good += sim.loads_good();
  }
  EXPECT_GT(good, (last - first + 1) * 10) << "a cache that always misses proves nothing";
}

}  // namespace
}  // namespace terrace::testing
