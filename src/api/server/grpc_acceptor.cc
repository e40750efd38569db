// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/server/grpc_acceptor.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kvstore/base/log.h"

namespace terrace::api {
namespace {

constexpr int kRetryMs = 100;  // when descriptors run out

// 0 when fd is not an open socket.
uint64_t SocketInode(int fd) {
  struct stat info {};
  if (fstat(fd, &info) != 0 || !S_ISSOCK(info.st_mode)) return 0;
  return info.st_ino;
}

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcAcceptor>> GrpcAcceptor::Start(UnixListener listener,
                                                                  const Options& options,
                                                                  std::function<void(int)> adopt,
                                                                  Counter* rejected) {
  auto acceptor =
      absl::WrapUnique(new GrpcAcceptor(std::move(listener), options, std::move(adopt), rejected));
  acceptor->stop_fd_ = eventfd(0, EFD_CLOEXEC);
  if (acceptor->stop_fd_ < 0) {
    return absl::ResourceExhaustedError(absl::StrCat("eventfd: ", std::strerror(errno)));
  }
  acceptor->thread_ = std::thread([a = acceptor.get()] { a->Run(); });
  pthread_setname_np(acceptor->thread_.native_handle(), "grpc-accept");
  return acceptor;
}

GrpcAcceptor::GrpcAcceptor(UnixListener listener, const Options& options,
                           std::function<void(int)> adopt, Counter* rejected)
    : options_(options),
      adopt_(std::move(adopt)),
      rejected_(rejected),
      listener_(std::move(listener)) {}

GrpcAcceptor::~GrpcAcceptor() {
  if (thread_.joinable()) {
    eventfd_write(stop_fd_, 1);
    thread_.join();
  }
  if (stop_fd_ >= 0) close(stop_fd_);
}

void GrpcAcceptor::Run() {
  while (true) {
    pollfd fds[2] = {{stop_fd_, POLLIN, 0}, {listener_.fd(), POLLIN, 0}};
    if (poll(fds, 2, -1) < 0 && errno != EINTR) {
      Log(LogLevel::kError, "grpc_accept_failed", {{"error", std::strerror(errno)}});
      return;
    }
    if (fds[0].revents != 0) return;
    if (fds[1].revents != 0) AcceptOne();
  }
}

void GrpcAcceptor::AcceptOne() {
  const int fd = accept4(listener_.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) {
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      Log(LogLevel::kWarning, "grpc_accept_failed", {{"error", std::strerror(errno)}});
      pollfd stop = {stop_fd_, POLLIN, 0};
      poll(&stop, 1, kRetryMs);
    }
    return;
  }
  ucred credentials{};
  socklen_t length = sizeof(credentials);
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0 ||
      !Admit(fd, {credentials.uid, SocketInode(fd)})) {
    close(fd);
    return;
  }
  adopt_(fd);
}

bool GrpcAcceptor::Admit(int fd, const Peer& peer) {
  MutexLock lock(&mu_);
  // gRPC does not tell when it closes a connection: count afresh those that are still themselves. A
  // few hundred fstat calls per new connection at worst.
  size_t of_uid = 0;
  for (auto it = peers_.begin(); it != peers_.end();) {
    const auto here = it++;
    if (here->first == fd || SocketInode(here->first) != here->second.inode) {
      peers_.erase(here);
    } else if (here->second.uid == peer.uid) {
      ++of_uid;
    }
  }
  if (peers_.size() >= options_.connections_max || of_uid >= options_.connections_per_uid_max) {
    rejected_->Add();
    Log(LogLevel::kWarning, "grpc_connection_refused",
        {{"uid", peer.uid}, {"of_uid", of_uid}, {"connections", peers_.size()}});
    return false;
  }
  peers_[fd] = peer;
  return true;
}

std::optional<uint32_t> GrpcAcceptor::UidOf(const std::string& peer) const {
  absl::string_view number = peer;
  int fd = -1;
  if (!absl::ConsumePrefix(&number, "fd:") || !absl::SimpleAtoi(number, &fd)) return std::nullopt;
  MutexLock lock(&mu_);
  const auto it = peers_.find(fd);
  if (it == peers_.end() || SocketInode(fd) != it->second.inode) return std::nullopt;
  return it->second.uid;
}

}  // namespace terrace::api
