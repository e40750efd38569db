// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// CudaCopyLane: a stream that copies one chunk at a time, with what a chunk needs: staging in GPU memory, tables for
// the kernels, buffers for frames that are not pinned. Several lanes a direction overlap: while one's bytes cross the
// link, the next one's are gathered.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu/cuda/copy_planner.h"
#include "gpu/cuda/cuda_copy_engine_ticket.h"
#include "gpu/cuda/cuda_device.h"
#include "gpu/cuda/kernels/copy_table.h"

namespace terrace::gpu {

// The kernels as the driver has loaded them; null: not to be had, the processor computes checksums. Loaded is not
// accepted: a driver may refuse each launch (no code for this GPU, no memory to load it into). Then chunks do without
// for a while, before a launch is tried again: for twice as long after each refusal.
struct CudaCopyKernels {
  static constexpr uint32_t kFirstRest = 64, kLongestRest = 65'536;  // chunks
  CUmodule module = nullptr;
  CUfunction gather = nullptr, scatter = nullptr, checksum = nullptr;
  uint32_t max_sms = 1;
  uint32_t rest = 0, next_rest = kFirstRest;
  bool has_been_refused = false;
  explicit operator bool() const { return module != nullptr; }
  // For the next chunk.
  bool TakeTurn() {
    if (rest == 0) return module != nullptr;
    --rest;
    return false;
  }
};

// Checksums. A store's are those of the bytes that a kernel read from the pages, which are compared when the block is
// loaded: what goes wrong on the way to the frame is found then, and what the engine writes meanwhile, too. A load's
// are of the very bytes that a kernel wrote to the pages (or, copied by DMA, of the pages read again). Without kernels
// the processor computes both, over the pages as it reads them once more after the copy: half as fast, as safe.
//
// Staging and buffers change batches, so regions and tenants. Of a chunk's bytes there each is written before it is
// read, by an operation before it in the same stream over the same range; where that operation cannot be enqueued the
// rest is not either; where it fails on the GPU, so does everything after it. Nothing is read that is an earlier
// chunk's. They are zeroed at the end, before they go back to the driver.
//
// Owner: CudaCopyEngine, whose thread alone uses it with the context current. Limits: one chunk of chunk_bytes.
class CudaCopyLane {
 public:
  struct Options {
    int priority = 0;
    uint64_t chunk_bytes = 0;    // of buffers; with alignment, a little more than a chunk
    uint64_t staging_bytes = 0;  // chunk_bytes, or 0: no staging
  };
  static absl::StatusOr<std::unique_ptr<CudaCopyLane>> Make(CudaDevice& device, CudaCopyKernels& kernels,
                                                            const Options& options);
  // Where the device is out of service nothing is given back: the driver might wait for ever for a copy that hangs.
  ~CudaCopyLane();
  CudaCopyLane(const CudaCopyLane&) = delete;

  bool has_staging() const { return staging_ != 0; }
  bool is_busy() const { return ticket_ != nullptr; }
  CudaCopyTicket* ticket() const { return ticket_; }
  size_t chunk() const { return chunk_; }
  // kCopyEngine, whatever Begin() was told, where the kernels are not to be had.
  CopyMeans means() const { return means_; }
  bool has_used_kernels() const { return with_kernels_; }
  int64_t begun_ns() const { return begun_ns_; }

  // An error: part of it may have been enqueued; the lane is busy until Poll() says that it is not.
  absl::Status Begin(CudaCopyTicket* ticket, size_t chunk, CopyMeans means, int64_t now_ns);
  // True: everything is done. An error of the GPU fences the device.
  bool Poll();
  // After Poll() said so: the chunk's checksums, computed or only collected; unpinned frames are filled. Free again.
  std::span<const uint64_t> Finish();
  // Without an end: free again, but checksums and frames are as they are.
  void Abandon() { ticket_ = nullptr; }

 private:
  CudaCopyLane(CudaDevice& device, CudaCopyKernels& kernels, const Options& options)
      : device_(device), kernels_(kernels), options_(options) {}
  absl::Status Allocate();
  // Pinned, of a chunk's bytes; made when it is needed first.
  struct Buffer {
    std::byte* data = nullptr;
    CUdeviceptr address = 0;
  };
  absl::Status AllocateBuffer(Buffer* buffer);
  void LayOut();
  absl::Status Enqueue();
  absl::Status EnqueueWithKernels();
  absl::Status EnqueueWithoutKernels(bool is_copied);
  absl::Status UploadTable(bool pages_to_staging);
  absl::Status Launch(CUfunction kernel);
  void RestKernels(CUresult why);
  absl::Status CopyRuns(bool from_staging);
  void ListRuns();
  absl::Status ReadBack();
  absl::Status Copy(std::vector<CopyOp>& ops, bool to_frames);
  absl::Status CopySingles(const std::vector<CopyOp>& ops, bool to_frames);
  void ListPieces(bool plane_after_plane, std::vector<CopyOp>* ops) const;
  void ChecksumOnHost();
  bool IsIdle();

  CudaDevice& device_;
  CudaCopyKernels& kernels_;  // the engine's, for all lanes
  const Options options_;
  CUstream stream_ = nullptr;
  CUdeviceptr staging_ = 0, device_table_ = 0;
  std::byte* table_ = nullptr;  // pinned: planes, then blocks
  uint64_t* checksums_ = nullptr;
  CUdeviceptr table_address_ = 0, checksums_address_ = 0;  // the same for the GPU
  Buffer bounce_;                                          // for frames that are not pinned
  Buffer read_back_;                                       // the pages again, for chunks without kernels

  CudaCopyTicket* ticket_ = nullptr;
  size_t chunk_ = 0;
  CopyMeans means_ = CopyMeans::kCopyEngine;
  int64_t begun_ns_ = 0;
  bool with_kernels_ = false;           // this chunk
  bool launch_refused_ = false;         // in it
  bool refuses_batches_ = false;        // the driver has cuMemcpyBatchAsync, and does not want it here
  std::vector<uint64_t> offsets_;       // of the chunk's blocks in staging and buffers
  std::vector<uint64_t> contiguous_;    // address of the chunk's bytes of each block outside the pages
  CopyTable kernel_table_{};
  std::vector<CopyOp> ops_, other_ops_;
  std::vector<CUdeviceptr> targets_, sources_;
  std::vector<size_t> sizes_;
};

}  // namespace terrace::gpu
