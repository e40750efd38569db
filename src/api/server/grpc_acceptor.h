// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// GrpcAcceptor: accepts the connections of the gRPC Unix socket and hands them to gRPC. gRPC could
// listen by itself, but then nobody would know which user is at the other end (it has no
// SO_PEERCRED over plain sockets), it would remove whatever socket is at the path, and connections
// would have no limit.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "api/door/socket_path.h"
#include "kvstore/base/metrics.h"
#include "kvstore/base/mutex.h"

namespace terrace::api {

// Owner: GrpcServer. Threads: one of its own that accepts; UidOf from any.
// Limits: connections in all and per user id; what is beyond is closed at once.
// Failure: out of descriptors: it waits and tries again; connections stand in the socket's backlog.
class GrpcAcceptor {
 public:
  struct Options {
    size_t connections_max = 1024;
    size_t connections_per_uid_max = 256;
  };
  // adopt gets the accepted descriptor and owns it; called on the acceptor's thread. rejected
  // counts connections beyond a limit and must outlive the acceptor.
  static absl::StatusOr<std::unique_ptr<GrpcAcceptor>> Start(UnixListener listener,
                                                             const Options& options,
                                                             std::function<void(int fd)> adopt,
                                                             Counter* rejected);
  ~GrpcAcceptor();  // stops accepting and removes the socket; adopted connections go on
  GrpcAcceptor(const GrpcAcceptor&) = delete;

  // The user at the other end of a call's connection, from grpc::ServerContext::peer() ("fd:12"),
  // as the kernel noted it at connect. Nothing when the connection is gone or came by another way.
  std::optional<uint32_t> UidOf(const std::string& peer) const;

 private:
  struct Peer {
    uint32_t uid = 0;
    uint64_t inode = 0;  // of the connection: tells whether the descriptor is still the same one
  };
  GrpcAcceptor(UnixListener listener, const Options& options, std::function<void(int)> adopt,
               Counter* rejected);
  void Run();
  void AcceptOne();
  // Notes the connection; false when a limit is reached.
  bool Admit(int fd, const Peer& peer);

  const Options options_;
  const std::function<void(int)> adopt_;
  Counter* const rejected_;
  UnixListener listener_;
  int stop_fd_ = -1;  // an eventfd: readable when the thread shall end
  mutable Mutex mu_;
  absl::flat_hash_map<int, Peer> peers_ ABSL_GUARDED_BY(mu_);  // by descriptor; some may be gone
  std::thread thread_;
};

}  // namespace terrace::api
