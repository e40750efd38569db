// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "kvstore/block_key.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace terrace::kv {

absl::StatusOr<BlockKey> BlockKey::Parse(absl::string_view hex) {
  bool good = hex.size() == 64;
  for (const char c : hex) good = good && absl::ascii_isxdigit(static_cast<unsigned char>(c));
  if (!good) {
    return absl::InvalidArgumentError(
        absl::StrCat("a block key is 64 hexadecimal digits; got ", hex.size(), " characters"));
  }
  return FromBytes(absl::HexStringToBytes(hex).data());
}

std::string BlockKey::ToHex() const {
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

std::string BlockKey::ToShortHex() const { return ToHex().substr(0, 8); }

}  // namespace terrace::kv
