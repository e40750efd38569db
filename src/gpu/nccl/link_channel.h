// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// LinkChannel: the owner thread's half of a NcclLink: communicator, streams, staging, one batch at a time.
#pragma once

#include <cuda.h>

#include <atomic>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu/cuda/cuda_device.h"
#include "gpu/nccl/call_watch.h"
#include "gpu/nccl/nccl_library.h"
#include "gpu/nccl_link.h"

namespace terrace::gpu {

// Owner: NcclLink. Threads: one (streams and communicator are bound to it), but for the two atomics given to it.
// Waits by polling, so that a deadline or closing ends every wait. Copies have a stream of their own on which nothing
// waits for the peer. Staging is overwritten whole before it is sent from or copied out of: nothing of another tenant
// is ever read there. Failure: a status; then Close() is all that may follow. Aborted: its thread was given up
// (CallWatch), and nothing of the batch may be touched.
class LinkChannel {
 public:
  // What its waits look at: both may change at any time.
  struct Limits {
    const std::atomic<int64_t>& deadline_ns;  // of all batches, the earliest
    const std::atomic<bool>& closing;
  };

  LinkChannel(std::shared_ptr<CudaDevice> device, std::shared_ptr<const NcclLibrary> nccl, CallWatch& watch,
              Limits limits)
      : device_(std::move(device)), nccl_(std::move(nccl)), watch_(watch), limits_(limits) {}
  LinkChannel(const LinkChannel&) = delete;

  // Returns when the peer is there, too.
  absl::Status Connect(const NcclUniqueId& id, int rank, const NcclLinkOptions& options);
  // Returns when all frames have a verdict.
  absl::Status RunBatch(LinkBatch& batch);
  // What became of the communicator meanwhile.
  absl::Status Poll();
  // Aborts the communicator and gives everything back. False: a transfer or copy may still run; what it uses is
  // left as it is.
  bool Close(int64_t limit_ns);

 private:
  static constexpr size_t kSlots = 2;
  static constexpr uint64_t kSlotBytes = NcclLink::kStagingBytes / kSlots;
  static constexpr uint64_t kRunBytes = 4ull << 20;
  static constexpr size_t kMaxRuns = 256;  // NCCL operations of one group

  // A part of a frame that is one NCCL operation.
  struct Run {
    size_t frame;
    uint64_t offset, bytes, staged_at;
    bool is_last;  // of its frame
  };
  enum class Step : uint8_t { kStaging, kPosting, kMoving, kDraining, kDone };
  // What is posted as one group. Cut by the frames' lengths alone, so that both sides cut alike.
  struct Chunk {
    std::vector<Run> runs;
    Step step = Step::kStaging;
    size_t slot = 0;
  };
  struct Slot {
    CUdeviceptr staging = 0;
    CUevent event = nullptr;
  };
  static std::vector<Chunk> Cut(const std::vector<LinkFrame>& frames);

  absl::Status MakeStreams();
  absl::Status MakeStaging();
  absl::Status StartConnecting(const NcclUniqueId& id, int rank, const NcclLinkOptions& options);
  absl::Status CheckLimits(int64_t now_ns);
  absl::StatusOr<bool> CommIsReady();
  absl::StatusOr<bool> EventIsDone(CUevent event);
  absl::StatusOr<bool> StreamIsIdle(CUstream stream);
  absl::StatusOr<bool> Advance(LinkBatch& batch, Chunk& chunk, bool may_post);
  absl::Status Stage(LinkBatch& batch, Chunk& chunk);
  absl::Status Post(LinkBatch& batch, const Chunk& chunk);
  absl::StatusOr<bool> Drain(LinkBatch& batch, const Chunk& chunk);
  void Verify(LinkBatch& batch, const Chunk& chunk);
  absl::Status VerifyOnDevice(LinkBatch& batch);
  std::byte* Place(const LinkBatch& batch, const Chunk& chunk, const Run& run) const;

  template <typename F>
  absl::Status Cuda(const char* name, F call);
  template <typename F>
  absl::Status Nccl(const char* name, F call);

  const std::shared_ptr<CudaDevice> device_;
  const std::shared_ptr<const NcclLibrary> nccl_;
  CallWatch& watch_;
  const Limits limits_;
  int peer_ = 0;
  ncclComm_t comm_ = nullptr;
  CUstream nccl_stream_ = nullptr, copy_stream_ = nullptr;
  Slot slots_[kSlots];
  void* bounce_ = nullptr;  // pinned host memory through which frames in GPU memory are verified
  uint64_t bounce_bytes_ = 0;
};

}  // namespace terrace::gpu
