// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// SharedSegment: a piece of shared memory that clients map read-only: one file in memory for payloads, one
// for block headers. Two kinds: anonymous and sealed (gone with the process), or in a directory (found
// again by the next process, with a table of how it was cut).
// SharedMemory: one such file; also used for staging memory, which its client may write.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tiering/shared_segment_table.h"

namespace terrace::tiering {

// A file in memory, mapped read-write here. Its size is fixed; its pages are zero at first.
// Owner: whoever made it; the memory lives until the last mapping anywhere is gone and, for a file in a
// directory, its name too. Threads: any.
// Failure: touching a page of a file in a directory that is not reserved, with the file system full, is a
// SIGBUS: Reserve comes first. Anonymous memory needs none.
class SharedMemory {
 public:
  enum class Clients { kMayOnlyRead, kMayWrite };
  // Anonymous. Nobody can shrink, grow or (kMayOnlyRead) write it through a descriptor.
  // huge: on 2 MiB pages or not at all (Unavailable when there are not enough free ones).
  static absl::StatusOr<std::unique_ptr<SharedMemory>> Create(const char* name, uint64_t bytes,
                                                              Clients clients, bool huge);
  // A new file of this directory; clients may only read. Not reserved yet. AlreadyExists.
  static absl::StatusOr<std::unique_ptr<SharedMemory>> CreateFile(int dir_fd, const std::string& name,
                                                                  uint64_t bytes);
  // One that is there. DataLoss: of another size, another user, or no plain file.
  static absl::StatusOr<std::unique_ptr<SharedMemory>> OpenFile(int dir_fd, const std::string& name,
                                                                uint64_t bytes);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;

  // What a client may have: sealed, or opened for reading.
  int fd() const { return client_fd_; }
  std::byte* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  // Asks for huge pages where the machine (anonymous) or the mount (huge=advise) allows them. Not for memory
  // that is used here and there: a touched byte then costs 2 MiB. Before it is used.
  void PreferHugePages();
  // Makes the kernel give [offset, offset + bytes) its pages now. Any thread; takes long.
  void Populate(uint64_t offset, uint64_t bytes);

  // Takes the memory of [offset, offset + bytes) from the file system, so that touching it cannot fail.
  // ResourceExhausted when that is full: then none of it is taken. Nothing to do for anonymous memory.
  // One thread at a time for a range.
  absl::Status Reserve(uint64_t offset, uint64_t bytes);
  // True if every page has its memory: no Reserve is needed.
  bool IsReserved() const;
  // Gives whole pages back; they read as zeros. REQUIRES: a file, nobody needs what is there.
  void Punch(uint64_t offset, uint64_t bytes);
  // Copies bytes out without ever faulting a page in. False when they are not all there.
  bool Read(uint64_t offset, std::byte* target, uint64_t bytes) const;

 private:
  SharedMemory(int fd, int client_fd, std::byte* data, uint64_t bytes, bool is_file)
      : fd_(fd), client_fd_(client_fd), data_(data), bytes_(bytes), is_file_(is_file) {}
  static absl::StatusOr<std::unique_ptr<SharedMemory>> MapFile(int dir_fd, const std::string& name, int fd,
                                                               uint64_t bytes);
  const int fd_, client_fd_;  // the same for anonymous memory
  std::byte* const data_;
  const uint64_t bytes_;
  const bool is_file_;
  bool prefers_huge_ = false;  // set before the memory is shared
};

// Owner: HostTier. Members are constant once it is in use; the table has its own rules.
struct SharedSegment {
  uint32_t id = 0;
  std::unique_ptr<SharedMemory> payload, headers;
  std::unique_ptr<SharedSegmentTable> table;  // null: anonymous
};

}  // namespace terrace::tiering
