// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The body of CopyBlock, compiled once per instruction set: the including file defines
// TERRACE_COPY_NAMESPACE and is compiled with its flags, so that XXH3 and the streaming stores take the
// widest registers there are. Internal to block_copy*.cc.
#pragma once

#define XXH_INLINE_ALL
#include <xxhash.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstring>

#include "kvstore/base/block_copy.h"

namespace terrace::TERRACE_COPY_NAMESPACE {

// Bytes copied and then hashed before the next are fetched: they stay in the first-level cache, and the
// hashing of one run overlaps with the fetch of the next.
constexpr size_t kRunBytes = 1024;

// How far ahead of the copying bytes are asked for. The processor's own prefetchers begin anew at every piece and
// stop at every 4 KiB, so pieces of a few KiB would come at the memory's latency instead of its bandwidth.
constexpr size_t kAheadBytes = 8192;

// Goes through the source some way ahead of the copying and asks for its lines.
class Prefetcher {
 public:
  explicit Prefetcher(std::span<const Piece> source) : source_(source) { Advance(kAheadBytes); }
  void Advance(size_t bytes) {
    while (bytes > 0 && piece_ < source_.size()) {
      const Piece& piece = source_[piece_];
      const size_t n = std::min(bytes, piece.bytes - offset_);
      for (size_t i = 0; i < n; i += 64) __builtin_prefetch(piece.base + offset_ + i);
      bytes -= n;
      offset_ += n;
      if (offset_ == piece.bytes) {
        ++piece_;
        offset_ = 0;
      }
    }
  }

 private:
  const std::span<const Piece> source_;
  size_t piece_ = 0, offset_ = 0;
};

// Copies a run to the target and to the buffer, and leaves the buffer to be hashed. The source may be a
// client's memory and change at any instant: it is read once, so that what is hashed is what was written.
// (Hashing the target instead of a buffer is slower by half: its lines are still on their way.)
inline void CopyRun(std::byte* target, const std::byte* source, size_t bytes, bool streaming,
                    std::byte* buffer) {
  size_t i = 0;
#if defined(__AVX2__)
  const bool aligned = (reinterpret_cast<uintptr_t>(target) & 31) == 0;
  for (; i + 64 <= bytes; i += 64) {
    const auto* from = reinterpret_cast<const __m256i*>(source + i);
    auto* to = reinterpret_cast<__m256i*>(target + i);
    auto* kept = reinterpret_cast<__m256i*>(buffer + i);
    const __m256i low = _mm256_loadu_si256(from);
    const __m256i high = _mm256_loadu_si256(from + 1);
    if (streaming && aligned) {
      _mm256_stream_si256(to, low);
      _mm256_stream_si256(to + 1, high);
    } else {
      _mm256_storeu_si256(to, low);
      _mm256_storeu_si256(to + 1, high);
    }
    _mm256_store_si256(kept, low);
    _mm256_store_si256(kept + 1, high);
  }
#else
  (void)streaming;
#endif
  std::memcpy(buffer + i, source + i, bytes - i);
  asm volatile("" : : "r"(buffer) : "memory");  // the compiler must not go back to the source
  std::memcpy(target + i, buffer + i, bytes - i);
}

bool CopyBlock(std::span<const Piece> source, std::span<const Piece> target, uint64_t identity_seed,
               CopyCheck check, std::span<uint64_t> checksums, CopyStores stores) {
  const bool copying = !target.empty();
  const bool streaming = stores == CopyStores::kStreaming;
  size_t source_piece = 0, source_offset = 0, target_piece = 0, target_offset = 0;
  bool intact = true;
  Prefetcher prefetcher(source);
  XXH3_state_t state;
  XXH3_INITSTATE(&state);  // else an old seed on the stack that equals ours keeps its half-overwritten secret
  alignas(64) std::byte buffer[kRunBytes];
  for (size_t segment = 0; segment < checksums.size() && intact; ++segment) {
    XXH3_64bits_reset_withSeed(&state, SeedFromSegment(identity_seed, segment));
    size_t left = kChecksumSegmentBytes;
    while (left > 0 && source_piece < source.size()) {
      if (source_offset == source[source_piece].bytes) {
        ++source_piece;
        source_offset = 0;
        continue;
      }
      size_t run = std::min({left, kRunBytes, source[source_piece].bytes - source_offset});
      const std::byte* from = source[source_piece].base + source_offset;
      prefetcher.Advance(run);
      if (copying) {
        while (target_piece < target.size() && target_offset == target[target_piece].bytes) {
          ++target_piece;
          target_offset = 0;
        }
        if (target_piece == target.size()) return false;
        run = std::min(run, target[target_piece].bytes - target_offset);
        CopyRun(target[target_piece].base + target_offset, from, run, streaming, buffer);
        from = buffer;
        target_offset += run;
      }
      XXH3_64bits_update(&state, from, run);
      left -= run;
      source_offset += run;
    }
    const uint64_t value = XXH3_64bits_digest(&state);
    if (check == CopyCheck::kCompute) {
      checksums[segment] = value;
    } else {
      intact = checksums[segment] == value;
    }
  }
#if defined(__AVX2__)
  // Streaming stores are weakly ordered: whoever is told that the copy is done must see it.
  if (copying && streaming) _mm_sfence();
#endif
  return intact;
}

}  // namespace terrace::TERRACE_COPY_NAMESPACE
