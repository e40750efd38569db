// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The one loop that touches a block's bytes: copies a payload between scattered pieces and one
// contiguous place and computes or verifies its checksums on the way. Used by the daemon and by
// libterrace, so it needs nothing but the standard library and xxHash (XXH3, https://xxhash.com).
//
// Checksums: one XXH3-64 per segment of kSegmentBytes, seeded with the block's identity and the
// segment's number. Bytes of another block, another key space, another length or another place in the
// block therefore do not pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace terrace {

inline constexpr size_t kChecksumSegmentBytes = 64 * 1024;

// Each segment's seed is this much from the one before.
inline constexpr uint64_t kSegmentSeedStep = 0x9E3779B97F4A7C15ull;

// The identity seed under which CopyBlock handles the part of a block that begins with that segment.
constexpr uint64_t SeedFromSegment(uint64_t identity_seed, uint64_t first_segment) {
  return identity_seed + first_segment * kSegmentSeedStep;
}

// Number of checksums of a payload.
constexpr size_t ChecksumCount(uint64_t payload_bytes) {
  return static_cast<size_t>((payload_bytes + kChecksumSegmentBytes - 1) / kChecksumSegmentBytes);
}

// Seed for all segments of one block: XXH3-64 over digest, key and length.
uint64_t IdentitySeed(const uint8_t key_space_digest[32], const uint8_t key[32], uint64_t payload_bytes);

// XXH3-64 of plain bytes under a seed (headers, messages).
uint64_t Checksum64(const void* data, size_t bytes, uint64_t seed);

struct Piece {
  std::byte* base;
  size_t bytes;
};

enum class CopyCheck {
  kCompute,  // write the checksums of what was read
  kVerify,   // compare with the given ones
};

enum class CopyStores {
  kCached,     // the target is read again soon (staging)
  kStreaming,  // the target is not read soon: bypass the caches where that is faster
};

// Copies source pieces to target pieces (equal total length) and handles one checksum per segment of
// the total. Returns true, or false when a checksum differed (then the target holds undefined bytes;
// copying may have stopped early). target may be empty: then nothing is copied, only read.
// REQUIRES: checksums.size() == ChecksumCount(total). Any alignment. Any thread; no lock, no allocation.
bool CopyBlock(std::span<const Piece> source, std::span<const Piece> target, uint64_t identity_seed,
               CopyCheck check, std::span<uint64_t> checksums, CopyStores stores);

}  // namespace terrace
