// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// CudaCopyEngine when the GPU or its driver fails: on softcuda, which can be told to.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <map>
#include <thread>

#include "contract/copy_engine_fixture.h"
#include "gpu/cuda_copy_rig.h"
#include "gpu/host_region.h"

namespace terrace::gpu {
namespace {

constexpr uint64_t kSeed = 99;
// A deadline that a test waits for, and that batches beside keep even on a machine that is busy with others.
constexpr int64_t kBusy = 2'000'000'000;

class CudaCopyFaults : public ::testing::Test {
 protected:
  // Ten planes of 100,000 bytes: chunks of 224 KiB, so a batch of a few pages has several.
  CudaCopyFaults()
      : named_(layouts::Make("faults", {.n_allocations = 2, .planes_each = 5, .plane_distance = 12 * 100'096,
                                        .stride = 100'096, .bytes = 100'000, .n_pages = 12})) {}
  void Begin(const CudaSetup& setup = {}, int64_t deadline_ns = 60'000'000'000) {
    End();
    softcuda_.Reset();
    rig_ = std::make_shared<CudaCopyRig>(setup);
    ASSERT_EQ(rig_->why_skipped(), "");
    memory_ = std::make_shared<ModelledMemory>(*rig_, named_.allocation_bytes, 40);
    region_ = memory_->memory().MakeRegion(named_.layout);
    frames_ = std::make_shared<Frames>(*rig_, 12, region_->page_bytes());
    options_ = rig_->Options(64);
    options_.batch_deadline_ns = deadline_ns;
    options_.staging_bytes = setup.staging_bytes;
    auto engine = CudaCopyEngine::Make(rig_->device(), options_, setup.only);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }
  void End() {
    engine_.reset();
    region_.reset();
    frames_.reset();
    memory_.reset();
    rig_.reset();
  }
  ~CudaCopyFaults() override {
    softcuda_.Reset();
    End();
  }
  CopyBatch Store(std::vector<uint64_t> pages = {3, 1, 7}) {
    return MakeBatch(region_, Direction::kStore, pages, *frames_, kSeed);
  }
  CopyBatch Load(std::vector<uint64_t> pages = {3, 1, 7}) {
    return MakeLoad(region_, pages, *frames_, kSeed, 50, &payloads_);
  }
  // The engine is as good as new.
  void ExpectItWorks() {
    CopyBatch store = Store();
    Outcome stored, loaded;
    TERRACE_RUN_BATCH(engine_, store, stored);
    ASSERT_TRUE(stored.status().ok()) << stored.status();
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(stored.pages()[i].checksums, ChecksumsUnder(kSeed + i, frames_->Read(i)));
    }
    CopyBatch load = Load();
    TERRACE_RUN_BATCH(engine_, load, loaded);
    ASSERT_TRUE(loaded.status().ok()) << loaded.status();
    EXPECT_EQ(loaded.intact_count(), 3u);
    EXPECT_EQ(engine_->Stats().health, "");
  }
  std::map<std::string, uint64_t> Alive() {
    std::map<std::string, uint64_t> alive;
    for (const char* name : {"live_allocations", "live_bytes", "live_streams", "live_events", "live_registered",
                             "live_modules"}) {
      alive[name] = softcuda_.Counter(name);
    }
    return alive;
  }

  Softcuda softcuda_;
  const NamedLayout named_;
  std::shared_ptr<CudaCopyRig> rig_;
  std::shared_ptr<ModelledMemory> memory_;
  std::shared_ptr<Region> region_;
  std::shared_ptr<Frames> frames_;
  GpuOptions options_;
  std::unique_ptr<CopyEngine> engine_;
  std::vector<std::vector<std::byte>> payloads_;
};

TEST_F(CudaCopyFaults, ABitThatTurnsOverInALoadIsFound) {
  for (const CopyMeans means : {CopyMeans::kCopyEngine, CopyMeans::kStaged}) {
    for (int nth = 1; nth <= 8; ++nth) {
      SCOPED_TRACE(::testing::Message() << "means " << static_cast<int>(means) << ", copy " << nth);
      Begin({.only = means});
      CopyBatch load = Load();
      softcuda_.FlipBit(nth);
      Outcome outcome;
      TERRACE_RUN_BATCH(engine_, load, outcome);
      EXPECT_TRUE(outcome.status().ok()) << outcome.status();
      EXPECT_EQ(outcome.intact_count(), 2u) << "that page and no other";
    }
  }
}

TEST_F(CudaCopyFaults, ABitThatTurnsOverInAStoreIsFoundByTheLoad) {
  for (const CopyMeans means : {CopyMeans::kCopyEngine, CopyMeans::kStaged}) {
    SCOPED_TRACE(static_cast<int>(means));
    Begin({.only = means});
    CopyBatch store = Store();
    softcuda_.FlipBit(2);
    Outcome stored, loaded;
    TERRACE_RUN_BATCH(engine_, store, stored);
    softcuda_.Reset();
    CopyBatch load = Store();
    load.direction = Direction::kLoad;
    for (size_t i = 0; i < 3; ++i) load.pages[i].checksums = stored.pages()[i].checksums;
    TERRACE_RUN_BATCH(engine_, load, loaded);
    EXPECT_EQ(loaded.intact_count(), 2u);
  }
}

// Whichever copy it is in, of the store or of the load: what counts as intact is what the pages held at first.
TEST_F(CudaCopyFaults, ABitThatTurnsOverIsFoundWithoutKernels) {
  for (const bool is_pinned : {true, false}) {
    int found = 0;
    for (int nth = 1; nth <= 24; nth += testing::Trials(1, 4)) {
      SCOPED_TRACE(::testing::Message() << (is_pinned ? "pinned" : "bounced") << ", copy " << nth);
      Begin({.is_pinned = is_pinned, .has_kernels = false});
      std::vector<std::vector<std::byte>> before;
      for (const uint64_t page : {3, 1, 7}) before.push_back(memory_->ModelPage(named_.layout, page));
      softcuda_.FlipBit(nth);
      CopyBatch store = Store();
      Outcome stored, loaded;
      TERRACE_RUN_BATCH(engine_, store, stored);
      CopyBatch load = Store();
      load.direction = Direction::kLoad;
      for (size_t i = 0; i < 3; ++i) load.pages[i].checksums = stored.pages()[i].checksums;
      TERRACE_RUN_BATCH(engine_, load, loaded);
      found += loaded.intact_count() < 3;
      for (size_t i = 0; i < 3; ++i) {
        const uint64_t page = loaded.pages()[i].page;
        memory_->AdoptPage(named_.layout, page);
        if (loaded.pages()[i].intact) {
          EXPECT_TRUE(memory_->ModelPage(named_.layout, page) == before[i]) << "a wrong byte";
        }
      }
    }
    EXPECT_GT(found, testing::Trials(10, 2)) << "the flips were not there";
  }
}

TEST_F(CudaCopyFaults, ACopyThatHangsFencesTheDevice) {
  Begin({}, kBusy);
  // Each has frames of its own: once let go, the lost copies run side by side.
  const auto load_frames = std::make_shared<Frames>(*rig_, 3, region_->page_bytes());
  const auto second_frames = std::make_shared<Frames>(*rig_, 2, region_->page_bytes());
  softcuda_.Hang(true);
  CopyBatch store = Store();
  CopyBatch load = MakeLoad(region_, std::vector<uint64_t>{5, 6, 8}, *load_frames, kSeed, 50, &payloads_);
  CopyBatch second = MakeBatch(region_, Direction::kStore, std::vector<uint64_t>{9, 10}, *second_frames, kSeed);
  Outcome stored, loaded, seconded;
  std::atomic<bool> store_lost{false}, load_lost{false};
  store.done = [&, taker = stored.Taker()](CopyBatch& batch, const absl::Status& status) {
    store_lost = batch.frames_lost;
    taker(batch, status);
  };
  load.done = [&, taker = loaded.Taker()](CopyBatch& batch, const absl::Status& status) {
    load_lost = batch.frames_lost;
    taker(batch, status);
  };
  second.done = seconded.Taker();
  ASSERT_TRUE(engine_->Submit(store).ok() && engine_->Submit(load).ok() && engine_->Submit(second).ok());
  ASSERT_TRUE(stored.Wait() && loaded.Wait() && seconded.Wait());
  // Which of them is noticed first is the clock's matter.
  EXPECT_TRUE(absl::IsDeadlineExceeded(stored.status()) || absl::IsDeadlineExceeded(loaded.status()));
  for (const Outcome* outcome : {&stored, &loaded, &seconded}) {
    EXPECT_TRUE(absl::IsDeadlineExceeded(outcome->status()) || absl::IsUnavailable(outcome->status()))
        << outcome->status();
    EXPECT_EQ(outcome->intact_count(), 0u);
    EXPECT_EQ(outcome->times(), 1);
  }
  EXPECT_TRUE(store_lost.load()) << "the copy may still write";
  EXPECT_TRUE(load_lost.load()) << "the copy may still read, into another tenant's pages' bytes";
  EXPECT_NE(engine_->Stats().health, "");
  EXPECT_GE(engine_->Stats().lost_frames, 6u);
  CopyBatch late = Store();
  EXPECT_TRUE(absl::IsUnavailable(engine_->Submit(late)));
  EXPECT_EQ(late.pages.size(), 3u);
  engine_->Drain();
  engine_.reset();  // does not wait for what hangs
  // The lost copies go on at any time: what they touch stays until the process ends, as it must in the daemon.
  static auto* const lost = new std::vector<std::shared_ptr<void>>;
  *lost = {rig_, memory_, region_, frames_, load_frames, second_frames};
  softcuda_.Hang(false);
}

TEST_F(CudaCopyFaults, AGpuThatHangsBeforeAnEnginesEventIsFencedToo) {
  Begin({}, 100'000'000);
  memory_->memory().HoldThenWrite(3, 0, 0, std::vector<std::byte>(16));
  softcuda_.Hang(true);
  CopyBatch batch = Store();
  batch.after_event = 3;
  Outcome outcome;
  TERRACE_RUN_BATCH(engine_, batch, outcome);
  EXPECT_TRUE(absl::IsDeadlineExceeded(outcome.status())) << outcome.status();
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (engine_->Stats().health.empty() && std::chrono::steady_clock::now() < until) std::this_thread::yield();
  EXPECT_THAT(engine_->Stats().health, ::testing::HasSubstr("has done nothing"));
  softcuda_.Hang(false);
  memory_->memory().Release();
}

TEST_F(CudaCopyFaults, AStickyErrorEndsAllBatches) {
  for (const CUresult error : {CUDA_ERROR_ECC_UNCORRECTABLE, CUDA_ERROR_ILLEGAL_ADDRESS, CUDA_ERROR_UNKNOWN}) {
    SCOPED_TRACE(error);
    Begin();
    // In mid-batch: when the first planes have arrived.
    CopyBatch load = Load({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
    load.planes_done = [&](uint32_t) { softcuda_.BreakDevice(0, error); };
    Frames other_frames(*rig_, 12, region_->page_bytes());
    CopyBatch store = MakeBatch(region_, Direction::kStore, std::vector<uint64_t>{1, 2}, other_frames, kSeed);
    store.after_event = 0;
    memory_->memory().HoldThenWrite(0, 0, 0, std::vector<std::byte>(16));
    Outcome loaded, stored;
    std::atomic<bool> store_lost{true};
    store.done = [&, taker = stored.Taker()](CopyBatch& batch, const absl::Status& status) {
      store_lost = batch.frames_lost;
      taker(batch, status);
    };
    load.done = loaded.Taker();
    ASSERT_TRUE(engine_->Submit(store).ok() && engine_->Submit(load).ok());
    ASSERT_TRUE(loaded.Wait() && stored.Wait());
    EXPECT_TRUE(absl::IsUnavailable(loaded.status())) << loaded.status();
    EXPECT_TRUE(absl::IsUnavailable(stored.status())) << stored.status();
    EXPECT_FALSE(store_lost.load()) << "nothing of it was begun";
    EXPECT_EQ(loaded.intact_count() + stored.intact_count(), 0u);
    EXPECT_NE(engine_->Stats().health, "");
    CopyBatch late = Store();
    EXPECT_TRUE(absl::IsUnavailable(engine_->Submit(late)));
    memory_->memory().Release();
    softcuda_.BreakDevice(0, 0);
  }
}

// One call in the middle answers an error after which the GPU is as good as before.
TEST_F(CudaCopyFaults, AnErrorOfOneCallEndsThatBatchAndNoOther) {
  const std::pair<const char*, CopyMeans> calls[] = {
      {"cuMemcpyAsync", CopyMeans::kStaged},       {"cuMemcpyAsync", CopyMeans::kCopyEngine},
      {"cuMemcpyBatchAsync", CopyMeans::kStaged},  {"cuMemcpyBatchAsync", CopyMeans::kCopyEngine},
      {"cuMemcpy2DAsync", CopyMeans::kCopyEngine}, {"cuLaunchKernel", CopyMeans::kDirect},
      {"cuLaunchKernel", CopyMeans::kStaged},      {"cuLaunchKernel", CopyMeans::kCopyEngine},
      {"cuStreamQuery", CopyMeans::kStaged}};
  int ended_badly = 0;
  for (const auto& [function, means] : calls) {
    for (const int after : {0, 1, 3}) {
      SCOPED_TRACE(::testing::Message() << function << " after " << after);
      Begin({.only = means});
      CopyBatch load = Load(), store = Store({8, 9});
      Frames other_frames(*rig_, 2, region_->page_bytes());
      for (size_t i = 0; i < 2; ++i) store.pages[i].frame = other_frames.at(i);
      softcuda_.Fail(function, CUDA_ERROR_OUT_OF_MEMORY, after, 1);
      Outcome loaded, stored;
      TERRACE_RUN_BATCH(engine_, load, loaded);
      TERRACE_RUN_BATCH(engine_, store, stored);
      for (const Outcome* outcome : {&loaded, &stored}) {
        if (outcome->status().ok()) {
          EXPECT_EQ(outcome->intact_count(), outcome->pages().size());
        } else {
          ++ended_badly;
          EXPECT_STRNE(function, "cuLaunchKernel") << "that chunk is copied without kernels";
          EXPECT_TRUE(absl::IsResourceExhausted(outcome->status())) << outcome->status();
          EXPECT_EQ(outcome->intact_count(), 0u);
        }
      }
      softcuda_.Fail(nullptr, 0);
      ExpectItWorks();
    }
  }
  EXPECT_GE(ended_badly, 4) << "the faults were met";
}

TEST_F(CudaCopyFaults, WithoutGpuMemoryItStartsSmaller) {
  Begin();
  engine_.reset();
  const auto before = Alive();
  int all_calls = 0;
  for (const int times : {1, 3, 8, -1}) {
    for (int after = 0; after < 14; after += testing::Trials(1, 3)) {
      SCOPED_TRACE(::testing::Message() << "after " << after << ", " << times << " times");
      softcuda_.Reset();
      softcuda_.Fail("cuMemAlloc", CUDA_ERROR_OUT_OF_MEMORY, after, times);
      GpuOptions options = options_;
      options.staging_bytes = 16 << 20;
      auto engine = CudaCopyEngine::Make(rig_->device(), options);
      ASSERT_TRUE(engine.ok()) << engine.status();
      softcuda_.Fail(nullptr, 0);
      all_calls += static_cast<int>(softcuda_.Counter("cuMemAlloc"));
      engine_ = *std::move(engine);
      ExpectItWorks();
      engine_.reset();
      EXPECT_EQ(Alive(), before);
    }
  }
  EXPECT_GT(all_calls, testing::Trials(200, 70));
}

TEST_F(CudaCopyFaults, WhatCannotBeHadAtAllIsAnErrorAndLeavesNothing) {
  Begin();
  engine_.reset();
  const auto before = Alive();
  for (const char* function : {"cuMemHostAlloc", "cuStreamCreateWithPriority", "cuMemHostGetDevicePointer",
                               "cuCtxGetStreamPriorityRange"}) {
    for (const int after : {0, 1, 5}) {
      SCOPED_TRACE(::testing::Message() << function << " after " << after);
      softcuda_.Reset();
      softcuda_.Fail(function, CUDA_ERROR_OUT_OF_MEMORY, after, -1);
      auto engine = CudaCopyEngine::Make(rig_->device(), options_);
      if (function != std::string("cuCtxGetStreamPriorityRange") || after == 0) {
        EXPECT_TRUE(absl::IsResourceExhausted(engine.status())) << engine.status();
      }
      engine = absl::UnknownError("");
      softcuda_.Fail(nullptr, 0);
      EXPECT_EQ(Alive(), before);
    }
  }
  for (const char* function : {"cuModuleLoadData", "cuModuleGetFunction"}) {
    softcuda_.Reset();
    softcuda_.Fail(function, CUDA_ERROR_NOT_FOUND, 0, 1);
    auto engine = CudaCopyEngine::Make(rig_->device(), options_);
    ASSERT_TRUE(engine.ok()) << "it goes on without kernels: " << engine.status();
    engine_ = *std::move(engine);
    ExpectItWorks();
    EXPECT_EQ(softcuda_.Counter("kernels"), 0u);
    engine_.reset();
    EXPECT_EQ(Alive(), before);
  }
}

// A driver that has loaded the kernels and refuses every launch: all is copied by copy engines, right and checked.
TEST_F(CudaCopyFaults, KernelsThatCannotBeLaunchedAreDoneWithout) {
  struct Case {
    CUresult error;
    CopyMeans means;
    bool is_pinned;
  };
  for (const Case& c : {Case{CUDA_ERROR_NO_BINARY_FOR_GPU, CopyMeans::kCopyEngine, true},
                        Case{CUDA_ERROR_OUT_OF_MEMORY, CopyMeans::kCopyEngine, false},
                        Case{CUDA_ERROR_INVALID_IMAGE, CopyMeans::kDirect, true},
                        Case{CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, CopyMeans::kDirect, false},
                        Case{CUDA_ERROR_OUT_OF_MEMORY, CopyMeans::kStaged, true},
                        Case{CUDA_ERROR_NO_BINARY_FOR_GPU, CopyMeans::kStaged, false}}) {
    SCOPED_TRACE(::testing::Message() << c.error << ", means " << static_cast<int>(c.means) << c.is_pinned);
    Begin({.only = c.means, .is_pinned = c.is_pinned});
    softcuda_.Fail("cuLaunchKernel", c.error, 0, -1);
    for (int round = 0; round < 2; ++round) {
      ExpectItWorks();
      for (size_t i = 0; i < 3; ++i) {
        const uint64_t page = std::array{3, 1, 7}[i];
        memory_->AdoptPage(named_.layout, page);
        EXPECT_TRUE(payloads_[i] == memory_->ModelPage(named_.layout, page)) << "page " << page;
      }
    }
    // Any bit that turns over on the way is found as with kernels.
    for (int nth = 1; nth <= 3; ++nth) {
      CopyBatch load = Load();
      softcuda_.FlipBit(nth);
      Outcome outcome;
      TERRACE_RUN_BATCH(engine_, load, outcome);
      ASSERT_TRUE(outcome.status().ok()) << outcome.status();
      EXPECT_EQ(outcome.intact_count(), 2u) << "copy " << nth;
    }
    const CopyEngineStats stats = engine_->Stats();
    EXPECT_EQ(stats.failed_batches, 0u);
    EXPECT_EQ(stats.kernel_bytes + stats.staged_bytes, 0u);
    EXPECT_EQ(softcuda_.Counter("kernels"), 0u);
    EXPECT_LE(softcuda_.Counter("cuLaunchKernel"), 3u) << "tried now and then only";
  }
}

TEST_F(CudaCopyFaults, KernelsComeBackWhenTheyCanBeLaunchedAgain) {
  Begin({.only = CopyMeans::kDirect});
  softcuda_.Fail("cuLaunchKernel", CUDA_ERROR_OUT_OF_MEMORY, 0, 1);
  for (uint32_t batch = 0; batch < 2 * CudaCopyKernels::kFirstRest && softcuda_.Counter("kernels") == 0; ++batch) {
    ExpectItWorks();
  }
  EXPECT_GT(softcuda_.Counter("kernels"), 0u);
  EXPECT_GT(engine_->Stats().kernel_bytes, 0u);
  EXPECT_EQ(softcuda_.Counter("cuLaunchKernel"), softcuda_.Counter("kernels") + 1);
  ExpectItWorks();
}

// Drivers need not know ranges of host memory.
TEST_F(CudaCopyFaults, FramesAreFoundWithoutRanges) {
  Begin();
  softcuda_.Fail("cuPointerGetAttribute", CUDA_ERROR_INVALID_VALUE, 1, 1);  // after the kind of memory
  CopyBatch store = Store({4});
  Outcome outcome;
  TERRACE_RUN_BATCH(engine_, store, outcome);
  EXPECT_EQ(outcome.intact_count(), 1u);
  EXPECT_TRUE(frames_->Read(0) == memory_->ModelPage(named_.layout, 4));
  EXPECT_EQ(softcuda_.Counter("cuMemHostAlloc"), 6u) << "the lanes' tables, no bounce buffer";
}

TEST_F(CudaCopyFaults, NoMultiprocessorsNoKernels) {
  Begin();
  engine_.reset();
  options_.max_sms = 0;
  auto engine = CudaCopyEngine::Make(rig_->device(), options_);
  ASSERT_TRUE(engine.ok()) << engine.status();
  engine_ = *std::move(engine);
  ExpectItWorks();
  EXPECT_EQ(softcuda_.Counter("kernels"), 0u);
}

TEST_F(CudaCopyFaults, EverythingIsGivenBack) {
  const auto before = Alive();
  for (const bool is_pinned : {true, false}) {
    for (const CopyMeans means : {CopyMeans::kCopyEngine, CopyMeans::kDirect, CopyMeans::kStaged}) {
      Begin({.only = means, .is_pinned = is_pinned});
      EXPECT_NE(Alive(), before);
      ExpectItWorks();
      memory_->memory().HoldThenWrite(3, 0, 0, std::vector<std::byte>(16));
      CopyBatch batch = Load();
      batch.after_event = 3;
      Outcome outcome;
      batch.done = outcome.Taker();
      ASSERT_TRUE(engine_->Submit(batch).ok());
      memory_->memory().Release();
      ASSERT_TRUE(outcome.Wait());
      End();
      EXPECT_EQ(Alive(), before);
    }
  }
}

TEST_F(CudaCopyFaults, ARegionOfAnotherOpeningOfTheDeviceIsRefused) {
  Begin();
  CudaCopyRig other;
  const auto engine = other.MakeEngine(4);
  CopyBatch batch = Store();
  EXPECT_TRUE(absl::IsInvalidArgument(engine->Submit(batch)));
}

TEST_F(CudaCopyFaults, AnEngineThatHangsHoldsUpItsOwnBatchesOnly) {
  Begin({}, kBusy);
  memory_->memory().HoldThenWrite(5, 0, 0, std::vector<std::byte>(16));
  CopyBatch held = Store();
  held.after_event = 5;
  Outcome outcome;
  std::atomic<bool> lost{true};
  held.done = [&, taker = outcome.Taker()](CopyBatch& batch, const absl::Status& status) {
    lost = batch.frames_lost;
    taker(batch, status);
  };
  ASSERT_TRUE(engine_->Submit(held).ok());
  Frames other_frames(*rig_, 3, region_->page_bytes());
  while (outcome.times() == 0) {
    CopyBatch other = MakeBatch(region_, Direction::kStore, std::vector<uint64_t>{1, 2, 3}, other_frames, kSeed);
    Outcome ended;
    TERRACE_RUN_BATCH(engine_, other, ended);
    ASSERT_EQ(ended.intact_count(), 3u) << ended.status();
  }
  EXPECT_TRUE(absl::IsDeadlineExceeded(outcome.status())) << outcome.status();
  EXPECT_FALSE(lost.load()) << "nothing was begun";
  EXPECT_EQ(engine_->Stats().health, "") << "the GPU has done nothing wrong";
  memory_->memory().Release();
  ExpectItWorks();
}

TEST_F(CudaCopyFaults, MoreBatchesWaitForEventsThanThereAreGates) {
  Begin();
  memory_->memory().HoldThenWrite(3, 0, 0, std::vector<std::byte>(16));
  const size_t n = CudaCopyGates::kMaxGates + 8;
  std::vector<Outcome> outcomes(n);
  for (size_t i = 0; i < n; ++i) {
    CopyBatch batch = Store({i % 12});
    batch.pages[0].frame = frames_->at(i % 12);
    batch.after_event = 3;
    batch.done = outcomes[i].Taker();
    ASSERT_TRUE(engine_->Submit(batch).ok());
  }
  memory_->memory().Release();
  for (Outcome& outcome : outcomes) {
    ASSERT_TRUE(outcome.Wait());
    EXPECT_EQ(outcome.intact_count(), 1u) << outcome.status();
  }
}

TEST_F(CudaCopyFaults, BatchesThatWereGivenUpKeepNoGate) {
  Begin({}, kBusy);
  memory_->memory().HoldThenWrite(3, 0, 0, std::vector<std::byte>(16));
  std::vector<Outcome> outcomes(CudaCopyGates::kMaxGates);
  for (Outcome& outcome : outcomes) {
    CopyBatch batch = Store({1});
    batch.after_event = 3;
    batch.done = outcome.Taker();
    ASSERT_TRUE(engine_->Submit(batch).ok());
  }
  for (Outcome& outcome : outcomes) {
    ASSERT_TRUE(outcome.Wait());
    EXPECT_TRUE(absl::IsDeadlineExceeded(outcome.status())) << outcome.status();
  }
  memory_->memory().Release();
  // Another event that is late, but comes: batches have gates again (once their streams have seen the first event).
  const uint64_t before = softcuda_.Counter("cuStreamWaitEvent");
  const auto waits = [&] { return softcuda_.Counter("cuStreamWaitEvent") - before; };
  int copied = 0;
  for (int round = 0; round < 300 && waits() < 50; ++round) {
    memory_->memory().HoldThenWrite(4, 0, 0, std::vector<std::byte>(16));
    CopyBatch batch = Store({2});
    batch.after_event = 4;
    Outcome outcome;
    batch.done = outcome.Taker();
    ASSERT_TRUE(engine_->Submit(batch).ok());
    CopyBatch other = Load({5});
    other.pages[0].frame = frames_->at(7);
    frames_->Write(7, payloads_[0]);
    Outcome ended;
    TERRACE_RUN_BATCH(engine_, other, ended);
    memory_->memory().Release();
    ASSERT_TRUE(outcome.Wait());
    // On a machine that has other things to do the event may come too late for the deadline of this test.
    if (absl::IsDeadlineExceeded(outcome.status())) continue;
    ASSERT_EQ(outcome.intact_count(), 1u) << outcome.status();
    ++copied;
  }
  EXPECT_GE(waits(), 50u);
  EXPECT_GE(copied, 10);
}

TEST_F(CudaCopyFaults, TheEndCancelsWhatWaitsForAnEvent) {
  Begin();
  memory_->memory().HoldThenWrite(3, 0, 0, std::vector<std::byte>(16));
  CopyBatch batch = Load();
  batch.after_event = 3;
  Outcome outcome;
  batch.done = outcome.Taker();
  ASSERT_TRUE(engine_->Submit(batch).ok());
  engine_.reset();
  EXPECT_EQ(outcome.times(), 1);
  EXPECT_TRUE(absl::IsCancelled(outcome.status())) << outcome.status();
  memory_->memory().Release();
}

TEST_F(CudaCopyFaults, FramesAndRegionsOfAnotherKindAreRefused) {
  Begin();
  CopyBatch batch = Store({1});
  batch.frames_on_device = true;
  EXPECT_TRUE(absl::IsInvalidArgument(engine_->Submit(batch))) << "pinned host memory is not the GPU's";
  batch.frames_on_device = false;
  batch.pages[0].frame = rig_->MakeFrames(region_->page_bytes(), true);
  EXPECT_TRUE(absl::IsInvalidArgument(engine_->Submit(batch))) << "nor the other way round";
  std::vector<std::byte> ordinary(region_->page_bytes());
  batch.pages[0].frame = ordinary.data();
  batch.frames_on_device = true;
  EXPECT_TRUE(absl::IsInvalidArgument(engine_->Submit(batch)));
  std::vector<std::byte> host(1 << 16);
  const std::span<std::byte> allocations[] = {host};
  RegionLayout layout;
  layout.n_pages = 4;
  layout.planes = {{0, 0, 4096, 4096}};
  CopyBatch on_host;
  on_host.region = HostRegion::Wrap(layout, allocations).value();
  on_host.pages.resize(1);
  on_host.pages[0].frame = ordinary.data();
  on_host.pages[0].checksums.resize(1);
  EXPECT_TRUE(absl::IsInvalidArgument(engine_->Submit(on_host)));
  ExpectItWorks();
}

// Frames on both sides of the end of what is pinned.
TEST_F(CudaCopyFaults, BatchesWithSomeFramesNotPinnedAreCopied) {
  Begin();
  CopyBatch store = Store({1, 2});
  std::vector<std::byte> ordinary(region_->page_bytes());
  store.pages[1].frame = ordinary.data();
  Outcome outcome;
  TERRACE_RUN_BATCH(engine_, store, outcome);
  EXPECT_EQ(outcome.intact_count(), 2u);
  EXPECT_TRUE(frames_->Read(0) == memory_->ModelPage(named_.layout, 1));
  EXPECT_TRUE(ordinary == memory_->ModelPage(named_.layout, 2));
}

}  // namespace
}  // namespace terrace::gpu
