// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// EngineRig: core and engine socket of a daemon in the test's own process, in a directory of its own.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "api/config.h"
#include "api/engine/engine_server.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/metrics.h"
#include "kvstore/base/mutex.h"
#include "testing/raw_client.h"
#include "testing/trials.h"
#include "tiering/tier_stack.h"

namespace terrace::testing {

// Time that stands still until it is told to move. Threads: any.
class ManualClock final : public Clock {
 public:
  int64_t NowNs() const override { return now_ns_.load(std::memory_order_relaxed); }
  void Advance(int64_t ns) { now_ns_.fetch_add(ns, std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> now_ns_{1'000'000'000};
};

// Owner: the test. With the real clock a thread calls Step as the daemon does; with a manual one the
// test calls it. Tenants: "default" and "other".
class EngineRig {
 public:
  explicit EngineRig(const std::function<void(api::Config*)>& adjust = {}, const Clock* clock = Clock::Real());
  ~EngineRig();

  tiering::TierStack* stack() { return stack_.get(); }
  api::EngineServer* server() { return server_.get(); }
  const std::string& path() const { return config_.engine_socket; }
  const api::Config& config() const { return config_; }

  // A connected client that said hello; the test has failed when there is none.
  std::unique_ptr<RawClient> Client(const std::string& tenant = "default");
  // The door closes; the core goes on.
  void StopServer() { server_.reset(); }
  // The sum of all series of the family whose labels contain the given value ("" = all).
  double Metric(const std::string& family, const std::string& label_value = "") const;
  // Waits until nothing is held: connections, sessions, leases, pins, staging. What is left else.
  std::string WhatIsLeft(int wait_ms = 1000);

 private:
  api::Config config_;
  const Clock* const clock_;
  std::string dir_;
  MetricRegistry metrics_;
  std::unique_ptr<tiering::TierStack> stack_;
  std::unique_ptr<api::EngineServer> server_;
  Mutex mu_;
  CondVar stop_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread steps_;
};

// Polls until the condition holds; false when it does not within the time.
bool Eventually(const std::function<bool()>& condition, int wait_ms = 20'000);
// Descriptors open in this process.
size_t OpenDescriptors();
// Resident memory of this process.
uint64_t ResidentBytes();

}  // namespace terrace::testing
