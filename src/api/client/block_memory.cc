// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/block_memory.h"

#include <limits>
#include <utility>

#include "api/engine/wire.h"

namespace terrace::client {
namespace {

using ull = unsigned long long;  // for printf
constexpr uint32_t kMaxPiecesPerOperation = 1u << 24;

}  // namespace

Result Pages::Create(const terrace_plane* planes, uint32_t n_planes, uint64_t n_blocks,
                     std::shared_ptr<Pages>* out) {
  if (planes == nullptr) return Fail(TERRACE_INVALID_ARGUMENT, "planes is NULL");
  if (n_planes == 0 || n_planes > kMaxPlanes) {
    return Fail(TERRACE_INVALID_ARGUMENT, "n_planes is %u, must be 1 to %u", n_planes, kMaxPlanes);
  }
  if (n_blocks == 0) return Fail(TERRACE_INVALID_ARGUMENT, "n_blocks is 0");
  std::shared_ptr<Pages> pages(new Pages);
  for (uint32_t i = 0; i < n_planes; ++i) {
    const terrace_plane& plane = planes[i];
    if (plane.base == nullptr) return Fail(TERRACE_INVALID_ARGUMENT, "planes[%u].base is NULL", i);
    if (plane.bytes == 0 || plane.bytes > wire::kMaxBlockBytes) {
      return Fail(TERRACE_INVALID_ARGUMENT, "planes[%u].bytes is %llu, must be 1 to %llu", i,
                  ull{plane.bytes}, ull{wire::kMaxBlockBytes});
    }
    if (n_blocks > 1 && plane.stride < plane.bytes) {
      return Fail(TERRACE_INVALID_ARGUMENT,
                  "planes[%u].stride is %llu, less than its bytes (%llu): blocks would overlap", i,
                  ull{plane.stride}, ull{plane.bytes});
    }
    uint64_t last, end;
    if (__builtin_mul_overflow(plane.stride, n_blocks - 1, &last) ||
        __builtin_add_overflow(reinterpret_cast<uintptr_t>(plane.base), last, &last) ||
        __builtin_add_overflow(last, plane.bytes, &end)) {
      return Fail(TERRACE_INVALID_ARGUMENT,
                  "planes[%u]: base + %llu blocks of stride %llu is beyond the address space", i,
                  ull{n_blocks}, ull{plane.stride});
    }
    pages->block_bytes_ += plane.bytes;  // at most 2^16 * 2^30
  }
  if (pages->block_bytes_ > wire::kMaxBlockBytes) {
    return Fail(TERRACE_INVALID_ARGUMENT, "a block of these planes has %llu bytes, at most %llu",
                ull{pages->block_bytes_}, ull{wire::kMaxBlockBytes});
  }
  pages->planes_.assign(planes, planes + n_planes);
  pages->n_blocks_ = n_blocks;
  *out = std::move(pages);
  return {};
}

void Pages::AppendPieces(uint64_t block_id, std::vector<Piece>* out) const {
  for (const terrace_plane& plane : planes_) {
    out->push_back({static_cast<std::byte*>(plane.base) + block_id * plane.stride, plane.bytes});
  }
}

Result BlockMemory::FromPages(std::shared_ptr<Pages> pages, const uint64_t* block_ids, uint32_t n,
                              uint64_t block_bytes, BlockMemory* out) {
  if (block_ids == nullptr) return Fail(TERRACE_INVALID_ARGUMENT, "block_ids is NULL");
  if (pages->block_bytes() != block_bytes) {
    return Fail(TERRACE_INVALID_ARGUMENT,
                "the planes hold %llu bytes per block, the key space's blocks have %llu",
                ull{pages->block_bytes()}, ull{block_bytes});
  }
  for (uint32_t i = 0; i < n; ++i) {
    if (block_ids[i] >= pages->n_blocks()) {
      return Fail(TERRACE_INVALID_ARGUMENT,
                  "block_ids[%u] is %llu, but only %llu blocks are registered", i,
                  ull{block_ids[i]}, ull{pages->n_blocks()});
    }
  }
  out->block_ids_.assign(block_ids, block_ids + n);
  out->pages_ = std::move(pages);
  return {};
}

Result BlockMemory::FromPieces(const terrace_piece* pieces, const uint32_t* piece_counts,
                               uint32_t n, uint64_t block_bytes, BlockMemory* out) {
  if (pieces == nullptr) return Fail(TERRACE_INVALID_ARGUMENT, "pieces is NULL");
  if (piece_counts == nullptr) return Fail(TERRACE_INVALID_ARGUMENT, "piece_counts is NULL");
  uint64_t total = 0;
  for (uint32_t i = 0; i < n; ++i) total += piece_counts[i];
  if (total > kMaxPiecesPerOperation) {
    return Fail(TERRACE_INVALID_ARGUMENT, "%llu pieces in one operation, at most %u", ull{total},
                kMaxPiecesPerOperation);
  }
  out->pieces_.reserve(total);
  out->piece_begin_.reserve(size_t{n} + 1);
  size_t next = 0;
  for (uint32_t i = 0; i < n; ++i) {
    out->piece_begin_.push_back(static_cast<uint32_t>(next));
    uint64_t bytes = 0;
    for (uint32_t k = 0; k < piece_counts[i]; ++k, ++next) {
      const terrace_piece& piece = pieces[next];
      uint64_t end;
      if ((piece.base == nullptr && piece.bytes > 0) ||
          __builtin_add_overflow(reinterpret_cast<uintptr_t>(piece.base), piece.bytes, &end)) {
        return Fail(TERRACE_INVALID_ARGUMENT, "pieces[%zu] (%p, %llu bytes) is not memory", next,
                    piece.base, ull{piece.bytes});
      }
      if (piece.bytes > block_bytes - bytes) bytes = std::numeric_limits<uint64_t>::max();
      if (bytes > block_bytes) break;
      bytes += piece.bytes;
      if (piece.bytes > 0) out->pieces_.push_back({static_cast<std::byte*>(piece.base), piece.bytes});
    }
    if (bytes != block_bytes) {
      return Fail(TERRACE_INVALID_ARGUMENT,
                  "the %u pieces of block %u are %s than block_bytes (%llu)", piece_counts[i], i,
                  bytes > block_bytes ? "longer" : "shorter", ull{block_bytes});
    }
  }
  out->piece_begin_.push_back(static_cast<uint32_t>(out->pieces_.size()));
  return {};
}

void BlockMemory::GetPieces(uint32_t i, std::vector<Piece>* out) const {
  out->clear();
  if (pages_ != nullptr) {
    pages_->AppendPieces(block_ids_[i], out);
  } else {
    out->assign(pieces_.begin() + piece_begin_[i], pieces_.begin() + piece_begin_[i + 1]);
  }
}

}  // namespace terrace::client
