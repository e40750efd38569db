// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// HttpServer: the read-only pages for monitoring. Changes nothing, takes no input but the path; all that
// acts is on the gRPC Unix socket.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace terrace::api {

// What the pages show. Called on HTTP threads, several at a time.
struct HttpPages {
  struct Health {
    bool ok = false;
    std::string text;  // one line: why
  };
  std::function<std::string()> metrics;  // Prometheus text
  std::function<std::string()> status;   // plain text for a person
  std::function<Health()> live;          // /healthz: the process itself, no dependency
  std::function<Health()> ready;         // /readyz: clients can be served
};

// Owner: Daemon. Threads: one that accepts, kWorkers that answer. Limits: kWorkers requests at a time
// and kQueue waiting, beyond that connections wait in the socket's backlog; one request a connection;
// 2 s to send it. Failure: a bad request is answered 4xx.
class HttpServer {
 public:
  static constexpr int kWorkers = 4;
  static constexpr size_t kQueue = 64;

  // address: "127.0.0.1:9464", "[::1]:9464"; port 0: any free one. Listens when this returns.
  // Unavailable: the port is taken or the address is not this machine's.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const std::string& address, HttpPages pages);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;

  const std::string& address() const;  // with the real port

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace terrace::api
