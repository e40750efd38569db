// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/packet_socket.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "api/client/fork_guard.h"

namespace terrace::client {
namespace {

// Room for two of the longest packets; the kernel may give less (net.core.wmem_max).
constexpr int kSendBufferBytes = 512 * 1024;

timespec ToTimespec(int64_t ns) { return {ns / 1'000'000'000, ns % 1'000'000'000}; }

const char* LikelyCause(int error) {
  switch (error) {
    case ENOENT:
      return "is terraced running, and is this its engine.socket?";
    case ECONNREFUSED:
      return "a socket without a daemon behind it: terraced has ended";
    case EACCES:
    case EPERM:
      return "this user may not connect: join the group of the socket or change engine.socket_mode";
    case EAGAIN:
      return "the daemon does not accept connections at the moment";
    case EPROTOTYPE:
      return "this is another kind of socket: give the engine socket, not the gRPC socket";
    default:
      return "see terracectl doctor";
  }
}

}  // namespace

WakeFd::WakeFd() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
WakeFd::~WakeFd() {
  if (fd_ >= 0) close(fd_);
}
void WakeFd::Wake() const { (void)eventfd_write(fd_, 1); }
void WakeFd::Clear() const {
  eventfd_t value;
  (void)eventfd_read(fd_, &value);
}

void WakeFd::Wait(Deadline deadline) const {
  const timespec limit = ToTimespec(deadline.LeftNs());
  pollfd wake{fd_, POLLIN, 0};
  (void)ppoll(&wake, 1, &limit, nullptr);
}

Descriptors::~Descriptors() {
  for (int i = 0; i < count; ++i) {
    if (fds[i] >= 0) close(fds[i]);
  }
}
int Descriptors::Take(int i) { return i < count ? std::exchange(fds[i], -1) : -1; }

PacketSocket::~PacketSocket() {
  if (fd_ >= 0) CloseGuarded(fd_);
}

Result PacketSocket::Connect(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return Fail(TERRACE_INVALID_ARGUMENT, "socket path of %zu bytes: at most %zu are possible",
                path.size(), sizeof(address.sun_path) - 1);
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  fd_ = OpenGuardedSocket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK);
  if (fd_ < 0) {
    return Fail(TERRACE_UNAVAILABLE, "no socket: %s; raise the descriptor limit (ulimit -n)",
                strerrordesc_np(errno));
  }
  (void)setsockopt(fd_, SOL_SOCKET, SO_SNDBUF, &kSendBufferBytes, sizeof(kSendBufferBytes));
  if (connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    const int error = errno;
    return Fail(TERRACE_UNAVAILABLE, "cannot connect to %s: %s; %s", path.c_str(),
                strerrordesc_np(error), LikelyCause(error));
  }
  // From here on only ReceiveWaiting may block, and not for long.
  const timeval wait{0, kReceiveWaitNs / 1000};
  if (setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)) != 0 ||
      fcntl(fd_, F_SETFL, 0) != 0) {
    return Fail(TERRACE_INTERNAL, "cannot set up a socket: %s", strerrordesc_np(errno));
  }
  return {};
}

PacketSocket::Io PacketSocket::Send(std::span<const iovec> parts, std::span<const int> descriptors) {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(parts.data());
  message.msg_iovlen = parts.size();
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxSentDescriptors * sizeof(int))];
  if (!descriptors.empty()) {
    if (descriptors.size() > kMaxSentDescriptors) return Io::kBroken;
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
    std::memset(control, 0, message.msg_controllen);
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(c), descriptors.data(), descriptors.size_bytes());
  }
  for (;;) {
    if (sendmsg(fd_, &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) return Io::kDone;
    if (errno == EINTR) continue;
    return errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM ? Io::kNotNow : Io::kBroken;
  }
}

PacketSocket::Io PacketSocket::Receive(void* buffer, size_t capacity, size_t* bytes,
                                       Descriptors* descriptors) {
  return ReceiveWith(MSG_DONTWAIT, buffer, capacity, bytes, descriptors);
}

PacketSocket::Io PacketSocket::ReceiveWaiting(void* buffer, size_t capacity, size_t* bytes,
                                              Descriptors* descriptors) {
  return ReceiveWith(0, buffer, capacity, bytes, descriptors);
}

PacketSocket::Io PacketSocket::ReceiveWith(int flags, void* buffer, size_t capacity, size_t* bytes,
                                           Descriptors* descriptors) {
  alignas(cmsghdr) char control[CMSG_SPACE(Descriptors::kMax * sizeof(int))];
  iovec part{buffer, capacity};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t received = recvmsg(fd_, &message, flags | MSG_CMSG_CLOEXEC);
  // A signal in the wait: the caller looks at its deadline and comes again.
  if (received < 0) return errno == EAGAIN || errno == EINTR ? Io::kNotNow : Io::kBroken;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count && descriptors->count < Descriptors::kMax; ++i) {
      std::memcpy(&descriptors->fds[descriptors->count++], CMSG_DATA(c) + i * sizeof(int),
                  sizeof(int));
    }
  }
  if (received == 0 || (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) return Io::kBroken;
  *bytes = static_cast<size_t>(received);
  return Io::kDone;
}

void PacketSocket::Wait(short events, int wake, Deadline deadline) {
  pollfd fds[2] = {{fd_, events, 0}, {wake, POLLIN, 0}};
  const timespec limit = ToTimespec(deadline.LeftNs());
  // EINTR and time-outs alike: the caller looks again and decides.
  (void)ppoll(fds, wake >= 0 ? 2 : 1, &limit, nullptr);
}

void PacketSocket::Shutdown(int how) { (void)shutdown(fd_, how); }

bool PacketSocket::PeerHasClosed() const {
  pollfd us{fd_, POLLIN, 0};
  return poll(&us, 1, 0) > 0 && (us.revents & (POLLHUP | POLLERR | POLLNVAL)) != 0;
}

int PacketSocket::PeerPid() const {
  ucred peer{};
  socklen_t size = sizeof(peer);
  return getsockopt(fd_, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 ? peer.pid : 0;
}

}  // namespace terrace::client
