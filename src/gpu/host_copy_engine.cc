// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/host_copy_engine.h"

#include <pthread.h>

#include <array>
#include <deque>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gpu/host_copy_ticket.h"
#include "kvstore/base/mutex.h"

namespace terrace::gpu {

// Threads take the next task of the first batch that has one left, loads before stores: a load waits for a task of
// 1 MiB at most, not for the stores before it. Several threads may work on one batch.
class HostCopyEngine::Impl {
 public:
  Impl(uint32_t threads, uint32_t queue_depth);
  ~Impl();
  absl::Status Submit(CopyBatch& batch);
  void Drain();
  CopyEngineStats Stats() const;

 private:
  // A batch and how far it is. Guarded by mu_, except ticket's own.
  struct Work {
    explicit Work(CopyBatch batch)
        : ticket(std::move(batch)), tasks_left(ticket.chunk_count(), ticket.tasks_per_chunk()) {}
    HostCopyTicket ticket;
    std::vector<size_t> tasks_left;  // of each chunk
    absl::Status status;             // not OK: nothing more of it is begun
    size_t next_task = 0;            // not taken yet
    size_t running = 0;              // tasks taken and not ended
    size_t chunks_done = 0;          // leading ones
    uint32_t planes_told = 0;
    bool is_telling = false;  // a thread is calling planes_done
    bool is_ended = false;    // its end is under way or over

    bool HasTask() const { return status.ok() && next_task < ticket.task_count(); }
  };
  struct Queue {
    std::deque<std::shared_ptr<Work>> works;  // with tasks left; only the first may be begun
    size_t waiting = 0;                       // not begun, also those that are just coming
  };
  Queue& QueueOf(const CopyBatch& batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return queues_[batch.direction == Direction::kLoad ? 0 : 1];
  }

  void Run();
  // Takes the next task; false when there is none.
  bool Take(std::shared_ptr<Work>* work, size_t* task) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void TaskEnded(Work& work, size_t task) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Calls planes_done for what has become complete, unless another thread does. Lets go of mu_ meanwhile.
  void TellPlanes(Work& work) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Ends the batch if nothing of it is left or under way. Lets go of mu_ meanwhile; work is null after that.
  void EndIfDone(std::shared_ptr<Work>& work) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const size_t queue_depth_;
  const bool copies_at_once_;  // no threads
  mutable Mutex mu_;
  CondVar work_, idle_;
  std::array<Queue, 2> queues_ ABSL_GUARDED_BY(mu_);  // loads, stores
  size_t unended_ ABSL_GUARDED_BY(mu_) = 0;
  bool closing_ ABSL_GUARDED_BY(mu_) = false;
  CopyEngineStats stats_ ABSL_GUARDED_BY(mu_);
  std::vector<std::thread> threads_;
};

HostCopyEngine::Impl::Impl(uint32_t threads, uint32_t queue_depth)
    : queue_depth_(queue_depth), copies_at_once_(threads == 0) {
  for (uint32_t i = 0; i < threads; ++i) {
    threads_.emplace_back([this] { Run(); });
    pthread_setname_np(threads_.back().native_handle(), "terrace-pages");
  }
}

HostCopyEngine::Impl::~Impl() {
  {
    MutexLock lock(&mu_);
    closing_ = true;
  }
  work_.SignalAll();
  for (std::thread& thread : threads_) thread.join();
}

absl::Status HostCopyEngine::Impl::Submit(CopyBatch& batch) {
  if (absl::Status status = CheckBatch(batch); !status.ok()) return status;
  if (batch.region->is_device() || batch.frames_on_device) {
    return absl::InvalidArgumentError("memory of a GPU given to the copy engine of host memory");
  }
  {
    MutexLock lock(&mu_);
    if (closing_) return absl::UnavailableError("the copy engine is closing");
    Queue& queue = QueueOf(batch);
    if (queue.waiting >= queue_depth_) {
      return absl::ResourceExhaustedError(absl::StrCat(queue_depth_, " batches are waiting already"));
    }
    ++queue.waiting;
    ++unended_;
  }
  auto work = std::make_shared<Work>(std::move(batch));
  const bool for_one = work->ticket.task_count() == 1;
  {
    MutexLock lock(&mu_);
    QueueOf(work->ticket.batch).works.push_back(std::move(work));
  }
  if (copies_at_once_) {
    Run();
  } else if (for_one) {
    work_.SignalOne();
  } else {
    work_.SignalAll();
  }
  return absl::OkStatus();
}

void HostCopyEngine::Impl::Drain() {
  MutexLock lock(&mu_);
  while (unended_ > 0) idle_.Wait(&mu_);
}

CopyEngineStats HostCopyEngine::Impl::Stats() const {
  MutexLock lock(&mu_);
  return stats_;
}

// With threads: until closing. Without: until nothing is left.
void HostCopyEngine::Impl::Run() {
  std::vector<Piece> scratch;
  mu_.Lock();
  while (true) {
    std::shared_ptr<Work> work;
    size_t task = 0;
    if (!Take(&work, &task)) {
      if (closing_ || copies_at_once_) break;
      work_.Wait(&mu_);
      continue;
    }
    if (work->status.ok()) {
      mu_.Unlock();
      work->ticket.Run(task, &scratch);
      mu_.Lock();
      TaskEnded(*work, task);
      TellPlanes(*work);
    }
    EndIfDone(work);
  }
  mu_.Unlock();
}

bool HostCopyEngine::Impl::Take(std::shared_ptr<Work>* work, size_t* task) {
  for (Queue& queue : queues_) {
    if (queue.works.empty()) continue;
    *work = queue.works.front();
    Work& taken = **work;
    if (taken.next_task == 0) --queue.waiting;
    if (taken.ticket.batch.region->fenced()) {
      taken.status = absl::CancelledError("the region was closed");
    } else if (closing_ && taken.next_task == 0) {
      taken.status = absl::CancelledError("the copy engine is closing");
    } else {
      *task = taken.next_task++;
      ++taken.running;
    }
    if (!taken.HasTask()) queue.works.pop_front();
    return true;
  }
  return false;
}

void HostCopyEngine::Impl::TaskEnded(Work& work, size_t task) {
  --work.running;
  --work.tasks_left[work.ticket.ChunkOf(task)];
  while (work.chunks_done < work.tasks_left.size() && work.tasks_left[work.chunks_done] == 0) ++work.chunks_done;
}

void HostCopyEngine::Impl::TellPlanes(Work& work) {
  if (!work.ticket.batch.planes_done || work.ticket.batch.direction != Direction::kLoad || work.is_telling) return;
  work.is_telling = true;
  while (work.status.ok()) {
    const uint32_t planes = work.ticket.PlanesIn(work.chunks_done);
    if (planes <= work.planes_told) break;
    work.planes_told = planes;
    mu_.Unlock();
    work.ticket.batch.planes_done(planes);
    mu_.Lock();
  }
  work.is_telling = false;
}

void HostCopyEngine::Impl::EndIfDone(std::shared_ptr<Work>& work) {
  if (work->HasTask() || work->running > 0 || work->is_telling || work->is_ended) return;
  work->is_ended = true;
  const absl::Status status = work->status;
  CopyBatch& batch = work->ticket.batch;
  const bool is_load = batch.direction == Direction::kLoad;
  if (status.ok()) {
    ++(is_load ? stats_.load_batches : stats_.store_batches);
    (is_load ? stats_.load_bytes : stats_.store_bytes) += work->ticket.total_bytes();
  } else {
    ++stats_.failed_batches;
  }
  mu_.Unlock();
  work->ticket.Judge(status.ok());
  {
    const auto done = std::move(batch.done);  // it may take the batch
    if (done) done(batch, status);
  }
  work.reset();
  mu_.Lock();
  if (--unended_ == 0) idle_.SignalAll();
}

HostCopyEngine::HostCopyEngine(uint32_t threads, uint32_t queue_depth)
    : impl_(std::make_unique<Impl>(threads, queue_depth)) {}
HostCopyEngine::~HostCopyEngine() = default;
absl::Status HostCopyEngine::Submit(CopyBatch& batch) { return impl_->Submit(batch); }
void HostCopyEngine::Drain() { impl_->Drain(); }
CopyEngineStats HostCopyEngine::Stats() const { return impl_->Stats(); }

}  // namespace terrace::gpu
