// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The benchmark's view of libterrace: owners for its handles, and statuses instead of numbers. What is
// timed calls terrace.h directly.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "terrace.h"

namespace terrace::bench {

// OK, or an error with libterrace's text.
absl::Status FromTerrace(terrace_status status, const char* what);

// Page-aligned anonymous memory, every page touched. Aborts when there is none.
class Memory {
 public:
  explicit Memory(size_t bytes);
  ~Memory();
  Memory(const Memory&) = delete;
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  const size_t size_;
  std::byte* data_;
};

// Blocks one after another in one plane, registered with the client. Must end before the client does.
class BlockPages {
 public:
  static absl::StatusOr<std::unique_ptr<BlockPages>> Make(terrace_client* client, size_t blocks, size_t block_bytes);
  ~BlockPages();
  BlockPages(const BlockPages&) = delete;

  terrace_pages* handle() const { return handle_; }
  std::byte* data() const { return memory_.data(); }
  std::span<std::byte> block(size_t i) const { return {data() + i * block_bytes_, block_bytes_}; }
  const uint64_t* ids() const { return ids_.data(); }  // 0, 1, 2, ...
  void Fill(std::span<const uint8_t> keys) const;         // the payload of each key in turn
  bool Holds(std::span<const uint8_t> keys) const;

 private:
  BlockPages(size_t blocks, size_t block_bytes);
  Memory memory_;
  const size_t block_bytes_;
  std::vector<uint64_t> ids_;
  terrace_pages* handle_ = nullptr;
};

// A leased chain.
struct Chain {
  std::vector<terrace_ref> refs;
  uint64_t lease = 0;
};

// Owner: a case. Threads: one. Failure: every call says what libterrace said; a call takes 30 s at most.
class CacheClient {
 public:
  static absl::StatusOr<std::unique_ptr<CacheClient>> Connect(const std::string& socket);
  ~CacheClient();
  CacheClient(const CacheClient&) = delete;

  terrace_client* handle() const { return client_; }
  // The key space of this name and block size; lives as long as the client.
  absl::StatusOr<terrace_keyspace*> OpenKeySpace(const std::string& name, size_t block_bytes);

  absl::Status Store(terrace_keyspace* key_space, std::span<const uint8_t> keys, const BlockPages& pages) const;
  // All of them, or an error.
  absl::StatusOr<Chain> Lookup(terrace_keyspace* key_space, std::span<const uint8_t> keys) const;
  absl::Status Load(terrace_keyspace* key_space, const Chain& chain, std::span<const uint8_t> keys,
                    const BlockPages& pages) const;
  absl::Status Release(const Chain& chain) const;

  // Stores the payloads of the keys if they are not there, loads them back and compares every byte.
  absl::Status MakeResident(terrace_keyspace* key_space, std::span<const uint8_t> keys, const BlockPages& pages) const;

 private:
  CacheClient() = default;
  terrace_client* client_ = nullptr;
  std::vector<terrace_keyspace*> key_spaces_;
};

}  // namespace terrace::bench
