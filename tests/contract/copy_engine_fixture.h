// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What the contract suite of CopyEngine works with: an engine's memory beside a plain model of it, batches whose end
// can be waited for, and callbacks that keep an engine busy.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "contract/copy_rig.h"
#include "kvstore/base/block_copy.h"
#include "kvstore/base/mutex.h"
#include "testing/payload.h"
#include "testing/trials.h"

namespace terrace::gpu {

inline constexpr std::chrono::seconds kPatience{60};

// How a batch ended. Owner: the test, until the engine is gone. Threads: any.
class Outcome {
 public:
  // The batch's done. keep: what done holds besides.
  auto Taker(std::shared_ptr<void> keep = nullptr) {
    return [this, keep](CopyBatch& batch, const absl::Status& status) {
      MutexLock lock(&mu_);
      ++times_;
      status_ = status;
      pages_ = std::move(batch.pages);
      ended_.SignalAll();
    };
  }
  // False: it did not end in time.
  bool Wait() {
    MutexLock lock(&mu_);
    while (times_ == 0) {
      if (!ended_.WaitFor(&mu_, kPatience) && times_ == 0) return false;
    }
    return true;
  }
  int times() const {
    MutexLock lock(&mu_);
    return times_;
  }
  // After the end.
  absl::Status status() const {
    MutexLock lock(&mu_);
    return status_;
  }
  const std::vector<PageCopy>& pages() const ABSL_NO_THREAD_SAFETY_ANALYSIS { return pages_; }
  size_t intact_count() const {
    return static_cast<size_t>(
        std::count_if(pages().begin(), pages().end(), [](const PageCopy& p) { return p.intact; }));
  }

 private:
  mutable Mutex mu_;
  CondVar ended_;
  int times_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  std::vector<PageCopy> pages_ ABSL_GUARDED_BY(mu_);
};

// Holds up callbacks until it is opened.
class Gate {
 public:
  ~Gate() { Open(); }
  void Open() {
    MutexLock lock(&mu_);
    open_ = true;
    cv_.SignalAll();
  }
  void Pass() {
    MutexLock lock(&mu_);
    ++waiting_;
    cv_.SignalAll();
    while (!open_) cv_.Wait(&mu_);
  }
  // False: so many did not come in time.
  bool WaitForWaiting(int n) {
    MutexLock lock(&mu_);
    while (waiting_ < n) {
      if (!cv_.WaitFor(&mu_, kPatience) && waiting_ < n) return false;
    }
    return true;
  }

 private:
  Mutex mu_;
  CondVar cv_;
  bool open_ ABSL_GUARDED_BY(mu_) = false;
  int waiting_ ABSL_GUARDED_BY(mu_) = 0;
};

inline std::vector<std::byte> RandomBytes(uint64_t seed, size_t bytes) {
  return testing::PayloadOf(testing::KeyOf(seed), bytes, 1);
}
inline std::vector<uint64_t> ChecksumsUnder(uint64_t identity_seed, std::span<const std::byte> payload) {
  std::vector<uint64_t> checksums(ChecksumCount(payload.size()));
  const Piece source{const_cast<std::byte*>(payload.data()), payload.size()};
  CopyBlock({&source, 1}, {}, identity_seed, CopyCheck::kCompute, checksums, CopyStores::kCached);
  return checksums;
}

// An engine's memory and, beside it, a copy of all its bytes that only the test writes.
class ModelledMemory {
 public:
  ModelledMemory(CopyRig& rig, std::span<const uint64_t> allocation_bytes, uint32_t n_events = 0)
      : memory_(rig.MakeMemory(allocation_bytes, n_events)) {
    for (uint32_t a = 0; a < allocation_bytes.size(); ++a) {
      model_.push_back(RandomBytes(100 + a, allocation_bytes[a]));
      memory_->Write(a, 0, model_[a]);
    }
  }
  EngineMemory& memory() { return *memory_; }
  std::vector<std::byte>& model(uint32_t allocation) { return model_[allocation]; }

  std::vector<std::byte> ModelPage(const RegionLayout& layout, uint64_t page) const {
    std::vector<std::byte> payload;
    for (const Plane& plane : layout.planes) {
      const auto at = model_[plane.allocation].begin() + static_cast<ptrdiff_t>(plane.offset + page * plane.stride);
      payload.insert(payload.end(), at, at + static_cast<ptrdiff_t>(plane.bytes));
    }
    return payload;
  }
  void SetModelPage(const RegionLayout& layout, uint64_t page, std::span<const std::byte> payload) {
    for (const Plane& plane : layout.planes) {
      std::copy_n(payload.begin(), plane.bytes,
                  model_[plane.allocation].begin() + static_cast<ptrdiff_t>(plane.offset + page * plane.stride));
      payload = payload.subspan(plane.bytes);
    }
  }
  // After a load that failed: the page's bytes are undefined; whatever they are is right.
  void AdoptPage(const RegionLayout& layout, uint64_t page) {
    for (const Plane& plane : layout.planes) {
      const uint64_t at = plane.offset + page * plane.stride;
      memory_->Read(plane.allocation, at, std::span(model_[plane.allocation]).subspan(at, plane.bytes));
    }
  }
  // A piece as it really is.
  std::vector<std::byte> RealPiece(const Plane& plane, uint64_t page) {
    std::vector<std::byte> bytes(plane.bytes);
    memory_->Read(plane.allocation, plane.offset + page * plane.stride, bytes);
    return bytes;
  }
  // Every byte of every allocation, also those that belong to no page.
  ::testing::AssertionResult IsAsModelled() {
    for (uint32_t a = 0; a < model_.size(); ++a) {
      std::vector<std::byte> real(model_[a].size());
      memory_->Read(a, 0, real);
      if (real == model_[a]) continue;
      const auto bad = std::mismatch(real.begin(), real.end(), model_[a].begin()).first;
      return ::testing::AssertionFailure() << "allocation " << a << ", byte " << bad - real.begin();
    }
    return ::testing::AssertionSuccess();
  }

 private:
  std::unique_ptr<EngineMemory> memory_;
  std::vector<std::vector<std::byte>> model_;
};

// Frames of one size with guard bytes around each. Frames may begin at odd addresses.
class Frames {
 public:
  Frames(CopyRig& rig, size_t count, uint64_t frame_bytes, bool on_device = false, size_t skew = 0)
      : rig_(rig), frame_bytes_(frame_bytes), on_device_(on_device), skew_(skew) {
    stride_ = (frame_bytes + 2 * kGuard + 63) / 64 * 64;
    base_ = rig.MakeFrames(stride_ * count + skew, on_device);
    for (size_t i = 0; i < count; ++i) {
      rig.WriteFrame(at(i) - kGuard, std::vector<std::byte>(frame_bytes + 2 * kGuard - skew, kGuardByte), on_device);
    }
  }
  bool on_device() const { return on_device_; }
  std::byte* at(size_t i) const { return base_ + i * stride_ + kGuard + skew_; }
  void Write(size_t i, std::span<const std::byte> payload) { rig_.WriteFrame(at(i), payload, on_device_); }
  std::vector<std::byte> Read(size_t i) {
    std::vector<std::byte> bytes(frame_bytes_);
    rig_.ReadFrame(at(i), bytes, on_device_);
    return bytes;
  }
  bool GuardsAreWhole(size_t i) {
    std::vector<std::byte> before(kGuard), after(kGuard - skew_);
    rig_.ReadFrame(at(i) - kGuard, before, on_device_);
    rig_.ReadFrame(at(i) + frame_bytes_, after, on_device_);
    before.insert(before.end(), after.begin(), after.end());
    return std::all_of(before.begin(), before.end(), [](std::byte b) { return b == kGuardByte; });
  }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr std::byte kGuardByte{0xA5};
  CopyRig& rig_;
  const uint64_t frame_bytes_;
  const bool on_device_;
  const size_t skew_;
  uint64_t stride_ = 0;
  std::byte* base_ = nullptr;
};

// A batch of a region's pages and frames 0, 1, ... For loads, checksums[i] are those of pages[i].
inline CopyBatch MakeBatch(const std::shared_ptr<Region>& region, Direction direction,
                           std::span<const uint64_t> pages, const Frames& frames, uint64_t identity_seed) {
  CopyBatch batch;
  batch.region = region;
  batch.direction = direction;
  batch.frames_on_device = frames.on_device();
  for (size_t i = 0; i < pages.size(); ++i) {
    PageCopy copy;
    copy.page = pages[i];
    copy.frame = frames.at(i);
    copy.identity_seed = identity_seed + i;
    copy.checksums.assign(ChecksumCount(region->page_bytes()), 0);
    batch.pages.push_back(std::move(copy));
  }
  return batch;
}

// Fresh payloads in the frames, and their checksums in a load of them.
inline CopyBatch MakeLoad(const std::shared_ptr<Region>& region, std::span<const uint64_t> pages, Frames& frames,
                          uint64_t identity_seed, uint64_t payload_seed,
                          std::vector<std::vector<std::byte>>* payloads) {
  CopyBatch batch = MakeBatch(region, Direction::kLoad, pages, frames, identity_seed);
  payloads->clear();
  for (size_t i = 0; i < pages.size(); ++i) {
    payloads->push_back(RandomBytes(payload_seed + i, region->page_bytes()));
    frames.Write(i, payloads->back());
    batch.pages[i].checksums = ChecksumsUnder(identity_seed + i, payloads->back());
  }
  return batch;
}

// Submits and waits.
#define TERRACE_RUN_BATCH(engine, batch, outcome)              \
  do {                                                         \
    (batch).done = (outcome).Taker();                          \
    const absl::Status submitted = (engine)->Submit(batch);    \
    ASSERT_TRUE(submitted.ok()) << submitted;                  \
    ASSERT_TRUE((outcome).Wait()) << "the batch does not end"; \
    ASSERT_EQ((outcome).times(), 1);                           \
  } while (false)

// What the suites have in common.
template <typename Rig>
class CopyEngineTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kSeed = 4711;
  static constexpr uint32_t kQueueDepth = 64;

  void SetUp() override {
    if (!rig_.why_skipped().empty()) GTEST_SKIP() << rig_.why_skipped();
    engine_ = rig_.MakeEngine(kQueueDepth);
    ASSERT_NE(engine_, nullptr);
  }

  Rig rig_;
  std::unique_ptr<CopyEngine> engine_;  // ends before the rig
};

}  // namespace terrace::gpu
