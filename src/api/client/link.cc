// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/link.h"

#include <algorithm>
#include <utility>

namespace terrace::client {
namespace {

constexpr int64_t kFirstRetryNs = 50'000'000;
constexpr int64_t kLongestRetryNs = 1'000'000'000;
// How often the keeper looks after an idle connection: late replies, segments given up.
constexpr int64_t kIdleRoundNs = 250'000'000;
// A hanging daemon is asked again this often; one ping at a time fits any socket buffer.
constexpr int64_t kPingRoundNs = 200'000'000;

bool IsRefusal(terrace_status code) {
  return code == TERRACE_PERMISSION_DENIED || code == TERRACE_FAILED_PRECONDITION;
}

}  // namespace

Link::Link(Options options, std::shared_ptr<Stats> stats)
    : options_(std::move(options)), stats_(std::move(stats)) {}

Result Link::Start() {
  if (wake_->fd() < 0) {
    return Fail(TERRACE_RESOURCE_EXHAUSTED, "no descriptor left; raise the limit (ulimit -n)");
  }
  if (!keeper_.Start("terrace-keeper", [this] { Run(); })) {
    return Fail(TERRACE_RESOURCE_EXHAUSTED, "no thread can be started; raise the process limit");
  }
  return {};
}

void Link::Stop() {
  stopping_ = true;
  {
    std::lock_guard lock(mu_);
    if (connection_ != nullptr) connection_->Break();
    if (connecting_ != nullptr) connecting_->Break();
    changed_.notify_all();
  }
  wake_->Wake();
  keeper_.Join();
}

Connection::Options Link::ConnectionOptions() const {
  Connection::Options options;
  options.path = options_.path;
  options.tenant = options_.tenant;
  options.token = options_.token;
  options.client_name = options_.client_name;
  options.on_segment_gone = nullptr;
  options.on_trouble = wake_;
  return options;
}

Result Link::Use(std::shared_ptr<Connection>* out) {
  std::lock_guard lock(mu_);
  if (connection_ == nullptr || connection_->broken()) return UnavailableLocked();
  if (connection_->suspect()) {
    return Fail(TERRACE_UNAVAILABLE, "the daemon at %s hangs: a request was not answered in time",
                options_.path.c_str());
  }
  *out = connection_;
  return {};
}

Result Link::UseForRelease(std::shared_ptr<Connection>* out) {
  std::lock_guard lock(mu_);
  if (connection_ == nullptr || connection_->broken()) return UnavailableLocked();
  *out = connection_;
  return {};
}

bool Link::ready() {
  std::lock_guard lock(mu_);
  return connection_ != nullptr && !connection_->broken() && !connection_->suspect();
}

Result Link::UnavailableLocked() const {
  if (last_outcome_.ok()) {
    return Fail(TERRACE_UNAVAILABLE, "not connected to %s; trying", options_.path.c_str());
  }
  return {TERRACE_UNAVAILABLE, last_outcome_.text};
}

Result Link::WaitReady(Deadline deadline) {
  std::unique_lock lock(mu_);
  for (;;) {
    if (connection_ != nullptr && !connection_->broken()) return {};
    if (IsRefusal(last_outcome_.code)) return last_outcome_;
    if (stopping_) return Fail(TERRACE_FAILED_PRECONDITION, "the client is closed");
    if (deadline.Passed()) return UnavailableLocked();
    changed_.wait_until(lock, deadline.AsTimePoint());
  }
}

Result Link::WaitFirstAttempt(Deadline deadline) {
  std::unique_lock lock(mu_);
  changed_.wait_until(lock, deadline.AsTimePoint(), [this] { return attempts_ > 0; });
  if (connection_ != nullptr && !connection_->broken()) return {};
  return IsRefusal(last_outcome_.code) ? last_outcome_ : UnavailableLocked();
}

Result Link::AddKeySpace(const std::shared_ptr<KeySpace>& key_space) {
  {
    std::lock_guard lock(mu_);
    if (key_spaces_.size() >= kMaxKeySpaces) {
      return Fail(TERRACE_RESOURCE_EXHAUSTED, "%zu key spaces are open; free some", kMaxKeySpaces);
    }
    key_spaces_.push_back(key_space);
  }
  std::shared_ptr<Connection> connection;
  Result opened = Use(&connection);
  if (opened.ok()) {
    opened = key_space->Open(connection.get(), Deadline::AfterMs(options_.request_timeout_ms));
  }
  if (opened.code == TERRACE_DEADLINE_EXCEEDED) opened.code = TERRACE_UNAVAILABLE;
  if (!opened.ok() && opened.code != TERRACE_UNAVAILABLE) RemoveKeySpace(key_space);
  return opened;
}

void Link::RemoveKeySpace(const std::shared_ptr<KeySpace>& key_space) {
  std::lock_guard lock(mu_);
  std::erase(key_spaces_, key_space);
}

// The keeper's life.
void Link::Run() {
  int64_t retry_ns = 0;
  std::shared_ptr<Connection> connection;
  while (!stopping_) {
    if (connection != nullptr && !connection->broken()) {
      Watch(connection.get());
      continue;
    }
    if (connection != nullptr) {
      connection.reset();
      Publish(nullptr, {});
    }
    if (retry_ns > 0) {
      const Deadline until = Deadline::AfterNs(retry_ns);
      std::unique_lock lock(mu_);
      changed_.wait_until(lock, until.AsTimePoint(), [this] { return stopping_.load(); });
      if (stopping_) break;
    }
    Result connected = Connect(&connection);
    if (!connected.ok()) {
      connection.reset();
      retry_ns = std::clamp(retry_ns * 2, kFirstRetryNs, kLongestRetryNs);
      Publish(nullptr, std::move(connected));
      continue;
    }
    // A daemon that accepts and hangs up must not be tried in a tight loop either.
    retry_ns = kFirstRetryNs;
    segments_->StartEpoch(connection->welcome().epoch);
    OpenKeySpaces(connection.get());
    Stats::Add(stats_->connects, 1);
    Publish(connection, {});
  }
}

Result Link::Connect(std::shared_ptr<Connection>* out) {
  Connection::Options options = ConnectionOptions();
  options.on_segment_gone = [segments = segments_](uint32_t id) { segments->Remove(id); };
  auto connection = std::make_shared<Connection>(std::move(options));
  {
    std::lock_guard lock(mu_);
    if (stopping_) return Fail(TERRACE_FAILED_PRECONDITION, "the client is closed");
    connecting_ = connection;
  }
  Result opened = connection->Open(Deadline::AfterMs(options_.request_timeout_ms));
  *out = std::move(connection);
  return opened;
}

void Link::Publish(std::shared_ptr<Connection> connection, Result outcome) {
  std::lock_guard lock(mu_);
  const bool was_attempt = connection != nullptr || !outcome.ok();
  connection_ = std::move(connection);
  if (was_attempt) {
    ++attempts_;
    last_outcome_ = std::move(outcome);
    connecting_.reset();
  }
  if (stopping_ && connection_ != nullptr) connection_->Break();
  changed_.notify_all();
}

void Link::OpenKeySpaces(Connection* connection) {
  std::vector<std::shared_ptr<KeySpace>> all;
  {
    std::lock_guard lock(mu_);
    all = key_spaces_;
  }
  for (const auto& key_space : all) {
    if (connection->broken() || connection->suspect()) return;
    if (key_space->opened().epoch == connection->welcome().epoch) continue;
    // One that is refused (a limit) is tried again in the next round; its calls answer UNAVAILABLE.
    Result opened =
        key_space->Open(connection, Deadline::AfterMs(options_.request_timeout_ms));
    (void)opened;
  }
}

void Link::Watch(Connection* connection) {
  const bool suspect = connection->suspect();
  if (suspect) connection->Ping();
  connection->WaitForEvents(/*receive=*/suspect, *wake_,
                            Deadline::AfterNs(suspect ? kPingRoundNs : kIdleRoundNs));
  if (connection->broken() || stopping_) return;
  connection->Drain();
  OpenKeySpaces(connection);
}

}  // namespace terrace::client
