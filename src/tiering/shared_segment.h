// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// SharedSegment: a piece of shared memory that clients map read-only: one memfd for payloads, one for
// block headers, both sealed so that nobody can shrink, grow or write them through a descriptor.
// SharedMemory: one such memfd; also used for staging memory, which its client may write.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"

namespace terrace::tiering {

// An anonymous file in memory, mapped read-write here. Size is sealed; its pages are zero at first.
// Owner: whoever made it; the memory lives until the last mapping anywhere is gone.
class SharedMemory {
 public:
  enum class Clients { kMayOnlyRead, kMayWrite };
  // huge: on 2 MiB pages or not at all (Unavailable when there are not enough free ones).
  static absl::StatusOr<std::unique_ptr<SharedMemory>> Create(const char* name, uint64_t bytes,
                                                              Clients clients, bool huge);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;

  int fd() const { return fd_; }
  std::byte* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  // Asks for huge pages where the machine allows them for shared memory. Not for memory that is used here
  // and there: a touched byte then costs 2 MiB.
  void PreferHugePages();
  // Makes the kernel give [offset, offset + bytes) its pages now. Any thread; takes long.
  void Populate(uint64_t offset, uint64_t bytes);

 private:
  SharedMemory(int fd, std::byte* data, uint64_t bytes) : fd_(fd), data_(data), bytes_(bytes) {}
  const int fd_;
  std::byte* const data_;
  const uint64_t bytes_;
};

struct SharedSegment {
  uint32_t id = 0;
  std::unique_ptr<SharedMemory> payload, headers;
};

}  // namespace terrace::tiering
