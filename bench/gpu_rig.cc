// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu_rig.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/block_copy.h"
#include "kvstore/base/mutex.h"
#include "kvstore/base/status_macros.h"
#include "payload.h"
#include "stopwatch.h"

namespace terrace::bench {

using gpu::CopyBatch;
using gpu::Direction;
using gpu::PageCopy;

absl::StatusOr<std::unique_ptr<GpuRig>> GpuRig::Open(const std::string& library, int ordinal) {
  std::string why;
  const std::shared_ptr<const gpu::Driver> driver = gpu::Driver::Load(library, &why);
  if (driver == nullptr) return absl::UnavailableError(why);
  std::unique_ptr<GpuRig> rig(new GpuRig);
  ASSIGN_OR_RETURN(rig->device_, gpu::CudaDevice::Open(driver, ordinal));
  ASSIGN_OR_RETURN(rig->engine_, gpu::MakeCudaCopyEngine(rig->device_, gpu::GpuOptions{.driver = library}));
  rig->context_ = std::make_unique<gpu::ScopedContext>(*driver, rig->device_->context());
  RETURN_IF_ERROR(rig->Check(rig->context_->result(), "cuCtxPushCurrent"));
  for (CUstream& stream : rig->streams_) {
    RETURN_IF_ERROR(rig->Check(driver->cuStreamCreateWithPriority(&stream, CU_STREAM_NON_BLOCKING, 0),
                               "cuStreamCreateWithPriority"));
  }
  for (CUevent& event : rig->events_) {
    RETURN_IF_ERROR(rig->Check(driver->cuEventCreate(&event, CU_EVENT_DEFAULT), "cuEventCreate"));
  }
  return rig;
}

GpuRig::~GpuRig() {
  engine_.reset();
  if (context_ == nullptr) return;
  Free();
  for (CUevent event : events_) {
    if (event != nullptr) driver().cuEventDestroy(event);
  }
  for (CUstream stream : streams_) {
    if (stream != nullptr) driver().cuStreamDestroy(stream);
  }
}

absl::StatusOr<CUdeviceptr> GpuRig::Device(uint64_t bytes) {
  CUdeviceptr memory = 0;
  RETURN_IF_ERROR(Check(driver().cuMemAlloc(&memory, bytes), "cuMemAlloc"));
  device_memory_.push_back(memory);
  return memory;
}

absl::StatusOr<std::byte*> GpuRig::Pinned(uint64_t bytes) {
  void* memory = nullptr;
  RETURN_IF_ERROR(Check(driver().cuMemHostAlloc(&memory, bytes, CU_MEMHOSTALLOC_PORTABLE), "cuMemHostAlloc"));
  pinned_memory_.push_back(memory);
  return static_cast<std::byte*>(memory);
}

void GpuRig::Free() {
  for (const CUdeviceptr memory : std::exchange(device_memory_, {})) driver().cuMemFree(memory);
  for (void* memory : std::exchange(pinned_memory_, {})) driver().cuMemFreeHost(memory);
}

absl::Status GpuRig::CopyNow(void* target, const void* source, uint64_t bytes) {
  return TimeCopies({{reinterpret_cast<CUdeviceptr>(target), reinterpret_cast<CUdeviceptr>(source), bytes}}).status();
}

absl::StatusOr<double> GpuRig::TimeCopies(const std::vector<PlainCopy>& copies) {
  const double begun = Seconds();
  for (size_t i = 0; i < copies.size(); ++i) {
    const PlainCopy& copy = copies[i];
    RETURN_IF_ERROR(
        Check(driver().cuMemcpyAsync(copy.target, copy.source, copy.bytes, streams_[i % 2]), "cuMemcpyAsync"));
  }
  for (CUstream stream : streams_)
    RETURN_IF_ERROR(Check(driver().cuStreamSynchronize(stream), "cuStreamSynchronize"));
  return Seconds() - begun;
}

absl::StatusOr<double> GpuRig::TimeBetweenEvents() {
  float milliseconds = 0;
  RETURN_IF_ERROR(Check(driver().cuEventSynchronize(events_[1]), "cuEventSynchronize"));
  RETURN_IF_ERROR(Check(driver().cuEventElapsedTime(&milliseconds, events_[0], events_[1]), "cuEventElapsedTime"));
  return milliseconds;
}

absl::StatusOr<std::unique_ptr<PageSet>> PageSet::Make(GpuRig* rig, const PageShape& shape) {
  std::unique_ptr<PageSet> set(new PageSet(rig, shape));
  ASSIGN_OR_RETURN(set->pages_, rig->Device(shape.total_bytes()));
  ASSIGN_OR_RETURN(set->frames_, rig->Pinned(shape.total_bytes()));
  ASSIGN_OR_RETURN(set->plain_, rig->Pinned(shape.total_bytes()));
  gpu::RegionLayout layout;
  layout.n_pages = shape.blocks;
  for (uint32_t p = 0; p < shape.planes; ++p) {
    layout.planes.push_back({0, p * shape.blocks * shape.piece_bytes, shape.piece_bytes, shape.piece_bytes});
  }
  const std::pair<CUdeviceptr, uint64_t> allocation{set->pages_, shape.total_bytes()};
  ASSIGN_OR_RETURN(set->region_, gpu::CudaRegion::Wrap(rig->device(), std::move(layout), {&allocation, 1}, {}));
  set->numbers_.resize(shape.blocks);
  std::iota(set->numbers_.begin(), set->numbers_.end(), 0);
  for (uint64_t i = shape.blocks - 1; i > 0; --i) std::swap(set->numbers_[i], set->numbers_[Mix(i) % (i + 1)]);
  set->checksums_.assign(shape.blocks, std::vector<uint64_t>(ChecksumCount(shape.page_bytes())));
  return set;
}

CopyBatch PageSet::MakeBatch(Direction direction, uint64_t n) const {
  CopyBatch batch;
  batch.region = region_;
  batch.direction = direction;
  for (uint64_t i = 0; i < (n == 0 ? shape_.blocks : n); ++i) {
    PageCopy copy;
    copy.page = numbers_[i];
    copy.frame = frames_ + i * shape_.page_bytes();
    copy.identity_seed = i;
    copy.checksums = checksums_[i];
    batch.pages.push_back(std::move(copy));
  }
  return batch;
}

absl::Status PageSet::Prove() {
  const uint64_t bytes = shape_.total_bytes();
  void* const pages = reinterpret_cast<void*>(pages_);
  FillPayload(MakeKeys(7, 1).data(), {plain_, bytes});
  std::memset(frames_, 0, bytes);
  RETURN_IF_ERROR(rig_.CopyNow(pages, plain_, bytes));
  CopyBatch store = MakeBatch(Direction::kStore);
  absl::Status status;
  store.done = [&](CopyBatch& ended, const absl::Status& how) {
    status = how;
    for (uint64_t i = 0; i < shape_.blocks && status.ok(); ++i) checksums_[i] = ended.pages[i].checksums;
  };
  RETURN_IF_ERROR(rig_.engine().Submit(store));
  rig_.engine().Drain();
  RETURN_IF_ERROR(status);
  for (uint64_t i = 0; i < shape_.blocks; ++i) {
    std::byte* const frame = frames_ + i * shape_.page_bytes();
    for (uint32_t p = 0; p < shape_.planes; ++p) {
      const uint64_t at = (p * shape_.blocks + numbers_[i]) * shape_.piece_bytes;
      if (std::memcmp(frame + p * shape_.piece_bytes, plain_ + at, shape_.piece_bytes) != 0) {
        return absl::DataLossError(absl::StrCat("block ", i, ": the frame holds other bytes than the page"));
      }
    }
    const Piece piece{frame, shape_.page_bytes()};
    if (!CopyBlock({&piece, 1}, {}, i, CopyCheck::kVerify, checksums_[i], CopyStores::kCached)) {
      return absl::DataLossError(absl::StrCat("block ", i, ": wrong checksums"));
    }
  }
  // The same way back, into pages that hold something else.
  std::memset(plain_, 0x55, bytes);
  RETURN_IF_ERROR(rig_.CopyNow(pages, plain_, bytes));
  std::vector<CopyBatch> load;
  load.push_back(MakeBatch(Direction::kLoad));
  RETURN_IF_ERROR(RunBatches(rig_.engine(), std::move(load)).status());
  RETURN_IF_ERROR(rig_.CopyNow(plain_, pages, bytes));
  if (!IsPayload(MakeKeys(7, 1).data(), {plain_, bytes}))
    return absl::DataLossError("pages hold other bytes than the frames");
  return absl::OkStatus();
}

absl::StatusOr<double> RunBatches(gpu::CopyEngine& engine, std::vector<CopyBatch> batches) {
  std::atomic<size_t> left{batches.size()};
  Mutex mu;
  absl::Status failure;
  for (CopyBatch& batch : batches) {
    batch.done = [&](CopyBatch& ended, const absl::Status& status) {
      const bool intact =
          std::all_of(ended.pages.begin(), ended.pages.end(), [](const PageCopy& p) { return p.intact; });
      if (!status.ok() || !intact) {
        MutexLock lock(&mu);
        failure = status.ok() ? absl::DataLossError("a page is not intact") : status;
      }
      left.fetch_sub(1, std::memory_order_release);
    };
  }
  const double begun = Seconds();
  size_t submitted = 0;
  absl::Status refused;
  for (CopyBatch& batch : batches) {
    refused = engine.Submit(batch);
    if (!refused.ok()) break;
    ++submitted;
  }
  left.fetch_sub(batches.size() - submitted);
  while (left.load(std::memory_order_acquire) > 0) {
  }
  const double seconds = Seconds() - begun;
  engine.Drain();  // nothing uses this frame any more
  RETURN_IF_ERROR(refused);
  MutexLock lock(&mu);
  RETURN_IF_ERROR(failure);
  return seconds;
}

}  // namespace terrace::bench
