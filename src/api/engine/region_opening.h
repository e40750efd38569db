// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// RegionOpening: a RegisterRegion message that was read: what is to be opened, and the descriptors for it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu/region.h"

namespace terrace::api {

// Descriptors that came with a packet. Closes what nobody took. Threads: one at a time.
class PacketFds {
 public:
  PacketFds() = default;
  ~PacketFds();
  PacketFds(const PacketFds&) = delete;
  PacketFds& operator=(const PacketFds&) = delete;

  void Add(int fd) { fds_.push_back(fd); }
  void Swap(PacketFds* other) { fds_.swap(other->fds_); }
  size_t size() const { return fds_.size(); }
  int operator[](size_t i) const { return fds_[i]; }

 private:
  std::vector<int> fds_;
};

// Owner: whoever opens it; the handles borrow its descriptors. Threads: one at a time.
struct RegionOpening {
  gpu::DeviceUuid device_uuid{};
  gpu::RegionLayout layout;
  std::vector<gpu::AllocationHandle> allocations;
  std::vector<gpu::EventHandle> events;
  PacketFds fds;

  // Takes the descriptors out of fds, whatever comes of it. Nothing is looked at but the message itself: what the
  // layout says is checked against the memory when that is opened. bytes_max: of all allocations together.
  static absl::StatusOr<std::unique_ptr<RegionOpening>> Parse(std::span<const std::byte> body, PacketFds* fds,
                                                              uint64_t bytes_max);
};

}  // namespace terrace::api
