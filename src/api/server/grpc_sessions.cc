// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/server/grpc_sessions.h"

#include <sys/random.h>

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/check.h"

namespace terrace::api {
namespace {

constexpr size_t kClientNameBytesMax = 64;

std::string NewSessionId() {
  char bytes[16];
  // 16 bytes are never cut short; EINTR happens only before the pool is seeded.
  ssize_t n;
  do {
    n = getrandom(bytes, sizeof(bytes), 0);
  } while (n != sizeof(bytes));
  return absl::BytesToHexString(absl::string_view(bytes, sizeof(bytes)));
}

absl::Status NoSuchSession() {
  return absl::NotFoundError(
      "no such session: it was closed, expired, or the daemon was restarted; open a new one with "
      "OpenSession");
}

}  // namespace

absl::StatusOr<const kv::KeySpace*> GrpcSession::FindKeySpace(uint32_t id) const {
  MutexLock lock(&mu_);
  const auto it = key_spaces_.find(id);
  if (it == key_spaces_.end()) {
    return absl::NotFoundError(
        absl::StrCat("key space ", id, " was not opened in this session; call OpenKeySpace first"));
  }
  return it->second;
}

absl::StatusOr<const kv::KeySpace*> GrpcSession::OpenKeySpace(
    const kv::KeySpaceIdentity& identity) {
  auto opened = core_->OpenKeySpace(identity);
  if (!opened.ok()) return opened.status();
  MutexLock lock(&mu_);
  if (key_spaces_.size() >= kKeySpacesMax && !key_spaces_.contains((*opened)->id)) {
    return absl::ResourceExhaustedError(absl::StrCat("this session has opened ", kKeySpacesMax,
                                                     " key spaces already; use another session"));
  }
  key_spaces_[(*opened)->id] = *opened;
  return *opened;
}

GrpcSessions::GrpcSessions(const Options& options, tiering::TierStack* stack, const Clock* clock)
    : options_(options), stack_(stack), clock_(clock), nameless_(std::make_shared<GrpcSession>()) {}

GrpcSessions::~GrpcSessions() {
  CloseAll();
  MutexLock lock(&mu_);
  TERRACE_CHECK(streams_ == 0);  // GrpcServer has joined all calls
}

absl::StatusOr<GrpcSessions::Opened> GrpcSessions::Open(kv::TenantId tenant,
                                                        absl::string_view client_name,
                                                        int64_t ttl_ns) {
  if (ttl_ns == 0) ttl_ns = options_.ttl_default_ns;
  if (ttl_ns < options_.ttl_min_ns || ttl_ns > options_.ttl_max_ns) {
    return absl::InvalidArgumentError(
        absl::StrCat("ttl must be ", options_.ttl_min_ns / 1'000'000'000, " s to ",
                     options_.ttl_max_ns / 1'000'000'000, " s; leave it unset for the default"));
  }
  auto session = std::make_shared<GrpcSession>();
  session->client_name_ = std::string(client_name.substr(0, kClientNameBytesMax));
  session->ttl_ns_ = ttl_ns;
  {
    MutexLock lock(&session->mu_);
    session->last_used_ns_ = clock_->NowNs();
  }
  Opened opened{NewSessionId(), ttl_ns};

  MutexLock lock(&mu_);
  if (closed_) return absl::UnavailableError("the daemon is stopping; try again later");
  if (sessions_.size() >= options_.sessions_max) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the daemon has ", options_.sessions_max,
        " gRPC sessions, its limit; close sessions that are not needed or use shorter ttls"));
  }
  size_t& of_tenant = per_tenant_[tenant];
  if (of_tenant >= options_.sessions_per_tenant_max) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the tenant has ", options_.sessions_per_tenant_max,
        " gRPC sessions, its limit; close sessions that are not needed or use shorter ttls"));
  }
  session->core_ = stack_->OpenSession(tenant);
  ++of_tenant;
  sessions_.emplace(opened.id, std::move(session));
  return opened;
}

absl::StatusOr<std::shared_ptr<GrpcSession>> GrpcSessions::Find(absl::string_view id) {
  const int64_t now = clock_->NowNs();
  MutexLock lock(&mu_);
  const auto it = sessions_.find(id);
  if (it == sessions_.end()) return NoSuchSession();
  GrpcSession& session = *it->second;
  MutexLock session_lock(&session.mu_);
  // Expired but not swept yet: the ttl is a promise, not a hint.
  if (now - session.last_used_ns_ > session.ttl_ns_) return NoSuchSession();
  session.last_used_ns_ = now;
  return it->second;
}

void GrpcSessions::End(GrpcSession& session) {
  MutexLock lock(&session.mu_);
  session.ended_ = true;
  for (auto& [id, stream] : session.streams_) stream.cancel();
}

absl::Status GrpcSessions::Close(absl::string_view id) {
  std::shared_ptr<GrpcSession> session;  // destroyed outside the lock
  {
    MutexLock lock(&mu_);
    const auto it = sessions_.find(id);
    if (it == sessions_.end()) return NoSuchSession();
    session = std::move(it->second);
    sessions_.erase(it);
    --per_tenant_[session->core_->tenant()];
  }
  End(*session);
  return absl::OkStatus();
}

void GrpcSessions::CloseAll() {
  absl::flat_hash_map<std::string, std::shared_ptr<GrpcSession>> sessions;
  {
    MutexLock lock(&mu_);
    closed_ = true;
    sessions.swap(sessions_);
    per_tenant_.clear();
  }
  for (auto& [id, session] : sessions) End(*session);
  End(*nameless_);
}

GrpcSessions::StreamGuard::StreamGuard(StreamGuard&& other) noexcept
    : owner_(std::exchange(other.owner_, nullptr)),
      session_(std::move(other.session_)),
      id_(other.id_) {}

GrpcSessions::StreamGuard::~StreamGuard() {
  if (owner_ == nullptr) return;
  {
    MutexLock lock(&session_->mu_);
    session_->streams_.erase(id_);
  }
  session_.reset();  // may free leases: under no lock
  MutexLock lock(&owner_->mu_);
  --owner_->streams_;
}

void GrpcSessions::StreamGuard::Progress() {
  const int64_t now = owner_->clock_->NowNs();
  MutexLock lock(&session_->mu_);
  session_->last_used_ns_ = now;
  session_->streams_[id_].last_progress_ns = now;
}

absl::StatusOr<GrpcSessions::StreamGuard> GrpcSessions::BeginStream(
    const std::shared_ptr<GrpcSession>& session, std::function<void()> cancel) {
  StreamGuard guard;
  MutexLock lock(&mu_);
  if (streams_ >= options_.streams_max) {
    return absl::ResourceExhaustedError(absl::StrCat("the daemon serves ", options_.streams_max,
                                                     " Get and Put streams, its limit; try later"));
  }
  MutexLock session_lock(&session->mu_);
  if (session->ended_) return NoSuchSession();
  ++streams_;
  guard.owner_ = this;
  guard.session_ = session;
  guard.id_ = session->next_stream_++;
  session->streams_[guard.id_] = {std::move(cancel), clock_->NowNs()};
  return guard;
}

absl::StatusOr<GrpcSessions::StreamGuard> GrpcSessions::BeginNamelessStream(
    std::function<void()> cancel) {
  return BeginStream(nameless_, std::move(cancel));
}

void GrpcSessions::Sweep() {
  const int64_t now = clock_->NowNs();
  std::vector<std::shared_ptr<GrpcSession>> expired;
  {
    MutexLock lock(&mu_);
    for (auto it = sessions_.begin(); it != sessions_.end();) {
      GrpcSession& session = *it->second;
      bool is_expired = false;
      {
        MutexLock session_lock(&session.mu_);
        is_expired = now - session.last_used_ns_ > session.ttl_ns_;
        CancelStalled(session, now);
      }
      const auto here = it++;
      if (!is_expired) continue;
      --per_tenant_[session.core_->tenant()];
      expired.push_back(std::move(here->second));
      sessions_.erase(here);
    }
  }
  for (auto& session : expired) End(*session);
  MutexLock lock(&nameless_->mu_);
  CancelStalled(*nameless_, now);
}

void GrpcSessions::CancelStalled(GrpcSession& session, int64_t now) const {
  for (auto& [id, stream] : session.streams_) {
    if (now - stream.last_progress_ns > options_.stall_ns) stream.cancel();
  }
}

std::vector<GrpcSessionInfo> GrpcSessions::List() const {
  const int64_t now = clock_->NowNs();
  std::vector<GrpcSessionInfo> list;
  MutexLock lock(&mu_);
  list.reserve(sessions_.size());
  for (const auto& [id, session] : sessions_) {
    GrpcSessionInfo info;
    info.client_name = session->client_name_;
    info.tenant = session->core_->tenant();
    info.leases = session->core_->lease_count();
    MutexLock session_lock(&session->mu_);
    info.remaining_ns = std::max<int64_t>(0, session->ttl_ns_ - (now - session->last_used_ns_));
    info.streams = static_cast<uint32_t>(session->streams_.size());
    list.push_back(std::move(info));
  }
  return list;
}

}  // namespace terrace::api
