// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/cuda_copy_engine_lane.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "gpu/cuda/kernels/segment_copy.h"
#include "kvstore/base/block_copy.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"

namespace terrace::gpu {
namespace {

constexpr uint64_t kTableBytes =
    RegionLayout::kMaxPlanes * sizeof(PlaneEntry) + CopyBatch::kMaxPages * sizeof(BlockEntry);
// Tables up to here are read where they are, over the link; larger ones are copied to the GPU first.
constexpr uint64_t kTableInPlaceBytes = 2048;
constexpr uint64_t kBlockAlignment = 16;  // in staging and buffers: what kernels load at once
constexpr uint32_t kMinKernelThreads = 128;
constexpr int64_t kLongestCloseNs = 2'000'000'000;  // of a GPU that does nothing any more

uint64_t AlignUp(uint64_t value) { return (value + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment; }

}  // namespace

absl::StatusOr<std::unique_ptr<CudaCopyLane>> CudaCopyLane::Make(CudaDevice& device, CudaCopyKernels& kernels,
                                                                 const Options& options) {
  std::unique_ptr<CudaCopyLane> lane(new CudaCopyLane(device, kernels, options));
  RETURN_IF_ERROR(lane->Allocate());
  return lane;
}

absl::Status CudaCopyLane::Allocate() {
  const Driver& driver = device_.driver();
  RETURN_IF_ERROR(device_.Check(driver.cuStreamCreateWithPriority(&stream_, CU_STREAM_NON_BLOCKING, options_.priority),
                                "cuStreamCreateWithPriority"));
  const uint64_t bytes = kTableBytes + kMaxChunkItems * sizeof(uint64_t);
  void* memory = nullptr;
  RETURN_IF_ERROR(device_.Check(
      driver.cuMemHostAlloc(&memory, bytes, CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP), "cuMemHostAlloc"));
  table_ = static_cast<std::byte*>(memory);
  checksums_ = reinterpret_cast<uint64_t*>(table_ + kTableBytes);
  RETURN_IF_ERROR(device_.Check(driver.cuMemHostGetDevicePointer(&table_address_, table_, 0),
                                "cuMemHostGetDevicePointer"));
  checksums_address_ = table_address_ + kTableBytes;
  if (options_.staging_bytes > 0) {
    RETURN_IF_ERROR(device_.Check(driver.cuMemAlloc(&staging_, options_.staging_bytes), "cuMemAlloc"));
  }
  // Without it large tables are read over the link: slower, no more.
  if (kernels_ && driver.cuMemAlloc(&device_table_, kTableBytes) != CUDA_SUCCESS) device_table_ = 0;
  return absl::OkStatus();
}

absl::Status CudaCopyLane::AllocateBuffer(Buffer* buffer) {
  if (buffer->data != nullptr) return absl::OkStatus();
  const Driver& driver = device_.driver();
  void* memory = nullptr;
  RETURN_IF_ERROR(device_.Check(driver.cuMemHostAlloc(&memory, options_.chunk_bytes,
                                                      CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP),
                                "cuMemHostAlloc"));
  const absl::Status status =
      device_.Check(driver.cuMemHostGetDevicePointer(&buffer->address, memory, 0), "cuMemHostGetDevicePointer");
  if (!status.ok()) {
    driver.cuMemFreeHost(memory);
    return status;
  }
  buffer->data = static_cast<std::byte*>(memory);
  return absl::OkStatus();
}

// Freeing waits for all that the GPU still has to do, so a GPU that hangs is found out first.
bool CudaCopyLane::IsIdle() {
  if (stream_ == nullptr) return true;
  const int64_t deadline_ns = Clock::Real()->NowNs() + kLongestCloseNs;
  while (device_.driver().cuStreamQuery(stream_) == CUDA_ERROR_NOT_READY) {
    if (Clock::Real()->NowNs() > deadline_ns) {
      device_.Fence(absl::DeadlineExceededError("the GPU did not end its work when its copy engine was closed"));
      return false;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return true;
}

CudaCopyLane::~CudaCopyLane() {
  if (device_.fenced()) return;
  const Driver& driver = device_.driver();
  if (staging_ != 0) driver.cuMemsetD8Async(staging_, 0, options_.staging_bytes, stream_);
  if (!IsIdle()) return;
  if (staging_ != 0) driver.cuMemFree(staging_);
  if (device_table_ != 0) driver.cuMemFree(device_table_);
  for (const Buffer& buffer : {bounce_, read_back_}) {
    if (buffer.data == nullptr) continue;
    std::memset(buffer.data, 0, options_.chunk_bytes);
    driver.cuMemFreeHost(buffer.data);
  }
  if (table_ != nullptr) driver.cuMemFreeHost(table_);
  if (stream_ != nullptr) driver.cuStreamDestroy(stream_);
}

absl::Status CudaCopyLane::Begin(CudaCopyTicket* ticket, size_t chunk, CopyMeans means, int64_t now_ns) {
  ticket_ = ticket;
  chunk_ = chunk;
  with_kernels_ = kernels_.TakeTurn();
  means_ = with_kernels_ ? means : CopyMeans::kCopyEngine;
  begun_ns_ = now_ns;
  if (ticket->frames.bounced) RETURN_IF_ERROR(AllocateBuffer(&bounce_));
  LayOut();
  return Enqueue();
}

// Where the chunk's blocks lie outside the pages.
void CudaCopyLane::LayOut() {
  const CopyChunk& chunk = ticket_->chunks()[chunk_];
  const uint64_t begin = ticket_->Begin(chunk), bytes = ticket_->End(chunk) - begin;
  const bool bounced = ticket_->frames.bounced;
  offsets_.clear();
  contiguous_.clear();
  for (uint32_t b = 0; b < chunk.n_blocks; ++b) {
    offsets_.push_back(b * AlignUp(bytes));
    contiguous_.push_back(bounced ? bounce_.address + offsets_[b]
                                  : ticket_->frames.addresses[chunk.first_block + b] + begin);
    if (bounced && ticket_->is_load()) {
      std::memcpy(bounce_.data + offsets_[b], ticket_->batch.pages[chunk.first_block + b].frame + begin, bytes);
    }
  }
}

absl::Status CudaCopyLane::Enqueue() {
  if (!with_kernels_) return EnqueueWithoutKernels(false);
  launch_refused_ = false;
  const absl::Status status = EnqueueWithKernels();
  if (!launch_refused_) return status;
  // What has been enqueued filled staging, or the very target: it does no harm.
  with_kernels_ = false;
  const bool is_copied = means_ == CopyMeans::kCopyEngine;
  means_ = CopyMeans::kCopyEngine;
  return EnqueueWithoutKernels(is_copied);
}

absl::Status CudaCopyLane::EnqueueWithoutKernels(bool is_copied) {
  RETURN_IF_ERROR(AllocateBuffer(&read_back_));
  if (!is_copied) RETURN_IF_ERROR(CopyRuns(false));
  return ReadBack();
}

absl::Status CudaCopyLane::EnqueueWithKernels() {
  const bool is_load = ticket_->is_load();
  switch (means_) {
    case CopyMeans::kDirect:
      RETURN_IF_ERROR(UploadTable(false));
      return Launch(is_load ? kernels_.scatter : kernels_.gather);
    case CopyMeans::kStaged:
      RETURN_IF_ERROR(UploadTable(true));
      if (!is_load) RETURN_IF_ERROR(Launch(kernels_.gather));
      RETURN_IF_ERROR(CopyRuns(true));
      return is_load ? Launch(kernels_.scatter) : absl::OkStatus();
    case CopyMeans::kCopyEngine:
      RETURN_IF_ERROR(CopyRuns(false));
      RETURN_IF_ERROR(UploadTable(false));
      return Launch(kernels_.checksum);
  }
  return absl::InternalError("no such means");
}

absl::Status CudaCopyLane::UploadTable(bool pages_to_staging) {
  const CopyChunk& chunk = ticket_->chunks()[chunk_];
  const std::span<const PlaneEntry> planes = ticket_->PlanesOf(ticket_->Begin(chunk), ticket_->End(chunk));
  std::memcpy(table_, planes.data(), planes.size_bytes());
  BlockEntry* const blocks = reinterpret_cast<BlockEntry*>(table_ + planes.size_bytes());
  for (uint32_t b = 0; b < chunk.n_blocks; ++b) {
    const PageCopy& page = ticket_->batch.pages[chunk.first_block + b];
    blocks[b] = {page.page, pages_to_staging ? staging_ + offsets_[b] : contiguous_[b], page.identity_seed};
  }
  const uint64_t bytes = planes.size_bytes() + chunk.n_blocks * sizeof(BlockEntry);
  CUdeviceptr address = table_address_;
  if (bytes > kTableInPlaceBytes && device_table_ != 0) {
    RETURN_IF_ERROR(device_.Check(device_.driver().cuMemcpyAsync(device_table_, table_address_, bytes, stream_),
                                  "cuMemcpyAsync"));
    address = device_table_;
  }
  kernel_table_.planes = reinterpret_cast<const PlaneEntry*>(address);
  kernel_table_.blocks = reinterpret_cast<const BlockEntry*>(address + planes.size_bytes());
  kernel_table_.checksums = reinterpret_cast<uint64_t*>(checksums_address_);
  kernel_table_.page_bytes = ticket_->page_bytes();
  kernel_table_.n_planes = static_cast<uint32_t>(planes.size());
  kernel_table_.n_blocks = chunk.n_blocks;
  kernel_table_.first_segment = chunk.first_segment;
  kernel_table_.n_segments = chunk.n_segments;
  return absl::OkStatus();
}

absl::Status CudaCopyLane::Launch(CUfunction kernel) {
  const uint32_t warps = kernel_table_.n_blocks * kernel_table_.n_segments;
  // Few segments: spread over all the multiprocessors that there are for us. Many: as many warps as fit.
  const uint32_t each = (warps + kernels_.max_sms - 1) / kernels_.max_sms;
  const uint32_t threads = std::clamp(each * 32, kMinKernelThreads, kMaxKernelThreads);
  const uint32_t grid = std::min(kernels_.max_sms, (warps * 32 + threads - 1) / threads);
  void* arguments[] = {&kernel_table_};
  const CUresult result =
      device_.driver().cuLaunchKernel(kernel, grid, 1, 1, threads, 1, 1, 0, stream_, arguments, nullptr);
  if (result == CUDA_SUCCESS) {
    kernels_.next_rest = CudaCopyKernels::kFirstRest;
  } else if (!Driver::IsSticky(result)) {
    launch_refused_ = true;
    RestKernels(result);
  }
  return device_.Check(result, "cuLaunchKernel");
}

void CudaCopyLane::RestKernels(CUresult why) {
  kernels_.rest = kernels_.next_rest;
  kernels_.next_rest = std::min(2 * kernels_.next_rest, CudaCopyKernels::kLongestRest);
  if (std::exchange(kernels_.has_been_refused, true)) return;
  Log(LogLevel::kWarning, "gpu_kernels_refused",
      {{"gpu", device_.info().name},
       {"reason", device_.driver().Explain(why)},
       {"effect", "copy engines only, checksums by the processor, until a launch that is tried now and then succeeds"},
       {"help", "leave more GPU memory free, or update the NVIDIA driver"}});
}

void CudaCopyLane::ListPieces(bool plane_after_plane, std::vector<CopyOp>* ops) const {
  const CopyChunk& chunk = ticket_->chunks()[chunk_];
  const uint64_t begin = ticket_->Begin(chunk), end = ticket_->End(chunk);
  const std::span<const PlaneEntry> planes = ticket_->PlanesOf(begin, end);
  ops->clear();
  const auto add = [&](const PlaneEntry& plane, uint32_t b) {
    const uint64_t from = std::max(begin, plane.begin), to = std::min(end, plane.begin + plane.bytes);
    const uint64_t page = ticket_->batch.pages[chunk.first_block + b].page;
    AddRun(*ops, plane.base + page * plane.stride + (from - plane.begin), contiguous_[b] + (from - begin), to - from);
  };
  if (plane_after_plane) {
    for (const PlaneEntry& plane : planes) {
      for (uint32_t b = 0; b < chunk.n_blocks; ++b) add(plane, b);
    }
  } else {
    for (uint32_t b = 0; b < chunk.n_blocks; ++b) {
      for (const PlaneEntry& plane : planes) add(plane, b);
    }
  }
}

absl::Status CudaCopyLane::CopyRuns(bool from_staging) {
  const CopyChunk& chunk = ticket_->chunks()[chunk_];
  if (from_staging) {
    const uint64_t bytes = ticket_->End(chunk) - ticket_->Begin(chunk);
    ops_.clear();
    for (uint32_t b = 0; b < chunk.n_blocks; ++b) AddRun(ops_, staging_ + offsets_[b], contiguous_[b], bytes);
  } else {
    ListRuns();
  }
  return Copy(ops_, !ticket_->is_load());
}

// Rows are found along the pages or along the planes: whichever makes fewer copies.
void CudaCopyLane::ListRuns() {
  const CopyChunk& chunk = ticket_->chunks()[chunk_];
  ListPieces(false, &ops_);
  if (ops_.size() > chunk.n_blocks || (chunk.n_blocks > 1 && ops_.size() == chunk.n_blocks)) {
    ListPieces(true, &other_ops_);
    if (other_ops_.size() < ops_.size()) ops_.swap(other_ops_);
  }
}

// No kernels: the processor computes the checksums of the pages as they are read once more.
absl::Status CudaCopyLane::ReadBack() {
  std::vector<uint64_t> places;
  for (const uint64_t offset : offsets_) places.push_back(read_back_.address + offset);
  contiguous_.swap(places);
  ListRuns();
  contiguous_.swap(places);
  return Copy(ops_, /*to_frames=*/true);
}

absl::Status CudaCopyLane::Copy(std::vector<CopyOp>& ops, bool to_frames) {
  FinishOps(ops);
  for (const CopyOp& op : ops) {
    if (op.rows == 1) continue;
    CUDA_MEMCPY2D copy = {};
    copy.srcMemoryType = copy.dstMemoryType = CU_MEMORYTYPE_UNIFIED;
    copy.srcDevice = to_frames ? op.page_side : op.frame_side;
    copy.srcPitch = to_frames ? op.page_pitch : op.frame_pitch;
    copy.dstDevice = to_frames ? op.frame_side : op.page_side;
    copy.dstPitch = to_frames ? op.frame_pitch : op.page_pitch;
    copy.WidthInBytes = op.bytes;
    copy.Height = op.rows;
    RETURN_IF_ERROR(device_.Check(device_.driver().cuMemcpy2DAsync(&copy, stream_), "cuMemcpy2DAsync"));
  }
  return CopySingles(ops, to_frames);
}

absl::Status CudaCopyLane::CopySingles(const std::vector<CopyOp>& ops, bool to_frames) {
  targets_.clear();
  sources_.clear();
  sizes_.clear();
  for (const CopyOp& op : ops) {
    if (op.rows > 1) continue;
    targets_.push_back(to_frames ? op.frame_side : op.page_side);
    sources_.push_back(to_frames ? op.page_side : op.frame_side);
    sizes_.push_back(op.bytes);
  }
  const Driver& driver = device_.driver();
  if (driver.cuMemcpyBatchAsync != nullptr && sizes_.size() > 1 && !refuses_batches_) {
    CUmemcpyAttributes attributes = {};
    attributes.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
    attributes.flags = CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE;
    size_t first = 0;
    const CUresult result = driver.cuMemcpyBatchAsync(targets_.data(), sources_.data(), sizes_.data(), sizes_.size(),
                                                      &attributes, &first, 1, stream_);
    if (result == CUDA_SUCCESS || Driver::IsSticky(result)) return device_.Check(result, "cuMemcpyBatchAsync");
    // One by one, now and from now on: twice the same bytes to the same place do no harm.
    refuses_batches_ = true;
    Log(LogLevel::kWarning, "gpu_batch_copies_refused",
        {{"gpu", device_.info().name}, {"reason", driver.Explain(result)}, {"effect", "small copies are slower"}});
  }
  for (size_t i = 0; i < sizes_.size(); ++i) {
    RETURN_IF_ERROR(
        device_.Check(driver.cuMemcpyAsync(targets_[i], sources_[i], sizes_[i], stream_), "cuMemcpyAsync"));
  }
  return absl::OkStatus();
}

bool CudaCopyLane::Poll() {
  const CUresult result = device_.driver().cuStreamQuery(stream_);
  // An error that leaves the GPU usable says nothing of the copies: asked again until the deadline.
  if (result != CUDA_SUCCESS && result != CUDA_ERROR_NOT_READY) (void)device_.Check(result, "cuStreamQuery");
  return result == CUDA_SUCCESS;
}

void CudaCopyLane::ChecksumOnHost() {
  const CopyChunk& chunk = ticket_->chunks()[chunk_];
  const uint64_t begin = ticket_->Begin(chunk), bytes = ticket_->End(chunk) - begin;
  for (uint32_t b = 0; b < chunk.n_blocks; ++b) {
    const PageCopy& page = ticket_->batch.pages[chunk.first_block + b];
    const Piece source{read_back_.data + offsets_[b], bytes};
    CopyBlock({&source, 1}, {}, page.identity_seed + chunk.first_segment * kSegmentSeedStep, CopyCheck::kCompute,
              {checksums_ + size_t{b} * chunk.n_segments, chunk.n_segments}, CopyStores::kCached);
  }
}

std::span<const uint64_t> CudaCopyLane::Finish() {
  const CopyChunk& chunk = ticket_->chunks()[chunk_];
  if (!with_kernels_) ChecksumOnHost();
  if (ticket_->frames.bounced && !ticket_->is_load()) {
    const uint64_t begin = ticket_->Begin(chunk), bytes = ticket_->End(chunk) - begin;
    for (uint32_t b = 0; b < chunk.n_blocks; ++b) {
      std::memcpy(ticket_->batch.pages[chunk.first_block + b].frame + begin, bounce_.data + offsets_[b], bytes);
    }
  }
  ticket_ = nullptr;
  return {checksums_, size_t{chunk.n_blocks} * chunk.n_segments};
}

}  // namespace terrace::gpu
