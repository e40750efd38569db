// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// SharedPages: an engine's paged cache in sealed shared memory, for tests of regions.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "api/client/terrace.h"

namespace terrace::api {

// Planes with gaps between the pages, spread over two files. Owner: the test.
class SharedPages {
 public:
  SharedPages(std::vector<uint64_t> plane_bytes, uint64_t n_pages, uint64_t gap = 48)
      : n_pages_(n_pages) {
    uint64_t bytes[2] = {64, 64};  // no plane begins where its file does
    std::vector<uint64_t> offsets;
    for (size_t p = 0; p < plane_bytes.size(); ++p) {
      offsets.push_back(bytes[p % 2]);
      bytes[p % 2] += (plane_bytes[p] + gap) * n_pages;
    }
    for (const uint64_t size : bytes) {
      const int fd = memfd_create("pages", MFD_CLOEXEC | MFD_ALLOW_SEALING);
      EXPECT_EQ(ftruncate(fd, static_cast<off_t>(size)), 0);
      EXPECT_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
      void* base = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
      EXPECT_NE(base, MAP_FAILED);
      std::memset(base, kUntouched, size);
      memory_.push_back({fd, base, size});
    }
    for (size_t p = 0; p < plane_bytes.size(); ++p) {
      planes_.push_back({static_cast<std::byte*>(memory_[p % 2].base) + offsets[p],
                         plane_bytes[p] + gap, plane_bytes[p]});
    }
  }
  ~SharedPages() {
    for (const terrace_shared_memory& memory : memory_) {
      munmap(memory.base, memory.bytes);
      close(memory.fd);
    }
  }
  SharedPages(const SharedPages&) = delete;

  const std::vector<terrace_shared_memory>& memory() const { return memory_; }
  const std::vector<terrace_plane>& planes() const { return planes_; }
  uint64_t n_pages() const { return n_pages_; }

  void Fill(uint64_t page, const std::vector<std::byte>& payload) const {
    size_t at = 0;
    for (const terrace_plane& plane : planes_) {
      std::memcpy(Piece(plane, page), payload.data() + at, plane.bytes);
      at += plane.bytes;
    }
  }
  std::vector<std::byte> Get(uint64_t page) const {
    std::vector<std::byte> payload;
    for (const terrace_plane& plane : planes_) {
      payload.insert(payload.end(), Piece(plane, page), Piece(plane, page) + plane.bytes);
    }
    return payload;
  }
  void Clear() const {
    for (const terrace_shared_memory& memory : memory_)
      std::memset(memory.base, kUntouched, memory.bytes);
  }
  // Nothing was written between the pages.
  bool GapsUntouched() const {
    for (const terrace_plane& plane : planes_) {
      for (uint64_t page = 0; page < n_pages_; ++page) {
        const std::byte* gap = Piece(plane, page) + plane.bytes;
        if (!std::all_of(gap, gap + plane.stride - plane.bytes,
                         [](std::byte b) { return b == std::byte{kUntouched}; })) {
          return false;
        }
      }
    }
    return true;
  }
  terrace_pages* Register(terrace_client* client) const {
    terrace_pages* pages = nullptr;
    EXPECT_EQ(terrace_shared_pages_register(
                  client, memory_.data(), static_cast<uint32_t>(memory_.size()), planes_.data(),
                  static_cast<uint32_t>(planes_.size()), n_pages_, &pages),
              TERRACE_OK)
        << terrace_error_text();
    return pages;
  }

 private:
  static constexpr int kUntouched = 0x5a;
  static std::byte* Piece(const terrace_plane& plane, uint64_t page) {
    return static_cast<std::byte*>(plane.base) + page * plane.stride;
  }
  const uint64_t n_pages_;
  std::vector<terrace_shared_memory> memory_;
  std::vector<terrace_plane> planes_;
};

}  // namespace terrace::api
