// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/cuda_copy_engine.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gpu/cuda/cuda_copy_engine_frames.h"
#include "gpu/cuda/kernel_image.h"
#include "gpu/cuda/kernels/copy_table.h"
#include "kvstore/base/check.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"

namespace terrace::gpu {
namespace {

constexpr uint64_t kMaxChunkBytes = 8ull << 20;  // 160 us of a link of 50 GB/s: what a later load waits for at most
constexpr uint64_t kMinChunkBytes = 1ull << 20;
constexpr uint64_t kMinStagingBytes = 256 * 1024;

// Chunks are cut smaller than the buffers: blocks are aligned there.
uint64_t CutBytes(uint64_t buffer_bytes) { return buffer_bytes - buffer_bytes / 8; }

size_t SideOf(Direction direction) { return direction == Direction::kLoad ? 0 : 1; }

}  // namespace

absl::StatusOr<std::unique_ptr<CudaCopyEngine>> CudaCopyEngine::Make(std::shared_ptr<CudaDevice> device,
                                                                     const GpuOptions& options,
                                                                     std::optional<CopyMeans> only) {
  std::unique_ptr<CudaCopyEngine> engine(new CudaCopyEngine(std::move(device), options));
  RETURN_IF_ERROR(engine->Start(only));
  return engine;
}

absl::StatusOr<std::unique_ptr<CopyEngine>> MakeCudaCopyEngine(std::shared_ptr<CudaDevice> device,
                                                               const GpuOptions& options) {
  return CudaCopyEngine::Make(std::move(device), options);
}

absl::Status CudaCopyEngine::Start(std::optional<CopyMeans> only) {
  {
    const ScopedContext context(device_->driver(), device_->context());
    RETURN_IF_ERROR(device_->Check(context.result(), "cuCtxPushCurrent"));
    ASSIGN_OR_RETURN(gates_, CudaCopyGates::Make(*device_));
    LoadKernels();
    RETURN_IF_ERROR(MakeAllLanes());
  }
  thread_ = std::thread([this, only] {
    pthread_setname_np(pthread_self(), "terrace-gpu");
    const bool has_staging = sides_[0].lanes[0]->has_staging();
    planner_.emplace(CopyPlanner::Limits{.kernels = bool{kernels_}, .staging = has_staging, .only = only});
    Run();
  });
  return absl::OkStatus();
}

void CudaCopyEngine::LoadKernels() {
  if (options_.max_sms == 0) return;  // as it was asked for
  const Driver& driver = device_->driver();
  CudaCopyKernels loaded;
  CUresult result = driver.cuModuleLoadData(&loaded.module, KernelImage());
  if (result == CUDA_SUCCESS) {
    result = driver.cuModuleGetFunction(&loaded.gather, loaded.module, kGatherKernel);
    if (result == CUDA_SUCCESS) result = driver.cuModuleGetFunction(&loaded.scatter, loaded.module, kScatterKernel);
    if (result == CUDA_SUCCESS) result = driver.cuModuleGetFunction(&loaded.checksum, loaded.module, kChecksumKernel);
    if (result != CUDA_SUCCESS) driver.cuModuleUnload(loaded.module);
  }
  if (result != CUDA_SUCCESS) {
    Log(LogLevel::kWarning, "gpu_kernels_unavailable",
        {{"gpu", device_->info().name},
         {"reason", driver.Explain(result)},
         {"effect", "copy engines only, checksums by the processor: small pages are slow"},
         {"help", "update the NVIDIA driver"}});
    return;
  }
  loaded.max_sms = std::clamp<uint32_t>(options_.max_sms, 1,
                                        static_cast<uint32_t>(std::max(device_->sm_count(), 1)));
  kernels_ = loaded;
}

absl::Status CudaCopyEngine::MakeAllLanes() {
  const Driver& driver = device_->driver();
  int least = 0, greatest = 0;
  RETURN_IF_ERROR(device_->Check(driver.cuCtxGetStreamPriorityRange(&least, &greatest), "cuCtxGetStreamPriorityRange"));
  const uint64_t wanted = options_.staging_bytes / (2 * kLanes);
  uint64_t staging = kernels_ && wanted >= kMinStagingBytes ? std::min(wanted, kMaxChunkBytes) : 0;
  absl::Status status;
  while (true) {
    const uint64_t chunk = staging > 0 ? staging : std::clamp(wanted, kMinChunkBytes, kMaxChunkBytes);
    chunk_bytes_ = CutBytes(chunk);
    status = MakeLanes({.priority = greatest, .chunk_bytes = chunk, .staging_bytes = staging},
                       {.priority = least, .chunk_bytes = chunk, .staging_bytes = staging});
    if (!absl::IsResourceExhausted(status) || staging == 0) break;
    staging = staging / 2 < kMinStagingBytes ? 0 : staging / 2;
  }
  RETURN_IF_ERROR(status);
  if (kernels_ && staging < std::min(wanted, kMaxChunkBytes)) {
    Log(LogLevel::kWarning, "gpu_staging_reduced",
        {{"gpu", device_->info().name},
         {"wanted_bytes", options_.staging_bytes},
         {"bytes", staging * 2 * kLanes},
         {"effect", "small pages are copied more slowly"},
         {"help", "leave more GPU memory free before terraced starts"}});
  }
  return absl::OkStatus();
}

absl::Status CudaCopyEngine::MakeLanes(const CudaCopyLane::Options& loads, const CudaCopyLane::Options& stores) {
  for (Side& side : sides_) side.lanes.clear();
  for (size_t i = 0; i < kLanes; ++i) {
    for (size_t s = 0; s < 2; ++s) {
      ASSIGN_OR_RETURN(auto lane, CudaCopyLane::Make(*device_, kernels_, s == 0 ? loads : stores));
      sides_[s].lanes.push_back(std::move(lane));
    }
  }
  return absl::OkStatus();
}

CudaCopyEngine::~CudaCopyEngine() {
  {
    MutexLock lock(&mu_);
    closing_ = true;
  }
  work_.SignalAll();
  if (thread_.joinable()) thread_.join();
  const ScopedContext context(device_->driver(), device_->context());
  for (Side& side : sides_) side.lanes.clear();
  gates_.reset();
  if (kernels_ && !device_->fenced()) device_->driver().cuModuleUnload(kernels_.module);
}

absl::Status CudaCopyEngine::Submit(CopyBatch& batch) {
  RETURN_IF_ERROR(CheckBatch(batch));
  const auto* const region = dynamic_cast<const CudaRegion*>(batch.region.get());
  if (region == nullptr || region->device().get() != device_.get()) {
    return absl::InvalidArgumentError("a region that is not memory of this GPU");
  }
  if (device_->fenced()) return absl::UnavailableError(device_->health().message());
  FramePlaces frames;
  {
    const ScopedContext context(device_->driver(), device_->context());
    RETURN_IF_ERROR(device_->Check(context.result(), "cuCtxPushCurrent"));
    ASSIGN_OR_RETURN(frames, FindFrames(device_->driver(), device_->device(), batch));
  }
  const size_t side = SideOf(batch.direction);
  {
    MutexLock lock(&mu_);
    if (closing_) return absl::UnavailableError("the GPU's copy engine is closing");
    if (not_begun_[side] >= options_.queue_depth) {
      return absl::ResourceExhaustedError(absl::StrCat(options_.queue_depth, " batches wait for the GPU already"));
    }
    ++not_begun_[side];
    ++pending_;
    Waiting waiting;
    waiting.batch = std::move(batch);
    waiting.frames = std::move(frames);
    submitted_[side].push_back(std::move(waiting));
  }
  work_.SignalOne();
  return absl::OkStatus();
}

void CudaCopyEngine::Drain() {
  MutexLock lock(&mu_);
  while (pending_ > 0) idle_.Wait(&mu_);
}

CopyEngineStats CudaCopyEngine::Stats() const {
  CopyEngineStats stats;
  {
    MutexLock lock(&mu_);
    stats = stats_;
  }
  if (const absl::Status health = device_->health(); !health.ok()) stats.health = std::string(health.message());
  return stats;
}

}  // namespace terrace::gpu
