// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/nccl/link_channel.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "kvstore/base/block_copy.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/status_macros.h"

namespace terrace::gpu {
namespace {

constexpr uint64_t kAlignment = 256;  // of runs in the staging memory

int64_t Now() { return Clock::Real()->NowNs(); }

CUdeviceptr Address(const void* memory) { return reinterpret_cast<CUdeviceptr>(memory); }

// Spins for a while (transfers of small batches take some ten microseconds), then sleeps.
class Pause {
 public:
  void Reset() { turns_ = 0; }
  void Wait() {
    if (++turns_ < 200) return;
    std::this_thread::sleep_for(std::chrono::microseconds(turns_ < 2000 ? 20 : 200));
  }

 private:
  int turns_ = 0;
};

absl::Status GivenUp() { return absl::AbortedError("given up by the watchdog"); }

}  // namespace

// Here and in Nccl(): nothing of a batch is looked at inside `call`. The watchdog may have taken it meanwhile.
template <typename F>
absl::Status LinkChannel::Cuda(const char* name, F call) {
  watch_.Begin(name);
  const CUresult result = call();
  if (!watch_.End()) return GivenUp();
  return device_->Check(result, name);
}

// A call that goes on in the background is a success: CommIsReady() tells when it is done.
template <typename F>
absl::Status LinkChannel::Nccl(const char* name, F call) {
  watch_.Begin(name);
  const ncclResult_t result = call();
  if (!watch_.End()) return GivenUp();
  if (result == ncclSuccess || result == ncclInProgress) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(name, ": ", nccl_->Explain(result)));
}

absl::StatusOr<bool> LinkChannel::CommIsReady() {
  ncclResult_t state = ncclSuccess;
  RETURN_IF_ERROR(Nccl("ncclCommGetAsyncError", [&] { return nccl_->ncclCommGetAsyncError(comm_, &state); }));
  if (state == ncclSuccess) return true;
  if (state == ncclInProgress) return false;
  return absl::UnavailableError(absl::StrCat("NCCL: ", nccl_->Explain(state)));
}

absl::StatusOr<bool> LinkChannel::EventIsDone(CUevent event) {
  CUresult result = CUDA_SUCCESS;
  RETURN_IF_ERROR(Cuda("cuEventQuery", [&] {
    result = device_->driver().cuEventQuery(event);
    return result == CUDA_ERROR_NOT_READY ? CUDA_SUCCESS : result;
  }));
  return result == CUDA_SUCCESS;
}

absl::StatusOr<bool> LinkChannel::StreamIsIdle(CUstream stream) {
  CUresult result = CUDA_SUCCESS;
  RETURN_IF_ERROR(Cuda("cuStreamQuery", [&] {
    result = device_->driver().cuStreamQuery(stream);
    return result == CUDA_ERROR_NOT_READY ? CUDA_SUCCESS : result;
  }));
  return result == CUDA_SUCCESS;
}

absl::Status LinkChannel::CheckLimits(int64_t now_ns) {
  if (limits_.closing.load(std::memory_order_acquire)) return absl::CancelledError("the link is closing");
  if (now_ns > limits_.deadline_ns.load(std::memory_order_acquire)) {
    return absl::DeadlineExceededError("a batch missed its deadline: the peer is slow, hung or gone");
  }
  return absl::OkStatus();
}

absl::Status LinkChannel::MakeStreams() {
  const Driver& driver = device_->driver();
  // The primary context stays current on this thread: NCCL takes its device from it.
  RETURN_IF_ERROR(Cuda("cuCtxPushCurrent", [&] { return driver.cuCtxPushCurrent(device_->context()); }));
  for (CUstream* stream : {&nccl_stream_, &copy_stream_}) {
    RETURN_IF_ERROR(Cuda("cuStreamCreateWithPriority",
                         [&] { return driver.cuStreamCreateWithPriority(stream, CU_STREAM_NON_BLOCKING, 0); }));
  }
  for (Slot& slot : slots_) {
    RETURN_IF_ERROR(
        Cuda("cuEventCreate", [&] { return driver.cuEventCreate(&slot.event, CU_EVENT_DISABLE_TIMING); }));
  }
  return absl::OkStatus();
}

absl::Status LinkChannel::MakeStaging() {
  for (Slot& slot : slots_) {
    if (slot.staging != 0) continue;
    RETURN_IF_ERROR(Cuda("cuMemAlloc", [&] { return device_->driver().cuMemAlloc(&slot.staging, kSlotBytes); }));
  }
  return absl::OkStatus();
}

absl::Status LinkChannel::StartConnecting(const NcclUniqueId& id, int rank, const NcclLinkOptions& options) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  config.minCTAs = 1;
  config.maxCTAs = options.max_channels;
  ncclUniqueId raw;
  static_assert(sizeof(raw) == sizeof(id));
  std::memcpy(&raw, id.data(), id.size());
  return Nccl("ncclCommInitRankConfig",
              [&] { return nccl_->ncclCommInitRankConfig(&comm_, 2, raw, rank, &config); });
}

absl::Status LinkChannel::Connect(const NcclUniqueId& id, int rank, const NcclLinkOptions& options) {
  const int64_t deadline_ns = Now() + options.connect_deadline_ns;
  peer_ = 1 - rank;
  RETURN_IF_ERROR(MakeStreams());
  RETURN_IF_ERROR(StartConnecting(id, rank, options));
  Pause pause;
  while (true) {
    ASSIGN_OR_RETURN(const bool ready, CommIsReady());
    if (ready) return absl::OkStatus();
    const int64_t now_ns = Now();
    RETURN_IF_ERROR(CheckLimits(now_ns));
    if (now_ns > deadline_ns) return absl::DeadlineExceededError("the peer did not connect in time");
    pause.Wait();
  }
}

absl::Status LinkChannel::Poll() {
  const absl::StatusOr<bool> ready = CommIsReady();
  return ready.ok() ? device_->health() : ready.status();
}

std::vector<LinkChannel::Chunk> LinkChannel::Cut(const std::vector<LinkFrame>& frames) {
  std::vector<Chunk> chunks;
  uint64_t staged = kSlotBytes;
  for (size_t i = 0; i < frames.size(); ++i) {
    for (uint64_t offset = 0; offset < frames[i].bytes;) {
      const uint64_t bytes = std::min(kRunBytes, frames[i].bytes - offset);
      const uint64_t room = (bytes + kAlignment - 1) / kAlignment * kAlignment;
      if (staged + room > kSlotBytes || chunks.back().runs.size() == kMaxRuns) {
        chunks.emplace_back();
        chunks.back().slot = (chunks.size() - 1) % kSlots;
        staged = 0;
      }
      chunks.back().runs.push_back({i, offset, bytes, staged, offset + bytes == frames[i].bytes});
      offset += bytes;
      staged += room;
    }
  }
  return chunks;
}

absl::Status LinkChannel::RunBatch(LinkBatch& batch) {
  if (!batch.frames_on_device) RETURN_IF_ERROR(MakeStaging());
  std::vector<Chunk> chunks = Cut(batch.frames);
  size_t begun = 0, finished = 0;
  int64_t polled_ns = Now();
  Pause pause;
  while (finished < chunks.size()) {
    bool moved = false;
    if (begun < chunks.size() && begun - finished < kSlots) {
      RETURN_IF_ERROR(Stage(batch, chunks[begun++]));
      moved = true;
    }
    for (size_t i = finished; i < begun; ++i) {  // posted in order, one at a time
      const bool may_post = i == finished || chunks[i - 1].step > Step::kPosting;
      ASSIGN_OR_RETURN(const bool advanced, Advance(batch, chunks[i], may_post));
      moved |= advanced;
    }
    while (finished < begun && chunks[finished].step == Step::kDone) ++finished;
    if (finished == chunks.size()) break;
    const int64_t now_ns = Now();
    RETURN_IF_ERROR(CheckLimits(now_ns));
    if (now_ns - polled_ns > 1'000'000) {  // a millisecond: it takes a lock of NCCL's
      RETURN_IF_ERROR(CommIsReady().status());
      polled_ns = now_ns;
    }
    if (moved) {
      pause.Reset();
    } else {
      pause.Wait();
    }
  }
  return batch.frames_on_device ? VerifyOnDevice(batch) : absl::OkStatus();
}

std::byte* LinkChannel::Place(const LinkBatch& batch, const Chunk& chunk, const Run& run) const {
  if (batch.frames_on_device) return batch.frames[run.frame].data + run.offset;
  return reinterpret_cast<std::byte*>(slots_[chunk.slot].staging + run.staged_at);
}

// The slot is free: its last chunk is done.
absl::Status LinkChannel::Stage(LinkBatch& batch, Chunk& chunk) {
  const Driver& driver = device_->driver();
  for (const Run& run : chunk.runs) {
    const LinkFrame& frame = batch.frames[run.frame];
    if (batch.frames_on_device || frame.receive) continue;
    const CUdeviceptr target = Address(Place(batch, chunk, run)), source = Address(frame.data + run.offset);
    RETURN_IF_ERROR(
        Cuda("cuMemcpyAsync", [&] { return driver.cuMemcpyAsync(target, source, run.bytes, copy_stream_); }));
  }
  return Cuda("cuEventRecord", [&] { return driver.cuEventRecord(slots_[chunk.slot].event, copy_stream_); });
}

absl::Status LinkChannel::Post(LinkBatch& batch, const Chunk& chunk) {
  RETURN_IF_ERROR(Nccl("ncclGroupStart", [&] { return nccl_->ncclGroupStart(); }));
  for (const Run& run : chunk.runs) {
    std::byte* const place = Place(batch, chunk, run);
    RETURN_IF_ERROR(batch.frames[run.frame].receive
                        ? Nccl("ncclRecv",
                               [&] { return nccl_->ncclRecv(place, run.bytes, ncclInt8, peer_, comm_, nccl_stream_); })
                        : Nccl("ncclSend", [&] {
                            return nccl_->ncclSend(place, run.bytes, ncclInt8, peer_, comm_, nccl_stream_);
                          }));
  }
  return Nccl("ncclGroupEnd", [&] { return nccl_->ncclGroupEnd(); });
}

// True: there was something to copy out.
absl::StatusOr<bool> LinkChannel::Drain(LinkBatch& batch, const Chunk& chunk) {
  const Driver& driver = device_->driver();
  bool any = false;
  for (const Run& run : chunk.runs) {
    const LinkFrame& frame = batch.frames[run.frame];
    if (batch.frames_on_device || !frame.receive) continue;
    any = true;
    const CUdeviceptr target = Address(frame.data + run.offset), source = Address(Place(batch, chunk, run));
    RETURN_IF_ERROR(
        Cuda("cuMemcpyAsync", [&] { return driver.cuMemcpyAsync(target, source, run.bytes, copy_stream_); }));
  }
  RETURN_IF_ERROR(
      Cuda("cuEventRecord", [&] { return driver.cuEventRecord(slots_[chunk.slot].event, copy_stream_); }));
  return any;
}

// Takes the chunk one step further if it can go. True: it did.
absl::StatusOr<bool> LinkChannel::Advance(LinkBatch& batch, Chunk& chunk, bool may_post) {
  const CUevent event = slots_[chunk.slot].event;
  switch (chunk.step) {
    case Step::kStaging: {
      if (!may_post) return false;
      ASSIGN_OR_RETURN(const bool staged, EventIsDone(event));
      if (!staged) return false;
      RETURN_IF_ERROR(Post(batch, chunk));
      chunk.step = Step::kPosting;
      return true;
    }
    case Step::kPosting: {  // a non-blocking communicator connects the pair first, in the background
      ASSIGN_OR_RETURN(const bool posted, CommIsReady());
      if (!posted) return false;
      RETURN_IF_ERROR(
          Cuda("cuEventRecord", [&] { return device_->driver().cuEventRecord(event, nccl_stream_); }));
      chunk.step = Step::kMoving;
      return true;
    }
    case Step::kMoving: {
      ASSIGN_OR_RETURN(const bool moved, EventIsDone(event));
      if (!moved) return false;
      ASSIGN_OR_RETURN(const bool drains, Drain(batch, chunk));
      chunk.step = Step::kDraining;
      if (!drains) Verify(batch, chunk);
      if (!drains) chunk.step = Step::kDone;
      return true;
    }
    case Step::kDraining: {
      ASSIGN_OR_RETURN(const bool drained, EventIsDone(event));
      if (!drained) return false;
      Verify(batch, chunk);
      chunk.step = Step::kDone;
      return true;
    }
    case Step::kDone: return false;
  }
  return false;
}

// Verdicts of the frames that end in this chunk; those in GPU memory have theirs at the end.
void LinkChannel::Verify(LinkBatch& batch, const Chunk& chunk) {
  for (const Run& run : chunk.runs) {
    LinkFrame& frame = batch.frames[run.frame];
    if (!run.is_last) continue;
    if (!frame.receive) {
      frame.intact = true;
    } else if (!batch.frames_on_device) {
      const Piece piece{frame.data, frame.bytes};
      frame.intact = CopyBlock({&piece, 1}, {}, frame.identity_seed, CopyCheck::kVerify, frame.checksums,
                               CopyStores::kCached);
    }
  }
}

// The transfer is over and only this process can write to the frames: what is verified here stays so.
absl::Status LinkChannel::VerifyOnDevice(LinkBatch& batch) {
  const Driver& driver = device_->driver();
  for (LinkFrame& frame : batch.frames) {
    if (!frame.receive) continue;
    const uint64_t bytes = frame.bytes;
    const CUdeviceptr source = Address(frame.data);
    if (bytes > bounce_bytes_) {
      if (bounce_ != nullptr) RETURN_IF_ERROR(Cuda("cuMemFreeHost", [&] { return driver.cuMemFreeHost(bounce_); }));
      bounce_ = nullptr;
      bounce_bytes_ = 0;
      RETURN_IF_ERROR(Cuda("cuMemHostAlloc", [&] { return driver.cuMemHostAlloc(&bounce_, bytes, 0); }));
      bounce_bytes_ = bytes;
    }
    RETURN_IF_ERROR(Cuda(
        "cuMemcpyAsync", [&] { return driver.cuMemcpyAsync(Address(bounce_), source, bytes, copy_stream_); }));
    Pause pause;
    while (true) {
      ASSIGN_OR_RETURN(const bool idle, StreamIsIdle(copy_stream_));
      if (idle) break;
      RETURN_IF_ERROR(CheckLimits(Now()));
      pause.Wait();
    }
    const Piece piece{static_cast<std::byte*>(bounce_), frame.bytes};
    frame.intact = CopyBlock({&piece, 1}, {}, frame.identity_seed, CopyCheck::kVerify, frame.checksums,
                             CopyStores::kCached);
  }
  return absl::OkStatus();
}

bool LinkChannel::Close(int64_t limit_ns) {
  const int64_t deadline_ns = Now() + limit_ns;
  const Driver& driver = device_->driver();
  if (comm_ != nullptr) {
    const absl::Status aborted = Nccl("ncclCommAbort", [&] { return nccl_->ncclCommAbort(comm_); });
    if (absl::IsAborted(aborted)) return false;
    comm_ = nullptr;
  }
  for (CUstream stream : {nccl_stream_, copy_stream_}) {
    Pause pause;
    while (stream != nullptr) {
      const absl::StatusOr<bool> idle = StreamIsIdle(stream);
      if (!idle.ok()) return false;  // the GPU is out of service: nobody knows what its copies do
      if (*idle) break;
      if (Now() > deadline_ns) return false;
      pause.Wait();
    }
  }
  // Nothing runs any more. An error here leaves something behind and harms nobody.
  for (Slot& slot : slots_) {
    if (slot.staging != 0) Cuda("cuMemFree", [&] { return driver.cuMemFree(slot.staging); }).IgnoreError();
    if (slot.event != nullptr) Cuda("cuEventDestroy", [&] { return driver.cuEventDestroy(slot.event); }).IgnoreError();
    slot = {};
  }
  if (bounce_ != nullptr) Cuda("cuMemFreeHost", [&] { return driver.cuMemFreeHost(bounce_); }).IgnoreError();
  bounce_ = nullptr;
  for (CUstream* stream : {&nccl_stream_, &copy_stream_}) {
    if (*stream == nullptr) continue;
    Cuda("cuStreamDestroy", [&] { return driver.cuStreamDestroy(*stream); }).IgnoreError();
    *stream = nullptr;
  }
  CUcontext popped;
  Cuda("cuCtxPopCurrent", [&] { return driver.cuCtxPopCurrent(&popped); }).IgnoreError();
  return true;
}

}  // namespace terrace::gpu
