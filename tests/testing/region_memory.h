// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// RegionMemory: an engine's paged KV cache in shared memory, as an engine would register it: K and V of each layer
// apart, pages with gaps between them, bytes that derive from keys.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "gpu/region.h"
#include "kvstore/base/check.h"

namespace terrace::testing {

// Owner: the test. Threads: one at a time, and whoever copies.
class RegionMemory {
 public:
  struct Shape {
    uint32_t layers = 3;
    uint64_t piece_bytes = 24 << 10;  // of one page in one plane
    uint64_t gap_bytes = 512;         // between pages
    uint64_t n_pages = 64;
    bool sealed = true;
  };
  RegionMemory() : RegionMemory(Shape{}) {}
  explicit RegionMemory(const Shape& shape) : shape_(shape) {
    const uint64_t stride = shape.piece_bytes + shape.gap_bytes;
    for (uint32_t plane = 0; plane < 2 * shape.layers; ++plane) {
      layout_.planes.push_back({.allocation = 0,
                                .offset = 4096 + plane * shape.n_pages * stride,
                                .stride = stride,
                                .bytes = shape.piece_bytes});
    }
    layout_.n_pages = shape.n_pages;
    bytes_ = 4096 + 2 * shape.layers * shape.n_pages * stride;
    fd_ = memfd_create("region", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    TERRACE_CHECK(fd_ >= 0 && posix_fallocate(fd_, 0, static_cast<off_t>(bytes_)) == 0);
    if (shape.sealed) TERRACE_CHECK(fcntl(fd_, F_ADD_SEALS, F_SEAL_SHRINK) == 0);
    void* base = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
    TERRACE_CHECK(base != MAP_FAILED);
    base_ = static_cast<std::byte*>(base);
  }
  ~RegionMemory() {
    munmap(base_, bytes_);
    close(fd_);
  }
  RegionMemory(const RegionMemory&) = delete;

  const gpu::RegionLayout& layout() const { return layout_; }
  uint64_t page_bytes() const { return layout_.PageBytes(); }
  uint64_t bytes() const { return bytes_; }
  int fd() const { return fd_; }
  std::byte* data() { return base_; }
  std::vector<gpu::AllocationHandle> handles() const {
    gpu::AllocationHandle handle;
    handle.fd = fd_;
    handle.bytes = bytes_;
    return {handle};
  }

  void Write(uint64_t page, std::span<const std::byte> payload) {
    for (size_t p = 0; p < layout_.planes.size(); ++p) {
      std::memcpy(Piece(p, page), payload.data() + p * shape_.piece_bytes, shape_.piece_bytes);
    }
  }
  std::vector<std::byte> Read(uint64_t page) const {
    std::vector<std::byte> payload(page_bytes());
    for (size_t p = 0; p < layout_.planes.size(); ++p) {
      std::memcpy(payload.data() + p * shape_.piece_bytes, Piece(p, page), shape_.piece_bytes);
    }
    return payload;
  }
  std::vector<std::byte> ReadPlane(size_t plane, uint64_t page) const {
    return {Piece(plane, page), Piece(plane, page) + shape_.piece_bytes};
  }
  void Clear() { std::memset(base_, 0xA5, bytes_); }

 private:
  std::byte* Piece(size_t plane, uint64_t page) const {
    return base_ + layout_.planes[plane].offset + page * layout_.planes[plane].stride;
  }
  const Shape shape_;
  gpu::RegionLayout layout_;
  uint64_t bytes_ = 0;
  int fd_ = -1;
  std::byte* base_ = nullptr;
};

}  // namespace terrace::testing
