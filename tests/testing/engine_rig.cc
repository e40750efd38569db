// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "testing/engine_rig.h"

#include <gtest/gtest.h>

#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "kvstore/base/check.h"

namespace terrace::testing {

EngineRig::EngineRig(const std::function<void(api::Config*)>& adjust, const Clock* clock) : clock_(clock) {
  std::string dir = ::testing::TempDir() + "/terrace-XXXXXX";
  TERRACE_CHECK(mkdtemp(dir.data()) != nullptr);
  dir_ = dir;
  config_.run_dir = dir_;
  config_.engine_socket = dir_ + "/engine.sock";
  config_.tenants = {{.name = "default", .uids = {}, .token_file = {}},
                     {.name = "other", .uids = {}, .token_file = {}}};
  config_.stack.tenants = {{"default"}, {"other"}};
  config_.stack.budget_bytes = 256 << 20;
  config_.stack.prefault = false;
  config_.stack.huge_pages = false;
  config_.stack.memory_dir = "";  // nothing outlives a test
  config_.stack.gpu = false;
  config_.stack.eviction_policy = "lru";  // an order that tests can tell
  config_.staging_bytes = 1 << 20;
  if (adjust) adjust(&config_);
  auto stack = tiering::TierStack::Create(config_.stack, clock_, &metrics_);
  TERRACE_CHECK(stack.ok());
  stack_ = *std::move(stack);
  auto server = api::EngineServer::Start(config_, 0x5EED, stack_.get(), clock_, &metrics_);
  TERRACE_CHECK(server.ok());
  server_ = *std::move(server);
  if (clock_ != Clock::Real()) return;
  steps_ = std::thread([this] {
    MutexLock lock(&mu_);
    while (!stopping_) {
      mu_.Unlock();
      stack_->Step();
      mu_.Lock();
      if (!stopping_) stop_.WaitFor(&mu_, std::chrono::milliseconds(20));
    }
  });
}

EngineRig::~EngineRig() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
  }
  stop_.SignalAll();
  if (steps_.joinable()) steps_.join();
  server_.reset();
  stack_.reset();
  std::error_code ignored;
  std::filesystem::remove_all(dir_, ignored);
}

std::unique_ptr<RawClient> EngineRig::Client(const std::string& tenant) {
  auto client = std::make_unique<RawClient>(path());
  EXPECT_TRUE(client->is_connected());
  const auto welcome = client->Hello(RawClient::HelloFor(tenant));
  EXPECT_TRUE(welcome.ok()) << welcome.status();
  return client;
}

double EngineRig::Metric(const std::string& family, const std::string& label_value) const {
  double sum = 0;
  bool found = false;
  for (const auto& f : metrics_.Snapshot()) {
    if (f.name != family) continue;
    for (const auto& series : f.series) {
      bool fits = label_value.empty();
      for (const auto& [name, value] : series.labels) fits = fits || value == label_value;
      if (!fits) continue;
      found = true;
      if (series.counter != nullptr) sum += static_cast<double>(series.counter->Value());
      if (series.gauge != nullptr) sum += static_cast<double>(series.gauge->Value());
      if (series.read) sum += series.read();
    }
  }
  EXPECT_TRUE(found) << family << " " << label_value;
  return sum;
}

std::string EngineRig::WhatIsLeft(int wait_ms) {
  std::string left;
  Eventually(
      [&] {
        const tiering::TierStackStats stats = stack_->Stats();
        left.clear();
        if (const double n = Metric("terrace_engines_connected"); n != 0) absl::StrAppend(&left, n, " connections; ");
        if (stats.sessions != 0) absl::StrAppend(&left, stats.sessions, " sessions; ");
        if (stats.leases != 0) absl::StrAppend(&left, stats.leases, " leases; ");
        if (stats.tiers[0].pinned_bytes != 0) absl::StrAppend(&left, stats.tiers[0].pinned_bytes, " pinned bytes; ");
        return left.empty();
      },
      wait_ms);
  return left;
}

bool Eventually(const std::function<bool()>& condition, int wait_ms) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(wait_ms);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // poll
  }
  return true;
}

size_t OpenDescriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(all), end(all)));
}

uint64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  uint64_t size = 0, resident = 0;
  file >> size >> resident;
  return resident * 4096;
}

}  // namespace terrace::testing
