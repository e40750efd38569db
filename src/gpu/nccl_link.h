// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// NcclLink: frames between two daemons by NCCL: from GPU to GPU over NVLink, InfiniBand or Ethernet, with host
// memory staged through the GPU. A fast path beside an ordinary one: whatever goes wrong ends it, within its time,
// and the caller goes on without. No NCCL or CUDA type in it; both are opened at run time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu/region.h"

namespace terrace::gpu {

// Names one communicator. Made by one side, carried to the other by the caller, used once.
using NcclUniqueId = std::array<std::byte, 128>;

struct NcclLinkOptions {
  std::string driver = "libcuda.so.1";  // what dlopen() is given
  std::string library = "libnccl.so.2";
  DeviceUuid device{};        // GPU of this side; all zero: the first
  uint32_t queue_depth = 64;  // batches waiting
  int max_channels = 4;       // multiprocessors that NCCL's kernels may use
  int64_t connect_deadline_ns = 30'000'000'000;
  // A single call of the driver or of NCCL that lasts longer takes the link down. Also how long closing may take.
  int64_t stall_deadline_ns = 5'000'000'000;
};

// One frame of a batch.
struct LinkFrame {
  std::byte* data = nullptr;
  uint64_t bytes = 0;
  bool receive = false;        // else it is sent
  uint64_t identity_seed = 0;  // receive: kvstore/base/block_copy.h
  std::vector<uint64_t> checksums;  // receive: ChecksumCount(bytes) of them, as the caller knows them
  bool intact = false;  // out. Sent: NCCL has taken it whole. Received: it holds the checksums' bytes; when false
                        // its bytes are undefined
};

// The n-th batch of one side goes with the n-th of the other: what one sends the other receives, in the same order
// and with the same lengths. The two callers agree on that over their own connection. Frames must stay valid until
// done was called.
struct LinkBatch {
  static constexpr size_t kMaxFrames = 4096;

  bool frames_on_device = false;  // memory of the link's GPU; else host memory (pinned memory is faster)
  std::vector<LinkFrame> frames;  // 1 .. kMaxFrames
  int64_t deadline_ns = 0;        // by Clock::Real(); a batch that misses it takes the link down
  // Called exactly once, on a thread of the link, under no lock. OK: see each frame's verdict. Else none is intact:
  // DeadlineExceeded, Unavailable (the link is down), Cancelled (closing).
  std::function<void(LinkBatch& batch, const absl::Status& status)> done;
  // Out: a transfer that could not be stopped may still touch the frames. They must never be used again.
  bool frames_lost = false;
};

enum class LinkState : uint8_t { kConnecting, kUp, kDown };

struct NcclLinkStats {
  uint64_t sent_bytes = 0, received_bytes = 0, batches = 0, failed_batches = 0, damaged_frames = 0;
};

// One communicator of two ranks, so that a peer that dies takes down its own link only. Once down it stays so: open
// another with a new id. Owner: who speaks to the peer. Threads: any; all calls of NCCL and the driver come from one
// thread of the link's own, a second one watches that it comes back from them. Limits: queue_depth batches; GPU
// memory of kStagingBytes while host frames are moved. Failure: on an error, a deadline or a call that does not
// return the communicator is aborted and every batch ends; nothing here waits for the peer without an end, closing
// included. Where even the abort does not return, its thread is left behind (one line in the log) and the frames of
// batches that ran are lost.
class NcclLink {
 public:
  static constexpr uint64_t kStagingBytes = 32ull << 20;
  static constexpr uint64_t kMaxFrameBytes = 256ull << 20;

  // For one of the two sides. Unavailable: no NCCL, and what to do about it.
  static absl::StatusOr<NcclUniqueId> MakeUniqueId(const NcclLinkOptions& options);
  // Does not wait for the peer: batches may be submitted while it connects. Unavailable: no driver, GPU or NCCL.
  static absl::StatusOr<std::unique_ptr<NcclLink>> Open(const NcclLinkOptions& options, const NcclUniqueId& id,
                                                        int rank);
  ~NcclLink();
  NcclLink(const NcclLink&) = delete;

  // ResourceExhausted: the queue is full. Unavailable: down. InvalidArgument: no frame or too many, an empty or too
  // large one, a wrong number of checksums. done is then not called and the batch is left as it was.
  absl::Status Submit(LinkBatch& batch);
  LinkState state() const;
  absl::Status health() const;  // OK while connecting and up; else why it is down
  NcclLinkStats Stats() const;

 private:
  class Impl;
  explicit NcclLink(std::shared_ptr<Impl> impl);
  const std::shared_ptr<Impl> impl_;  // shared with its threads
};

}  // namespace terrace::gpu
