// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#define TERRACE_COPY_NAMESPACE copy_portable
#include "kvstore/base/block_copy_loop.h"

namespace terrace {

namespace copy_avx2 {
bool CopyBlock(std::span<const Piece> source, std::span<const Piece> target, uint64_t identity_seed,
               CopyCheck check, std::span<uint64_t> checksums, CopyStores stores);
}  // namespace copy_avx2

uint64_t IdentitySeed(const uint8_t key_space_digest[32], const uint8_t key[32], uint64_t payload_bytes) {
  uint8_t identity[72];
  std::memcpy(identity, key_space_digest, 32);
  std::memcpy(identity + 32, key, 32);
  std::memcpy(identity + 64, &payload_bytes, 8);
  return XXH3_64bits(identity, sizeof(identity));
}

uint64_t Checksum64(const void* data, size_t bytes, uint64_t seed) {
  return XXH3_64bits_withSeed(data, bytes, seed);
}

bool CopyBlock(std::span<const Piece> source, std::span<const Piece> target, uint64_t identity_seed,
               CopyCheck check, std::span<uint64_t> checksums, CopyStores stores) {
#if defined(__x86_64__)
  static const bool kHasAvx2 = __builtin_cpu_supports("avx2");
  if (kHasAvx2) return copy_avx2::CopyBlock(source, target, identity_seed, check, checksums, stores);
#endif
  return copy_portable::CopyBlock(source, target, identity_seed, check, checksums, stores);
}

}  // namespace terrace
