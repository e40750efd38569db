// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// XXH3-64 with a seed (https://xxhash.com) as the 32 lanes of a warp compute it together: the arithmetic only, the same
// code on the GPU and on the processor, where it is proved against xxHash. Standard library only; no CUDA type.
//
// A block of 1024 bytes is two groups of 8 stripes. Lane l takes 16 bytes of stripe l / 4 of each group: accumulators
// 2 (l % 4) and the one after it. Inside a block accumulators only add, so lanes sum up for themselves and the warp
// adds their sums once a block.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define TERRACE_LANES __host__ __device__ inline
#else
#define TERRACE_LANES inline
#endif

// XXH3's secret, in words of 8 bytes.
#define TERRACE_XXH3_SECRET \
  0xbe4ba423396cfeb8ull, 0x1cad21f72c81017cull, 0xdb979083e96dd4deull, 0x1f67b3b7a4a44072ull, \
  0x78e5c0cc4ee679cbull, 0x2172ffcc7dd05a82ull, 0x8e2443f7744608b8ull, 0x4c263a81e69035e0ull, \
  0xcb00c391bb52283cull, 0xa32e531b8b65d088ull, 0x4ef90da297486471ull, 0xd8acdea946ef1938ull, \
  0x3f349ce33f76faa8ull, 0x1d4f0bc7c7bbdcf9ull, 0x3159b4cd4be0518aull, 0x647378d9c97e9fc8ull, \
  0xc3ebd33483acc5eaull, 0xeb6313faffa081c5ull, 0x49daf0b751dd0d17ull, 0x9e68d429265516d3ull, \
  0xfca1477d58be162bull, 0xce31d07ad1b8f88full, 0x280416958f3acb45ull, 0x7e404bbbcafbd7afull,

namespace terrace::gpu::xxh3 {

#ifdef __CUDACC__
static __constant__ const uint64_t kSecretOnGpu[24] = {TERRACE_XXH3_SECRET};
#endif

inline constexpr uint32_t kBlockBytes = 1024, kStripeBytes = 64, kLanes = 32;
inline constexpr uint32_t kShortBytes = 240;  // up to here XXH3 is another function
inline constexpr uint64_t kPrime32_1 = 0x9E3779B1ull, kPrime32_2 = 0x85EBCA77ull, kPrime32_3 = 0xC2B2AE3Dull;
inline constexpr uint64_t kPrime64_1 = 0x9E3779B185EBCA87ull, kPrime64_2 = 0xC2B2AE3D27D4EB4Full,
                          kPrime64_3 = 0x165667B19E3779F9ull, kPrime64_4 = 0x85EBCA77C2B2AE63ull,
                          kPrime64_5 = 0x27D4EB2F165667C5ull;

struct Word16 {
  uint64_t low = 0, high = 0;
};

// Of XXH3's secret, 8 bytes at 8 * index, before the seed.
TERRACE_LANES uint64_t PlainSecret(uint32_t index) {
#ifdef __CUDA_ARCH__
  return kSecretOnGpu[index];
#else
  constexpr uint64_t kSecret[24] = {TERRACE_XXH3_SECRET};
  return kSecret[index];
#endif
}
// The same of the secret that a seed makes.
TERRACE_LANES uint64_t SeededSecret(uint64_t seed, uint32_t index) {
  return index % 2 == 0 ? PlainSecret(index) + seed : PlainSecret(index) - seed;
}
// At any byte of it.
TERRACE_LANES uint64_t PlainSecretAt(uint32_t byte) {
  const uint32_t shift = byte % 8 * 8;
  if (shift == 0) return PlainSecret(byte / 8);
  return PlainSecret(byte / 8) >> shift | PlainSecret(byte / 8 + 1) << (64 - shift);
}
TERRACE_LANES uint64_t SeededSecretAt(uint64_t seed, uint32_t byte) {
  const uint32_t shift = byte % 8 * 8;
  if (shift == 0) return SeededSecret(seed, byte / 8);
  return SeededSecret(seed, byte / 8) >> shift | SeededSecret(seed, byte / 8 + 1) << (64 - shift);
}

TERRACE_LANES uint64_t ReadBytes(const uint8_t* from, uint32_t bytes) {
  uint64_t value = 0;
  for (uint32_t i = 0; i < bytes; ++i) value |= static_cast<uint64_t>(from[i]) << (8 * i);
  return value;
}
TERRACE_LANES uint64_t MultiplyFold(uint64_t a, uint64_t b) {
#ifdef __CUDA_ARCH__
  return (a * b) ^ __umul64hi(a, b);
#else
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
#endif
}
TERRACE_LANES uint64_t Avalanche(uint64_t h) {
  h ^= h >> 37;
  h *= 0x165667919E3779F9ull;
  return h ^ h >> 32;
}
TERRACE_LANES uint64_t SwapBytes(uint64_t v) {
  uint64_t swapped = 0;
  for (int i = 0; i < 8; ++i) swapped |= (v >> (8 * i) & 0xFF) << (56 - 8 * i);
  return swapped;
}

// What a lane knows of the segment that its warp is at.
struct LaneState {
  uint64_t acc[2];     // equal in lanes of one l % 4
  uint64_t sum[2];     // of this block, this lane's stripes
  uint64_t key[4];     // secret of the lane's stripes: group 0, group 1
  uint64_t scramble[2];
};

TERRACE_LANES uint64_t StartAccumulator(uint32_t index) {
  constexpr uint64_t kStart[8] = {kPrime32_3, kPrime64_1, kPrime64_2, kPrime64_3,
                                  kPrime64_4, kPrime32_2, kPrime64_5, kPrime32_1};
  return kStart[index];
}
TERRACE_LANES void Start(LaneState& state, uint32_t lane, uint64_t seed) {
  const uint32_t first = lane % 4 * 2;
  for (uint32_t i = 0; i < 2; ++i) {
    state.acc[i] = StartAccumulator(first + i);
    state.sum[i] = 0;
    state.key[i] = SeededSecret(seed, lane / 4 + first + i);
    state.key[2 + i] = SeededSecret(seed, 8 + lane / 4 + first + i);
    state.scramble[i] = SeededSecret(seed, 16 + first + i);
  }
}
TERRACE_LANES void AccumulateWord(uint64_t sum[2], const Word16& word, uint64_t key_low, uint64_t key_high) {
  const uint64_t low = word.low ^ key_low, high = word.high ^ key_high;
  sum[0] += word.high + (low & 0xFFFFFFFFu) * (low >> 32);
  sum[1] += word.low + (high & 0xFFFFFFFFu) * (high >> 32);
}
// group: 0 or 1, of the block.
TERRACE_LANES void Accumulate(LaneState& state, const Word16& word, uint32_t group) {
  AccumulateWord(state.sum, word, state.key[2 * group], state.key[2 * group + 1]);
}
// After the warp has summed `sum` over the lanes of one l % 4, at the end of a full block that is not the last.
TERRACE_LANES void EndBlock(LaneState& state) {
  for (uint32_t i = 0; i < 2; ++i) {
    uint64_t acc = state.acc[i] + state.sum[i];
    state.sum[i] = 0;
    acc ^= acc >> 47;
    acc ^= state.scramble[i];
    state.acc[i] = acc * kPrime32_1;
  }
}
// Lanes 0 to 3, after the last block's sums were added: the last 64 bytes again, then the lane's part of the result.
TERRACE_LANES uint64_t Merge(LaneState& state, uint32_t lane, uint64_t seed, const uint8_t* last_stripe) {
  const Word16 word{ReadBytes(last_stripe + 16 * lane, 8), ReadBytes(last_stripe + 16 * lane + 8, 8)};
  uint64_t acc[2] = {state.acc[0] + state.sum[0], state.acc[1] + state.sum[1]};
  AccumulateWord(acc, word, SeededSecretAt(seed, 121 + 16 * lane), SeededSecretAt(seed, 129 + 16 * lane));
  return MultiplyFold(acc[0] ^ SeededSecretAt(seed, 11 + 16 * lane), acc[1] ^ SeededSecretAt(seed, 19 + 16 * lane));
}
// parts: the sum of the four lanes' Merge().
TERRACE_LANES uint64_t Finish(uint64_t parts, uint64_t bytes) { return Avalanche(bytes * kPrime64_1 + parts); }

TERRACE_LANES uint64_t Mix16(const uint8_t* from, uint32_t secret, uint64_t seed) {
  return MultiplyFold(ReadBytes(from, 8) ^ (PlainSecretAt(secret) + seed),
                      ReadBytes(from + 8, 8) ^ (PlainSecretAt(secret + 8) - seed));
}
TERRACE_LANES uint64_t Upto16(const uint8_t* from, uint32_t bytes, uint64_t seed) {
  if (bytes > 8) {
    const uint64_t low = ReadBytes(from, 8) ^ ((PlainSecret(3) ^ PlainSecret(4)) + seed);
    const uint64_t high = ReadBytes(from + bytes - 8, 8) ^ ((PlainSecret(5) ^ PlainSecret(6)) - seed);
    return Avalanche(bytes + SwapBytes(low) + high + MultiplyFold(low, high));
  }
  if (bytes >= 4) {
    seed ^= SwapBytes(seed & 0xFFFFFFFFu);
    const uint64_t input = ReadBytes(from + bytes - 4, 4) + (ReadBytes(from, 4) << 32);
    uint64_t h = input ^ ((PlainSecret(1) ^ PlainSecret(2)) - seed);
    h ^= (h << 49 | h >> 15) ^ (h << 24 | h >> 40);
    h *= 0x9FB21C651E98DF25ull;
    h ^= (h >> 35) + bytes;
    h *= 0x9FB21C651E98DF25ull;
    return h ^ h >> 28;
  }
  const uint64_t combined = static_cast<uint64_t>(from[0]) << 16 | static_cast<uint64_t>(from[bytes / 2]) << 24 |
                            from[bytes - 1] | static_cast<uint64_t>(bytes) << 8;
  uint64_t h = combined ^ (((PlainSecret(0) & 0xFFFFFFFFu) ^ PlainSecret(0) >> 32) + seed);
  h ^= h >> 33;
  h *= kPrime64_2;
  h ^= h >> 29;
  h *= kPrime64_3;
  return h ^ h >> 32;
}
// 1 to kShortBytes bytes: one lane alone.
TERRACE_LANES uint64_t Short(const uint8_t* from, uint32_t bytes, uint64_t seed) {
  if (bytes <= 16) return Upto16(from, bytes, seed);
  uint64_t acc = bytes * kPrime64_1;
  if (bytes <= 128) {
    for (uint32_t i = 0; i <= (bytes - 1) / 32; ++i) {
      acc += Mix16(from + 16 * i, 32 * i, seed);
      acc += Mix16(from + bytes - 16 * (i + 1), 32 * i + 16, seed);
    }
    return Avalanche(acc);
  }
  for (uint32_t i = 0; i < 8; ++i) acc += Mix16(from + 16 * i, 16 * i, seed);
  acc = Avalanche(acc);
  for (uint32_t i = 8; i < bytes / 16; ++i) acc += Mix16(from + 16 * i, 16 * (i - 8) + 3, seed);
  acc += Mix16(from + bytes - 16, 136 - 17, seed);
  return Avalanche(acc);
}

}  // namespace terrace::gpu::xxh3
