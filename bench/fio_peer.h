// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// FioPeer: fio (https://github.com/axboe/fio), the limit beside the NVMe cases: what the same file system
// gives a program that does nothing but O_DIRECT requests of one size.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "process.h"

namespace terrace::bench {

// What fio is to do. io_uring with registered file and buffers, one job, no page cache.
struct FioJob {
  std::string pattern;       // "write", "randread", "randrw"
  uint64_t block_bytes = 0;
  uint32_t depth = 0;
  uint64_t bytes = 0;        // to be moved; ignored with seconds
  double seconds = 0;        // runs as long, whatever it moves
};

// Owner: a case. Threads: one. Its file lies in the given directory, is made by the first job and goes
// with the peer. Failure: Unimplemented when there is no fio.
class FioPeer {
 public:
  // Lays the file out, every byte written.
  static absl::StatusOr<std::unique_ptr<FioPeer>> Start(const std::string& program, const std::string& directory,
                                                        uint64_t file_bytes);
  ~FioPeer();
  FioPeer(const FioPeer&) = delete;

  // Bytes per second.
  absl::StatusOr<double> Run(const FioJob& job) const;
  // The same beside others; ends by itself after job.seconds, or when stopped.
  absl::StatusOr<ChildProcess> RunBeside(const FioJob& job) const;

 private:
  FioPeer(std::string program, std::string directory, uint64_t file_bytes);
  absl::StatusOr<ChildProcess> Launch(const FioJob& job) const;

  const std::string program_, file_, output_, log_;
  const uint64_t file_bytes_;
};

}  // namespace terrace::bench
