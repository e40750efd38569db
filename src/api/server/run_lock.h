// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// RunLock: one daemon per run directory. Translates errno; knows nothing of what lies in the directory.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace terrace::api {

// The exclusive hold of a run directory: a flock on <run_dir>/terraced.lock, which holds the owner's
// process id as text. The kernel ends the hold with the process, however it ends; the file stays.
// Owner: Daemon. Threads: one.
class RunLock {
 public:
  // Makes the directory with mode 0750 if it is missing (its parent must exist).
  // AlreadyExists: another process holds it; the message names its pid. FailedPrecondition: the
  // directory or lock file is a symlink, belongs to another user, or others could replace files in it.
  static absl::StatusOr<std::unique_ptr<RunLock>> Acquire(const std::string& run_dir);
  ~RunLock();
  RunLock(const RunLock&) = delete;

 private:
  explicit RunLock(int fd) : fd_(fd) {}
  const int fd_;
};

}  // namespace terrace::api
