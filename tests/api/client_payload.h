// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Keys and payloads that derive from numbers, and waiting with a deadline: for tests of libterrace.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

namespace terrace::api {

constexpr uint32_t kSecondUs = 1'000'000;
constexpr uint32_t kLongUs = 20 * kSecondUs;  // longer than any test takes on a loaded machine

// True as soon as `condition` holds; false when it does not within 20 s.
inline bool Eventually(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // poll
  }
  return true;
}

inline uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// n keys of a chain, 32 bytes each.
inline std::vector<uint8_t> ChainKeys(uint64_t chain, uint32_t n) {
  std::vector<uint8_t> keys(size_t{n} * 32);
  for (uint32_t i = 0; i < n; ++i) {
    for (uint64_t word = 0; word < 4; ++word) {
      const uint64_t value = Mix(Mix(chain * 1'000'003 + i) + word);
      std::memcpy(&keys[size_t{i} * 32 + word * 8], &value, 8);
    }
  }
  return keys;
}

// The bytes [offset, offset + bytes) of a block's payload; another variant has other bytes
// everywhere.
inline std::vector<std::byte> PayloadOf(const uint8_t* key, uint64_t bytes, uint64_t variant = 0) {
  uint64_t seed;
  std::memcpy(&seed, key, 8);
  std::vector<std::byte> payload((bytes + 7) / 8 * 8);
  for (uint64_t i = 0; i * 8 < payload.size(); ++i) {
    const uint64_t word = Mix(seed + i * 0x9e3779b97f4a7c15 + variant * 0x123456789);
    std::memcpy(&payload[i * 8], &word, 8);
  }
  payload.resize(bytes);
  return payload;
}

}  // namespace terrace::api
