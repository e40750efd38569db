// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/nccl_link.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <string>
#include <thread>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "gpu/cuda/cuda_device.h"
#include "gpu/nccl/call_watch.h"
#include "gpu/nccl/link_channel.h"
#include "gpu/nccl/nccl_library.h"
#include "kvstore/base/block_copy.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/log.h"
#include "kvstore/base/mutex.h"
#include "kvstore/base/status_macros.h"

namespace terrace::gpu {
namespace {

constexpr auto kIdlePoll = std::chrono::milliseconds(100);   // looks whether the peer is still there
constexpr auto kWatchPoll = std::chrono::milliseconds(20);

absl::StatusOr<std::shared_ptr<CudaDevice>> OpenDevice(const NcclLinkOptions& options) {
  std::string why;
  const std::shared_ptr<const Driver> driver = Driver::Load(options.driver, &why);
  if (driver == nullptr) return absl::UnavailableError(why);
  int count = 0;
  if (driver->cuDeviceGetCount(&count) != CUDA_SUCCESS || count == 0) {
    return absl::UnavailableError("the NVIDIA driver shows no GPU to this process");
  }
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    CUdevice device;
    CUuuid uuid;
    if (driver->cuDeviceGet(&device, ordinal) != CUDA_SUCCESS) continue;
    if (driver->cuDeviceGetUuid(&uuid, device) != CUDA_SUCCESS) continue;
    const bool is_it = std::memcmp(&uuid, options.device.data(), sizeof(uuid)) == 0;
    if (options.device == DeviceUuid{} || is_it) return CudaDevice::Open(driver, ordinal);
  }
  return absl::UnavailableError("the GPU of this link is not visible to this process");
}

absl::Status CheckLinkBatch(const LinkBatch& batch) {
  const size_t n = batch.frames.size();
  if (n == 0 || n > LinkBatch::kMaxFrames) {
    return absl::InvalidArgumentError(absl::StrCat(n, " frames in a batch; 1 to ", LinkBatch::kMaxFrames));
  }
  if (batch.done == nullptr) return absl::InvalidArgumentError("a batch without done");
  for (const LinkFrame& frame : batch.frames) {
    if (frame.data == nullptr || frame.bytes == 0 || frame.bytes > NcclLink::kMaxFrameBytes) {
      return absl::InvalidArgumentError(absl::StrCat("a frame of ", frame.bytes, " bytes; 1 to ",
                                                     NcclLink::kMaxFrameBytes));
    }
    if (frame.receive && frame.checksums.size() != ChecksumCount(frame.bytes)) {
      return absl::InvalidArgumentError(absl::StrCat(frame.checksums.size(), " checksums for a frame of ",
                                                     frame.bytes, " bytes; ", ChecksumCount(frame.bytes)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

// Shared by the link and its two threads, so that a thread that was left behind in a call has something to return to.
class NcclLink::Impl : public std::enable_shared_from_this<NcclLink::Impl> {
 public:
  Impl(const NcclLinkOptions& options, std::shared_ptr<CudaDevice> device, std::shared_ptr<const NcclLibrary> nccl)
      : options_(options), channel_(std::move(device), std::move(nccl), watch_, {earliest_deadline_ns_, closing_}) {}

  void Start(const NcclUniqueId& id, int rank) {
    owner_ = std::thread([self = shared_from_this(), id, rank] { self->Own(id, rank); });
    watchdog_ = std::thread([self = shared_from_this()] { self->Watch(); });
  }
  absl::Status Submit(LinkBatch& batch);
  void Close();
  LinkState state() const {
    MutexLock lock(&mu_);
    return state_;
  }
  absl::Status health() const {
    MutexLock lock(&mu_);
    return why_;
  }
  NcclLinkStats Stats() const {
    MutexLock lock(&mu_);
    return stats_;
  }

 private:
  using Batches = std::deque<std::unique_ptr<LinkBatch>>;
  void Own(const NcclUniqueId& id, int rank);
  void Watch();
  LinkBatch* Next();
  void FinishRunning();
  void GoDown(const absl::Status& why);
  void EndAll(const absl::Status& why, bool running_is_lost);
  void UpdateDeadlineLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const NcclLinkOptions options_;
  CallWatch watch_;
  std::atomic<int64_t> earliest_deadline_ns_{INT64_MAX};
  std::atomic<bool> closing_{false};
  LinkChannel channel_;  // the owner thread's
  std::thread owner_, watchdog_;
  mutable Mutex mu_;
  CondVar changed_;
  LinkState state_ ABSL_GUARDED_BY(mu_) = LinkState::kConnecting;
  absl::Status why_ ABSL_GUARDED_BY(mu_);
  Batches queue_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<LinkBatch> running_ ABSL_GUARDED_BY(mu_);
  bool owner_is_done_ ABSL_GUARDED_BY(mu_) = false;
  bool owner_is_lost_ ABSL_GUARDED_BY(mu_) = false;
  NcclLinkStats stats_ ABSL_GUARDED_BY(mu_);
};

absl::Status NcclLink::Impl::Submit(LinkBatch& batch) {
  RETURN_IF_ERROR(CheckLinkBatch(batch));
  MutexLock lock(&mu_);
  if (state_ == LinkState::kDown || closing_) {
    return absl::UnavailableError(absl::StrCat("the link is down: ", why_.message()));
  }
  if (queue_.size() >= options_.queue_depth) return absl::ResourceExhaustedError("the link's queue is full");
  for (LinkFrame& frame : batch.frames) frame.intact = false;
  queue_.push_back(std::make_unique<LinkBatch>(std::move(batch)));
  UpdateDeadlineLocked();
  changed_.SignalAll();
  return absl::OkStatus();
}

void NcclLink::Impl::UpdateDeadlineLocked() {
  int64_t earliest = running_ == nullptr ? INT64_MAX : running_->deadline_ns;
  for (const auto& batch : queue_) earliest = std::min(earliest, batch->deadline_ns);
  earliest_deadline_ns_.store(earliest, std::memory_order_release);
}

// The next batch, or null after a while without one.
LinkBatch* NcclLink::Impl::Next() {
  MutexLock lock(&mu_);
  if (queue_.empty() && !closing_) changed_.WaitFor(&mu_, kIdlePoll);
  if (queue_.empty() || closing_) return nullptr;
  running_ = std::move(queue_.front());
  queue_.pop_front();
  return running_.get();
}

void NcclLink::Impl::FinishRunning() {
  std::unique_ptr<LinkBatch> batch;
  {
    MutexLock lock(&mu_);
    batch = std::move(running_);
    UpdateDeadlineLocked();
    ++stats_.batches;
    for (const LinkFrame& frame : batch->frames) {
      if (!frame.intact) ++stats_.damaged_frames;
      (frame.receive ? stats_.received_bytes : stats_.sent_bytes) += frame.bytes;
    }
  }
  batch->done(*batch, absl::OkStatus());
}

void NcclLink::Impl::GoDown(const absl::Status& why) {
  {
    MutexLock lock(&mu_);
    state_ = LinkState::kDown;
    why_ = why;
  }
  if (!absl::IsCancelled(why)) Log(LogLevel::kWarning, "nccl_link_down", {{"reason", why.message()}});
}

void NcclLink::Impl::EndAll(const absl::Status& why, bool running_is_lost) {
  Batches batches;
  {
    MutexLock lock(&mu_);
    batches = std::move(queue_);
    queue_.clear();
    if (running_ != nullptr) {
      running_->frames_lost = running_is_lost;
      batches.push_front(std::move(running_));
    }
    stats_.failed_batches += batches.size();
    UpdateDeadlineLocked();
  }
  const int64_t now_ns = Clock::Real()->NowNs();
  for (const auto& batch : batches) {
    for (LinkFrame& frame : batch->frames) frame.intact = false;
    if (absl::IsCancelled(why)) {
      batch->done(*batch, why);
    } else if (now_ns > batch->deadline_ns) {
      batch->done(*batch, absl::DeadlineExceededError(why.message()));
    } else {
      batch->done(*batch, absl::UnavailableError(absl::StrCat("the link went down: ", why.message())));
    }
  }
}

void NcclLink::Impl::Own(const NcclUniqueId& id, int rank) {
  absl::Status status = channel_.Connect(id, rank, options_);
  if (status.ok()) {
    MutexLock lock(&mu_);
    state_ = LinkState::kUp;
  }
  while (status.ok()) {
    LinkBatch* const batch = Next();
    if (closing_) {
      status = absl::CancelledError("the link is closing");
    } else if (batch == nullptr) {
      status = channel_.Poll();
    } else {
      status = channel_.RunBatch(*batch);
      if (status.ok()) FinishRunning();
    }
  }
  // Given up by the watchdog: it has ended everything. The call did return after all, so the communicator is aborted.
  const bool was_given_up = watch_.given_up();
  if (!was_given_up) GoDown(status);
  const bool is_quiet = channel_.Close(options_.stall_deadline_ns);
  if (was_given_up || watch_.given_up()) return;
  if (!is_quiet) {
    Log(LogLevel::kError, "nccl_link_not_quiet", {{"to_do", "the GPU does not end its work: see nvidia-smi"}});
  }
  EndAll(status, !is_quiet);
  MutexLock lock(&mu_);
  owner_is_done_ = true;
  changed_.SignalAll();
}

void NcclLink::Impl::Watch() {
  while (true) {
    {
      MutexLock lock(&mu_);
      if (owner_is_done_) return;
      changed_.WaitFor(&mu_, kWatchPoll);
    }
    const char* const call = watch_.GiveUpAfter(options_.stall_deadline_ns);
    if (call == nullptr) continue;
    const absl::Status why = absl::UnavailableError(absl::StrCat(call, " does not return"));
    GoDown(why);
    EndAll(closing_ ? absl::CancelledError(why.message()) : why, true);
    MutexLock lock(&mu_);
    owner_is_lost_ = true;
    changed_.SignalAll();
    return;
  }
}

void NcclLink::Impl::Close() {
  bool is_lost = false;
  {
    MutexLock lock(&mu_);
    closing_ = true;
    changed_.SignalAll();
    while (!owner_is_done_ && !owner_is_lost_) changed_.Wait(&mu_);
    is_lost = owner_is_lost_;
  }
  watchdog_.join();
  if (!is_lost) {
    owner_.join();
    return;
  }
  Log(LogLevel::kError, "nccl_link_thread_left_behind",
      {{"reason", health().message()}, {"to_do", "restart the daemon when convenient; see nvidia-smi"}});
  owner_.detach();  // tidy: detach: it is inside a foreign call that nothing can end, and owns its share of Impl
}

NcclLink::NcclLink(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
NcclLink::~NcclLink() { impl_->Close(); }
absl::Status NcclLink::Submit(LinkBatch& batch) { return impl_->Submit(batch); }
LinkState NcclLink::state() const { return impl_->state(); }
absl::Status NcclLink::health() const { return impl_->health(); }
NcclLinkStats NcclLink::Stats() const { return impl_->Stats(); }

absl::StatusOr<NcclUniqueId> NcclLink::MakeUniqueId(const NcclLinkOptions& options) {
  std::string why;
  const std::shared_ptr<const NcclLibrary> nccl = NcclLibrary::Load(options.library, &why);
  if (nccl == nullptr) return absl::UnavailableError(why);
  ncclUniqueId raw;
  const ncclResult_t result = nccl->ncclGetUniqueId(&raw);
  if (result != ncclSuccess) return absl::UnavailableError(absl::StrCat("ncclGetUniqueId: ", nccl->Explain(result)));
  NcclUniqueId id;
  std::memcpy(id.data(), &raw, id.size());
  return id;
}

absl::StatusOr<std::unique_ptr<NcclLink>> NcclLink::Open(const NcclLinkOptions& options, const NcclUniqueId& id,
                                                         int rank) {
  if (rank != 0 && rank != 1) return absl::InvalidArgumentError("a link has rank 0 and rank 1");
  std::string why;
  std::shared_ptr<const NcclLibrary> nccl = NcclLibrary::Load(options.library, &why);
  if (nccl == nullptr) return absl::UnavailableError(why);
  ASSIGN_OR_RETURN(std::shared_ptr<CudaDevice> device, OpenDevice(options));
  auto impl = std::make_shared<Impl>(options, std::move(device), std::move(nccl));
  impl->Start(id, rank);
  return absl::WrapUnique(new NcclLink(std::move(impl)));
}

}  // namespace terrace::gpu
