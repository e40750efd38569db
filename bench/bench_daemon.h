// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// BenchDaemon: the terraced under measurement, with its own directory, sockets and budget.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "options.h"
#include "process.h"

namespace terrace::bench {

// Owner: main or a case. Its end stops the daemon and removes its directory. With Options::socket it is a
// daemon that somebody else runs, and nothing is started or stopped. Its memory ends with it unless a
// setting says otherwise.
class BenchDaemon {
 public:
  // settings: "key=value", over the usual ones. Answers when it returns.
  static absl::StatusOr<std::unique_ptr<BenchDaemon>> Start(const Options& options,
                                                            std::vector<std::string> settings = {});
  void Kill();            // SIGKILL, and waits until it is gone
  absl::Status Launch();  // starts it again; does not wait until it answers

  // One number of what `terracectl status -o json` says: the first with this key in or after the section.
  absl::StatusOr<double> StatusNumber(const std::string& section, const std::string& key) const;

  const std::string& socket() const { return socket_; }
  pid_t pid() const { return process_.has_value() ? process_->pid() : -1; }  // -1: not ours

 private:
  BenchDaemon() = default;
  TemporaryDirectory directory_;
  std::optional<ChildProcess> process_;
  std::vector<std::string> arguments_;
  std::string socket_;
};

}  // namespace terrace::bench
