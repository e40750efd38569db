// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Random mutations of the engine socket's packets, seeded and reproducible.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <vector>

#include "api/engine/wire.h"
#include "testing/raw_client.h"

namespace terrace::testing {

class MutationRandom {
 public:
  explicit MutationRandom(uint64_t seed) : state_(seed) {}
  uint64_t Next() { return Mix(state_++); }
  uint64_t Below(uint64_t n) { return Next() % n; }

 private:
  uint64_t state_;
};

// What goes wrong with lengths and counts, in the field's own width.
inline uint64_t OddNumber(MutationRandom* random) {
  constexpr uint64_t kOdd[] = {0, 1, 2, 255, 4095, 4096, 4097, 65535, 65536, 1ull << 31, (1ull << 31) - 1,
                               1ull << 32, ~0ull, ~0ull - 1, 1ull << 63, (1ull << 63) - 1};
  return kOdd[random->Below(std::size(kOdd))];
}

inline void Mutate(MutationRandom* random, std::vector<std::byte>* packet) {
  const uint64_t changes = 1 + random->Below(4);
  for (uint64_t i = 0; i < changes; ++i) {
    const size_t n = packet->size();
    switch (random->Below(6)) {
      case 0:  // a bit
        if (n > 0) (*packet)[random->Below(n)] ^= std::byte{1} << random->Below(8);
        break;
      case 1:  // a byte
        if (n > 0) (*packet)[random->Below(n)] = static_cast<std::byte>(random->Next());
        break;
      case 2: {  // a number in one of the aligned places
        const size_t width = 1ull << random->Below(4);
        if (n < width) break;
        const uint64_t value = OddNumber(random);
        std::memcpy(packet->data() + random->Below(n / width) * width, &value, width);
        break;
      }
      case 3:  // cut off
        packet->resize(random->Below(n + 1));
        break;
      case 4:  // bytes behind the end
        for (uint64_t k = random->Below(64); k > 0; --k) packet->push_back(static_cast<std::byte>(random->Next()));
        break;
      default: {  // a run copied over another
        if (n < 2) break;
        const size_t from = random->Below(n), to = random->Below(n);
        const size_t length = std::min(random->Below(64), static_cast<uint64_t>(n - std::max(from, to)));
        std::memmove(packet->data() + to, packet->data() + from, length);
        break;
      }
    }
  }
  // Mostly make the length right again, so that the bodies are looked at.
  if (random->Below(8) != 0 && packet->size() >= sizeof(wire::Header)) {
    wire::Header header;
    std::memcpy(&header, packet->data(), sizeof(header));
    header.body_bytes = packet->size() - sizeof(header);
    if (random->Below(4) != 0) {
      header.magic = wire::kMagic;
      header.version = wire::kVersion;
    }
    std::memcpy(packet->data(), &header, sizeof(header));
  }
}

}  // namespace terrace::testing
