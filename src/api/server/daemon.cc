// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/server/daemon.h"

#include <pthread.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "api/server/metrics_text.h"
#include "api/server/version.h"
#include "kvstore/base/check.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"

namespace terrace::api {
namespace {

constexpr std::chrono::milliseconds kStepInterval{100};
// Steps this far apart mean that the process hangs, not that it is busy.
constexpr int64_t kStepLateNs = 15'000'000'000;
constexpr int64_t kGrpcGraceNs = 5'000'000'000;

uint64_t RandomEpoch() {
  uint64_t epoch = 0;
  while (epoch == 0) {
    TERRACE_CHECK(getrandom(&epoch, sizeof(epoch), 0) == sizeof(epoch));
  }
  return epoch;
}

// A line of /proc/meminfo as it stands there (kB or pages), 0 when absent.
uint64_t MemInfo(absl::string_view name) {
  std::ifstream file("/proc/meminfo");
  std::string word;
  uint64_t value = 0;
  while (file >> word) {
    if (word == name && file >> value) return value;
    file.ignore(1024, '\n');
  }
  return 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(const Config& config, const Clock* clock) {
  auto daemon = absl::WrapUnique(new Daemon(config, clock));
  const absl::Status built = daemon->Build();
  if (built.ok()) return daemon;
  if (daemon->stack_ != nullptr) daemon->stack_->DiscardNew();
  return built;
}

Daemon::Daemon(const Config& config, const Clock* clock)
    : config_(config), clock_(clock), epoch_(RandomEpoch()), start_ns_(clock->NowNs()), last_step_ns_(start_ns_) {}

Daemon::~Daemon() {
  is_serving_ = false;
  http_server_.reset();
  grpc_server_.reset();
  engine_server_.reset();
  if (step_thread_.joinable()) {
    {
      MutexLock lock(&mu_);
      is_stopping_ = true;
      stop_changed_.SignalAll();
    }
    step_thread_.join();
  }
  stack_.reset();
}

absl::Status Daemon::Build() {
  ASSIGN_OR_RETURN(run_lock_, RunLock::Acquire(config_.run_dir));
  ASSIGN_OR_RETURN(access_, TenantAccess::Load(config_.tenants));
  WarnAboutMemory();
  AddProcessMetrics(&metrics_);
  ASSIGN_OR_RETURN(stack_, tiering::TierStack::Create(config_.stack, clock_, &metrics_));
  step_thread_ = std::thread([this] { RunSteps(); });
  ASSIGN_OR_RETURN(engine_server_, EngineServer::Start(config_, epoch_, stack_.get(), clock_, &metrics_));
  RETURN_IF_ERROR(BuildGrpc());
  RETURN_IF_ERROR(BuildHttp());
  is_serving_ = true;
  grpc_server_->SetServing(true);
  return absl::OkStatus();
}

absl::Status Daemon::BuildGrpc() {
  GrpcServerOptions options;
  options.socket_path = config_.grpc_socket;
  options.socket_mode = config_.socket_mode;
  options.listen = config_.grpc_listen;
  options.admin_uids = config_.grpc_admin_uids;
  GrpcContext context;
  context.stack = stack_.get();
  context.clock = clock_;
  context.metrics = &metrics_;
  context.authenticate = [this](absl::string_view tenant, absl::string_view token, uint32_t uid) {
    return access_.Authenticate(tenant, token, uid);
  };
  context.engine_connections = [this] { return engine_server_->Connections(); };
  for (const TenantConfig& tenant : config_.tenants) context.tenants.push_back(tenant.name);
  context.version = kVersion;
  context.epoch = epoch_;
  ASSIGN_OR_RETURN(grpc_server_, GrpcServer::Start(options, context));
  return absl::OkStatus();
}

absl::Status Daemon::BuildHttp() {
  if (config_.http_listen.empty()) return absl::OkStatus();
  HttpPages pages;
  pages.metrics = [this] { return MetricsText(metrics_); };
  pages.status = [this] { return StatusText(); };
  pages.live = [this] { return Live(); };
  pages.ready = [this] { return Ready(); };
  ASSIGN_OR_RETURN(http_server_, HttpServer::Start(config_.http_listen, std::move(pages)));
  http_address_ = http_server_->address();
  return absl::OkStatus();
}

void Daemon::WarnAboutMemory() const {
  const uint64_t huge_free = MemInfo("HugePages_Free:") * MemInfo("Hugepagesize:") * 1024;
  const uint64_t available = MemInfo("MemAvailable:") * 1024 + (config_.stack.huge_pages ? huge_free : 0);
  if (config_.stack.budget_bytes <= available) return;
  Log(LogLevel::kWarning, "host_budget_exceeds_available_memory",
      {{"budget_bytes", config_.stack.budget_bytes},
       {"available_bytes", available},
       {"advice", "lower host.budget or end other processes: the kernel may kill this one as the cache fills"}});
}

void Daemon::RunSteps() {
  pthread_setname_np(pthread_self(), "terrace-step");
  MutexLock lock(&mu_);
  while (!is_stopping_) {
    mu_.Unlock();
    stack_->Step();
    last_step_ns_.store(clock_->NowNs(), std::memory_order_relaxed);
    mu_.Lock();
    if (!is_stopping_) stop_changed_.WaitFor(&mu_, kStepInterval);
  }
}

void Daemon::Drain() {
  is_serving_ = false;
  grpc_server_->SetServing(false);
  stack_->Drain();
  grpc_server_->Shutdown(kGrpcGraceNs);
}

HttpPages::Health Daemon::Live() const {
  const int64_t age_ns = clock_->NowNs() - last_step_ns_.load(std::memory_order_relaxed);
  if (age_ns < kStepLateNs) return {true, "ok"};
  return {false, absl::StrCat("the background thread has not moved for ", age_ns / 1'000'000'000, " s")};
}

HttpPages::Health Daemon::Ready() const {
  if (is_serving_) {
    std::string text = "ready";  // without a GPU, too: host memory and disks are served
    for (const tiering::GpuUsage& gpu : stack_->Stats().gpus) {
      if (!gpu.health.ok()) absl::StrAppend(&text, "; degraded: ", gpu.health.message());
    }
    return {true, text};
  }
  return {false, "not ready: starting or draining"};
}

std::string Daemon::StatusText() const {
  const tiering::TierStackStats stats = stack_->Stats();
  std::string text = absl::StrFormat("terraced %s (%s), pid %d, up %d s, %s\n\n", kVersion, kCommit, getpid(),
                                     (clock_->NowNs() - start_ns_) / 1'000'000'000, Ready().text);
  absl::StrAppendFormat(&text, "budget   %d of %d MiB used\n", stats.budget_used_bytes >> 20,
                        stats.budget_bytes >> 20);
  for (const tiering::TierUsage& tier : stats.tiers) {
    absl::StrAppendFormat(&text, "%-8s %d of %d MiB used, %d MiB leased, %d blocks%s%s\n", tier.tier,
                          tier.used_bytes >> 20, tier.capacity_bytes >> 20, tier.pinned_bytes >> 20, tier.blocks,
                          tier.detail.empty() ? "" : "; ", tier.detail);
  }
  for (const tiering::GpuUsage& gpu : stats.gpus) {
    absl::StrAppendFormat(&text, "gpu      %s %s, %s\n", gpu.info.name, gpu.info.pci_bus,
                          gpu.health.ok() ? "in service" : gpu.health.ToString());
  }
  absl::StrAppendFormat(&text, "clients  %d sessions, %d leases, %d key spaces\n\n", stats.sessions, stats.leases,
                        stats.key_spaces);
  absl::StrAppend(&text, "/metrics  /healthz  /readyz\nMore: terracectl status\n");
  return text;
}

}  // namespace terrace::api
