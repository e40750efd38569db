// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// HostMemoryDir: a directory in memory (tmpfs) in which the host tier's segments outlive the daemon, so
// that the next one takes their blocks over. Knows files and who may have them; which blocks are good is
// HostTier's business. Layout and reasons: docs/decisions/0009-host-memory-that-outlives-the-process.md.
//
//   terrace-<uid>-<hash of the run directory>/    mode 0700
//     lock        held while a daemon runs
//     owner       whose it is (run directory), and how often it was opened
//     key_spaces  what the digests in block headers mean
//     <segment>.{payload,headers,table}
//
// On a hugetlbfs, whose files cannot be written and come in huge pages only, the directory holds payloads as
// far as there are huge pages; a directory of the same name on a tmpfs holds all the rest.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tiering/shared_segment.h"

namespace terrace::tiering {

// The exclusive hold of such a directory. Ends with the process, however it ends; the files stay.
// Owner: whoever makes the HostTier; must outlive it. Threads: Remove from any, the rest while starting.
// Limits: the file system's; the host tier stays within its budget. Failure: see the calls.
class HostMemoryDir {
 public:
  // The directory, under the configured one, of the daemon with this run directory.
  static std::string PathFor(const std::string& memory_dir, const std::string& run_dir);

  // Makes and locks it, and removes what daemons of this user left beside it whose run directory is gone.
  // A directory of another version is emptied. AlreadyExists: another process holds it (names its pid).
  // FailedPrecondition: not in memory, not of this user, a link; says what to do.
  // tmpfs: where the rest goes when path is on a hugetlbfs.
  static absl::StatusOr<std::unique_ptr<HostMemoryDir>> Open(const std::string& path, const std::string& run_dir,
                                                             const std::string& tmpfs = "/dev/shm");
  ~HostMemoryDir();
  HostMemoryDir(const HostMemoryDir&) = delete;

  const std::string& path() const { return path_; }
  std::string key_spaces_path() const { return path_ + "/key_spaces"; }
  // Above every generation that was ever written here, and so is what follows it.
  uint64_t first_generation() const { return opened_ << kGenerationBits | 1; }

  // A new segment, its payload's memory not reserved yet. ResourceExhausted: no room for its table.
  absl::StatusOr<std::unique_ptr<SharedSegment>> Make(uint32_t id, uint64_t bytes);
  // All segments that are there and whole. What belongs to no whole segment is removed.
  std::vector<std::unique_ptr<SharedSegment>> FindSegments();
  // The files go; memory stays as long as somebody has it mapped.
  void Remove(uint32_t id);

 private:
  static constexpr int kGenerationBits = 40;  // fills of one process; 2^24 processes
  explicit HostMemoryDir(std::string path) : path_(std::move(path)) {}
  absl::Status ReadOwner(const std::string& run_dir);
  void Clear();
  void RemoveAbandoned();

  const std::string path_;
  // Constant once it is open. -1: none.
  int fd_ = -1, lock_fd_ = -1;
  std::string huge_path_;
  int huge_fd_ = -1;
  uint64_t opened_ = 0;  // how many times, this one included
};

}  // namespace terrace::tiering
