// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// BlockKey: the 32-byte name of a block inside a key space. A plain value; knows nothing of place.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace terrace::kv {

struct BlockKey {
  std::array<uint8_t, 32> bytes{};

  static BlockKey FromBytes(const void* data) {
    BlockKey key;
    std::memcpy(key.bytes.data(), data, key.bytes.size());
    return key;
  }
  // 64 hex digits, nothing else.
  static absl::StatusOr<BlockKey> Parse(absl::string_view hex);
  std::string ToHex() const;
  std::string ToShortHex() const;  // first 8 digits: for logs

  friend bool operator==(const BlockKey&, const BlockKey&) = default;
  friend auto operator<=>(const BlockKey&, const BlockKey&) = default;
  template <typename H>
  friend H AbslHashValue(H state, const BlockKey& key) {
    return H::combine_contiguous(std::move(state), key.bytes.data(), key.bytes.size());
  }
};
static_assert(sizeof(BlockKey) == 32);

}  // namespace terrace::kv
