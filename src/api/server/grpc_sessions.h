// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// GrpcSessions: the sessions of gRPC clients. A gRPC call carries no connection that could die with
// its client, so these sessions live by a random name and a ttl. Knows no gRPC types.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/mutex.h"
#include "tiering/tier_stack.h"

namespace terrace::api {

// One client's session: its tiering::Session (leases), the key spaces it opened, its streams.
// Owner: shared by GrpcSessions and the calls under way in it; leases are freed when the last of
// these lets go, which after Close or expiry is at once for unary calls and as soon as the
// cancelled streams return. Threads: any.
class GrpcSession {
 public:
  tiering::Session& core() { return *core_; }
  // NotFound: not opened in this session.
  absl::StatusOr<const kv::KeySpace*> FindKeySpace(uint32_t id) const;
  // ResourceExhausted beyond kKeySpacesMax.
  absl::StatusOr<const kv::KeySpace*> OpenKeySpace(const kv::KeySpaceIdentity& identity);

  static constexpr size_t kKeySpacesMax = 1024;

 private:
  friend class GrpcSessions;
  struct Stream {
    std::function<void()> cancel;
    int64_t last_progress_ns = 0;
  };

  std::unique_ptr<tiering::Session> core_;
  std::string client_name_;
  int64_t ttl_ns_ = 0;
  mutable Mutex mu_;
  int64_t last_used_ns_ ABSL_GUARDED_BY(mu_) = 0;
  absl::flat_hash_map<uint32_t, const kv::KeySpace*> key_spaces_ ABSL_GUARDED_BY(mu_);
  uint64_t next_stream_ ABSL_GUARDED_BY(mu_) = 1;
  absl::flat_hash_map<uint64_t, Stream> streams_ ABSL_GUARDED_BY(mu_);
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
};

// A session as an operator sees it.
struct GrpcSessionInfo {
  std::string client_name;
  kv::TenantId tenant = 0;
  uint64_t leases = 0;
  int64_t remaining_ns = 0;
  uint32_t streams = 0;
};

// All sessions of the gRPC door.
// Owner: GrpcServer. Threads: any. Limits: sessions in all and per tenant, streams in all; beyond
// them ResourceExhausted. Failure: an unknown or expired name is NotFound, for any cause alike.
class GrpcSessions {
 public:
  struct Options {
    size_t sessions_max = 4096;
    size_t sessions_per_tenant_max = 1024;
    size_t streams_max = 64;  // each holds a thread and up to a block of memory
    int64_t ttl_default_ns = 60'000'000'000;
    int64_t ttl_min_ns = 1'000'000'000;
    int64_t ttl_max_ns = 3'600'000'000'000;
    int64_t stall_ns = 30'000'000'000;  // a stream without progress for so long is cancelled
  };

  // stack and clock must outlive it.
  GrpcSessions(const Options& options, tiering::TierStack* stack, const Clock* clock);
  ~GrpcSessions();  // ends all sessions
  GrpcSessions(const GrpcSessions&) = delete;

  struct Opened {
    std::string id;  // 32 hex digits, from the kernel's random source
    int64_t ttl_ns = 0;
  };
  // ttl_ns 0: the default. InvalidArgument: outside ttl_min_ns..ttl_max_ns.
  absl::StatusOr<Opened> Open(kv::TenantId tenant, absl::string_view client_name, int64_t ttl_ns);
  // Finds the session and restarts its ttl.
  absl::StatusOr<std::shared_ptr<GrpcSession>> Find(absl::string_view id);
  absl::Status Close(absl::string_view id);
  // Ends all sessions; new ones are Unavailable from now on.
  void CloseAll();

  // Holds a place among the streams while alive; ends before the session it belongs to.
  class StreamGuard {
   public:
    StreamGuard() = default;
    StreamGuard(StreamGuard&& other) noexcept;
    StreamGuard& operator=(StreamGuard&&) = delete;
    ~StreamGuard();
    // The stream moved: restarts its stall time and the session's ttl.
    void Progress();

   private:
    friend class GrpcSessions;
    GrpcSessions* owner_ = nullptr;
    std::shared_ptr<GrpcSession> session_;
    uint64_t id_ = 0;
  };
  // cancel is called (at most a few times, on any thread, under a lock: it must only signal) when
  // the session ends or the stream stalls. ResourceExhausted: too many streams.
  absl::StatusOr<StreamGuard> BeginStream(const std::shared_ptr<GrpcSession>& session,
                                          std::function<void()> cancel);
  // The same for a stream that has not said yet to which session it belongs.
  absl::StatusOr<StreamGuard> BeginNamelessStream(std::function<void()> cancel);

  // Ends what has expired, cancels what has stalled. GrpcServer's sweeper calls it about once a
  // second.
  void Sweep();

  std::vector<GrpcSessionInfo> List() const;

 private:
  static void End(GrpcSession& session);
  void CancelStalled(GrpcSession& session, int64_t now) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(session.mu_);

  const Options options_;
  tiering::TierStack* const stack_;
  const Clock* const clock_;
  const std::shared_ptr<GrpcSession> nameless_;  // has streams only; never ends before CloseAll
  mutable Mutex mu_;                             // taken before GrpcSession::mu_
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  size_t streams_ ABSL_GUARDED_BY(mu_) = 0;
  absl::flat_hash_map<std::string, std::shared_ptr<GrpcSession>> sessions_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<kv::TenantId, size_t> per_tenant_ ABSL_GUARDED_BY(mu_);
};

}  // namespace terrace::api
