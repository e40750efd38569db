// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Kinds of blocks, as TerracePolicy tells them apart: small numbers for ReuseModel's tables.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

namespace terrace::tiering {

// Used again: by number of uses and by the last rest. New: by turn, by the rest of the prefix it
// continues, whether others continue that prefix, too, and whether it has a continuation itself.
// Hinted: by the time that the client expects. Done: said to be.
struct BlockKind {
  static constexpr uint32_t kUses = 4, kRests = 8, kTurns = 4, kHints = 32;
  static constexpr uint32_t kFirstNew = kUses * kRests;
  static constexpr uint32_t kFirstHinted = kFirstNew + kTurns * kRests * 4;
  static constexpr uint32_t kDone = kFirstHinted + kHints;
  static constexpr uint32_t kCount = kDone + 1;
  static constexpr uint32_t kGroups = kUses + kTurns * 4 + 2;
  static_assert(kCount <= 256);

  // Four times as long is the next number; the first is below a second.
  static uint32_t RestOf(uint32_t ticks) {
    return std::min<uint32_t>((static_cast<uint32_t>(std::bit_width(ticks >> 10)) + 1) / 2, kRests - 1);
  }
  static uint8_t Used(uint32_t uses, uint32_t rest) {
    const uint32_t bucket = std::min<uint32_t>(static_cast<uint32_t>(std::bit_width(uses)), kUses) - 1;
    return static_cast<uint8_t>(bucket * kRests + rest);
  }
  static uint8_t New(uint32_t turn, uint32_t rest, bool is_fork, bool is_continued) {
    const uint32_t bucket = std::min(turn, kTurns - 1);
    return static_cast<uint8_t>(kFirstNew + ((bucket * kRests + rest) * 2 + is_fork) * 2 + is_continued);
  }
  static bool IsNew(uint8_t kind) { return kind >= kFirstNew && kind < kFirstHinted; }
  static bool IsUsed(uint8_t kind) { return kind < kFirstNew; }
  static uint8_t Continued(uint8_t kind) { return static_cast<uint8_t>(IsNew(kind) ? kind | 1 : kind); }
  static uint8_t NotContinued(uint8_t kind) { return static_cast<uint8_t>(IsNew(kind) ? kind & ~1 : kind); }
  static_assert(kFirstNew % 2 == 0);
  static uint8_t Hinted(uint32_t span) { return static_cast<uint8_t>(kFirstHinted + std::min(span, kHints - 1)); }

  static std::vector<uint8_t> Groups() {
    std::vector<uint8_t> groups(kCount);
    for (uint32_t kind = 0; kind < kCount; ++kind) {
      uint32_t group = kind / kRests;
      if (kind >= kFirstNew) group = kUses + (kind - kFirstNew) / (kRests * 4) * 4 + (kind - kFirstNew) % 4;
      if (kind >= kFirstHinted) group = kGroups - 2;
      if (kind == kDone) group = kGroups - 1;
      groups[kind] = static_cast<uint8_t>(group);
    }
    return groups;
  }
};

}  // namespace terrace::tiering
