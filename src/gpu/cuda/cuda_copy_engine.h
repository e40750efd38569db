// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// CudaCopyEngine: CopyEngine over one GPU. docs/decisions/0010-gpu-copies.md says why it works as it does.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu/copy_engine.h"
#include "gpu/cuda/copy_planner.h"
#include "gpu/cuda/cuda_copy_engine_gates.h"
#include "gpu/cuda/cuda_copy_engine_lane.h"
#include "gpu/cuda/cuda_copy_engine_ticket.h"
#include "gpu/cuda/cuda_device.h"
#include "gpu/gpus.h"
#include "kvstore/base/mutex.h"

namespace terrace::gpu {

// Owner: Gpus. Threads: any may submit; one thread of its own makes all CUDA calls for copies, and all call-backs.
// That thread looks at the GPU all the time for some ten microseconds after something happened, then sleeps in steps
// that grow with the wait: small batches are fast, long ones cost little.
//
// Loads and stores have streams of their own, loads with the higher priority, so neither waits for the other. A batch
// is copied in chunks of some MiB, several at a time; what was begun is never stopped. Batches of one direction are
// begun in their order, save those that wait for an engine's event, which hold up nobody.
//
// Limits: queue_depth batches in each direction that were not begun. Failure: an error that leaves the GPU usable ends
// that batch. After one that does not, or when no chunk of a batch has ended for batch_deadline_ns, the device is
// fenced: all batches end, frames_lost where copies were on their way, and no further one is taken. Its memory and
// streams then stay as they are until the process ends.
class CudaCopyEngine final : public CopyEngine {
 public:
  static absl::StatusOr<std::unique_ptr<CudaCopyEngine>> Make(std::shared_ptr<CudaDevice> device,
                                                              const GpuOptions& options,
                                                              std::optional<CopyMeans> only = std::nullopt);
  ~CudaCopyEngine() override;

  absl::Status Submit(CopyBatch& batch) override;
  void Drain() override;
  CopyEngineStats Stats() const override;

 private:
  static constexpr size_t kLanes = 3;  // one is gathered while one crosses the link and one is looked after
  struct Waiting {
    CopyBatch batch;
    FramePlaces frames;
    int64_t since_ns = 0;            // when the thread saw it first
    CudaCopyGates::Gate* gate = nullptr;
    bool passed = false;  // the engine's event is done, or there is none
  };
  // Everything of one direction. The thread's own.
  struct Side {
    std::vector<std::unique_ptr<CudaCopyLane>> lanes;
    std::deque<Waiting> waiting;
    std::deque<std::unique_ptr<CudaCopyTicket>> begun;
    int64_t last_end_ns = 0;
  };

  CudaCopyEngine(std::shared_ptr<CudaDevice> device, const GpuOptions& options)
      : device_(std::move(device)), options_(options) {}
  absl::Status Start(std::optional<CopyMeans> only);
  void LoadKernels();
  absl::Status MakeAllLanes();
  absl::Status MakeLanes(const CudaCopyLane::Options& loads, const CudaCopyLane::Options& stores);

  void Run();
  bool TakeSubmitted(int64_t now_ns);  // false: closing, and nothing is left
  void Rest(int64_t quiet_ns);
  bool Step(Side& side, int64_t now_ns);  // true: something happened
  bool EndChunks(Side& side, int64_t now_ns);
  void EndChunk(Side& side, CudaCopyLane& lane, int64_t now_ns);
  bool PassGates(Side& side, int64_t now_ns);
  absl::Status TryPass(Waiting& waiting, int64_t now_ns);
  bool BeginChunks(Side& side, int64_t now_ns);
  bool MayBegin(const CopyBatch& batch);
  CudaCopyTicket* NextTicket(Side& side);
  bool EndTickets(Side& side);
  void CheckDeadlines(Side& side, int64_t now_ns);
  void EndAll();
  void End(std::unique_ptr<CudaCopyTicket> ticket, const absl::Status& status, bool frames_lost);
  void EndWaiting(Waiting waiting, const absl::Status& status);
  void SayFailed(uint64_t failed, const absl::Status& status) const;
  void CountBegun(Direction direction);
  void CountEnded();
  bool IsIdle() const;

  const std::shared_ptr<CudaDevice> device_;
  const GpuOptions options_;
  // The thread's own, after Start().
  CudaCopyKernels kernels_;
  uint64_t chunk_bytes_ = 0;
  bool closing_seen_ = false;
  uint32_t small_stores_ = 0;  // begun since a chunk of a load ended
  std::optional<CopyPlanner> planner_;
  Side sides_[2];  // loads, stores
  std::unique_ptr<CudaCopyGates> gates_;

  mutable Mutex mu_;
  CondVar work_, idle_;
  std::deque<Waiting> submitted_[2] ABSL_GUARDED_BY(mu_);  // loads, stores
  uint32_t not_begun_[2] ABSL_GUARDED_BY(mu_) = {0, 0};
  uint64_t pending_ ABSL_GUARDED_BY(mu_) = 0;  // submitted, not ended
  bool closing_ ABSL_GUARDED_BY(mu_) = false;
  CopyEngineStats stats_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace terrace::gpu
