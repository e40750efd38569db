// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What every BlockCopier owes its caller, as a typed suite. An implementation instantiates it with a
// factory:  struct Factory { static std::unique_ptr<gpu::BlockCopier> Make(uint32_t queue_depth); };
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "gpu/block_copier.h"
#include "kvstore/base/mutex.h"
#include "testing/payload.h"

namespace terrace::gpu {

template <typename Factory>
class BlockCopierContract : public ::testing::Test {
 protected:
  static constexpr uint64_t kSeed = 4711;

  // Source, target and checksums of one job, kept alive by the test.
  struct Work {
    std::vector<std::byte> source, target;
    std::vector<uint64_t> checksums;
    std::atomic<int> done{0};
    std::atomic<bool> intact{false};
    explicit Work(uint64_t number, size_t bytes)
        : source(testing::PayloadOf(testing::KeyOf(number), bytes)), target(bytes), checksums(ChecksumCount(bytes)) {
      const Piece piece{source.data(), bytes};
      CopyBlock({&piece, 1}, {}, kSeed, CopyCheck::kCompute, checksums, CopyStores::kCached);
    }
    CopyJob Job(CopyCheck check = CopyCheck::kVerify) {
      CopyJob job;
      job.source = {source.data(), source.size()};
      job.target = {target.data(), target.size()};
      job.identity_seed = kSeed;
      job.check = check;
      job.checksums = check == CopyCheck::kVerify ? checksums : std::vector<uint64_t>(checksums.size());
      job.done = [this](CopyJob& copied, bool ok) {
        computed = copied.checksums;
        intact.store(ok);
        done.fetch_add(1);
      };
      return job;
    }
    std::vector<uint64_t> computed;
  };

  // A job whose completion waits until the test opens the gate: the engine is busy meanwhile.
  class Gate {
   public:
    void Open() {
      MutexLock lock(&mu_);
      open_ = true;
      cv_.SignalAll();
    }
    void Wait() {
      MutexLock lock(&mu_);
      waiting_.fetch_add(1);
      while (!open_) cv_.Wait(&mu_);
    }
    int waiting() const { return waiting_.load(); }

   private:
    Mutex mu_;
    CondVar cv_;
    bool open_ = false;
    std::atomic<int> waiting_{0};
  };
  // Submits jobs that wait at the gate until the engine refuses; returns how many it took.
  int Fill(BlockCopier* engine, Gate* gate, std::atomic<int>* finished) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    for (int taken = 0;; ++taken) {
      waiting_works_.push_back(std::make_unique<Work>(taken, 1000));
      CopyJob job = waiting_works_.back()->Job(CopyCheck::kCompute);
      job.done = [gate, finished](CopyJob&, bool) {
        gate->Wait();
        finished->fetch_add(1);
      };
      const absl::Status status = engine->Submit(job);
      if (status.ok()) {
        // The first one is to be running, so that what follows stays in the queue.
        while (gate->waiting() == 0 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
        continue;
      }
      EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
      EXPECT_TRUE(job.done != nullptr) << "a refused job is left as it was";
      EXPECT_EQ(job.checksums.size(), 1u);
      return taken;
    }
  }
  std::vector<std::unique_ptr<Work>> waiting_works_;
};

TYPED_TEST_SUITE_P(BlockCopierContract);

TYPED_TEST_P(BlockCopierContract, CopiesAndComputes) {
  auto engine = TypeParam::Make(16);
  for (const size_t bytes : {1ul, 4095ul, 65536ul, 65537ul, 1ul << 20}) {
    typename TestFixture::Work work(bytes, bytes);
    CopyJob job = work.Job(CopyCheck::kCompute);
    ASSERT_TRUE(engine->Submit(job).ok());
    engine->Drain();
    EXPECT_EQ(work.done.load(), 1);
    EXPECT_TRUE(work.intact.load());
    EXPECT_EQ(work.target, work.source);
    EXPECT_EQ(work.computed, work.checksums);
  }
}

TYPED_TEST_P(BlockCopierContract, VerifiesWhatItCopies) {
  auto engine = TypeParam::Make(16);
  typename TestFixture::Work good(1, 200'000), bad(2, 200'000), foreign(3, 200'000);
  bad.source[150'000] ^= std::byte{4};
  CopyJob good_job = good.Job(), bad_job = bad.Job(), foreign_job = foreign.Job();
  foreign_job.identity_seed += 1;
  ASSERT_TRUE(engine->Submit(good_job).ok());
  ASSERT_TRUE(engine->Submit(bad_job).ok());
  ASSERT_TRUE(engine->Submit(foreign_job).ok());
  engine->Drain();
  EXPECT_TRUE(good.intact.load());
  EXPECT_EQ(good.target, good.source);
  EXPECT_EQ(bad.done.load(), 1);
  EXPECT_FALSE(bad.intact.load());
  EXPECT_EQ(foreign.done.load(), 1);
  EXPECT_FALSE(foreign.intact.load());
}

TYPED_TEST_P(BlockCopierContract, EachJobIsDoneExactlyOnce) {
  auto engine = TypeParam::Make(64);
  constexpr int kThreads = 4, kJobs = 100;
  std::vector<std::unique_ptr<typename TestFixture::Work>> works;
  for (int i = 0; i < kThreads * kJobs; ++i) {
    works.push_back(std::make_unique<typename TestFixture::Work>(i, 1000 + i * 97));
  }
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kJobs; ++i) {
        CopyJob job = works[t * kJobs + i]->Job();
        while (true) {
          const absl::Status status = engine->Submit(job);
          if (status.ok()) break;
          ASSERT_TRUE(absl::IsResourceExhausted(status));
          std::this_thread::yield();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  engine->Drain();
  for (const auto& work : works) {
    ASSERT_EQ(work->done.load(), 1);
    ASSERT_TRUE(work->intact.load());
    ASSERT_EQ(work->target, work->source);
  }
}

TYPED_TEST_P(BlockCopierContract, TheQueueIsBounded) {
  auto engine = TypeParam::Make(5);
  typename TestFixture::Gate gate;
  typename TestFixture::Work work(1, 1000);
  std::atomic<int> finished{0};
  const int taken = this->Fill(engine.get(), &gate, &finished);
  EXPECT_GE(taken, 6) << "one running, five waiting";
  EXPECT_LE(taken, 5 + 64);
  EXPECT_EQ(finished.load(), 0);
  gate.Open();
  engine->Drain();
  EXPECT_EQ(finished.load(), taken);
  CopyJob job = work.Job();
  EXPECT_TRUE(engine->Submit(job).ok()) << "there is room again";
  engine->Drain();
  EXPECT_EQ(work.done.load(), 1);
}

TYPED_TEST_P(BlockCopierContract, DrainWaitsForRunningJobs) {
  auto engine = TypeParam::Make(5);
  typename TestFixture::Gate gate;
  std::atomic<int> finished{0};
  const int taken = this->Fill(engine.get(), &gate, &finished);
  std::atomic<bool> drained{false};
  std::thread drainer([&] {
    engine->Drain();
    drained.store(true);
  });
  EXPECT_FALSE(drained.load());
  gate.Open();
  drainer.join();
  EXPECT_EQ(finished.load(), taken);
}

TYPED_TEST_P(BlockCopierContract, TheDestructorFinishesWhatWasTaken) {
  auto engine = TypeParam::Make(100);
  std::vector<std::unique_ptr<typename TestFixture::Work>> works;
  for (int i = 0; i < 50; ++i) works.push_back(std::make_unique<typename TestFixture::Work>(i, 100'000));
  for (const auto& work : works) {
    CopyJob job = work->Job();
    ASSERT_TRUE(engine->Submit(job).ok());
  }
  engine.reset();
  for (const auto& work : works) EXPECT_EQ(work->done.load(), 1);
}

// What done() holds (leases, sessions) must be let go with the job, not with the engine.
TYPED_TEST_P(BlockCopierContract, WhatAJobHoldsIsFreedBeforeDrainReturns) {
  auto engine = TypeParam::Make(5);
  typename TestFixture::Work work(1, 1000);
  auto held = std::make_shared<int>(1);
  CopyJob job = work.Job();
  job.done = [held](CopyJob&, bool) {};
  ASSERT_TRUE(engine->Submit(job).ok());
  job = CopyJob();
  engine->Drain();
  EXPECT_EQ(held.use_count(), 1);
}

REGISTER_TYPED_TEST_SUITE_P(BlockCopierContract, CopiesAndComputes, VerifiesWhatItCopies,
                            EachJobIsDoneExactlyOnce, TheQueueIsBounded, DrainWaitsForRunningJobs,
                            TheDestructorFinishesWhatWasTaken, WhatAJobHoldsIsFreedBeforeDrainReturns);

}  // namespace terrace::gpu
