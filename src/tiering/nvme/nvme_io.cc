// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/nvme/nvme_io.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>
#include <utility>

#include "kvstore/base/check.h"

namespace terrace::tiering {

void NvmeIo::Attach(BlockDevice* device) {
  TERRACE_CHECK(in_flight_.empty());
  device_ = device;
}

bool NvmeIo::Submit(IoOp op, uint64_t offset, std::span<std::byte> buffer, Done done) {
  if (device_ == nullptr || in_flight_.size() >= device_->depth()) return false;
  const uint64_t tag = next_tag_;
  if (!device_->Submit({.op = op, .offset = offset, .buffer = buffer, .tag = tag})) return false;
  ++next_tag_;
  if (op == IoOp::kRead) ++reads_;
  in_flight_.emplace(tag, Pending{op, clock_->NowNs(), buffer.size(), std::move(done)});
  return true;
}

size_t NvmeIo::Poll(int64_t wait_ns) {
  if (device_ == nullptr) return 0;
  std::array<IoResult, 64> results;
  const size_t n = device_->Poll(results, wait_ns);
  const int64_t now = clock_->NowNs();
  for (size_t i = 0; i < n; ++i) {
    const auto it = in_flight_.find(results[i].tag);
    TERRACE_CHECK(it != in_flight_.end());
    Pending pending = std::move(it->second);
    in_flight_.erase(it);
    if (pending.op == IoOp::kRead) --reads_;
    metrics_->Observe(pending.op, results[i].error, pending.bytes, now - pending.start_ns);
    pending.done(results[i].error);
  }
  return n;
}

void NvmeIo::FailAll() {
  device_ = nullptr;
  reads_ = 0;
  for (auto& [tag, pending] : std::exchange(in_flight_, {})) pending.done(ENODEV);
}

int64_t NvmeIo::oldest_start_ns() const {
  constexpr int64_t kSyncNs = 30'000'000'000;  // a sync may take long on a disk that is well
  int64_t oldest = std::numeric_limits<int64_t>::max();
  for (const auto& [tag, pending] : in_flight_) {
    oldest = std::min(oldest, pending.start_ns + (pending.op == IoOp::kSync ? kSyncNs : 0));
    if (pending.op != IoOp::kSync) break;
  }
  return oldest;
}

NvmeReadArena::NvmeReadArena(std::span<std::byte> memory) : memory_(memory), free_bytes_(memory.size()) {
  free_[0] = memory.size();
}

std::span<std::byte> NvmeReadArena::Take(uint64_t bytes) {
  bytes = (bytes + kIoAlign - 1) / kIoAlign * kIoAlign;
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    if (it->second < bytes) continue;
    const uint64_t offset = it->first, rest = it->second - bytes;
    free_.erase(it);
    if (rest > 0) free_[offset + bytes] = rest;
    free_bytes_ -= bytes;
    return memory_.subspan(offset, bytes);
  }
  return {};
}

void NvmeReadArena::Give(std::span<std::byte> range) {
  uint64_t offset = static_cast<uint64_t>(range.data() - memory_.data()), bytes = range.size();
  free_bytes_ += bytes;
  const auto next = free_.lower_bound(offset);
  if (next != free_.begin()) {
    const auto before = std::prev(next);
    TERRACE_CHECK(before->first + before->second <= offset);
    if (before->first + before->second == offset) {
      offset = before->first;
      bytes += before->second;
      free_.erase(before);
    }
  }
  if (next != free_.end() && offset + bytes == next->first) {
    bytes += next->second;
    free_.erase(next);
  }
  free_[offset] = bytes;
}

}  // namespace terrace::tiering
