// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// softnccl: the socket between the two ranks.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>

#include "gpu/softnccl/softnccl.h"

namespace softnccl {
namespace {

void Nap() { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }  // poll

socklen_t Address(const std::string& name, sockaddr_un* address) {
  *address = {};
  address->sun_family = AF_UNIX;  // abstract: begins with a zero, leaves no file
  std::memcpy(address->sun_path + 1, name.data(), name.size());
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
}

int Listen(const Comm& comm, const sockaddr* address, socklen_t bytes) {
  const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (bind(listener, address, bytes) != 0 || listen(listener, 1) != 0) {
    close(listener);
    return -1;
  }
  int peer = -1;
  while (!comm.aborted && (peer = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)) < 0) Nap();
  close(listener);
  return peer;
}

int Call(const Comm& comm, const sockaddr* address, socklen_t bytes) {
  const int peer = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  while (!comm.aborted && connect(peer, address, bytes) != 0) Nap();
  fcntl(peer, F_SETFL, O_NONBLOCK);
  return peer;
}

// One direction of a group: each message is its length, then its bytes.
class Direction {
 public:
  Direction(const std::vector<Operation>& operations, bool receive) : receive_(receive) {
    for (const Operation& operation : operations) {
      if (operation.receive != receive || operation.bytes == 0) continue;
      auto* const at = static_cast<char*>(
          softcuda_translate(reinterpret_cast<unsigned long long>(operation.data), operation.bytes));
      is_valid_ = is_valid_ && at != nullptr;
      messages_.push_back({operation.bytes, at});
    }
  }
  bool is_valid() const { return is_valid_; }
  bool is_done() const { return next_ == messages_.size(); }
  bool is_halfway() const { return next_ > messages_.size() / 2 || (next_ == messages_.size() / 2 && at_ > 8); }

  // Moves what can be moved. False: the peer is gone, or does not send what is expected.
  bool Step(Comm& comm) {
    while (!is_done()) {
      Message& message = messages_[next_];
      char* const part = at_ < 8 ? reinterpret_cast<char*>(receive_ ? &told_ : &message.bytes) + at_
                                 : message.data + (at_ - 8);
      const size_t left = at_ < 8 ? 8 - at_ : message.bytes + 8 - at_;
      const ssize_t moved = receive_ ? recv(comm.socket, part, left, 0) : send(comm.socket, part, left, MSG_NOSIGNAL);
      if (moved == 0 || (moved < 0 && errno != EAGAIN)) return false;
      if (moved < 0) return true;
      at_ += static_cast<size_t>(moved);
      if (receive_ && at_ == 8 && told_ != message.bytes) return false;
      if (at_ < message.bytes + 8) continue;
      long number = 0;
      if (receive_ && ++comm.received >= 0 && HasFault("flips", &number) && comm.received == number) {
        message.data[message.bytes / 2] = static_cast<char>(message.data[message.bytes / 2] ^ 4);
      }
      at_ = 0;
      ++next_;
    }
    return true;
  }

 private:
  struct Message {
    uint64_t bytes;
    char* data;
  };
  const bool receive_;
  bool is_valid_ = true;
  std::vector<Message> messages_;
  uint64_t told_ = 0;
  size_t next_ = 0, at_ = 0;
};

void WaitForAbort(const Comm& comm) {
  while (!comm.aborted) Nap();
}

void Fail(Comm& comm, ncclResult_t error) {
  if (!HasFault("silent")) comm.async = error;
  WaitForAbort(comm);
}

}  // namespace

void Connect(const std::shared_ptr<Comm>& comm) {
  if (HasFault("init_hangs")) {
    HangWhile("init_hangs", &comm->aborted);
    return;
  }
  if (HasFault("init_fails")) {
    comm->async = ncclSystemError;
    return;
  }
  sockaddr_un address;
  const socklen_t bytes = Address(comm->address, &address);
  const auto* const generic = reinterpret_cast<const sockaddr*>(&address);
  comm->socket = comm->rank == 0 ? Listen(*comm, generic, bytes) : Call(*comm, generic, bytes);
  comm->async = comm->socket < 0 ? ncclSystemError : ncclSuccess;
}

void Transfer(Comm& comm, const std::vector<Operation>& operations) {
  long number = 0;
  const long group = ++comm.groups;
  if (HasFault("hangs_after", &number) && group > number) return WaitForAbort(comm);
  const bool dies = HasFault("dies_after", &number) && group > number;
  Direction out(operations, false), in(operations, true);
  if (!out.is_valid() || !in.is_valid()) return Fail(comm, ncclUnhandledCudaError);
  while (!comm.aborted && (!out.is_done() || !in.is_done())) {
    if (!out.Step(comm) || !in.Step(comm)) return Fail(comm, ncclRemoteError);
    if (dies && out.is_halfway() && in.is_halfway()) kill(getpid(), SIGKILL);
    if (out.is_done() && in.is_done()) break;
    pollfd ready{comm.socket, static_cast<short>((in.is_done() ? 0 : POLLIN) | (out.is_done() ? 0 : POLLOUT)), 0};
    poll(&ready, 1, 5);
  }
}

Comm::~Comm() {
  if (socket >= 0) close(socket);
}

}  // namespace softnccl
