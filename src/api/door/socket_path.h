// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Listening Unix sockets with a safe claim on their path. Translates errno; knows no protocol.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace terrace::api {

// A bound, listening, non-blocking Unix socket. Owner: a server. Threads: one. The destructor
// closes it and removes the path if it is still this socket.
class UnixListener {
 public:
  // type: SOCK_STREAM or SOCK_SEQPACKET. What is at `path` already is removed only if it is a
  // socket of our own user that nobody listens on. InvalidArgument: path too long (107 bytes).
  // FailedPrecondition: a file, a symlink, or another user's socket is there; the message says what
  // to do. Unavailable: another process listens there. The mode holds before anyone can connect.
  static absl::StatusOr<UnixListener> Listen(const std::string& path, uint32_t mode, int type);
  UnixListener() = default;
  UnixListener(UnixListener&& other) noexcept;
  UnixListener& operator=(UnixListener&& other) noexcept;
  ~UnixListener();

  int fd() const { return fd_; }
  const std::string& path() const { return path_; }

 private:
  void Reset();

  int fd_ = -1;
  std::string path_;
  uint64_t device_ = 0, inode_ = 0;  // of the path, so that a successor's socket is not removed
};

}  // namespace terrace::api
