// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/engine/engine_server.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <thread>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "api/engine/client_connection.h"
#include "api/door/socket_path.h"
#include "kvstore/base/check.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"

namespace terrace::api {
namespace {

constexpr int64_t kHelloTimeNs = 10'000'000'000;  // a connection must say hello within
constexpr int kTickMs = 1000;                     // idle threads look for such connections
constexpr int kAcceptPauseMs = 100;               // out of descriptors: try again after
constexpr int kSendBufferBytes = 4 << 20;         // the kernel caps it at net.core.wmem_max

uint32_t ThreadCount(uint32_t configured) {
  if (configured != 0) return configured;
  return std::thread::hardware_concurrency() <= 4 ? 1 : 2;
}

}  // namespace

class EngineServer::Impl {
 public:
  Impl(const Config& config, uint64_t epoch, tiering::TierStack* stack, const Clock* clock,
       MetricRegistry* metrics, TenantAccess access, UnixListener listener)
      : config_(config),
        access_(std::move(access)),
        metrics_(metrics),
        region_opener_(true),
        context_{&config_, epoch, stack, clock, &access_, &metrics_, &region_opener_, &regions_opening_,
                 &may_say_refused_ns_},
        listener_(std::move(listener)),
        loops_(ThreadCount(config.engine_threads)) {}
  ~Impl();

  absl::Status Run();
  std::vector<EngineConnection> Connections() const;
  const std::string& socket_path() const { return listener_.path(); }

 private:
  // One thread and the connections it serves.
  struct Loop {
    int epoll_fd = -1, wake_fd = -1;
    std::thread thread;
    mutable Mutex mu;
    std::map<int, std::shared_ptr<ClientConnection>> connections ABSL_GUARDED_BY(mu);
    std::vector<std::pair<kv::TenantId, uint32_t>> gone_segments ABSL_GUARDED_BY(mu);
  };

  void RunLoop(Loop* loop, bool accepts);
  // False: no descriptors left, pause.
  bool Accept();
  void CloseConnection(Loop* loop, int fd);
  void SendGoneSegments(Loop* loop);
  void CloseSilent(Loop* loop);
  void ListenTo(bool on);
  bool Admit(uint32_t uid);

  const Config config_;
  const TenantAccess access_;
  EngineMetrics metrics_;
  tiering::RegionWorker region_opener_;  // opening takes milliseconds
  std::atomic<int> regions_opening_{0};
  std::atomic<int64_t> may_say_refused_ns_{0};
  const EngineContext context_;
  UnixListener listener_;
  std::vector<Loop> loops_;
  size_t next_loop_ = 0;  // accepting thread only
  std::atomic<bool> stopping_{false};
  Mutex mu_;
  size_t connection_count_ ABSL_GUARDED_BY(mu_) = 0;
  absl::flat_hash_map<uint32_t, size_t> per_uid_ ABSL_GUARDED_BY(mu_);
};

absl::Status EngineServer::Impl::Run() {
  for (Loop& loop : loops_) {
    loop.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    loop.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (loop.epoll_fd < 0 || loop.wake_fd < 0) {
      return absl::ResourceExhaustedError(absl::StrCat("epoll: ", std::strerror(errno)));
    }
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = loop.wake_fd;
    epoll_ctl(loop.epoll_fd, EPOLL_CTL_ADD, loop.wake_fd, &event);
  }
  ListenTo(true);
  context_.stack->SetSegmentGoneCallback([this](kv::TenantId tenant, uint32_t segment_id) {
    for (Loop& loop : loops_) {
      MutexLock lock(&loop.mu);
      loop.gone_segments.emplace_back(tenant, segment_id);
      eventfd_write(loop.wake_fd, 1);
    }
  });
  for (Loop& loop : loops_) {
    const bool accepts = &loop == &loops_.front();
    loop.thread = std::thread([this, &loop, accepts] { RunLoop(&loop, accepts); });
    pthread_setname_np(loop.thread.native_handle(), "terrace-engine");
  }
  return absl::OkStatus();
}

EngineServer::Impl::~Impl() {
  context_.stack->SetSegmentGoneCallback(nullptr);
  stopping_.store(true);
  for (Loop& loop : loops_) {
    if (loop.wake_fd >= 0) eventfd_write(loop.wake_fd, 1);
    if (loop.thread.joinable()) loop.thread.join();
  }
  // Stores under way answer connections; none may be left when the metrics go.
  for (Loop& loop : loops_) {
    MutexLock lock(&loop.mu);
    for (auto& [fd, connection] : loop.connections) connection->Close();
    loop.connections.clear();
  }
  region_opener_.Stop();
  context_.stack->WaitForStores();
  for (Loop& loop : loops_) {
    if (loop.epoll_fd >= 0) close(loop.epoll_fd);
    if (loop.wake_fd >= 0) close(loop.wake_fd);
  }
}

void EngineServer::Impl::ListenTo(bool on) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = listener_.fd();
  epoll_ctl(loops_.front().epoll_fd, on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, listener_.fd(), &event);
}

void EngineServer::Impl::RunLoop(Loop* loop, bool accepts) {
  bool accept_paused = false;
  int64_t next_tick_ns = 0;
  epoll_event events[64];
  while (!stopping_.load()) {
    const int n = epoll_wait(loop->epoll_fd, events, 64, accept_paused ? kAcceptPauseMs : kTickMs);
    if (accept_paused) {
      ListenTo(true);
      accept_paused = false;
    }
    for (int i = 0; i < n; ++i) {
      const int fd = events[i].data.fd;
      if (accepts && fd == listener_.fd()) {
        if (!Accept()) {
          ListenTo(false);
          accept_paused = true;
        }
        continue;
      }
      if (fd == loop->wake_fd) {
        eventfd_t ignored;
        eventfd_read(loop->wake_fd, &ignored);
        SendGoneSegments(loop);
        continue;
      }
      std::shared_ptr<ClientConnection> connection;
      {
        MutexLock lock(&loop->mu);
        const auto it = loop->connections.find(fd);
        if (it == loop->connections.end()) continue;
        connection = it->second;
      }
      // A hang-up is seen after what was sent before it: a release in the last packet still counts.
      bool open = (events[i].events & EPOLLIN) == 0 || connection->OnReadable();
      if (open && (events[i].events & EPOLLOUT) != 0) open = connection->OnWritable();
      if (open && (events[i].events & (EPOLLHUP | EPOLLERR)) != 0 && (events[i].events & EPOLLIN) == 0) open = false;
      if (!open) CloseConnection(loop, fd);
    }
    if (const int64_t now = context_.clock->NowNs(); now >= next_tick_ns) {
      next_tick_ns = now + kTickMs * 1'000'000ll;
      CloseSilent(loop);
    }
  }
}

bool EngineServer::Impl::Admit(uint32_t uid) {
  MutexLock lock(&mu_);
  if (connection_count_ >= config_.max_connections || per_uid_[uid] >= config_.max_connections_per_uid) {
    return false;
  }
  ++connection_count_;
  ++per_uid_[uid];
  return true;
}

bool EngineServer::Impl::Accept() {
  for (int i = 0; i < 64; ++i) {
    const int fd = accept4(listener_.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        Log(LogLevel::kWarning, "accept_paused",
            {{"error", std::strerror(errno)}, {"mend", "raise the limit of open files (LimitNOFILE)"}});
        return false;
      }
      return true;
    }
    ucred peer{};
    socklen_t size = sizeof(peer);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || !Admit(peer.uid)) {
      metrics_.rejected[EngineMetrics::kConnections]->Add();
      Log(LogLevel::kWarning, "connection_refused",
          {{"uid", peer.uid}, {"why", "engine.max_connections or engine.max_connections_per_uid reached"}});
      close(fd);
      continue;
    }
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kSendBufferBytes, sizeof(kSendBufferBytes));
    Loop& loop = loops_[next_loop_++ % loops_.size()];
    auto connection = std::make_shared<ClientConnection>(&context_, fd, loop.epoll_fd,
                                                              static_cast<uint32_t>(peer.pid), peer.uid);
    MutexLock lock(&loop.mu);
    loop.connections[fd] = std::move(connection);
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    epoll_ctl(loop.epoll_fd, EPOLL_CTL_ADD, fd, &event);
  }
  return true;
}

void EngineServer::Impl::CloseConnection(Loop* loop, int fd) {
  std::shared_ptr<ClientConnection> connection;
  {
    MutexLock lock(&loop->mu);
    const auto it = loop->connections.find(fd);
    if (it == loop->connections.end()) return;
    connection = std::move(it->second);
    loop->connections.erase(it);
  }
  epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, fd, nullptr);
  connection->Close();
  MutexLock lock(&mu_);
  --connection_count_;
  if (--per_uid_[connection->uid()] == 0) per_uid_.erase(connection->uid());
}

void EngineServer::Impl::SendGoneSegments(Loop* loop) {
  std::vector<std::pair<kv::TenantId, uint32_t>> gone;
  std::vector<std::shared_ptr<ClientConnection>> connections;
  {
    MutexLock lock(&loop->mu);
    gone.swap(loop->gone_segments);
    if (gone.empty()) return;
    for (const auto& [fd, connection] : loop->connections) connections.push_back(connection);
  }
  for (const auto& connection : connections) {
    for (const auto& [tenant, segment_id] : gone) connection->SendSegmentGone(tenant, segment_id);
  }
}

void EngineServer::Impl::CloseSilent(Loop* loop) {
  std::vector<int> silent;
  {
    MutexLock lock(&loop->mu);
    for (const auto& [fd, connection] : loop->connections) {
      if (!connection->greeted() && context_.clock->NowNs() - connection->connected_ns() > kHelloTimeNs) {
        silent.push_back(fd);
      }
    }
  }
  for (const int fd : silent) CloseConnection(loop, fd);
}

std::vector<EngineConnection> EngineServer::Impl::Connections() const {
  std::vector<EngineConnection> all;
  for (const Loop& loop : loops_) {
    std::vector<std::shared_ptr<ClientConnection>> connections;
    {
      MutexLock lock(&loop.mu);
      for (const auto& [fd, connection] : loop.connections) connections.push_back(connection);
    }
    for (const auto& connection : connections) {
      if (auto d = connection->Describe()) all.push_back(*std::move(d));
    }
  }
  return all;
}

EngineServer::EngineServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
EngineServer::~EngineServer() = default;

absl::StatusOr<std::unique_ptr<EngineServer>> EngineServer::Start(const Config& config, uint64_t epoch,
                                                                  tiering::TierStack* stack, const Clock* clock,
                                                                  MetricRegistry* metrics) {
  TERRACE_CHECK(epoch != 0);
  ASSIGN_OR_RETURN(TenantAccess access, TenantAccess::Load(config.tenants));
  ASSIGN_OR_RETURN(UnixListener listener,
                   UnixListener::Listen(config.engine_socket, config.socket_mode, SOCK_SEQPACKET));
  auto impl = std::make_unique<Impl>(config, epoch, stack, clock, metrics, std::move(access), std::move(listener));
  RETURN_IF_ERROR(impl->Run());
  return absl::WrapUnique(new EngineServer(std::move(impl)));
}

std::vector<EngineConnection> EngineServer::Connections() const { return impl_->Connections(); }
const std::string& EngineServer::socket_path() const { return impl_->socket_path(); }

}  // namespace terrace::api
