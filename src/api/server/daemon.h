// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Daemon: the composition root. Builds the parts bottom-up, destroys them in reverse; holds no logic of
// its own beyond that and the thread that drives TierStack::Step.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "api/config.h"
#include "api/engine/engine_server.h"
#include "api/server/grpc_server.h"
#include "api/server/http_server.h"
#include "api/server/run_lock.h"
#include "api/door/tenant_access.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/metrics.h"
#include "kvstore/base/mutex.h"
#include "tiering/tier_stack.h"

namespace terrace::api {

// A running terraced. Owner: main. Threads: Start, Drain and the destructor from one; Step has its own.
// Failure: Start gives back everything it had built; AlreadyExists means that another daemon holds the
// run directory.
class Daemon {
 public:
  // clock must outlive it. Serves on all its addresses when this returns.
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(const Config& config, const Clock* clock);
  ~Daemon();
  Daemon(const Daemon&) = delete;

  // Turns not ready, refuses new stores, waits for those under way, lets gRPC calls finish for a
  // bounded time. Engines may still read until the destructor.
  void Drain();

  const Config& config() const { return config_; }
  const std::string& http_address() const { return http_address_; }  // "" when off
  uint64_t epoch() const { return epoch_; }

 private:
  Daemon(const Config& config, const Clock* clock);
  absl::Status Build();
  absl::Status BuildGrpc();
  absl::Status BuildHttp();
  void WarnAboutMemory() const;
  void RunSteps();
  HttpPages::Health Live() const;
  HttpPages::Health Ready() const;
  std::string StatusText() const;

  // Constant after construction.
  const Config config_;
  const Clock* const clock_;
  const uint64_t epoch_;
  const int64_t start_ns_;
  std::string http_address_;

  std::atomic<bool> is_serving_{false};
  std::atomic<int64_t> last_step_ns_;

  // In order of construction.
  std::unique_ptr<RunLock> run_lock_;
  TenantAccess access_;
  MetricRegistry metrics_;
  std::unique_ptr<tiering::TierStack> stack_;
  std::unique_ptr<EngineServer> engine_server_;
  std::unique_ptr<GrpcServer> grpc_server_;
  std::unique_ptr<HttpServer> http_server_;

  Mutex mu_;
  CondVar stop_changed_;
  bool is_stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread step_thread_;
};

}  // namespace terrace::api
