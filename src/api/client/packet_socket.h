// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// PacketSocket: one Unix SOCK_SEQPACKET socket, never blocking, with descriptors on the way in. Knows
// packets, not their meaning. WakeFd: gets a thread out of its wait.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <span>
#include <string>

#include "api/client/deadline.h"
#include "api/client/result.h"

namespace terrace::client {

// An eventfd that threads put beside the socket they wait for. Threads: any. Shared by the client and
// its connections, because either may be the last to use it.
class WakeFd {
 public:
  WakeFd();  // fd() < 0: the process has no descriptors left
  ~WakeFd();
  WakeFd(const WakeFd&) = delete;

  int fd() const { return fd_; }
  void Wake() const;
  void Clear() const;
  void Wait(Deadline deadline) const;

 private:
  const int fd_;
};

// What a received packet brought along. Descriptors not taken (set to -1) are closed by the receiver.
struct Descriptors {
  static constexpr int kMax = 4;
  int fds[kMax] = {-1, -1, -1, -1};
  int count = 0;

  Descriptors() = default;
  Descriptors(const Descriptors&) = delete;
  ~Descriptors();
  // Hands one to the caller; -1 if there is no such descriptor.
  int Take(int i);
};

// Nothing here blocks but the calls named Wait and ReceiveWaiting.
// Owner: Connection. Threads: one may send, one may receive, any may wait or shut down, all at once.
class PacketSocket {
 public:
  PacketSocket() = default;
  ~PacketSocket();
  PacketSocket(const PacketSocket&) = delete;

  // Unavailable, with the likely cause, when nobody listens at the path.
  Result Connect(const std::string& path);

  enum class Io { kDone, kNotNow, kBroken };
  static constexpr size_t kMaxSentDescriptors = 250;
  // Sends one packet, with descriptors, or nothing.
  Io Send(std::span<const iovec> parts, std::span<const int> descriptors = {});
  // Receives one packet; *bytes is its length. kBroken: the peer is gone, or the packet did not fit.
  Io Receive(void* buffer, size_t capacity, size_t* bytes, Descriptors* descriptors);

  // The same, but waits for a packet, at most kReceiveWaitNs: saves the system call of a Wait before it.
  static constexpr int64_t kReceiveWaitNs = 20'000'000;
  Io ReceiveWaiting(void* buffer, size_t capacity, size_t* bytes, Descriptors* descriptors);

  // Waits until the deadline, until the socket can do one of `events` (POLLIN, POLLOUT, POLLRDHUP) or is
  // broken, or until the eventfd `wake` (-1: none) is set.
  void Wait(short events, int wake, Deadline deadline);
  // Whoever waits wakes up and finds the socket broken. how: as for shutdown(2); after SHUT_WR the peer's packets
  // and its end can still be received.
  void Shutdown(int how);
  // After SHUT_WR of ours: the peer has closed its end, or shut down both directions of it.
  bool PeerHasClosed() const;
  int PeerPid() const;  // 0: unknown

 private:
  Io ReceiveWith(int flags, void* buffer, size_t capacity, size_t* bytes, Descriptors* descriptors);
  int fd_ = -1;  // constant after Connect
};

}  // namespace terrace::client
