// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Self-checking data: the bytes of a block are a function of its key (and of a variant, where several
// writers offer different bytes for one key), so that any byte served can be checked without a copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "kvstore/base/block_copy.h"
#include "kvstore/block_key.h"

namespace terrace::testing {

// splitmix64: the generator of all seeded tests. A value; equal seeds give equal sequences.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t x = state_ += 0x9E3779B97F4A7C15ull;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return x ^ x >> 31;
  }
  // 0 .. n-1.
  uint64_t Below(uint64_t n) { return Next() % n; }
  bool OneIn(uint64_t n) { return Below(n) == 0; }

 private:
  uint64_t state_;
};

inline kv::BlockKey KeyOf(uint64_t number) {
  Random random(number ^ 0x7465727261636521ull);
  kv::BlockKey key;
  for (size_t i = 0; i < key.bytes.size(); i += 8) {
    const uint64_t word = random.Next();
    std::memcpy(key.bytes.data() + i, &word, 8);
  }
  return key;
}

inline std::vector<kv::BlockKey> KeysOf(uint64_t first, size_t n) {
  std::vector<kv::BlockKey> keys;
  for (size_t i = 0; i < n; ++i) keys.push_back(KeyOf(first + i));
  return keys;
}

// Every eighth byte run depends on its place, so that shifted or swapped pieces show.
inline void FillPayload(const kv::BlockKey& key, uint64_t variant, std::span<std::byte> out) {
  uint64_t seed;
  std::memcpy(&seed, key.bytes.data(), 8);
  seed += variant * 0xD1342543DE82EF95ull;
  for (size_t i = 0; i < out.size(); i += 8) {
    uint64_t word = (seed ^ i) * 0x9E3779B97F4A7C15ull;
    word ^= word >> 29;
    std::memcpy(out.data() + i, &word, out.size() - i < 8 ? out.size() - i : 8);
  }
}

inline std::vector<std::byte> PayloadOf(const kv::BlockKey& key, size_t bytes, uint64_t variant = 0) {
  std::vector<std::byte> payload(bytes);
  FillPayload(key, variant, payload);
  return payload;
}

// Whether bytes are exactly those of the key (and variant).
inline bool IsPayloadOf(const kv::BlockKey& key, std::span<const std::byte> bytes, uint64_t variant = 0) {
  std::byte expected[4096];
  uint64_t seed;
  std::memcpy(&seed, key.bytes.data(), 8);
  seed += variant * 0xD1342543DE82EF95ull;
  for (size_t at = 0; at < bytes.size(); at += sizeof(expected)) {
    const size_t n = bytes.size() - at < sizeof(expected) ? bytes.size() - at : sizeof(expected);
    for (size_t i = 0; i < n; i += 8) {
      uint64_t word = (seed ^ (at + i)) * 0x9E3779B97F4A7C15ull;
      word ^= word >> 29;
      std::memcpy(expected + i, &word, n - i < 8 ? n - i : 8);
    }
    if (std::memcmp(expected, bytes.data() + at, n) != 0) return false;
  }
  return true;
}

// The checksums a client sends with a block.
inline std::vector<uint64_t> ChecksumsOf(const uint8_t digest[32], const kv::BlockKey& key,
                                         std::span<const std::byte> payload) {
  std::vector<uint64_t> checksums(ChecksumCount(payload.size()));
  const Piece source{const_cast<std::byte*>(payload.data()), payload.size()};
  CopyBlock({&source, 1}, {}, IdentitySeed(digest, key.bytes.data(), payload.size()), CopyCheck::kCompute,
            checksums, CopyStores::kCached);
  return checksums;
}

}  // namespace terrace::testing
