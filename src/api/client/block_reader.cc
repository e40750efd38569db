// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/block_reader.h"

#include <atomic>
#include <cstring>

#include "kvstore/block_header.h"

namespace terrace::client {
namespace {

// Smaller targets are likely read again soon by the engine's core; larger ones would only push other
// things out of its cache (L2 of current servers: 1 to 2 MiB).
constexpr uint64_t kStreamFromBytes = 256 * 1024;

}  // namespace

Reason BlockReader::Read(const Segment& segment, const wire::Ref& ref, const uint8_t digest[32],
                         const uint8_t key[32], uint64_t block_bytes,
                         std::span<const Piece> target) {
  if (ref.payload_bytes != block_bytes || !segment.Contains(ref)) return Reason::kStale;
  const kv::BlockHeader* live = segment.HeaderOf(ref);
  if (kv::LoadGeneration(live) != ref.generation) return Reason::kStale;
  const uint64_t header_bytes = kv::HeaderBytes(block_bytes);
  header_copy_.resize(header_bytes / sizeof(uint64_t));
  std::memcpy(header_copy_.data(), live, header_bytes);
  auto* header = reinterpret_cast<kv::BlockHeader*>(header_copy_.data());
  const kv::HeaderVerdict verdict =
      kv::CheckHeader(header, digest, key, ref.generation, block_bytes);
  bool right = verdict == kv::HeaderVerdict::kOk;
  if (right) {
    const Piece source{const_cast<std::byte*>(segment.PayloadOf(ref)), block_bytes};
    right = CopyBlock({&source, 1}, target, IdentitySeed(digest, key, block_bytes),
                      CopyCheck::kVerify, {header->checksums(), header->n_checksums},
                      block_bytes >= kStreamFromBytes ? CopyStores::kStreaming : CopyStores::kCached);
  }
  // Overtaken by a new fill: whatever was wrong then is no sign of damage.
  std::atomic_thread_fence(std::memory_order_acquire);
  if (kv::LoadGeneration(live) != ref.generation) return Reason::kStale;
  if (verdict == kv::HeaderVerdict::kStale) return Reason::kStale;
  return right ? Reason::kNone : Reason::kCorrupt;
}

}  // namespace terrace::client
