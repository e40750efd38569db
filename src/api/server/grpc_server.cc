// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/server/grpc_server.h"

#include <grpc/grpc.h>
#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server_posix.h>
#include <pthread.h>
#include <sys/socket.h>

#include <chrono>
#include <optional>
#include <thread>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "api/server/admin_service.h"
#include "api/server/cache_service.h"
#include "kvstore/base/log.h"
#include "kvstore/base/mutex.h"
#include "kvstore/base/status_macros.h"
#include "terrace/v1/kv.grpc.pb.h"

namespace terrace::api {
namespace {

constexpr int kReceiveBytesMax = 4 << 20;
constexpr int kConnectionIdleMs = 15 * 60 * 1000;  // clients reconnect by themselves
constexpr int kKeepaliveMs = 60 * 1000;            // finds TCP peers that vanished
constexpr size_t kThreadsForUnaryCalls = 32;       // besides one a stream
constexpr std::chrono::seconds kSweepPeriod{1};

// "localhost" and names are refused: what they mean is decided elsewhere.
bool IsLoopback(absl::string_view address) {
  return absl::StartsWith(address, "127.") || absl::StartsWith(address, "[::1]:");
}

void LogFromGrpc(gpr_log_func_args* args) {
  if (args->severity != GPR_LOG_SEVERITY_ERROR) return;  // the others describe its own inner life
  Log(LogLevel::kWarning, "grpc_message", {{"text", args->message}});
}

void SetUpBuilder(grpc::ServerBuilder& builder, size_t streams_max) {
  grpc::ResourceQuota quota("terrace-grpc");
  quota.SetMaxThreads(static_cast<int>(streams_max + kThreadsForUnaryCalls));
  builder.SetResourceQuota(quota);
  builder.SetMaxReceiveMessageSize(kReceiveBytesMax);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, kConnectionIdleMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  // A port in use must be an error, not a port shared with a stranger.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
}

}  // namespace

void PrepareGrpcProcess() {
  gpr_set_log_function(LogFromGrpc);
  // Never given back: the last grpc_shutdown() waits for a helper thread of gRPC 1.51 that, once a
  // write had to wait for a full socket, sleeps for up to 10 s. A daemon that is asked to stop
  // cannot.
  grpc_init();
}

class GrpcServer::Impl {
 public:
  Impl(const GrpcServerOptions& options, const GrpcContext& context)
      : options_(options),
        context_(context),
        metrics_(context.metrics, context.clock),
        sessions_(options.sessions, context.stack, context.clock) {}

  ~Impl() { Shutdown(0); }

  absl::Status Start() {
    static const bool kPluginsReady = [] {
      grpc::EnableDefaultHealthCheckService(true);
      grpc::reflection::InitProtoReflectionServerBuilderPlugin();
      return true;
    }();
    static_cast<void>(kPluginsReady);
    ASSIGN_OR_RETURN(UnixListener listener,
                     UnixListener::Listen(options_.socket_path, options_.socket_mode, SOCK_STREAM));
    RETURN_IF_ERROR(StartUnix());
    if (!options_.listen.empty()) RETURN_IF_ERROR(StartTcp());
    SetServing(false);
    const auto adopt = [this](int fd) { grpc::AddInsecureChannelFromFd(unix_server_.get(), fd); };
    ASSIGN_OR_RETURN(acceptor_, GrpcAcceptor::Start(std::move(listener), options_.acceptor, adopt,
                                                    metrics_.rejected_connections));
    {
      MutexLock lock(&mu_);
      acceptor_ready_ = acceptor_.get();
    }
    sweeper_ = std::thread([this] { Sweep(); });
    pthread_setname_np(sweeper_.native_handle(), "grpc-sweep");
    return absl::OkStatus();
  }

  void SetServing(bool serving) {
    for (grpc::Server* server : {unix_server_.get(), tcp_server_.get()}) {
      if (server == nullptr) continue;
      grpc::HealthCheckServiceInterface* health = server->GetHealthCheckService();
      health->SetServingStatus(serving);  // "" and every known service
      health->SetServingStatus(v1::CacheService::service_full_name(), serving);
    }
  }

  void Shutdown(int64_t grace_ns) {
    {
      MutexLock lock(&mu_);
      if (is_stopping_) return;
      is_stopping_ = true;
      acceptor_ready_ = nullptr;
      wake_.SignalAll();
    }
    if (sweeper_.joinable()) sweeper_.join();
    acceptor_.reset();  // removes the socket; no new connections
    if (unix_server_ != nullptr) SetServing(false);
    const auto deadline = std::chrono::system_clock::now() + std::chrono::nanoseconds(grace_ns);
    for (grpc::Server* server : {unix_server_.get(), tcp_server_.get()}) {
      if (server != nullptr) server->Shutdown(deadline);
    }
    sessions_.CloseAll();
    for (grpc::Server* server : {unix_server_.get(), tcp_server_.get()}) {
      if (server != nullptr) server->Wait();
    }
  }

  int tcp_port() const { return tcp_port_; }

 private:
  absl::Status StartUnix() {
    UidOfPeer uid_of_peer = [this](const std::string& peer) { return UidOf(peer); };
    unix_cache_ = MakeCacheService(&context_, &sessions_, &metrics_, uid_of_peer);
    admin_ = MakeAdminService(&context_, &sessions_, &metrics_, options_.admin_uids, uid_of_peer);
    grpc::ServerBuilder builder;
    SetUpBuilder(builder, options_.sessions.streams_max);
    builder.RegisterService(unix_cache_.get());
    builder.RegisterService(admin_.get());
    unix_server_ = builder.BuildAndStart();
    if (unix_server_ == nullptr) return absl::InternalError("gRPC did not start");
    return absl::OkStatus();
  }

  absl::Status StartTcp() {
    if (!IsLoopback(options_.listen)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "grpc.listen must be a loopback address like 127.0.0.1:9465 or [::1]:9465, is \"",
          options_.listen, "\": without TLS this door does not leave the machine"));
    }
    tcp_cache_ = MakeCacheService(&context_, &sessions_, &metrics_,
                                  [](const std::string&) { return std::optional<uint32_t>(); });
    grpc::ServerBuilder builder;
    SetUpBuilder(builder, options_.sessions.streams_max);
    builder.AddListeningPort(options_.listen, grpc::InsecureServerCredentials(), &tcp_port_);
    builder.RegisterService(tcp_cache_.get());
    tcp_server_ = builder.BuildAndStart();
    if (tcp_server_ == nullptr || tcp_port_ == 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("cannot listen on grpc.listen ", options_.listen, "; is the port in use?"));
    }
    return absl::OkStatus();
  }

  std::optional<uint32_t> UidOf(const std::string& peer) {
    MutexLock lock(&mu_);
    return acceptor_ready_ == nullptr ? std::nullopt : acceptor_ready_->UidOf(peer);
  }

  void Sweep() {
    while (true) {
      {
        MutexLock lock(&mu_);
        if (!is_stopping_) wake_.WaitFor(&mu_, kSweepPeriod);
        if (is_stopping_) return;
      }
      sessions_.Sweep();
    }
  }

  const GrpcServerOptions options_;
  const GrpcContext context_;
  GrpcMetrics metrics_;
  GrpcSessions sessions_;
  std::unique_ptr<grpc::Service> unix_cache_, tcp_cache_, admin_;
  std::unique_ptr<grpc::Server> unix_server_, tcp_server_;
  int tcp_port_ = 0;
  std::unique_ptr<GrpcAcceptor> acceptor_;
  std::thread sweeper_;
  Mutex mu_;
  CondVar wake_;
  bool is_stopping_ ABSL_GUARDED_BY(mu_) = false;
  GrpcAcceptor* acceptor_ready_ ABSL_GUARDED_BY(mu_) = nullptr;  // calls come before Start returns
};

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const GrpcServerOptions& options,
                                                              const GrpcContext& context) {
  auto impl = std::make_unique<Impl>(options, context);
  RETURN_IF_ERROR(impl->Start());
  return absl::WrapUnique(new GrpcServer(std::move(impl)));
}

GrpcServer::GrpcServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
GrpcServer::~GrpcServer() = default;
void GrpcServer::SetServing(bool serving) { impl_->SetServing(serving); }
void GrpcServer::Shutdown(int64_t grace_ns) { impl_->Shutdown(grace_ns); }
int GrpcServer::tcp_port() const { return impl_->tcp_port(); }

}  // namespace terrace::api
