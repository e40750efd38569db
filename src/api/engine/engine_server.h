// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// EngineServer: the engine socket's server end. Parses packets (wire.h), drives one tiering::Session a
// connection, passes descriptors.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "api/config.h"
#include "kvstore/base/metrics.h"
#include "tiering/tier_stack.h"

namespace terrace::api {

// A connection as an operator sees it.
struct EngineConnection {
  uint64_t session_id = 0;
  std::string client_name, tenant;
  uint32_t pid = 0, uid = 0;
  uint64_t leases = 0, staging_bytes = 0, regions = 0;
  double connected_seconds = 0;
};

// Owner: Daemon. Threads: its own engine.threads (epoll); the public methods may be called from any.
// Limits: connections in all and per uid, keys per message, packet size. A connection that breaks the
// protocol is answered once and closed; when a connection ends, all it held is freed at once.
class EngineServer {
 public:
  // stack, clock and metrics must outlive it. Listens when this returns. epoch != 0 names this process.
  static absl::StatusOr<std::unique_ptr<EngineServer>> Start(const Config& config, uint64_t epoch,
                                                             tiering::TierStack* stack, const Clock* clock,
                                                             MetricRegistry* metrics);
  ~EngineServer();  // closes all connections, joins its threads

  std::vector<EngineConnection> Connections() const;
  const std::string& socket_path() const;

 private:
  class Impl;
  explicit EngineServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace terrace::api
