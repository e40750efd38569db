// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What every reader of the engine socket's packets needs: fixed structs and keys out of a body that may
// have any length and any bytes.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "api/engine/wire.h"
#include "kvstore/block_key.h"

namespace terrace::api {

inline absl::Status Malformed(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("malformed message: ", what, "; see docs/engine_protocol.md"));
}

// A fixed struct at the start of a body. False when the body is too short.
template <typename T>
bool Take(std::span<const std::byte>* body, T* out) {
  if (body->size() < sizeof(T)) return false;
  std::memcpy(out, body->data(), sizeof(T));
  *body = body->subspan(sizeof(T));
  return true;
}

// The keys that make up the rest of a body; they stay where they are.
inline absl::Status TakeKeys(std::span<const std::byte> body, absl::string_view message, uint32_t n_keys,
                             std::span<const kv::BlockKey>* keys) {
  if (n_keys == 0 || n_keys > wire::kMaxKeysPerMessage || body.size() != n_keys * wire::kKeyBytes) {
    return Malformed(absl::StrCat(message, " of ", n_keys, " keys (1 to ", wire::kMaxKeysPerMessage, ") in ",
                                  body.size(), " bytes"));
  }
  *keys = {reinterpret_cast<const kv::BlockKey*>(body.data()), n_keys};
  return absl::OkStatus();
}

// A zero-padded text.
template <size_t n>
std::string Text(const char (&field)[n]) {
  return std::string(field, strnlen(field, n));
}

template <typename T>
std::span<const std::byte> AsBytes(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

}  // namespace terrace::api
