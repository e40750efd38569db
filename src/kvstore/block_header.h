// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// BlockHeader: what stands in shared memory beside every block and says what the block is. Written by
// the daemon, read by clients through a read-only mapping; the layout is held by a golden test and
// described in docs/block_format.md. Needs the standard library only: libterrace reads it too.
//
// How a reader that may be overtaken stays right (a sequence lock): the daemon sets generation to 0
// before it touches the payload or the header of a frame that was in use, and sets the new generation
// as the last step of a fill. A reader compares the generation with that of its ref before and after
// it has read the bytes; if both are equal, nothing was changed in between.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "kvstore/base/block_copy.h"

namespace terrace::kv {

inline constexpr uint32_t kBlockHeaderMagic = 0x4b425254;  // "TRBK"
inline constexpr uint16_t kBlockHeaderVersion = 1;
inline constexpr uint64_t kHeaderUnit = 64;  // headers start at multiples of this

struct BlockHeader {
  uint32_t magic;
  uint16_t version;
  uint16_t reserved0;
  uint64_t generation;  // 0: frame holds nothing. Use LoadGeneration / StoreGeneration
  uint64_t payload_bytes;
  uint32_t segment_bytes;  // = kChecksumSegmentBytes
  uint32_t n_checksums;
  uint8_t key_space_digest[32];
  uint8_t key[32];
  uint64_t header_checksum;  // Checksum64 over all other fields (in this order) and the checksums
  uint8_t parent_tag[24];  // first bytes of the parent's key, zeros: none. A hint for the order of eviction
  // n_checksums * u64 follow: one XXH3-64 a segment, seeded by IdentitySeed and segment number.

  const uint64_t* checksums() const { return reinterpret_cast<const uint64_t*>(this + 1); }
  uint64_t* checksums() { return reinterpret_cast<uint64_t*>(this + 1); }
};
static_assert(sizeof(BlockHeader) == 128);

// Bytes a header with its checksums takes, rounded up to kHeaderUnit.
constexpr uint64_t HeaderBytes(uint64_t payload_bytes) {
  const uint64_t bytes = sizeof(BlockHeader) + 8 * ChecksumCount(payload_bytes);
  return (bytes + kHeaderUnit - 1) / kHeaderUnit * kHeaderUnit;
}

inline uint64_t LoadGeneration(const BlockHeader* header) {
  return __atomic_load_n(&header->generation, __ATOMIC_ACQUIRE);
}
inline void StoreGeneration(BlockHeader* header, uint64_t generation) {
  __atomic_store_n(&header->generation, generation, __ATOMIC_RELEASE);
}

// Over every field but header_checksum, with the given generation (the stored one may be 0 during a
// fill), and over the checksums that follow.
uint64_t ComputeHeaderChecksum(const BlockHeader& header, uint64_t generation, const uint64_t* checksums);

enum class HeaderVerdict { kOk, kStale, kCorrupt };

// Is this the header of that block in that generation? kStale: the frame holds another generation.
// Reads n_checksums only after checking it against payload_bytes: safe on a scribbled header.
HeaderVerdict CheckHeader(const BlockHeader* header, const uint8_t key_space_digest[32], const uint8_t key[32],
                          uint64_t generation, uint64_t payload_bytes);

// Is this a whole header, of whatever block? For one who finds it without knowing what should be there.
// bytes: readable from it on. False also for one of generation 0.
bool IsWholeHeader(const BlockHeader* header, uint64_t bytes);

}  // namespace terrace::kv
