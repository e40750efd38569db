// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// GrpcServer: terrace.v1 over a Unix socket and, if asked for, over loopback TCP. Puts services,
// sessions and acceptor together; keeps gRPC's headers out of its users.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "api/engine/engine_server.h"
#include "api/server/grpc_acceptor.h"
#include "api/server/grpc_sessions.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/metrics.h"
#include "tiering/tier_stack.h"

namespace terrace::api {

// Who may use a tenant. uid is the peer's user as the kernel says, or kUidUnknown over TCP: a
// tenant that is bound to user ids must refuse it. PermissionDenied for any doubt.
inline constexpr uint32_t kUidUnknown = ~0u;  // never a real user: (uid_t)-1
using Authenticator = std::function<absl::StatusOr<kv::TenantId>(
    absl::string_view tenant, absl::string_view token, uint32_t uid)>;

// What the services work on. The pointers must outlive the GrpcServer.
struct GrpcContext {
  tiering::TierStack* stack = nullptr;
  const Clock* clock = nullptr;
  MetricRegistry* metrics = nullptr;  // one GrpcServer a registry; read for GetStatus
  Authenticator authenticate;
  // EngineServer::Connections, without a dependency on it.
  std::function<std::vector<EngineConnection>()> engine_connections;
  std::vector<std::string> tenants;  // index = kv::TenantId
  std::string version;               // of the daemon
  uint64_t epoch = 0;
};

struct GrpcServerOptions {
  std::string socket_path;      // grpc.socket
  uint32_t socket_mode = 0660;  // engine.socket_mode
  std::string listen;  // grpc.listen: "" = no TCP; "127.0.0.1:0" = a free port. Loopback only
  // grpc.admin_uids: who may call AdminService besides root and the daemon's own user. Empty:
  // everyone who may open the socket.
  std::vector<uint32_t> admin_uids;
  GrpcAcceptor::Options acceptor;
  GrpcSessions::Options sessions;
};

// Starts what gRPC keeps once a process, for the rest of the process, and sends its own messages to
// our log. Call it once, before anything else of gRPC is used.
void PrepareGrpcProcess();

// Owner: Daemon. Threads: gRPC's (bounded), one acceptor, one sweeper; the public methods from any.
// Limits: connections, sessions, streams, 4 MiB a request, threads. AdminService is served on the
// Unix socket only. Failure: Start says what to change; a client's fault never ends the server.
class GrpcServer {
 public:
  // Listens when this returns; health says NOT_SERVING until SetServing(true).
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const GrpcServerOptions& options,
                                                           const GrpcContext& context);
  ~GrpcServer();  // Shutdown(0)
  GrpcServer(const GrpcServer&) = delete;

  // What grpc.health.v1 answers for "" and terrace.v1.CacheService.
  void SetServing(bool serving);
  // Refuses new calls, lets those under way finish for grace_ns, then cancels them, and ends all
  // sessions. Idempotent.
  void Shutdown(int64_t grace_ns);

  int tcp_port() const;  // 0 when options.listen is empty

 private:
  class Impl;
  explicit GrpcServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace terrace::api
