// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "redis_peer.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "stopwatch.h"

namespace terrace::bench {
namespace {

constexpr double kStartSeconds = 10;

void AppendBulk(std::string* out, absl::string_view text) {
  absl::StrAppend(out, "$", text.size(), "\r\n", text, "\r\n");
}

absl::string_view KeyAt(std::span<const uint8_t> keys, size_t i) {
  return {reinterpret_cast<const char*>(keys.data()) + i * 32, 32};
}

int ConnectTo(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) return fd;
  close(fd);
  return -1;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RedisPeer>> RedisPeer::Start(const std::string& program) {
  auto directory = std::make_unique<TemporaryDirectory>();
  const std::string socket = directory->path() + "/redis.sock";
  ChildProcess::Options options;
  options.arguments = {program, "--port", "0", "--unixsocket", socket, "--unixsocketperm", "700",
                       "--save", "", "--appendonly", "no", "--dir", directory->path()};
  options.log_path = directory->path() + "/redis.log";
  options.pipes = false;
  ASSIGN_OR_RETURN(ChildProcess process, ChildProcess::Start(options));
  auto peer = absl::WrapUnique(new RedisPeer(std::move(directory), std::move(process)));
  const double deadline = Seconds() + kStartSeconds;
  while ((peer->fd_ = ConnectTo(socket)) < 0) {
    if (!peer->process_.running())
      return absl::NotFoundError(absl::StrCat(program, " is not installed or does not start"));
    if (Seconds() > deadline) return absl::DeadlineExceededError(absl::StrCat(program, " does not answer"));
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return peer;
}

RedisPeer::~RedisPeer() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<std::string> RedisPeer::Ask(const std::string& request) {
  size_t sent = 0;
  while (sent < request.size()) {
    const ssize_t n = send(fd_, request.data() + sent, request.size() - sent, MSG_NOSIGNAL);
    if (n <= 0) return absl::UnavailableError(absl::StrCat("redis: ", std::strerror(errno)));
    sent += static_cast<size_t>(n);
  }
  char reply[512];
  size_t got = 0;
  while (got < 2 || reply[got - 1] != '\n') {
    const ssize_t n = recv(fd_, reply + got, sizeof(reply) - got, 0);
    if (n <= 0) return absl::UnavailableError("redis closed the connection");
    got += static_cast<size_t>(n);
  }
  return std::string(reply, got - 2);
}

absl::Status RedisPeer::SetAll(std::span<const uint8_t> keys) {
  const size_t n = keys.size() / 32;
  std::string request = absl::StrCat("*", 2 * n + 1, "\r\n");
  AppendBulk(&request, "MSET");
  for (size_t i = 0; i < n; ++i) {
    AppendBulk(&request, KeyAt(keys, i));
    AppendBulk(&request, "x");
  }
  ASSIGN_OR_RETURN(const std::string reply, Ask(request));
  return reply == "+OK" ? absl::OkStatus() : absl::InternalError(absl::StrCat("redis: ", reply));
}

std::string RedisPeer::ExistsRequest(std::span<const uint8_t> keys) {
  const size_t n = keys.size() / 32;
  std::string request = absl::StrCat("*", n + 1, "\r\n");
  AppendBulk(&request, "EXISTS");
  for (size_t i = 0; i < n; ++i) AppendBulk(&request, KeyAt(keys, i));
  return request;
}

absl::StatusOr<int64_t> RedisPeer::Exists(const std::string& request) {
  ASSIGN_OR_RETURN(const std::string reply, Ask(request));
  int64_t count = 0;
  if (reply.empty() || reply[0] != ':' || !absl::SimpleAtoi(reply.substr(1), &count)) {
    return absl::InternalError(absl::StrCat("redis: ", reply));
  }
  return count;
}

}  // namespace terrace::bench
