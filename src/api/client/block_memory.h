// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Pages and BlockMemory: where the blocks of an operation lie in the caller's own memory.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "api/client/gate.h"
#include "api/client/result.h"
#include "api/client/terrace.h"
#include "kvstore/base/block_copy.h"

namespace terrace::client {

class DevicePages;
class Region;

// A registered set of planes. Owner: shared by the caller's handle and operations under way.
// Threads: any; the planes never change. The gate is closed when the caller frees the pages.
class Pages {
 public:
  static constexpr uint32_t kMaxPlanes = 65536;
  // InvalidArgument says which plane and why.
  static Result Create(const terrace_plane* planes, uint32_t n_planes, uint64_t n_blocks,
                       std::shared_ptr<Pages>* out);

  // Set before anybody else has the pages: who may copy them beside the library's processors. null: nobody.
  std::shared_ptr<Region> region;
  std::shared_ptr<DevicePages> device;  // GPU memory: processors must not touch it
  std::string why_not_exported;         // GPU memory without a region

  uint32_t n_planes() const { return static_cast<uint32_t>(planes_.size()); }
  uint64_t n_blocks() const { return n_blocks_; }
  uint64_t block_bytes() const { return block_bytes_; }
  void AppendPieces(uint64_t block_id, std::vector<Piece>* out) const;
  Gate& gate() { return gate_; }

 private:
  Pages() = default;
  std::vector<terrace_plane> planes_;
  uint64_t n_blocks_ = 0, block_bytes_ = 0;
  Gate gate_;
};

// The memory of one operation: block numbers of pages, or a scatter list. A move-only value.
class BlockMemory {
 public:
  static Result FromPages(std::shared_ptr<Pages> pages, const uint64_t* block_ids, uint32_t n,
                          uint64_t block_bytes, BlockMemory* out);
  static Result FromPieces(const terrace_piece* pieces, const uint32_t* piece_counts, uint32_t n,
                           uint64_t block_bytes, BlockMemory* out);

  const std::vector<uint64_t>& block_ids() const { return block_ids_; }  // of pages
  const std::shared_ptr<Pages>& pages() const { return pages_; }         // null: a scatter list
  uint32_t n_planes() const { return pages_ == nullptr ? 1 : pages_->n_planes(); }
  // Pieces of the operation's i-th block, in payload order.
  void GetPieces(uint32_t i, std::vector<Piece>* out) const;
  // Around each touch of the memory. False: the caller has freed the pages.
  bool Enter() const { return pages_ == nullptr || pages_->gate().Enter(); }
  void Leave() const {
    if (pages_ != nullptr) pages_->gate().Leave();
  }

 private:
  std::shared_ptr<Pages> pages_;       // null: a scatter list
  std::vector<uint64_t> block_ids_;    // of pages_
  std::vector<Piece> pieces_;          // scatter list
  std::vector<uint32_t> piece_begin_;  // n + 1 positions in pieces_
};

}  // namespace terrace::client
