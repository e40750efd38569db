// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// RedisPeer: a redis-server of our own on a temporary Unix socket, and the smallest client that can ask
// it for the existence of many keys. Requests are built beforehand: only the round trip is timed.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "process.h"

namespace terrace::bench {

// Owner: a case. Threads: one. Failure: NotFound when there is no such program.
class RedisPeer {
 public:
  static absl::StatusOr<std::unique_ptr<RedisPeer>> Start(const std::string& program);
  ~RedisPeer();

  pid_t pid() const { return process_.pid(); }
  // Keys of 32 bytes, each with a short value.
  absl::Status SetAll(std::span<const uint8_t> keys);
  // The text of EXISTS for these keys.
  static std::string ExistsRequest(std::span<const uint8_t> keys);
  // Sends it and returns how many exist.
  absl::StatusOr<int64_t> Exists(const std::string& request);

 private:
  RedisPeer(std::unique_ptr<TemporaryDirectory> directory, ChildProcess process)
      : directory_(std::move(directory)), process_(std::move(process)) {}
  absl::StatusOr<std::string> Ask(const std::string& request);  // a reply of one line, without its end

  const std::unique_ptr<TemporaryDirectory> directory_;
  ChildProcess process_;
  int fd_ = -1;
};

}  // namespace terrace::bench
