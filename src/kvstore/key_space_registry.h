// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// KeySpaceRegistry: a file that says what the digests in block headers mean, so that a later process can
// serve the blocks. Records are only appended, each with a checksum, before the key space's first block
// can be seen.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvstore/key_space.h"

namespace terrace::kv {

// Owner: KeySpaceTable. Threads: one at a time (the table has a mutex for it).
// Limits: max_records; a record has at most 16 KiB. Failure: a record that cannot be written is an error
// of Append alone; those before it stay.
class KeySpaceRegistry {
 public:
  struct Record {
    std::string tenant;
    std::array<uint8_t, 32> digest{};
    KeySpaceIdentity identity;
  };
  // Makes the file, or reads what it holds. Left out: a damaged record, and all from a torn one on.
  static absl::StatusOr<std::unique_ptr<KeySpaceRegistry>> Open(const std::string& path, uint32_t max_records);
  ~KeySpaceRegistry();
  KeySpaceRegistry(const KeySpaceRegistry&) = delete;

  // What was read; for once.
  std::vector<Record> TakeRecords() { return std::exchange(records_, {}); }
  // ResourceExhausted: max_records, or the file system is full.
  absl::Status Append(absl::string_view tenant, const KeySpaceIdentity& identity,
                      const std::array<uint8_t, 32>& digest);
  // Replaces all that is there.
  absl::Status Rewrite(const std::vector<Record>& records);

 private:
  KeySpaceRegistry(std::string path, uint32_t max_records, int fd)
      : path_(std::move(path)), max_records_(max_records), fd_(fd) {}
  absl::Status Load();

  const std::string path_;
  const uint32_t max_records_;
  int fd_;
  uint64_t end_ = 0;      // of the last whole record
  uint32_t count_ = 0;
  std::vector<Record> records_;
};

}  // namespace terrace::kv
