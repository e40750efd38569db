// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// BenchDaemon: the terraced under measurement, with its own directory, sockets and budget.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "options.h"
#include "process.h"

namespace terrace::bench {

// Owner: main. Its end stops the daemon and removes its directory. With Options::socket it is a daemon
// that somebody else runs, and nothing is started or stopped.
class BenchDaemon {
 public:
  static absl::StatusOr<std::unique_ptr<BenchDaemon>> Start(const Options& options);

  const std::string& socket() const { return socket_; }
  pid_t pid() const { return process_.has_value() ? process_->pid() : -1; }  // -1: not ours

 private:
  BenchDaemon() = default;
  TemporaryDirectory directory_;
  std::optional<ChildProcess> process_;
  std::string socket_;
};

}  // namespace terrace::bench
