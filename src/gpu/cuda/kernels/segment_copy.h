// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What one warp does with one 64 KiB segment of a block: copies it between the page's pieces and the contiguous place
// and computes its checksum of the very bytes that it moved, which it reads once. A template over the warp, so that all
// of it but loads, stores and shuffles is the same code in the kernels and in tests on the processor.
//
// A Warp has: Each(f): f(lane, LaneState&, Word16* words) for every lane; SumBlock(): adds `sum` over the lanes of one
// lane % 4; SumFour(f): f(lane, state) of lanes 0 to 3, added up; Sync(); Tail(): kTailBytes of its own;
// Load(address), Store(address, word): 16 bytes, aligned; LoadByte, StoreByte; Publish(pointer, value): by one lane.
#pragma once

#include <cstdint>

#include "gpu/cuda/kernels/copy_table.h"
#include "gpu/cuda/kernels/xxh3_lanes.h"

#ifdef __CUDACC__
#define TERRACE_UNROLL _Pragma("unroll")
#else
#define TERRACE_UNROLL
#endif

namespace terrace::gpu {

enum class SegmentWork { kGather, kScatter, kChecksum };

inline constexpr uint32_t kSegmentBytes = 64 * 1024;  // kChecksumSegmentBytes of kvstore/base/block_copy.h
inline constexpr uint64_t kSegmentSeedStep = 0x9E3779B97F4A7C15ull;
inline constexpr uint32_t kBlocksAtOnce = 4;              // loads of that many kibibytes are on their way together
inline constexpr uint32_t kTailBytes = 64 + xxh3::kBlockBytes;  // the last whole block's last stripe, then the rest

// Where in the planes a byte of the payload lies. Moves forward only.
struct PieceCursor {
  const PlaneEntry* planes;
  uint32_t n_planes;
  uint64_t page;
  uint32_t plane;

  TERRACE_LANES uint64_t End() const { return planes[plane].begin + planes[plane].bytes; }
  TERRACE_LANES uint64_t Address(uint64_t at) const {
    return planes[plane].base + page * planes[plane].stride + (at - planes[plane].begin);
  }
  TERRACE_LANES void Seek(uint64_t at) {
    while (at >= End()) ++plane;
  }
  // From the start: there may be thousands of planes.
  TERRACE_LANES void Find(uint64_t at) {
    uint32_t low = 0, high = n_planes;
    while (high - low > 1) {
      const uint32_t middle = (low + high) / 2;
      if (planes[middle].begin <= at) {
        low = middle;
      } else {
        high = middle;
      }
    }
    plane = low;
  }
};

// The segment's place: payload [begin, end), contiguous from `frame` on.
struct SegmentPlace {
  uint64_t begin, end, frame;
  TERRACE_LANES uint64_t Frame(uint64_t at) const { return frame + (at - begin); }
};

// Up to 16 bytes at `at`, wherever pieces begin and end.
template <SegmentWork kWork, class Warp>
TERRACE_LANES xxh3::Word16 MoveWord(Warp& warp, PieceCursor cursor, const SegmentPlace& place, uint64_t at,
                                    uint32_t bytes) {
  cursor.Seek(at);
  const uint64_t piece = cursor.Address(at), frame = place.Frame(at);
  const uint64_t alignment = kWork == SegmentWork::kChecksum ? piece : piece | frame;
  if (bytes == 16 && alignment % 16 == 0 && at + 16 <= cursor.End()) {
    const xxh3::Word16 word = warp.Load(kWork == SegmentWork::kScatter ? frame : piece);
    if (kWork == SegmentWork::kGather) warp.Store(frame, word);
    if (kWork == SegmentWork::kScatter) warp.Store(piece, word);
    return word;
  }
  xxh3::Word16 word;
  for (uint32_t i = 0; i < bytes; ++i) {
    cursor.Seek(at + i);
    const uint64_t in_page = cursor.Address(at + i), in_frame = place.Frame(at + i);
    const uint64_t byte = warp.LoadByte(kWork == SegmentWork::kScatter ? in_frame : in_page);
    if (kWork == SegmentWork::kGather) warp.StoreByte(in_frame, static_cast<uint8_t>(byte));
    if (kWork == SegmentWork::kScatter) warp.StoreByte(in_page, static_cast<uint8_t>(byte));
    (i < 8 ? word.low : word.high) |= byte << (8 * (i % 8));
  }
  return word;
}

TERRACE_LANES void KeepWord(uint8_t* tail, const xxh3::Word16& word) {
  for (uint32_t i = 0; i < 8; ++i) {
    tail[i] = static_cast<uint8_t>(word.low >> (8 * i));
    tail[8 + i] = static_cast<uint8_t>(word.high >> (8 * i));
  }
}

// kBlocks whole blocks from `at` on, all in one piece and aligned: all loads first.
template <SegmentWork kWork, bool kHash, uint32_t kBlocks, class Warp>
TERRACE_LANES void MoveRun(Warp& warp, uint64_t piece, uint64_t frame) {
  const uint64_t source = kWork == SegmentWork::kScatter ? frame : piece;
  const uint64_t target = kWork == SegmentWork::kScatter ? piece : frame;
  warp.Each([&](uint32_t lane, xxh3::LaneState&, xxh3::Word16* words) {
TERRACE_UNROLL
    for (uint32_t i = 0; i < 2 * kBlocks; ++i) words[i] = warp.Load(source + 512 * i + 16 * lane);
    if (kWork != SegmentWork::kChecksum) {
TERRACE_UNROLL
      for (uint32_t i = 0; i < 2 * kBlocks; ++i) warp.Store(target + 512 * i + 16 * lane, words[i]);
    }
  });
  if constexpr (kHash) {
TERRACE_UNROLL
    for (uint32_t block = 0; block < kBlocks; ++block) {
      warp.Each([&](uint32_t, xxh3::LaneState& state, xxh3::Word16* words) {
        xxh3::Accumulate(state, words[2 * block], 0);
        xxh3::Accumulate(state, words[2 * block + 1], 1);
      });
      warp.SumBlock();
      warp.Each([&](uint32_t, xxh3::LaneState& state, xxh3::Word16*) { xxh3::EndBlock(state); });
    }
  }
}

// One whole block in which pieces end, or that is not aligned.
template <SegmentWork kWork, bool kHash, class Warp>
TERRACE_LANES void MoveBlock(Warp& warp, const PieceCursor& cursor, const SegmentPlace& place, uint64_t at,
                             uint32_t slot) {
  warp.Each([&](uint32_t lane, xxh3::LaneState& state, xxh3::Word16* words) {
    const xxh3::Word16 first = MoveWord<kWork>(warp, cursor, place, at + 16 * lane, 16);
    const xxh3::Word16 second = MoveWord<kWork>(warp, cursor, place, at + 512 + 16 * lane, 16);
    if (kHash) {
      xxh3::Accumulate(state, first, 0);
      xxh3::Accumulate(state, second, 1);
    }
    words[slot] = second;
  });
  if constexpr (kHash) {
    warp.SumBlock();
    warp.Each([&](uint32_t, xxh3::LaneState& state, xxh3::Word16*) { xxh3::EndBlock(state); });
  }
}

// rest: bytes after the whole blocks; the tail holds them, after the 64 before them.
template <class Warp>
TERRACE_LANES void PublishChecksum(Warp& warp, uint32_t rest, uint32_t bytes, uint64_t seed, uint64_t* checksum) {
  if (bytes <= xxh3::kShortBytes) {
    warp.Publish(checksum, [&] { return xxh3::Short(warp.Tail() + 64, bytes, seed); });
    return;
  }
  warp.SumBlock();
  const uint64_t parts = warp.SumFour([&](uint32_t lane, xxh3::LaneState& state) {
    return xxh3::Merge(state, lane, seed, warp.Tail() + rest);
  });
  warp.Publish(checksum, [&] { return xxh3::Finish(parts, bytes); });
}

// The last 1 to 1024 bytes, and the result.
template <SegmentWork kWork, bool kHash, class Warp>
TERRACE_LANES void MoveRest(Warp& warp, const PieceCursor& cursor, const SegmentPlace& place, uint64_t at,
                            uint64_t seed, uint64_t* checksum) {
  const uint32_t rest = static_cast<uint32_t>(place.end - at);
  const uint32_t bytes = static_cast<uint32_t>(place.end - place.begin);
  const uint32_t stripes = (rest - 1) / xxh3::kStripeBytes;
  warp.Each([&](uint32_t lane, xxh3::LaneState& state, xxh3::Word16*) {
    for (uint32_t group = 0; group < 2; ++group) {
      const uint32_t offset = 512 * group + 16 * lane;
      if (offset >= rest) continue;
      const uint32_t size = rest - offset < 16 ? rest - offset : 16;
      const xxh3::Word16 word = MoveWord<kWork>(warp, cursor, place, at + offset, size);
      if (!kHash) continue;
      if (8 * group + lane / 4 < stripes) xxh3::Accumulate(state, word, group);
      KeepWord(warp.Tail() + 64 + offset, word);
    }
  });
  if constexpr (kHash) {
    warp.Sync();
    PublishChecksum(warp, rest, bytes, seed, checksum);
    warp.Sync();  // before the tail is used for the next segment
  }
}

template <SegmentWork kWork, bool kHash, class Warp>
TERRACE_LANES void CopySegment(Warp& warp, const CopyTable& table, uint32_t item) {
  const BlockEntry block = table.blocks[item / table.n_segments];
  const uint64_t segment = table.first_segment + item % table.n_segments;
  SegmentPlace place;
  place.begin = segment * kSegmentBytes;
  place.end = place.begin + kSegmentBytes < table.page_bytes ? place.begin + kSegmentBytes : table.page_bytes;
  place.frame = block.frame + static_cast<uint64_t>(item % table.n_segments) * kSegmentBytes;
  const uint64_t seed = block.seed + segment * kSegmentSeedStep;
  warp.Each([&](uint32_t lane, xxh3::LaneState& state, xxh3::Word16*) { xxh3::Start(state, lane, seed); });

  PieceCursor cursor{table.planes, table.n_planes, block.page, 0};
  cursor.Find(place.begin);
  const uint64_t whole = place.begin + (place.end - place.begin - 1) / xxh3::kBlockBytes * xxh3::kBlockBytes;
  uint64_t at = place.begin;
  while (at < whole) {
    cursor.Seek(at);
    const uint64_t piece = cursor.Address(at), frame = place.Frame(at);
    const uint64_t alignment = kWork == SegmentWork::kChecksum ? piece : piece | frame;
    const uint64_t end = cursor.End() < whole ? cursor.End() : whole;
    uint32_t last = 1;  // which word holds the last 64 bytes, in lanes 28 to 31
    if (alignment % 16 == 0 && end - at >= kBlocksAtOnce * xxh3::kBlockBytes) {
      MoveRun<kWork, kHash, kBlocksAtOnce>(warp, piece, frame);
      at += kBlocksAtOnce * xxh3::kBlockBytes;
      last = 2 * kBlocksAtOnce - 1;
    } else if (alignment % 16 == 0 && end - at >= xxh3::kBlockBytes) {
      MoveRun<kWork, kHash, 1>(warp, piece, frame);
      at += xxh3::kBlockBytes;
    } else {
      MoveBlock<kWork, kHash>(warp, cursor, place, at, 1);
      at += xxh3::kBlockBytes;
    }
    if (kHash && at == whole) {
      warp.Each([&](uint32_t lane, xxh3::LaneState&, xxh3::Word16* words) {
        const xxh3::Word16 word = last == 1 ? words[1] : words[2 * kBlocksAtOnce - 1];
        if (lane >= 28) KeepWord(warp.Tail() + 16 * (lane - 28), word);
      });
    }
  }
  MoveRest<kWork, kHash>(warp, cursor, place, at, seed, table.checksums + item);
}

}  // namespace terrace::gpu
