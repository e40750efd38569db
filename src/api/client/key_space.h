// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// KeySpace: a key space as the caller described it, and what the present daemon calls it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "api/client/connection.h"
#include "api/client/deadline.h"
#include "api/client/result.h"

namespace terrace::client {

// Owner: shared by the caller's handle, the client's list (which opens it again after a restart) and
// operations under way. Threads: any.
class KeySpace {
 public:
  // What one daemon calls it. A plain value.
  struct Opened {
    uint64_t epoch = 0;  // 0: not opened yet
    uint32_t id = 0;
    std::array<uint8_t, 32> digest{};
  };

  // InvalidArgument names the field.
  static Result Create(const terrace_keyspace_desc& desc, std::shared_ptr<KeySpace>* out);

  uint64_t block_bytes() const { return block_bytes_; }
  Opened opened() const;
  // Opens it at the daemon behind `connection`.
  Result Open(Connection* connection, Deadline deadline);

 private:
  KeySpace() = default;
  uint64_t block_bytes_ = 0;       // constant after Create
  uint32_t tokens_per_block_ = 0;  // constant after Create
  uint32_t block_class_ = 0;       // constant after Create
  std::string identity_;           // wire form; constant after Create
  mutable std::mutex mu_;
  Opened opened_;  // guarded by mu_
};

}  // namespace terrace::client
