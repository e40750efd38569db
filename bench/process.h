// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// ChildProcess: a program that the benchmark starts, talks to through its standard input and output, and
// stops by its id. TemporaryDirectory: where its files go.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace terrace::bench {

// Made in the given directory, else in $TMPDIR or /tmp; removed with all that is in it.
class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(const std::string& where = "");
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Owner: whoever started it; it dies with this process (also when that is killed). Threads: one.
// Failure: a program that cannot be started, ends early or says nothing in time is an error with its
// name; its error output goes to ours, or to log_path.
class ChildProcess {
 public:
  struct Options {
    std::vector<std::string> arguments;  // [0]: the program, searched in PATH
    std::string log_path;                // for error output; empty: ours
    bool pipes = true;                   // else no standard input; output goes where error output goes
  };
  static absl::StatusOr<ChildProcess> Start(const Options& options);
  // This program again, with other arguments.
  static absl::StatusOr<ChildProcess> StartSelf(std::vector<std::string> arguments);
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&&) = delete;
  ~ChildProcess() { Stop(); }

  pid_t pid() const { return pid_; }
  bool running();
  absl::Status Write(const std::string& text);
  void CloseInput();  // the program reads its end of input
  // The next line without its end. Unavailable: the program ended; DeadlineExceeded: it said nothing.
  absl::StatusOr<std::string> ReadLine(double timeout_s);
  // Waits for the program's end. Returns its exit code, or 128 + signal.
  absl::StatusOr<int> Wait(double timeout_s);
  // SIGTERM, after five seconds SIGKILL; waits. Nothing happens if it has ended.
  void Stop();

 private:
  ChildProcess(std::string name, pid_t pid, int in, int out) : name_(std::move(name)), pid_(pid), in_(in), out_(out) {}
  std::string name_;
  pid_t pid_ = -1;
  int in_ = -1, out_ = -1;  // our ends
  int exit_ = -1;
  std::string unread_;
};

// Path of this program; of a program in the same folder.
std::string SelfPath();
std::string BesideSelf(const std::string& name);

}  // namespace terrace::bench
