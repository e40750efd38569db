// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Region: an engine's paged KV cache as the copy engines see it: allocations that were opened once, and
// planes in them. Covers every paged layout in use: K and V of a layer apart (two planes a layer), packed
// (one), heads first (one a head), blocks across layers (one in all), MLA (one a layer), hybrid groups (one
// region a group, which may lie on the same allocations). How tokens lie inside a piece is opaque.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"

namespace terrace::gpu {

// One array of equal pieces: page p's piece lies at offset + p * stride in the allocation.
struct Plane {
  uint32_t allocation = 0;  // index into the region's allocations
  uint64_t offset = 0;      // bytes, from the allocation's start
  uint64_t stride = 0;      // bytes from one page to the next; >= bytes
  uint64_t bytes = 0;       // of one page in this plane; > 0
};

// The payload of a block in page p is the concatenation of p's pieces over all planes, in order. Planes
// stand in the order in which the engine needs them: layer 0 first.
struct RegionLayout {
  static constexpr uint32_t kMaxPlanes = 4096;
  static constexpr uint32_t kMaxAllocations = 1024;
  static constexpr uint64_t kMaxPages = 1ull << 28;

  std::vector<Plane> planes;
  uint64_t n_pages = 0;

  uint64_t PageBytes() const;
  // Nothing in it is believed: every number is checked against the real sizes of the allocations, and no
  // sum may overflow. No two pieces may share a byte. The text names the plane or planes, and the number.
  absl::Status Validate(std::span<const uint64_t> allocation_bytes) const;
};

// How an allocation is reached from this process.
enum class HandleKind : uint8_t {
  kHostFd = 0,   // shared memory (memfd or tmpfs file), sealed against shrinking
  kCudaIpc = 1,  // cuIpcGetMemHandle: 64 bytes; maps the whole allocation
  kCudaVmm = 2,  // cuMemExportToShareableHandle, POSIX descriptor
};
struct AllocationHandle {
  HandleKind kind = HandleKind::kHostFd;
  int fd = -1;                          // kHostFd, kCudaVmm: borrowed; the opener duplicates or maps it
  std::array<std::byte, 64> ipc{};      // kCudaIpc
  uint64_t bytes = 0;                   // as the engine says; compared with the real size
  // kCudaVmm: mapped right behind the one before. Both are one allocation, of the former's number, as expandable
  // segments are; planes name the first.
  bool continues = false;
};
using EventHandle = std::array<std::byte, 64>;  // cuIpcGetEventHandle
using DeviceUuid = std::array<std::byte, 16>;   // cuDeviceGetUuid; all zero: host memory

// Owner: shared by the session that registered it and the batches that use it; the memory stays open until
// the last of them lets go. Threads: any. After Fence() no new copy touches it: batches end as Cancelled.
class Region {
 public:
  virtual ~Region() = default;
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  const RegionLayout& layout() const { return layout_; }
  uint64_t page_bytes() const { return page_bytes_; }
  // Address of a page's piece; a device address where is_device().
  std::byte* Piece(uint32_t plane, uint64_t page) const {
    const Plane& p = layout_.planes[plane];
    return bases_[p.allocation] + p.offset + page * p.stride;
  }
  bool is_device() const { return is_device_; }
  uint32_t event_count() const { return n_events_; }

  void Fence() { fenced_.store(true, std::memory_order_release); }
  bool fenced() const { return fenced_.load(std::memory_order_acquire); }

 protected:
  // REQUIRES: layout.Validate() held for these allocations.
  Region(RegionLayout layout, std::vector<std::byte*> bases, bool is_device, uint32_t n_events)
      : layout_(std::move(layout)),
        bases_(std::move(bases)),
        page_bytes_(layout_.PageBytes()),
        is_device_(is_device),
        n_events_(n_events) {}

 private:
  const RegionLayout layout_;
  const std::vector<std::byte*> bases_;
  const uint64_t page_bytes_;
  const bool is_device_;
  const uint32_t n_events_;
  std::atomic<bool> fenced_{false};
};

}  // namespace terrace::gpu
