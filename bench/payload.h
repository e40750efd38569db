// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Keys from a seed, payloads from keys: any served byte can be checked without a stored copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace terrace::bench {

inline uint64_t Mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// n keys of 32 bytes, one after another.
inline std::vector<uint8_t> MakeKeys(uint64_t seed, size_t n) {
  std::vector<uint8_t> keys(n * 32);
  for (size_t word = 0; word < n * 4; ++word) {
    const uint64_t value = Mix(Mix(seed) + word);
    std::memcpy(keys.data() + word * 8, &value, 8);
  }
  return keys;
}

inline uint64_t PayloadWord(const uint8_t* key, uint64_t index) {
  uint64_t seed;
  std::memcpy(&seed, key, 8);
  return (seed ^ index) * 0x9e3779b97f4a7c15ull;
}

// REQUIRES: whole words.
inline void FillPayload(const uint8_t* key, std::span<std::byte> payload) {
  for (size_t i = 0; i < payload.size() / 8; ++i) {
    const uint64_t word = PayloadWord(key, i);
    std::memcpy(payload.data() + i * 8, &word, 8);
  }
}

inline bool IsPayload(const uint8_t* key, std::span<const std::byte> payload) {
  for (size_t i = 0; i < payload.size() / 8; ++i) {
    uint64_t word;
    std::memcpy(&word, payload.data() + i * 8, 8);
    if (word != PayloadWord(key, i)) return false;
  }
  return true;
}

}  // namespace terrace::bench
