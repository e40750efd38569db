// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/locator.h"

#include <algorithm>
#include <utility>

namespace terrace::client {
namespace {

// Answers name the leading blocks that have arrived: more keys would travel again and again.
constexpr uint32_t kKeysPerQuestion = 128;
constexpr int64_t kBusyPauseNs = 10'000'000;   // the daemon has too many questions already
constexpr int64_t kAgainPauseNs = 1'000'000;   // nothing had arrived; the daemon has waited for us already
constexpr int64_t kLongestSleepNs = 100'000'000;  // operations that were freed are noticed

}  // namespace

Result Locator::Submit(std::shared_ptr<LoadOp> op) {
  {
    std::lock_guard lock(mu_);
    if (stopping_) return Fail(TERRACE_FAILED_PRECONDITION, "the client is closed");
    if (unfinished_ >= kMaxQueued) {
      return Fail(TERRACE_RESOURCE_EXHAUSTED,
                  "%zu loads wait for blocks of lower tiers already; wait for some of them", unfinished_);
    }
    if (!thread_.started() &&
        (wake_->fd() < 0 || !thread_.Start("terrace-locate", [this] { Run(); }))) {
      return Fail(TERRACE_RESOURCE_EXHAUSTED,
                  "no thread or descriptor is left; raise the process limits");
    }
    queue_.push_back({std::move(op), Deadline::AfterNs(load_timeout_ns_), 0, nullptr, 0});
    ++unfinished_;
  }
  wake_->Wake();
  return {};
}

void Locator::Stop() {
  {
    std::lock_guard lock(mu_);
    stopping_ = true;
    if (breakable_ != nullptr) breakable_->Break();
  }
  wake_->Wake();
  thread_.Join();
}

void Locator::Run() {
  while (!stopping_) {
    TakeNew();
    const bool happened = CollectAnswers();
    AskAll();
    if (!happened) Sleep();
  }
  TakeNew();
  EndAll(Reason::kCancelled);
  Disconnect();
}

void Locator::TakeNew() {
  std::deque<Job> fresh;
  {
    std::lock_guard lock(mu_);
    fresh.swap(queue_);
  }
  for (Job& job : fresh) {
    if (stopping_ || Connect(job.op->work.opened.epoch)) {
      jobs_.push_back(std::move(job));
      continue;
    }
    End(&job, stopping_ ? Reason::kCancelled : Reason::kUnavailable);
    std::lock_guard lock(mu_);
    --unfinished_;
  }
}

bool Locator::Connect(uint64_t epoch) {
  if (connection_ != nullptr && !connection_->broken() && connection_->welcome().epoch == epoch) return true;
  std::shared_ptr<Connection> control;
  if (!link_->Use(&control).ok() || control->welcome().epoch != epoch) return false;
  EndAll(Reason::kUnavailable);  // their daemon is gone
  Disconnect();
  auto connection = std::make_shared<Connection>(link_->ConnectionOptions());
  {
    std::lock_guard lock(mu_);
    if (stopping_) return false;
    breakable_ = connection;
  }
  connection_ = std::move(connection);
  const Result opened = connection_->Open(Deadline::AfterMs(link_->request_timeout_ms()));
  if (opened.ok() && connection_->welcome().epoch == epoch) return true;
  Disconnect();
  return false;
}

bool Locator::CollectAnswers() {
  if (connection_ == nullptr) return false;
  connection_->Drain();
  if (connection_->broken()) {
    EndAll(stopping_ ? Reason::kCancelled : Reason::kUnavailable);
    Disconnect();
    return true;
  }
  bool happened = false;
  const int64_t now = NowNs();
  for (auto job = jobs_.begin(); job != jobs_.end();) {
    if (job->asked != nullptr && job->asked->done()) {
      TakeAnswer(&*job);
      happened = true;
    }
    if (job->op->abandoned()) {
      End(&*job, Reason::kCancelled);
    } else if (job->settled < job->op->pending().size() && now >= job->deadline.at_ns) {
      End(&*job, Reason::kDeadline);
    }
    if (job->settled < job->op->pending().size()) {
      ++job;
      continue;
    }
    job = jobs_.erase(job);
    std::lock_guard lock(mu_);
    --unfinished_;
  }
  return happened;
}

void Locator::TakeAnswer(Job* job) {
  const std::unique_ptr<LocateRequest> answer = std::move(job->asked);
  --asked_;
  if (!answer->result().ok()) {
    if (answer->result().code != TERRACE_RESOURCE_EXHAUSTED) return End(job, Reason::kUnavailable);
    job->ask_after_ns = NowNs() + kBusyPauseNs;
    return;
  }
  bool arrived = false;
  const uint32_t before = job->settled;
  for (const wire::Ref& ref : answer->refs()) {
    if (ref.reason == static_cast<uint32_t>(Reason::kPending)) break;
    const uint32_t block = job->op->pending()[job->settled++];
    if (ref.reason == 0) {
      job->op->Arrive(block, ref);
      arrived = true;
    } else {
      job->op->FailPending(block, ref.reason < kReasonCount ? static_cast<Reason>(ref.reason)
                                                            : Reason::kUnavailable);
    }
  }
  if (job->settled == before) job->ask_after_ns = NowNs() + kAgainPauseNs;
  if (arrived) copies_->Resume(job->op);
}

// In turns: a question costs a place at the daemon until it is answered.
void Locator::AskAll() {
  const int64_t now = NowNs();
  for (size_t looked = 0, n = jobs_.size(); looked < n && asked_ < kMaxAsked; ++looked) {
    Job& first = jobs_.front();
    if (connection_ != nullptr && first.asked == nullptr && first.ask_after_ns <= now) Ask(&first);
    std::rotate(jobs_.begin(), jobs_.begin() + 1, jobs_.end());
  }
}

void Locator::Ask(Job* job) {
  const LoadOp& op = *job->op;
  const std::vector<uint32_t>& pending = op.pending();
  const uint32_t n = std::min(kKeysPerQuestion, static_cast<uint32_t>(pending.size()) - job->settled);
  std::vector<KeyBytes> keys(n);
  for (uint32_t i = 0; i < n; ++i) keys[i] = op.work.keys[pending[job->settled + i]];
  auto request = std::make_unique<LocateRequest>();
  // A full socket: the next round tries again.
  const Result sent = request->Send(connection_.get(), op.work.opened.id, keys,
                                    std::min(kAskNs, job->deadline.LeftNs()), Deadline{});
  if (!sent.ok()) {
    job->ask_after_ns = NowNs() + kBusyPauseNs;
    return;
  }
  job->asked = std::move(request);
  ++asked_;
}

void Locator::End(Job* job, Reason reason) {
  if (job->asked != nullptr) {
    connection_->Forget(job->asked.get());
    job->asked.reset();
    --asked_;
  }
  const std::vector<uint32_t>& pending = job->op->pending();
  while (job->settled < pending.size()) job->op->FailPending(pending[job->settled++], reason);
}

void Locator::EndAll(Reason reason) {
  for (Job& job : jobs_) End(&job, reason);
  std::lock_guard lock(mu_);
  unfinished_ -= jobs_.size();
  jobs_.clear();
}

void Locator::Disconnect() {
  if (connection_ == nullptr) return;
  connection_->Break();
  connection_.reset();
  std::lock_guard lock(mu_);
  breakable_.reset();
}

void Locator::Sleep() {
  int64_t limit_ns = 3'600'000'000'000;
  if (!jobs_.empty()) limit_ns = kLongestSleepNs;
  const int64_t now = NowNs();
  for (const Job& job : jobs_) {
    int64_t next_ns = job.deadline.at_ns;
    if (job.asked == nullptr && asked_ < kMaxAsked) next_ns = std::min(next_ns, job.ask_after_ns);
    limit_ns = std::min(limit_ns, std::max<int64_t>(0, next_ns - now));
  }
  if (connection_ != nullptr) {
    connection_->WaitForEvents(/*receive=*/true, *wake_, Deadline::AfterNs(limit_ns));
  } else {
    wake_->Wait(Deadline::AfterNs(limit_ns));
    wake_->Clear();
  }
}

}  // namespace terrace::client
