// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/staging_ring.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>

namespace terrace::client {
namespace {

constexpr uint64_t kWindowBytes = 8ull << 20;
constexpr uint64_t kAlignment = 64;  // of a cache line

}  // namespace

StagingRing::~StagingRing() {
  if (bytes_ > 0) munmap(memory_, bytes_);
}

Result StagingRing::Map(int fd, uint64_t bytes) {
  struct stat info;
  if (bytes == 0 || fstat(fd, &info) != 0 || static_cast<uint64_t>(info.st_size) < bytes) {
    return Fail(TERRACE_INTERNAL, "the daemon announced more staging memory than its file has");
  }
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) {
    return Fail(TERRACE_RESOURCE_EXHAUSTED, "cannot map %llu bytes of staging memory: %s",
                static_cast<unsigned long long>(bytes), strerrordesc_np(errno));
  }
  (void)madvise(memory, bytes, MADV_DONTFORK);
  memory_ = static_cast<std::byte*>(memory);
  bytes_ = bytes;
  return {};
}

uint64_t StagingRing::Rounded(uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

std::optional<uint64_t> StagingRing::Take(uint64_t bytes) {
  const uint64_t room = Rounded(bytes);
  if (taken_ == 0) {
    head_ = tail_ = 0;
    used_bytes_ = std::min(bytes_, std::max(2 * room, kWindowBytes));
    // Whole blocks only, so that no corner is left over at the wrap. The last may end unrounded.
    if (used_bytes_ >= room) used_bytes_ -= used_bytes_ % room;
    used_bytes_ = std::max(used_bytes_, std::min(bytes_, room));
  }
  uint64_t at;
  if (taken_ == 0 || head_ > tail_) {
    if (bytes <= used_bytes_ - std::min(head_, used_bytes_)) {
      at = head_;
    } else if (room <= tail_) {
      at = 0;
    } else {
      return std::nullopt;
    }
  } else if (room <= tail_ - head_) {
    at = head_;
  } else {
    return std::nullopt;
  }
  head_ = at + room;
  ++taken_;
  return at;
}

void StagingRing::GiveBackOldest(uint64_t offset, uint64_t bytes) {
  tail_ = offset + Rounded(bytes);
  --taken_;
}

}  // namespace terrace::client
