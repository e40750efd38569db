// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Contract of CopyEngine: seeded lists of operations against a plain model. Part of copy_engine_contract.h.
// TERRACE_COPY_SEED=n runs the list of that seed alone, TERRACE_COPY_OPERATIONS=n makes lists longer or shorter.
#pragma once

#include <cstdlib>
#include <deque>

#include "contract/copy_engine_fixture.h"

namespace terrace::gpu {

template <typename Rig>
class CopyEngineRandom : public CopyEngineTest<Rig> {
 protected:
  using CopyEngineTest<Rig>::rig_;
  using CopyEngineTest<Rig>::engine_;
  static constexpr size_t kFrames = 24, kInFlight = 6;

  // What a frame must hold. empty: nothing that may be loaded.
  struct FrameModel {
    std::vector<std::byte> payload;
    std::vector<uint64_t> checksums;
    uint64_t identity_seed = 0;
    bool is_damaged = false, is_busy = false;
  };
  struct InFlight {
    Direction direction;
    std::vector<uint64_t> pages;
    std::vector<size_t> frames;
    std::atomic<uint32_t> planes_told{0};
    bool is_fenced = false;
    Outcome outcome;
  };

  static uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
  }

  void RunList(uint64_t seed, uint64_t n_operations) {
    testing::Random random(seed);
    const std::vector<NamedLayout> all = layouts::All();
    named_ = all[random.Below(all.size())];
    memory_ = std::make_unique<ModelledMemory>(rig_, named_.allocation_bytes);
    region_ = memory_->memory().MakeRegion(named_.layout);
    page_busy_.assign(named_.layout.n_pages, false);
    const bool on_device = rig_.has_device_frames() && random.OneIn(3);
    frames_ = std::make_unique<Frames>(rig_, kFrames, region_->page_bytes(), on_device, random.OneIn(3) ? 5 : 0);
    models_.assign(kFrames, {});
    for (uint64_t n = 0; n < n_operations && !this->HasFailure(); ++n) {
      SCOPED_TRACE(::testing::Message() << "operation " << n << ", layout " << named_.name);
      if (in_flight_.size() >= kInFlight || random.OneIn(4)) {
        EndOne(random);
      } else if (random.OneIn(40)) {
        Reopen();
      } else if (random.OneIn(60)) {
        Restart();
      } else {
        Begin(random);
      }
    }
    while (!in_flight_.empty() && !this->HasFatalFailure()) EndOne(random);
    EXPECT_TRUE(memory_->IsAsModelled());
    for (size_t f = 0; f < kFrames; ++f) {
      EXPECT_TRUE(frames_->GuardsAreWhole(f)) << "frame " << f;
      if (!models_[f].payload.empty()) {
        EXPECT_TRUE(frames_->Read(f) == models_[f].payload) << "frame " << f;
      }
    }
    region_.reset();
    memory_.reset();
    frames_.reset();
  }

 private:
  void Begin(testing::Random& random) {
    const Direction direction = random.OneIn(2) ? Direction::kStore : Direction::kLoad;
    auto work = std::make_unique<InFlight>();
    work->direction = direction;
    for (size_t wanted = 1 + random.Below(6), tries = 0; work->pages.size() < wanted && tries < 40; ++tries) {
      const uint64_t page = random.Below(page_busy_.size());
      const size_t frame = random.Below(kFrames);
      if (page_busy_[page] || models_[frame].is_busy) continue;
      if (direction == Direction::kLoad && models_[frame].payload.empty()) continue;
      page_busy_[page] = models_[frame].is_busy = true;
      work->pages.push_back(page);
      work->frames.push_back(frame);
    }
    if (work->pages.empty()) return;
    CopyBatch batch = MakeBatch(region_, direction, work->pages, *frames_, 0);
    for (size_t i = 0; i < work->pages.size(); ++i) {
      FrameModel& model = models_[work->frames[i]];
      PageCopy& copy = batch.pages[i];
      copy.frame = frames_->at(work->frames[i]);
      if (direction == Direction::kStore) {
        copy.identity_seed = model.identity_seed = random.Next();
        model.payload.clear();  // undefined until the end
        continue;
      }
      copy.identity_seed = model.identity_seed;
      copy.checksums = model.checksums;
      if (random.OneIn(8)) {
        model.payload[random.Below(model.payload.size())] ^= std::byte(1 << random.Below(8));
        frames_->Write(work->frames[i], model.payload);
        model.is_damaged = true;
      }
    }
    if (random.OneIn(2)) {
      batch.planes_done = [told = &work->planes_told](uint32_t n) {
        EXPECT_GT(n, told->load());
        told->store(n);
      };
    }
    const bool told_of_planes = batch.planes_done != nullptr && direction == Direction::kLoad;
    batch.done = work->outcome.Taker();
    const absl::Status status = engine_->Submit(batch);
    ASSERT_TRUE(status.ok()) << status;
    wants_planes_.push_back(told_of_planes);
    in_flight_.push_back(std::move(work));
  }

  // Any of them, not only the oldest.
  void EndOne(testing::Random& random) {
    if (in_flight_.empty()) return;
    const size_t which = random.Below(in_flight_.size());
    const std::unique_ptr<InFlight> work = std::move(in_flight_[which]);
    const bool wants_planes = wants_planes_[which];
    in_flight_.erase(in_flight_.begin() + static_cast<ptrdiff_t>(which));
    wants_planes_.erase(wants_planes_.begin() + static_cast<ptrdiff_t>(which));
    ASSERT_TRUE(work->outcome.Wait()) << "a batch does not end";
    ASSERT_EQ(work->outcome.times(), 1);
    const bool ok = work->outcome.status().ok();
    if (!ok) {
      ASSERT_TRUE(absl::IsCancelled(work->outcome.status()) && work->is_fenced) << work->outcome.status();
    }
    for (size_t i = 0; i < work->pages.size(); ++i) {
      page_busy_[work->pages[i]] = false;
      models_[work->frames[i]].is_busy = false;
      const PageCopy& copy = work->outcome.pages()[i];
      if (work->direction == Direction::kStore) {
        Stored(work->pages[i], work->frames[i], copy, ok);
      } else {
        Loaded(work->pages[i], work->frames[i], copy, ok);
      }
    }
    if (ok && wants_planes && work->outcome.intact_count() == work->pages.size()) {
      EXPECT_EQ(work->planes_told.load(), named_.layout.planes.size());
    }
  }
  void Stored(uint64_t page, size_t frame, const PageCopy& copy, bool ok) {
    FrameModel& model = models_[frame];
    ASSERT_EQ(copy.intact, ok);
    if (!ok) return;
    model.payload = memory_->ModelPage(named_.layout, page);
    model.checksums = ChecksumsUnder(model.identity_seed, model.payload);
    model.is_damaged = false;
    EXPECT_EQ(copy.checksums, model.checksums);
    EXPECT_TRUE(frames_->Read(frame) == model.payload);
  }
  void Loaded(uint64_t page, size_t frame, const PageCopy& copy, bool ok) {
    FrameModel& model = models_[frame];
    ASSERT_EQ(copy.intact, ok && !model.is_damaged);
    if (copy.intact) {
      memory_->SetModelPage(named_.layout, page, model.payload);
    } else {
      memory_->AdoptPage(named_.layout, page);
    }
    if (model.is_damaged) model.payload.clear();
  }

  // The engine's process ends and another registers the same memory.
  void Reopen() {
    region_->Fence();
    for (const auto& work : in_flight_) work->is_fenced = true;
    region_ = memory_->memory().MakeRegion(named_.layout);
  }
  void Restart() {
    for (const auto& work : in_flight_) work->is_fenced = true;  // those not begun are cancelled
    engine_.reset();
    engine_ = rig_.MakeEngine(this->kQueueDepth);
  }

  NamedLayout named_;
  std::unique_ptr<ModelledMemory> memory_;
  std::shared_ptr<Region> region_;
  std::unique_ptr<Frames> frames_;
  std::vector<FrameModel> models_;
  std::vector<bool> page_busy_;
  std::deque<std::unique_ptr<InFlight>> in_flight_;
  std::deque<bool> wants_planes_;
};

TYPED_TEST_SUITE_P(CopyEngineRandom);

TYPED_TEST_P(CopyEngineRandom, ListsOfOperations) {
  const uint64_t one = this->FromEnvironment("TERRACE_COPY_SEED", 0);
  const uint64_t n_operations = this->FromEnvironment("TERRACE_COPY_OPERATIONS", 150);
  const uint64_t last = one == 0 ? testing::Trials<uint64_t>(24, 4) : one;
  for (uint64_t seed = one == 0 ? 1 : one; seed <= last; ++seed) {
    SCOPED_TRACE(::testing::Message() << "run again with TERRACE_COPY_SEED=" << seed);
    this->RunList(seed, n_operations);
    if (this->HasFailure()) return;
  }
}

REGISTER_TYPED_TEST_SUITE_P(CopyEngineRandom, ListsOfOperations);

}  // namespace terrace::gpu
