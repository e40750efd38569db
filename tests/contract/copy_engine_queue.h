// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Contract of CopyEngine: what is taken, what is refused, in what order and how batches end. Part of
// copy_engine_contract.h.
#pragma once

#include <functional>
#include <thread>

#include "contract/copy_engine_fixture.h"

namespace terrace::gpu {

template <typename Rig>
class CopyEngineQueue : public CopyEngineTest<Rig> {
 protected:
  using CopyEngineTest<Rig>::rig_;
  using CopyEngineTest<Rig>::engine_;
  using CopyEngineTest<Rig>::kSeed;
  static constexpr uint64_t kPageBytes = 70'000;

  void SetUp() override {
    CopyEngineTest<Rig>::SetUp();
    if (engine_ == nullptr) return;
    named_ = layouts::Make("small",
                           {.n_allocations = 2, .stride = kPageBytes / 2, .bytes = kPageBytes / 2, .n_pages = 64});
    memory_ = std::make_unique<ModelledMemory>(rig_, named_.allocation_bytes);
    region_ = memory_->memory().MakeRegion(named_.layout);
    frames_ = std::make_unique<Frames>(rig_, 64, kPageBytes);
  }
  void TearDown() override {
    gate_.Open();
    engine_.reset();
    region_.reset();
  }

  // Page and frame i, both of the same number.
  CopyBatch StoreOf(uint64_t i) {
    CopyBatch batch = MakeBatch(region_, Direction::kStore, {&i, 1}, *frames_, kSeed);
    batch.pages[0].frame = frames_->at(i);
    return batch;
  }
  CopyBatch LoadOf(uint64_t i) {
    CopyBatch batch = StoreOf(i);
    batch.direction = Direction::kLoad;
    const std::vector<std::byte> payload = RandomBytes(900 + i, kPageBytes);
    frames_->Write(i, payload);
    batch.pages[0].checksums = ChecksumsUnder(kSeed, payload);
    memory_->SetModelPage(named_.layout, i, payload);
    return batch;
  }
  // From now until the gate is opened the engine can do nothing: all its call-backs wait.
  void KeepBusy() {
    const int n = rig_.callback_threads();
    for (int i = 0; i < n; ++i) {
      CopyBatch batch = StoreOf(63);
      Frames* own = busy_frames_.emplace_back(std::make_unique<Frames>(rig_, 1, kPageBytes)).get();
      batch.pages[0].frame = own->at(0);
      batch.done = [this](CopyBatch&, const absl::Status&) { gate_.Pass(); };
      ASSERT_TRUE(engine_->Submit(batch).ok());
      ASSERT_TRUE(gate_.WaitForWaiting(i + 1));
    }
  }

  NamedLayout named_;
  std::unique_ptr<ModelledMemory> memory_;
  std::shared_ptr<Region> region_;
  std::unique_ptr<Frames> frames_;
  std::vector<std::unique_ptr<Frames>> busy_frames_;
  Gate gate_;
};

TYPED_TEST_SUITE_P(CopyEngineQueue);

TYPED_TEST_P(CopyEngineQueue, WhatIsWrongIsRefusedAndLeftAsItWas) {
  const std::vector<std::pair<const char*, std::function<void(CopyBatch&)>>> wrongs = {
      {"no region", [](CopyBatch& b) { b.region = nullptr; }},
      {"no page", [](CopyBatch& b) { b.pages.clear(); }},
      {"too many pages", [](CopyBatch& b) { b.pages.resize(CopyBatch::kMaxPages + 1, b.pages[0]); }},
      {"no such page", [](CopyBatch& b) { b.pages[0].page = 64; }},
      {"a page far away", [](CopyBatch& b) { b.pages[0].page = ~0ull; }},
      {"no frame", [](CopyBatch& b) { b.pages[0].frame = nullptr; }},
      {"too few checksums", [](CopyBatch& b) { b.pages[0].checksums.pop_back(); }},
      {"too many checksums", [](CopyBatch& b) { b.pages[0].checksums.push_back(0); }},
      {"no such event", [](CopyBatch& b) { b.after_event = b.region->event_count(); }},
  };
  for (const auto& [name, spoil] : wrongs) {
    SCOPED_TRACE(name);
    CopyBatch batch = this->StoreOf(1);
    Outcome outcome;
    batch.done = outcome.Taker();
    spoil(batch);
    const size_t n_pages = batch.pages.size();
    const auto region = batch.region;
    const absl::Status status = this->engine_->Submit(batch);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_EQ(batch.pages.size(), n_pages);
    EXPECT_EQ(batch.region, region);
    EXPECT_TRUE(batch.done != nullptr);
    this->engine_->Drain();
    EXPECT_EQ(outcome.times(), 0);
  }
  CopyBatch good = this->StoreOf(1);
  Outcome outcome;
  TERRACE_RUN_BATCH(this->engine_, good, outcome);
  EXPECT_EQ(outcome.intact_count(), 1u) << "what was refused has no effect on what follows";
}

TYPED_TEST_P(CopyEngineQueue, TheQueueIsBounded) {
  this->KeepBusy();
  std::atomic<int> ended{0};
  for (const Direction direction : {Direction::kStore, Direction::kLoad}) {
    int taken = 0;
    absl::Status status;
    CopyBatch batch;
    for (;; ++taken) {
      ASSERT_LT(taken, 5000) << "it takes without end";
      batch = this->StoreOf(1);
      batch.direction = direction;
      batch.done = [&](CopyBatch&, const absl::Status&) { ended.fetch_add(1); };
      status = this->engine_->Submit(batch);
      if (!status.ok()) break;
    }
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    EXPECT_GE(taken, 64) << "the depth that was asked for";
    EXPECT_LE(taken, 64 + 64);
    EXPECT_TRUE(batch.done != nullptr && batch.pages.size() == 1 && batch.region == this->region_)
        << "a refused batch is left as it was";
    ended.fetch_sub(taken);
  }
  this->region_->Fence();  // they are many of one page and one frame: none of them is to run
  this->gate_.Open();
  this->engine_->Drain();
  EXPECT_EQ(ended.load(), 0);
  this->region_ = this->memory_->memory().MakeRegion(this->named_.layout);
  CopyBatch again = this->StoreOf(1);
  Outcome outcome;
  TERRACE_RUN_BATCH(this->engine_, again, outcome);
  EXPECT_EQ(outcome.intact_count(), 1u) << "there is room again";
}

TYPED_TEST_P(CopyEngineQueue, LoadsOvertakeStores) {
  this->KeepBusy();
  std::atomic<int> stores_ended{0}, seen_by_load{-1};
  for (uint64_t i = 0; i < 40; ++i) {
    CopyBatch store = this->StoreOf(i);
    store.done = [&](CopyBatch&, const absl::Status&) { stores_ended.fetch_add(1); };
    ASSERT_TRUE(this->engine_->Submit(store).ok());
  }
  CopyBatch load = this->LoadOf(50);
  load.done = [&](CopyBatch&, const absl::Status&) { seen_by_load.store(stores_ended.load()); };
  ASSERT_TRUE(this->engine_->Submit(load).ok());
  EXPECT_EQ(seen_by_load.load(), -1);
  this->gate_.Open();
  this->engine_->Drain();
  EXPECT_EQ(stores_ended.load(), 40);
  EXPECT_GE(seen_by_load.load(), 0);
  EXPECT_LT(seen_by_load.load(), 20) << "stores that ended before a load that came after all of them";
}

TYPED_TEST_P(CopyEngineQueue, AFencedRegionIsLeftAlone) {
  this->KeepBusy();
  std::vector<Outcome> outcomes(20);
  for (uint64_t i = 0; i < outcomes.size(); ++i) {
    CopyBatch batch = this->StoreOf(i);
    if (i % 2 == 1) {  // a load whose bytes are not in the model: it must not arrive
      const std::vector<std::byte> payload = RandomBytes(i, this->kPageBytes);
      this->frames_->Write(i, payload);
      batch.direction = Direction::kLoad;
      batch.pages[0].checksums = ChecksumsUnder(this->kSeed, payload);
    }
    batch.done = outcomes[i].Taker();
    ASSERT_TRUE(this->engine_->Submit(batch).ok());
  }
  this->region_->Fence();
  CopyBatch late = this->StoreOf(30);
  late.done = [](CopyBatch&, const absl::Status&) { ADD_FAILURE() << "refused, and done called"; };
  EXPECT_TRUE(absl::IsCancelled(this->engine_->Submit(late)));
  this->gate_.Open();
  for (Outcome& outcome : outcomes) {
    ASSERT_TRUE(outcome.Wait());
    EXPECT_TRUE(absl::IsCancelled(outcome.status())) << outcome.status();
    EXPECT_EQ(outcome.intact_count(), 0u);
  }
  this->engine_->Drain();
  for (const Outcome& outcome : outcomes) EXPECT_EQ(outcome.times(), 1);
  EXPECT_TRUE(this->memory_->IsAsModelled()) << "a batch that was cancelled has written";
  // Other regions of the same memory are served.
  this->region_ = this->memory_->memory().MakeRegion(this->named_.layout);
  CopyBatch other = this->StoreOf(2);
  Outcome outcome;
  TERRACE_RUN_BATCH(this->engine_, other, outcome);
  EXPECT_EQ(outcome.intact_count(), 1u);
}

TYPED_TEST_P(CopyEngineQueue, DrainWaitsForAll) {
  this->KeepBusy();
  std::atomic<int> ended{0};
  for (uint64_t i = 0; i < 30; ++i) {
    CopyBatch batch = i % 2 == 0 ? this->StoreOf(i) : this->LoadOf(i);
    batch.done = [&](CopyBatch&, const absl::Status&) { ended.fetch_add(1); };
    ASSERT_TRUE(this->engine_->Submit(batch).ok());
  }
  std::atomic<int> at_drained{-1};
  std::thread drainer([&] {
    this->engine_->Drain();
    at_drained.store(ended.load());
  });
  EXPECT_EQ(at_drained.load(), -1);
  this->gate_.Open();
  drainer.join();
  EXPECT_EQ(at_drained.load(), 30);
  this->engine_->Drain();  // nothing left: returns
  EXPECT_TRUE(this->memory_->IsAsModelled());
}

// Each batch ends once: done where it was begun, cancelled where not, and then nothing of it has been written.
TYPED_TEST_P(CopyEngineQueue, TheDestructorEndsAll) {
  std::vector<Outcome> outcomes(60);
  std::vector<std::vector<std::byte>> before, payloads;
  for (uint64_t i = 0; i < outcomes.size(); ++i) {
    before.push_back(this->memory_->ModelPage(this->named_.layout, i));
    CopyBatch batch = this->LoadOf(i);
    payloads.push_back(this->memory_->ModelPage(this->named_.layout, i));
    batch.done = outcomes[i].Taker();
    ASSERT_TRUE(this->engine_->Submit(batch).ok());
  }
  this->engine_.reset();
  for (uint64_t i = 0; i < outcomes.size(); ++i) {
    ASSERT_EQ(outcomes[i].times(), 1) << i;
    const bool ok = outcomes[i].status().ok();
    if (!ok) {
      EXPECT_TRUE(absl::IsCancelled(outcomes[i].status())) << outcomes[i].status();
    }
    EXPECT_EQ(outcomes[i].intact_count(), ok ? 1u : 0u);
    this->memory_->SetModelPage(this->named_.layout, i, ok ? payloads[i] : before[i]);
  }
  EXPECT_TRUE(this->memory_->IsAsModelled());
}

// What waits when the engine begins to close is not begun any more. The engine is kept busy until it refuses batches
// because it is closing.
TYPED_TEST_P(CopyEngineQueue, TheDestructorCancelsWhatWaits) {
  this->KeepBusy();
  std::vector<Outcome> outcomes(30);
  for (uint64_t i = 0; i < outcomes.size(); ++i) {
    CopyBatch batch = this->StoreOf(i);
    batch.done = outcomes[i].Taker();
    ASSERT_TRUE(this->engine_->Submit(batch).ok());
  }
  CopyEngine* const engine = this->engine_.get();
  std::thread closer([&] { this->engine_.reset(); });
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  bool is_closing = false;
  while (!is_closing && std::chrono::steady_clock::now() < deadline) {
    CopyBatch probe = this->StoreOf(40);
    probe.done = [](CopyBatch&, const absl::Status&) {};
    is_closing = absl::IsUnavailable(engine->Submit(probe));
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // poll
  }
  EXPECT_TRUE(is_closing);
  this->gate_.Open();
  closer.join();
  for (const Outcome& outcome : outcomes) {
    EXPECT_EQ(outcome.times(), 1);
    EXPECT_TRUE(absl::IsCancelled(outcome.status())) << outcome.status();
    EXPECT_EQ(outcome.intact_count(), 0u);
  }
}

// What done() and the batch hold (leases, sessions, regions) is let go with the batch, not with the engine.
TYPED_TEST_P(CopyEngineQueue, WhatABatchHoldsIsFreedBeforeDrainReturns) {
  const auto held = std::make_shared<int>(1);
  const long region_uses = this->region_.use_count();
  for (const bool is_load : {false, true}) {
    CopyBatch batch = is_load ? this->LoadOf(1) : this->StoreOf(1);
    batch.done = [held](CopyBatch&, const absl::Status&) {};
    batch.planes_done = [held](uint32_t) {};
    ASSERT_TRUE(this->engine_->Submit(batch).ok());
    batch = CopyBatch();
    this->engine_->Drain();
    EXPECT_EQ(held.use_count(), 1);
    EXPECT_EQ(this->region_.use_count(), region_uses);
  }
}

// done may submit the next batch, as movers do.
TYPED_TEST_P(CopyEngineQueue, DoneMaySubmit) {
  std::atomic<int> left{20};
  Outcome last;
  std::function<void()> submit_next = [&] {
    CopyBatch batch = this->StoreOf(5);
    batch.done = [&](CopyBatch& ended, const absl::Status& status) {
      if (left.fetch_sub(1) > 1) {
        submit_next();
      } else {
        last.Taker()(ended, status);
      }
    };
    const absl::Status status = this->engine_->Submit(batch);
    EXPECT_TRUE(status.ok()) << status;
  };
  submit_next();
  ASSERT_TRUE(last.Wait());
  EXPECT_EQ(last.intact_count(), 1u);
  this->engine_->Drain();
}

TYPED_TEST_P(CopyEngineQueue, ManyThreadsSubmit) {
  constexpr int kThreads = 4, kRounds = testing::Trials(60, 20);
  std::atomic<int> ended{0}, wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < kRounds; ++round) {
        // Each thread has pages and frames of its own, and loads what it has stored.
        const uint64_t page = t * 16 + round % 15;
        Outcome stored, loaded;
        CopyBatch store = this->StoreOf(page);
        store.done = stored.Taker();
        while (!this->engine_->Submit(store).ok()) std::this_thread::yield();
        if (!stored.Wait() || stored.intact_count() != 1) wrong.fetch_add(1);
        CopyBatch load = this->StoreOf(page);
        load.direction = Direction::kLoad;
        if (stored.pages().empty()) return;
        load.pages[0].checksums = stored.pages()[0].checksums;
        load.pages[0].page = t * 16 + 15;
        load.done = loaded.Taker();
        while (!this->engine_->Submit(load).ok()) std::this_thread::yield();
        if (!loaded.Wait() || loaded.intact_count() != 1) wrong.fetch_add(1);
        ended.fetch_add(2);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(ended.load(), 2 * kThreads * kRounds);
  EXPECT_EQ(wrong.load(), 0);
  for (uint64_t t = 0; t < kThreads; ++t) {
    const uint64_t last = t * 16 + (kRounds - 1) % 15;
    this->memory_->SetModelPage(this->named_.layout, t * 16 + 15,
                                this->memory_->ModelPage(this->named_.layout, last));
  }
  EXPECT_TRUE(this->memory_->IsAsModelled());
}

TYPED_TEST_P(CopyEngineQueue, StatsCount) {
  const CopyEngineStats before = this->engine_->Stats();
  CopyBatch store = this->StoreOf(1), load = this->LoadOf(2);
  Outcome stored, loaded;
  TERRACE_RUN_BATCH(this->engine_, store, stored);
  TERRACE_RUN_BATCH(this->engine_, load, loaded);
  this->engine_->Drain();
  const CopyEngineStats stats = this->engine_->Stats();
  EXPECT_EQ(stats.store_bytes - before.store_bytes, this->kPageBytes);
  EXPECT_EQ(stats.load_bytes - before.load_bytes, this->kPageBytes);
  EXPECT_EQ(stats.store_batches - before.store_batches, 1u);
  EXPECT_EQ(stats.load_batches - before.load_batches, 1u);
  EXPECT_EQ(stats.failed_batches, before.failed_batches);
  EXPECT_EQ(stats.health, "");
}

REGISTER_TYPED_TEST_SUITE_P(CopyEngineQueue, WhatIsWrongIsRefusedAndLeftAsItWas, TheQueueIsBounded,
                            LoadsOvertakeStores, AFencedRegionIsLeftAlone, DrainWaitsForAll, TheDestructorEndsAll,
                            TheDestructorCancelsWhatWaits, WhatABatchHoldsIsFreedBeforeDrainReturns, DoneMaySubmit,
                            ManyThreadsSubmit, StatsCount);

}  // namespace terrace::gpu
