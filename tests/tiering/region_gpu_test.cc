// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Regions of GPUs through TierStack, on a GPU that the test plays: which engine copies, what happens when it fails,
// loses frames or goes out of service, what is pinned, and the GPU tier in the path of loads. What CUDA does is
// tested in tests/gpu.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <thread>

#include "testing/host_gpus.h"
#include "testing/region_fixture.h"
#include "testing/slow_disk.h"

namespace terrace::tiering {
namespace {

using testing::KeyOf;
using testing::KeysOf;
using testing::LoadRequestOf;
using testing::PayloadOf;
using testing::RegionMemory;
using testing::StoreRequestOf;
using testing::TestStack;

// Copies as HostCopyEngine does, in "GPU memory" too, unless the next batches are to fail. Outlives the stack.
class PlayedEngine final : public gpu::CopyEngine {
 public:
  void FailNext(absl::Status status, bool lose_frames) {
    MutexLock lock(&mu_);
    failure_ = std::move(status);
    lose_frames_ = lose_frames;
  }
  std::set<std::byte*> FramesSeen() {
    MutexLock lock(&mu_);
    return frames_;
  }
  // The next batch is not taken.
  void RefuseNext(absl::Status status) {
    MutexLock lock(&mu_);
    refusal_ = std::move(status);
  }
  // Of the batches from GPU memory since the last call: where each page's bytes came from.
  std::vector<std::byte*> TakeDeviceFrames() {
    MutexLock lock(&mu_);
    return std::exchange(device_frames_, {});
  }
  absl::Status Submit(gpu::CopyBatch& batch) override {
    absl::Status failure;
    bool lost = false;
    {
      MutexLock lock(&mu_);
      if (!refusal_.ok()) return std::exchange(refusal_, absl::OkStatus());
      for (const gpu::PageCopy& page : batch.pages) {
        frames_.insert(page.frame);
        if (batch.frames_on_device) device_frames_.push_back(page.frame);
      }
      failure = std::exchange(failure_, absl::OkStatus());
      lost = std::exchange(lose_frames_, false);
    }
    batch.frames_on_device = false;
    if (failure.ok()) return engine_.Submit(batch);
    batch.frames_lost = lost;
    gpu::CopyBatch failed = std::move(batch);
    failed.done(failed, failure);
    return absl::OkStatus();
  }
  void Drain() override { engine_.Drain(); }
  gpu::CopyEngineStats Stats() const override { return engine_.Stats(); }

 private:
  Mutex mu_;
  absl::Status failure_ ABSL_GUARDED_BY(mu_), refusal_ ABSL_GUARDED_BY(mu_);
  bool lose_frames_ ABSL_GUARDED_BY(mu_) = false;
  std::set<std::byte*> frames_ ABSL_GUARDED_BY(mu_);
  std::vector<std::byte*> device_frames_ ABSL_GUARDED_BY(mu_);
  gpu::HostCopyEngine engine_{1, 64};
};

// What the test sees and sets of the GPU. Outlives the stack.
struct Play {
  PlayedEngine engine;
  Mutex mu;
  absl::Status health ABSL_GUARDED_BY(mu);
  std::map<std::byte*, uint64_t> pinned ABSL_GUARDED_BY(mu);
  int unpinned_twice ABSL_GUARDED_BY(mu) = 0;
};

class PlayedGpus final : public gpu::Gpus {
 public:
  explicit PlayedGpus(Play* play) : play_(play) {}
  std::span<const gpu::GpuInfo> devices() const override { return host_.devices(); }
  const std::string& why_none() const override { return host_.why_none(); }
  std::string driver_version() const override { return host_.driver_version(); }
  absl::StatusOr<uint32_t> Find(const gpu::DeviceUuid& uuid) const override { return host_.Find(uuid); }
  gpu::CopyEngine* engine(uint32_t) override { return &play_->engine; }
  absl::Status Health(uint32_t) const override {
    MutexLock lock(&play_->mu);
    return play_->health;
  }
  absl::StatusOr<std::shared_ptr<gpu::Region>> OpenRegion(uint32_t device, gpu::RegionLayout layout,
                                                          std::span<const gpu::AllocationHandle> allocations,
                                                          std::span<const gpu::EventHandle> events) override {
    return host_.OpenRegion(device, std::move(layout), allocations, events);
  }
  absl::Status PinHost(std::byte* base, uint64_t bytes) override {
    MutexLock lock(&play_->mu);
    play_->pinned[base] = bytes;
    return absl::OkStatus();
  }
  void UnpinHost(std::byte* base) override {
    MutexLock lock(&play_->mu);
    play_->unpinned_twice += play_->pinned.erase(base) == 0;
  }
  absl::StatusOr<std::unique_ptr<gpu::DeviceMemory>> Allocate(uint32_t device, uint64_t bytes) override {
    return host_.Allocate(device, bytes);
  }
  absl::StatusOr<std::shared_ptr<gpu::Region>> WrapMemory(const gpu::DeviceMemory& memory,
                                                          gpu::RegionLayout layout) override {
    return host_.WrapMemory(memory, std::move(layout));
  }

 private:
  Play* const play_;
  testing::HostGpus host_;
};

class RegionGpuTest : public ::testing::Test {
 protected:
  explicit RegionGpuTest(uint64_t gpu_tier_bytes = 0,
                         const std::function<void(TierStackOptions*)>& change = [](TierStackOptions*) {})
      : options_(testing::SmallStackOptions()) {
    options_.gpu = true;
    options_.gpu_tier_bytes = gpu_tier_bytes;
    options_.gpus_factory = [this](const gpu::GpuOptions&) { return std::make_unique<PlayedGpus>(&play_); };
    change(&options_);
    stack_ = std::make_unique<TestStack>(options_);
    session_ = (*stack_)->OpenSession(0);
    space_ = &TestStack::Open(session_.get(), memory_.page_bytes());
    gpu::DeviceUuid uuid{};
    uuid[0] = std::byte{1};
    auto opened = session_->OpenRegion(uuid, memory_.layout(), memory_.handles(), {});
    EXPECT_TRUE(opened.ok()) << opened.status();
    region_ = *std::move(opened);
  }
  ~RegionGpuTest() override {
    region_.reset();
    session_.reset();
    stack_.reset();
    MutexLock lock(&play_.mu);
    EXPECT_TRUE(play_.pinned.empty()) << "memory was unmapped pinned";
    EXPECT_EQ(play_.unpinned_twice, 0);
  }
  void FillPages(uint64_t first, size_t n) {
    for (size_t i = 0; i < n; ++i) memory_.Write(i, PayloadOf(KeyOf(first + i), memory_.page_bytes()));
  }
  std::vector<Reason> StoreKeys(uint64_t first, size_t n) {
    return testing::Store(session_.get(), StoreRequestOf(region_, *space_, KeysOf(first, n), 0));
  }
  std::vector<Reason> LoadKeys(uint64_t first, size_t n) {
    return testing::Load(session_.get(), LoadRequestOf(region_, *space_, KeysOf(first, n), 0));
  }
  bool Holds(uint64_t page, uint64_t number) const {
    return memory_.Read(page) == PayloadOf(KeyOf(number), memory_.page_bytes());
  }
  static std::vector<Reason> All(size_t n, Reason reason = Reason::kNone) { return std::vector<Reason>(n, reason); }

  RegionMemory memory_;
  Play play_;
  TierStackOptions options_;
  std::unique_ptr<TestStack> stack_;
  std::unique_ptr<Session> session_;
  const kv::KeySpace* space_ = nullptr;
  std::shared_ptr<gpu::Region> region_;
};

TEST_F(RegionGpuTest, ItsEngineCopiesAndItIsCounted) {
  FillPages(0, 8);
  EXPECT_EQ(StoreKeys(0, 8), All(8));
  memory_.Clear();
  EXPECT_EQ(LoadKeys(0, 8), All(8));
  for (uint64_t i = 0; i < 8; ++i) EXPECT_TRUE(Holds(i, i)) << i;
  EXPECT_EQ(play_.engine.FramesSeen().size(), 8u);
  const double bytes = 8.0 * static_cast<double>(memory_.page_bytes());
  EXPECT_EQ(stack_->Metric("terrace_transfer_bytes_total", "src", "gpu"), bytes);
  EXPECT_EQ(stack_->Metric("terrace_transfer_bytes_total", "dst", "gpu"), bytes);
  EXPECT_EQ(stack_->Metric("terrace_regions", "memory", "gpu"), 1);
  EXPECT_EQ((*stack_)->DeviceOf(*region_), std::optional<uint32_t>(0));
  EXPECT_EQ((*stack_)->Stats().gpus.size(), 1u);
}

TEST_F(RegionGpuTest, LostFramesAreNeverUsedAgain) {
  FillPages(0, 4);
  play_.engine.FailNext(absl::DeadlineExceededError("hangs"), true);
  EXPECT_EQ(StoreKeys(0, 4), All(4, Reason::kDeadline));
  const std::set<std::byte*> lost = play_.engine.FramesSeen();
  ASSERT_EQ(lost.size(), 4u);
  EXPECT_EQ(stack_->Metric("terrace_lost_frame_bytes_total"), 4.0 * static_cast<double>(memory_.page_bytes()));
  EXPECT_EQ(stack_->Metric("terrace_region_failed_batches_total", "reason", "deadline"), 1);
  // What a late copy writes there reaches nobody: fill the tier several times over, then look.
  for (std::byte* frame : lost) std::memset(frame, 0x5A, memory_.page_bytes());
  for (uint64_t round = 1; round < 30; ++round) {
    FillPages(round * 40, 40);
    ASSERT_EQ(StoreKeys(round * 40, 40), All(40)) << round;
  }
  EXPECT_GT(stack_->Metric("terrace_evictions_total"), 0);
  for (std::byte* frame : lost) {
    EXPECT_EQ(std::vector<std::byte>(frame, frame + memory_.page_bytes()),
              std::vector<std::byte>(memory_.page_bytes(), std::byte{0x5A}));
  }
  // The blocks themselves can be stored elsewhere.
  FillPages(0, 4);
  EXPECT_EQ(StoreKeys(0, 4), All(4));
}

TEST_F(RegionGpuTest, FramesOfALoadThatIsLostStayAsTheyAre) {
  FillPages(0, 2);
  ASSERT_EQ(StoreKeys(0, 2), All(2));
  play_.engine.FailNext(absl::DeadlineExceededError("hangs"), true);
  EXPECT_EQ(LoadKeys(0, 2), All(2, Reason::kDeadline));
  EXPECT_EQ((*stack_)->Stats().tiers[0].pinned_bytes, 2 * memory_.page_bytes());
  EXPECT_EQ(LoadKeys(0, 2), All(2)) << "their bytes are good for others";
}

TEST_F(RegionGpuTest, AFailedBatchLeavesNothing) {
  FillPages(0, 4);
  play_.engine.FailNext(absl::UnavailableError("sticky error"), false);
  EXPECT_EQ(StoreKeys(0, 4), All(4, Reason::kUnavailable));
  EXPECT_EQ((*stack_)->Stats().tiers[0].blocks, 0u);
  EXPECT_EQ(StoreKeys(0, 4), All(4));
  play_.engine.FailNext(absl::UnavailableError("sticky error"), false);
  EXPECT_EQ(LoadKeys(0, 4), All(4, Reason::kUnavailable));
  EXPECT_EQ((*stack_)->Stats().tiers[0].pinned_bytes, 0u);
  EXPECT_EQ((*stack_)->Stats().tiers[0].blocks, 4u);
}

TEST_F(RegionGpuTest, TheLogSaysWhichGpuRefusedABatch) {
  FillPages(0, 4);
  play_.engine.RefuseNext(absl::ResourceExhaustedError("1024 batches wait already"));
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(StoreKeys(0, 4), All(4, Reason::kOverload));
  std::string log = ::testing::internal::GetCapturedStderr();
  for (const char* text : {"region_batch_refused", "gpu 0, host at", "store", "overload", "1024 batches"}) {
    EXPECT_NE(log.find(text), std::string::npos) << text << " in " << log;
  }
  EXPECT_EQ(StoreKeys(0, 4), All(4));
  play_.engine.RefuseNext(absl::UnavailableError("closing"));
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(LoadKeys(0, 4), All(4, Reason::kUnavailable));
  log = ::testing::internal::GetCapturedStderr();
  for (const char* text : {"gpu 0, host at", "load", "unavailable", "closing"}) {
    EXPECT_NE(log.find(text), std::string::npos) << text << " in " << log;
  }
}

TEST_F(RegionGpuTest, OutOfServiceMeansItsRegionsOnly) {
  FillPages(0, 4);
  ASSERT_EQ(StoreKeys(0, 4), All(4));
  {
    MutexLock lock(&play_.mu);
    play_.health = absl::UnavailableError("uncorrectable ECC error; reset the GPU and restart terraced");
  }
  EXPECT_EQ(session_->LoadRegion(LoadRequestOf(region_, *space_, KeysOf(0, 4), 0)).code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(session_->StoreRegion(StoreRequestOf(region_, *space_, KeysOf(9, 4), 0)).code(),
            absl::StatusCode::kUnavailable);
  gpu::DeviceUuid uuid{};
  uuid[0] = std::byte{1};
  EXPECT_EQ(session_->OpenRegion(uuid, memory_.layout(), memory_.handles(), {}).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(stack_->Metric("terrace_gpus", "state", "out_of_service"), 1);
  EXPECT_EQ((*stack_)->Stats().gpus[0].health.code(), absl::StatusCode::kUnavailable);
  // Host memory goes on.
  auto host = session_->OpenRegion({}, memory_.layout(), memory_.handles(), {});
  ASSERT_TRUE(host.ok()) << host.status();
  memory_.Clear();
  EXPECT_EQ(testing::Load(session_.get(), LoadRequestOf(*host, *space_, KeysOf(0, 4), 0)), All(4));
  for (uint64_t i = 0; i < 4; ++i) EXPECT_TRUE(Holds(i, i)) << i;
}

TEST_F(RegionGpuTest, HostMemoryIsPinnedInTheBackground) {
  FillPages(0, 1);
  ASSERT_EQ(StoreKeys(0, 1), All(1));
  for (int i = 0; i < 5000 && stack_->Metric("terrace_host_pinned_bytes") == 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // poll
  }
  EXPECT_GT(stack_->Metric("terrace_host_pinned_bytes"), 0);
  std::byte* const frame = *play_.engine.FramesSeen().begin();
  MutexLock lock(&play_.mu);
  const auto it = play_.pinned.upper_bound(frame);
  ASSERT_NE(it, play_.pinned.begin());
  EXPECT_LT(frame, std::prev(it)->first + std::prev(it)->second);
}

class RegionGpuTierTest : public RegionGpuTest {
 protected:
  explicit RegionGpuTierTest(const std::function<void(TierStackOptions*)>& change = [](TierStackOptions*) {})
      : RegionGpuTest(8 << 20, change) {}
  double FromGpu() const { return stack_->Metric("terrace_transfer_bytes_total", "src", "gpu_tier"); }
  // Stored, and loaded from host memory until the GPU has them; then where they lie there, one a key.
  std::vector<std::byte*> PutOnGpu(uint64_t first, size_t n) {
    FillPages(first, n);
    EXPECT_EQ(StoreKeys(first, n), All(n));
    std::vector<std::byte*> frames;
    for (int i = 0; i < 20 && frames.size() != n; ++i) {
      play_.engine.TakeDeviceFrames();
      EXPECT_EQ(LoadKeys(first, n), All(n));
      play_.engine.Drain();
      frames = play_.engine.TakeDeviceFrames();
    }
    EXPECT_EQ(frames.size(), n);
    return frames;
  }
  // Loaded twice, so that blocks there make room for them.
  void StoreAndLoad(uint64_t first, size_t n) {
    FillPages(first, n);
    EXPECT_EQ(StoreKeys(first, n), All(n));
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(LoadKeys(first, n), All(n));
      play_.engine.Drain();
    }
  }
  // Other blocks take the place of all that is in host memory.
  void FillHost() {
    for (uint64_t round = 100; round < 130; ++round) {
      FillPages(round * 40, 40);
      ASSERT_EQ(StoreKeys(round * 40, 40), All(40)) << round;
    }
  }
  bool IsInHost(uint64_t number) {
    const auto info = (*stack_)->Stat(*space_, KeyOf(number));
    return info.has_value() && info->tier == "host";
  }
  double Corrupt() const { return stack_->Metric("terrace_integrity_failures_total", "tier", "gpu"); }
};

TEST_F(RegionGpuTierTest, WhatIsLoadedAgainAndAgainComesFromTheGpu) {
  FillPages(0, 4);
  ASSERT_EQ(StoreKeys(0, 4), All(4));
  for (int i = 0; i < 500 && FromGpu() < 1; ++i) {
    memory_.Clear();
    ASSERT_EQ(LoadKeys(0, 4), All(4));
    for (uint64_t page = 0; page < 4; ++page) ASSERT_TRUE(Holds(page, page)) << "load " << i << " page " << page;
    play_.engine.Drain();
  }
  EXPECT_GT(FromGpu(), 0);
  EXPECT_GT((*stack_)->Stats().gpus[0].tier_blocks, 0u);
  // Many more: the coldest leave, no byte is wrong.
  for (uint64_t round = 1; round < 20; ++round) {
    FillPages(round * 10, 10);
    ASSERT_EQ(StoreKeys(round * 10, 10), All(10));
    for (int again = 0; again < 4; ++again) {
      memory_.Clear();
      ASSERT_EQ(LoadKeys(round * 10, 10), All(10));
      for (uint64_t page = 0; page < 10; ++page) ASSERT_TRUE(Holds(page, round * 10 + page));
    }
  }
  (*stack_)->Flush(nullptr);
  EXPECT_EQ((*stack_)->Stats().gpus[0].tier_blocks, 0u);
  // Why is remembered in a table where one block may take another's place: then it is cold.
  int flushed = 0;
  for (const Reason reason : LoadKeys(190, 10)) {
    EXPECT_TRUE(reason == Reason::kFlushed || reason == Reason::kCold) << ReasonName(reason);
    flushed += reason == Reason::kFlushed;
  }
  EXPECT_GT(flushed, 0);
}

TEST_F(RegionGpuTierTest, ACorruptCopyIsDroppedAndTheBlockComesFromHostMemory) {
  const std::vector<std::byte*> frames = PutOnGpu(0, 4);
  ASSERT_EQ(frames.size(), 4u);
  for (const size_t bad : {1, 3}) frames[bad][70'000 * (bad - 1)] ^= std::byte{4};
  memory_.Clear();
  EXPECT_EQ(LoadKeys(0, 4), All(4));
  for (uint64_t page = 0; page < 4; ++page) EXPECT_TRUE(Holds(page, page)) << page;
  EXPECT_EQ(Corrupt(), 2);
  EXPECT_EQ((*stack_)->Stats().gpus[0].tier_blocks, 2u);
  EXPECT_EQ(stack_->Metric("terrace_integrity_failures_total", "tier", "host"), 0) << "that copy is good";
  // Host memory's is as bad: then, and only then, it is a miss. (Its frames are those that the GPU's are not.)
  const std::set<std::byte*> seen = play_.engine.FramesSeen();
  for (std::byte* frame : seen) {
    if (std::find(frames.begin(), frames.end(), frame) == frames.end()) frame[5] ^= std::byte{1};
  }
  frames[0][9] ^= std::byte{1};
  EXPECT_EQ(LoadKeys(0, 4), (std::vector<Reason>{Reason::kCorrupt, Reason::kCorrupt, Reason::kNone, Reason::kCorrupt}));
  EXPECT_TRUE(Holds(2, 2)) << "from the GPU";
  EXPECT_EQ(Corrupt(), 3);
}

TEST_F(RegionGpuTierTest, PlanesAreToldOnceTheSecondCopyHasThem) {
  for (const size_t bad_byte : {size_t{10}, memory_.page_bytes() - 10}) {
    const uint64_t first = bad_byte;
    const std::vector<std::byte*> frames = PutOnGpu(first, 3);
    ASSERT_EQ(frames.size(), 3u);
    frames[2][bad_byte] ^= std::byte{1};
    memory_.Clear();
    RegionLoadRequest request = LoadRequestOf(region_, *space_, KeysOf(first, 3), 0);
    std::atomic<uint32_t> told{0};
    request.planes_done = [&](uint32_t n_planes) {
      EXPECT_GT(n_planes, told.exchange(n_planes));
      for (uint64_t page = 0; page < 3; ++page) {
        const std::vector<std::byte> payload = PayloadOf(KeyOf(first + page), memory_.page_bytes());
        const size_t piece = payload.size() / memory_.layout().planes.size();
        for (uint32_t plane = 0; plane < n_planes; ++plane) {
          const auto at = payload.begin() + static_cast<ptrdiff_t>(plane * piece);
          EXPECT_EQ(memory_.ReadPlane(plane, page), std::vector(at, at + static_cast<ptrdiff_t>(piece)));
        }
      }
    };
    EXPECT_EQ(testing::Load(session_.get(), std::move(request)), All(3));
    EXPECT_EQ(told.load(), memory_.layout().planes.size());
  }
  EXPECT_EQ(Corrupt(), 2);
}

TEST_F(RegionGpuTierTest, ACorruptCopyThatIsTheOnlyOneIsAMiss) {
  const std::vector<std::byte*> frames = PutOnGpu(0, 2);
  ASSERT_EQ(frames.size(), 2u);
  FillHost();
  ASSERT_FALSE(IsInHost(0) || IsInHost(1));
  frames[1][100] ^= std::byte{1};
  memory_.Clear();
  EXPECT_EQ(LoadKeys(0, 2), (std::vector<Reason>{Reason::kNone, Reason::kCorrupt}));
  EXPECT_TRUE(Holds(0, 0));
  EXPECT_EQ(Corrupt(), 1);
}

// The disk outlives the stack that is on it.
struct HasDisk {
  testing::SlowDisk disk;
};
class RegionGpuTierDiskTest : public HasDisk, public RegionGpuTierTest {
 protected:
  RegionGpuTierDiskTest() : RegionGpuTierTest([this](TierStackOptions* options) { disk.PutUnder(options); }) {}
};

TEST_F(RegionGpuTierDiskTest, ACorruptCopyIsReplacedFromTheDisk) {
  const std::vector<std::byte*> frames = PutOnGpu(0, 8);
  ASSERT_EQ(frames.size(), 8u);
  // Not each one gets there: whoever stores faster than the disk takes it loses blocks.
  std::optional<uint64_t> block;
  for (uint64_t first = 100; first < 1'000 && !block.has_value(); first += 10) {
    FillPages(first, 10);
    ASSERT_EQ(StoreKeys(first, 10), All(10));
    ASSERT_TRUE(testing::WaitForRoom(stack_->stack.get()));
    for (uint64_t i = 0; i < 8; ++i) {
      if (testing::IsOnDiskOnly(stack_->stack.get(), *space_, KeyOf(i))) block = i;
    }
  }
  ASSERT_TRUE(block.has_value());
  for (std::byte* frame : frames) frame[1'000] ^= std::byte{1};
  memory_.Clear();
  RegionLoadRequest request = LoadRequestOf(region_, *space_, KeysOf(*block, 1), 0);
  request.timeout_ns = 10'000'000'000;
  EXPECT_EQ(testing::Load(session_.get(), std::move(request)), All(1));
  EXPECT_TRUE(Holds(0, *block));
  EXPECT_EQ(Corrupt(), 1);
  EXPECT_TRUE(IsInHost(*block)) << "brought up on the way";
}

// Parent before child again: its chain is evicted from the end.
TEST_F(RegionGpuTierTest, WhatComesBackToHostMemoryIsBehindItsParent) {
  PutOnGpu(0, 2);
  FillHost();
  ASSERT_FALSE(IsInHost(0) || IsInHost(1));
  FillPages(0, 1);
  ASSERT_EQ(StoreKeys(0, 1), All(1));
  ASSERT_FALSE((*stack_)->Stat(*space_, KeyOf(0))->has_children);
  for (uint64_t first = 10'000; first < 12'000 && !IsInHost(1); first += 10) {
    StoreAndLoad(first, 10);
  }
  ASSERT_TRUE(IsInHost(1)) << "it left the GPU";
  EXPECT_TRUE((*stack_)->Stat(*space_, KeyOf(0))->has_children);
}

TEST_F(RegionGpuTierTest, ItIsATierAndItsBatchesAreItsOwn) {
  PutOnGpu(0, 4);
  const double batches = stack_->Metric("terrace_region_batches_total", "src", "gpu_tier");
  const double from_host = stack_->Metric("terrace_region_batches_total", "src", "host");
  EXPECT_GT(batches, 0);
  EXPECT_EQ(LoadKeys(0, 4), All(4));
  EXPECT_EQ(stack_->Metric("terrace_region_batches_total", "src", "gpu_tier"), batches + 1);
  EXPECT_EQ(stack_->Metric("terrace_region_batches_total", "src", "host"), from_host);
  const TierStackStats stats = (*stack_)->Stats();
  ASSERT_EQ(stats.tiers.size(), 2u);
  EXPECT_EQ(stats.tiers[0].tier, "host");
  const TierUsage& usage = stats.tiers[1];
  EXPECT_EQ(usage.tier, "gpu");
  EXPECT_EQ(usage.capacity_bytes, 8u << 20);
  EXPECT_EQ(usage.blocks, 4u);
  EXPECT_EQ(usage.used_bytes, 4 * memory_.page_bytes());
  EXPECT_EQ(usage.state, TierState::kOnline);
  EXPECT_EQ(usage.detail, "");
  {
    MutexLock lock(&play_.mu);
    play_.health = absl::UnavailableError("uncorrectable ECC error; reset it");
  }
  EXPECT_EQ((*stack_)->Stats().tiers[1].state, TierState::kOffline);
  EXPECT_NE((*stack_)->Stats().tiers[1].detail.find("reset it"), std::string::npos);
}

}  // namespace
}  // namespace terrace::tiering
