// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// CudaCopyEngine's thread: takes batches, begins chunks, looks at streams, ends batches.
#include <sys/prctl.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gpu/cuda/cuda_copy_engine.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/log.h"

namespace terrace::gpu {
namespace {

constexpr int64_t kSpinNs = 40'000;  // after something happened; the time a small batch takes
// Small store batches that begin beside one chunk of a load: loads are first, also where a GPU, or a processor that is
// asked to launch hundreds of them, has its hands full. Larger stores are as fast as the link lets them be.
constexpr uint32_t kSmallStoresBesideLoad = 16;
constexpr uint64_t kSmallStoreBytes = 1 << 20;
constexpr int64_t kMinNapNs = 5'000, kMaxNapNs = 50'000;

int64_t NowNs() { return Clock::Real()->NowNs(); }

size_t SideOf(Direction direction) { return direction == Direction::kLoad ? 0 : 1; }

// What a batch may end with: the caller can do nothing about the driver's other words.
absl::Status EndOf(const absl::Status& status) {
  if (status.ok() || absl::IsCancelled(status) || absl::IsDeadlineExceeded(status) ||
      absl::IsResourceExhausted(status) || absl::IsUnavailable(status)) {
    return status;
  }
  return absl::UnavailableError(status.message());
}

}  // namespace

void CudaCopyEngine::Run() {
  prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);  // naps are as short as they are asked for
  const ScopedContext context(device_->driver(), device_->context());
  (void)device_->Check(context.result(), "cuCtxPushCurrent");
  int64_t last_event_ns = NowNs();
  while (TakeSubmitted(NowNs())) {
    const int64_t now_ns = NowNs();
    bool happened = false;
    for (Side& side : sides_) happened |= Step(side, now_ns);
    if (!device_->fenced() && gates_->ProbeHangs(now_ns, options_.batch_deadline_ns)) {
      device_->Fence(absl::DeadlineExceededError(
          absl::StrCat("the GPU has done nothing for ", options_.batch_deadline_ns / 1'000'000, " ms")));
    }
    if (device_->fenced()) EndAll();
    if (happened) last_event_ns = NowNs();
    Rest(NowNs() - last_event_ns);
  }
}

bool CudaCopyEngine::TakeSubmitted(int64_t now_ns) {
  MutexLock lock(&mu_);
  closing_seen_ = closing_;
  bool none = true;
  for (size_t s = 0; s < 2; ++s) {
    for (Waiting& waiting : submitted_[s]) {
      waiting.since_ns = now_ns;
      sides_[s].waiting.push_back(std::move(waiting));
    }
    submitted_[s].clear();
    none &= sides_[s].waiting.empty() && sides_[s].begun.empty();
  }
  return !closing_ || !none;
}

bool CudaCopyEngine::IsIdle() const {
  return std::all_of(std::begin(sides_), std::end(sides_),
                     [](const Side& side) { return side.waiting.empty() && side.begun.empty(); });
}

void CudaCopyEngine::Rest(int64_t quiet_ns) {
  const bool idle = IsIdle() && !gates_->is_probing();
  if (quiet_ns < kSpinNs) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    return;
  }
  MutexLock lock(&mu_);
  // A new store need not wake a thread that is waiting for the GPU any earlier than a new load.
  if (closing_ != closing_seen_ || !submitted_[0].empty() || !submitted_[1].empty()) return;
  if (idle) {
    if (!closing_) work_.Wait(&mu_);
  } else {
    // An eighth of the wait so far: late by that part at most.
    work_.WaitFor(&mu_, std::chrono::nanoseconds(std::clamp(quiet_ns / 8, kMinNapNs, kMaxNapNs)));
  }
}

bool CudaCopyEngine::Step(Side& side, int64_t now_ns) {
  bool happened = EndChunks(side, now_ns);
  happened |= PassGates(side, now_ns);
  happened |= BeginChunks(side, now_ns);
  happened |= EndTickets(side);
  CheckDeadlines(side, now_ns);
  return happened;
}

bool CudaCopyEngine::EndChunks(Side& side, int64_t now_ns) {
  bool happened = false;
  for (const auto& lane : side.lanes) {
    if (device_->fenced() || !lane->is_busy() || !lane->Poll()) continue;
    EndChunk(side, *lane, now_ns);
    happened = true;
  }
  return happened;
}

void CudaCopyEngine::EndChunk(Side& side, CudaCopyLane& lane, int64_t now_ns) {
  CudaCopyTicket& ticket = *lane.ticket();
  const size_t index = lane.chunk();
  --ticket.in_flight;
  ticket.progress_ns = now_ns;
  if (!ticket.status.ok()) {
    lane.Abandon();
    return;
  }
  const uint64_t bytes = ticket.Bytes(ticket.chunks()[index]);
  // Without kernels there is nothing to choose, and pages are read twice.
  if (lane.has_used_kernels()) {
    planner_->Record(ticket.shape(), lane.means(), bytes, now_ns - std::max(lane.begun_ns(), side.last_end_ns));
  }
  side.last_end_ns = now_ns;
  if (ticket.is_load()) small_stores_ = 0;
  const std::span<const uint64_t> checksums = lane.Finish();
  {
    MutexLock lock(&mu_);
    (ticket.is_load() ? stats_.load_bytes : stats_.store_bytes) += bytes;
    switch (lane.means()) {
      case CopyMeans::kCopyEngine: stats_.copy_engine_bytes += bytes; break;
      case CopyMeans::kDirect: stats_.kernel_bytes += bytes; break;
      case CopyMeans::kStaged: stats_.staged_bytes += bytes; break;
    }
  }
  ticket.ChunkDone(index, checksums);
}

// OK: passed or still waiting. Else how it ends.
absl::Status CudaCopyEngine::TryPass(Waiting& waiting, int64_t now_ns) {
  if (closing_seen_) return absl::CancelledError("the copy engine is closing");
  if (waiting.batch.region->fenced()) return absl::CancelledError("the region is closed");
  if (waiting.passed) return absl::OkStatus();
  if (waiting.batch.after_event == kNoEvent) {
    waiting.passed = true;
  } else if (waiting.gate != nullptr) {
    waiting.passed = gates_->Poll(waiting.gate);
    if (waiting.passed) waiting.gate = nullptr;
  } else {
    const auto& region = static_cast<const CudaRegion&>(*waiting.batch.region);
    absl::StatusOr<CudaCopyGates::Gate*> gate = gates_->Wait(region.event(waiting.batch.after_event));
    if (gate.ok()) {
      waiting.gate = *gate;
      waiting.passed = *gate == nullptr;
    } else if (!absl::IsResourceExhausted(gate.status())) {
      return gate.status();
    }
  }
  if (!waiting.passed && now_ns - waiting.since_ns > options_.batch_deadline_ns) {
    gates_->BeginProbe(now_ns);
    return absl::DeadlineExceededError("the engine's event did not come; nothing was copied");
  }
  return absl::OkStatus();
}

bool CudaCopyEngine::PassGates(Side& side, int64_t now_ns) {
  bool happened = false;
  for (size_t i = 0; i < side.waiting.size() && !device_->fenced();) {
    Waiting& waiting = side.waiting[i];
    const bool had_passed = waiting.passed;
    const absl::Status status = TryPass(waiting, now_ns);
    happened |= had_passed != waiting.passed || !status.ok();
    if (status.ok()) {
      ++i;
      continue;
    }
    Waiting ended = std::move(waiting);
    side.waiting.erase(side.waiting.begin() + static_cast<ptrdiff_t>(i));
    EndWaiting(std::move(ended), status);
  }
  return happened;
}

bool CudaCopyEngine::MayBegin(const CopyBatch& batch) {
  const auto is_busy = [](const auto& lane) { return lane->is_busy(); };
  if (batch.direction == Direction::kLoad || batch.pages.size() * batch.region->page_bytes() >= kSmallStoreBytes ||
      std::none_of(sides_[0].lanes.begin(), sides_[0].lanes.end(), is_busy)) {
    return true;
  }
  if (small_stores_ >= kSmallStoresBesideLoad) return false;
  ++small_stores_;
  return true;
}

// The next one with a chunk to begin, in order.
CudaCopyTicket* CudaCopyEngine::NextTicket(Side& side) {
  for (const auto& ticket : side.begun) {
    if (ticket->next_chunk == ticket->chunks().size() || !ticket->status.ok()) continue;
    if (!ticket->batch.region->fenced()) return ticket.get();
    ticket->status = absl::CancelledError("the region is closed");
  }
  const auto next = std::find_if(side.waiting.begin(), side.waiting.end(), [](const Waiting& w) { return w.passed; });
  if (next == side.waiting.end() || !MayBegin(next->batch)) return nullptr;
  auto ticket = std::make_unique<CudaCopyTicket>(std::move(next->batch), std::move(next->frames), chunk_bytes_);
  side.waiting.erase(next);
  CountBegun(ticket->batch.direction);
  side.begun.push_back(std::move(ticket));
  return side.begun.back().get();
}

bool CudaCopyEngine::BeginChunks(Side& side, int64_t now_ns) {
  bool happened = false;
  for (const auto& lane : side.lanes) {
    if (lane->is_busy() || device_->fenced()) continue;
    CudaCopyTicket* const ticket = NextTicket(side);
    if (ticket == nullptr) break;
    happened = true;
    if (ticket->in_flight++ == 0) ticket->progress_ns = now_ns;
    const CopyMeans means = planner_->Choose(ticket->shape());
    const absl::Status status = lane->Begin(ticket, ticket->next_chunk++, means, now_ns);
    if (!status.ok() && ticket->status.ok()) ticket->status = EndOf(status);
  }
  return happened;
}

bool CudaCopyEngine::EndTickets(Side& side) {
  bool happened = false;
  for (size_t i = 0; i < side.begun.size() && !device_->fenced();) {
    if (!side.begun[i]->ended()) {
      ++i;
      continue;
    }
    std::unique_ptr<CudaCopyTicket> ticket = std::move(side.begun[i]);
    side.begun.erase(side.begun.begin() + static_cast<ptrdiff_t>(i));
    const absl::Status status = ticket->status;
    End(std::move(ticket), status, false);
    happened = true;
  }
  return happened;
}

void CudaCopyEngine::CheckDeadlines(Side& side, int64_t now_ns) {
  for (const auto& ticket : side.begun) {
    if (ticket->in_flight == 0 || now_ns - ticket->progress_ns <= options_.batch_deadline_ns) continue;
    const std::string text =
        absl::StrCat("a copy of the GPU has not ended for ", options_.batch_deadline_ns / 1'000'000, " ms");
    ticket->status = absl::DeadlineExceededError(text);
    device_->Fence(absl::DeadlineExceededError(text));
  }
}

// The device is out of service.
void CudaCopyEngine::EndAll() {
  const absl::Status unavailable = absl::UnavailableError(device_->health().message());
  for (Side& side : sides_) {
    for (const auto& lane : side.lanes) lane->Abandon();
    while (!side.begun.empty()) {
      std::unique_ptr<CudaCopyTicket> ticket = std::move(side.begun.front());
      side.begun.pop_front();
      const absl::Status status = absl::IsDeadlineExceeded(ticket->status) ? ticket->status : unavailable;
      const bool frames_lost = ticket->in_flight > 0;
      End(std::move(ticket), status, frames_lost);
    }
    while (!side.waiting.empty()) {
      Waiting waiting = std::move(side.waiting.front());
      side.waiting.pop_front();
      EndWaiting(std::move(waiting), unavailable);
    }
  }
}

// At each power of two: a driver that refuses everything does not fill the log.
void CudaCopyEngine::SayFailed(uint64_t failed, const absl::Status& status) const {
  if (!std::has_single_bit(failed) || absl::IsCancelled(status)) return;
  Log(LogLevel::kWarning, "gpu_batch_failed",
      {{"gpu", device_->info().name},
       {"reason", status.message()},
       {"failed_so_far", failed},
       {"effect", "blocks of these batches are misses"}});
}

void CudaCopyEngine::End(std::unique_ptr<CudaCopyTicket> ticket, const absl::Status& status, bool frames_lost) {
  uint64_t failed = 0;
  {
    MutexLock lock(&mu_);
    ++(ticket->is_load() ? stats_.load_batches : stats_.store_batches);
    if (!status.ok()) failed = ++stats_.failed_batches;
    if (frames_lost) stats_.lost_frames += ticket->batch.pages.size();
  }
  if (frames_lost) {
    Log(LogLevel::kError, "gpu_frames_lost",
        {{"gpu", device_->info().name}, {"frames", ticket->batch.pages.size()}, {"reason", status.message()}});
  }
  SayFailed(failed, status);
  ticket->End(status, frames_lost);
  ticket.reset();  // what it holds is let go before it counts as ended
  CountEnded();
}

void CudaCopyEngine::EndWaiting(Waiting waiting, const absl::Status& status) {
  if (waiting.gate != nullptr) gates_->GiveUp(waiting.gate);
  CountBegun(waiting.batch.direction);
  uint64_t failed;
  {
    MutexLock lock(&mu_);
    ++(waiting.batch.direction == Direction::kLoad ? stats_.load_batches : stats_.store_batches);
    failed = ++stats_.failed_batches;
  }
  SayFailed(failed, status);
  for (PageCopy& page : waiting.batch.pages) page.intact = false;
  waiting.batch.frames_lost = false;
  waiting.batch.done(waiting.batch, EndOf(status));
  waiting = Waiting();
  CountEnded();
}

void CudaCopyEngine::CountBegun(Direction direction) {
  MutexLock lock(&mu_);
  --not_begun_[SideOf(direction)];
}

void CudaCopyEngine::CountEnded() {
  MutexLock lock(&mu_);
  if (--pending_ == 0) idle_.SignalAll();
}

}  // namespace terrace::gpu
