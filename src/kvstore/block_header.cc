// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "kvstore/block_header.h"

#include <cstring>

namespace terrace::kv {

uint64_t ComputeHeaderChecksum(const BlockHeader& header, uint64_t generation, const uint64_t* checksums) {
  BlockHeader plain = header;
  plain.generation = generation;
  plain.header_checksum = 0;
  const uint64_t fields = Checksum64(&plain, sizeof(plain), kBlockHeaderMagic);
  return Checksum64(checksums, header.n_checksums * sizeof(uint64_t), fields);
}

HeaderVerdict CheckHeader(const BlockHeader* header, const uint8_t key_space_digest[32], const uint8_t key[32],
                          uint64_t generation, uint64_t payload_bytes) {
  if (generation == 0 || LoadGeneration(header) != generation) return HeaderVerdict::kStale;
  BlockHeader copy;
  std::memcpy(&copy, header, sizeof(copy));
  const bool right = copy.magic == kBlockHeaderMagic && copy.version == kBlockHeaderVersion &&
                     copy.payload_bytes == payload_bytes && copy.segment_bytes == kChecksumSegmentBytes &&
                     copy.n_checksums == ChecksumCount(payload_bytes) &&
                     std::memcmp(copy.key_space_digest, key_space_digest, 32) == 0 &&
                     std::memcmp(copy.key, key, 32) == 0 &&
                     copy.header_checksum == ComputeHeaderChecksum(copy, generation, header->checksums());
  // Overtaken while we read: not corrupt, only too late.
  std::atomic_thread_fence(std::memory_order_acquire);
  if (LoadGeneration(header) != generation) return HeaderVerdict::kStale;
  return right ? HeaderVerdict::kOk : HeaderVerdict::kCorrupt;
}

bool IsWholeHeader(const BlockHeader* header, uint64_t bytes) {
  if (bytes < sizeof(BlockHeader)) return false;
  BlockHeader copy;
  std::memcpy(&copy, header, sizeof(copy));
  // The counts before anything is read by them. A length near 2^64 must not wrap round.
  return copy.magic == kBlockHeaderMagic && copy.version == kBlockHeaderVersion && copy.generation != 0 &&
         copy.payload_bytes > 0 && copy.payload_bytes <= bytes / sizeof(uint64_t) * kChecksumSegmentBytes &&
         copy.segment_bytes == kChecksumSegmentBytes && copy.n_checksums == ChecksumCount(copy.payload_bytes) &&
         HeaderBytes(copy.payload_bytes) <= bytes &&
         copy.header_checksum == ComputeHeaderChecksum(copy, copy.generation, header->checksums());
}

}  // namespace terrace::kv
