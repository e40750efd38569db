// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The engine socket's messages about regions, from protocol 3 on. As wire.h: plain structs, little-endian.
#pragma once

#include <cstdint>

#include "api/engine/wire.h"

namespace terrace::wire {

// A region is an engine's paged KV cache that the daemon opens and copies from and to by itself. It belongs to the
// connection and ends with it: a client that shuts its side down (SHUT_WR) fences its regions. The daemon closes or
// shuts down its side only when none of its copies touches them any more, nor publishes what it read after the
// fence: a client that reads to the end of the connection knows that its pages are its own again. Behind
// RegisterRegion follow: n_allocations RegionAllocation, n_planes RegionPlane, n_events 64-byte event handles.
// Descriptors: one for each allocation whose kind has one, in order.
inline constexpr uint32_t kMaxRegionPlanes = 4096;
inline constexpr uint32_t kMaxRegionAllocations = 1024;
inline constexpr uint32_t kMaxRegionFds = 250;  // SCM_RIGHTS takes 253
inline constexpr uint32_t kMaxRegionEvents = 64;
inline constexpr uint32_t kMaxRegionBlocks = 2048;  // of one RegionStore or RegionLoad
inline constexpr uint32_t kRegionSlots = 256;
struct RegisterRegion {
  uint8_t device_uuid[16];  // all zero: host memory
  uint64_t n_pages;
  uint32_t n_allocations, n_planes, n_events;
  uint32_t reserved;
};
static_assert(sizeof(RegisterRegion) == 40);
// CUDA VMM only: mapped right behind the one before. Both are one allocation of the former's number, as expandable
// segments are; planes name the first.
inline constexpr uint32_t kRegionAllocationContinues = 1;
struct RegionAllocation {
  uint32_t kind;  // 0 host (descriptor), 1 CUDA IPC, 2 CUDA VMM (descriptor)
  uint32_t flags;  // kRegionAllocation*
  uint64_t bytes;
  uint8_t ipc[64];
};
static_assert(sizeof(RegionAllocation) == 80);
struct RegionPlane {
  uint32_t allocation;
  uint32_t reserved;
  uint64_t offset, stride, bytes;
};
static_assert(sizeof(RegionPlane) == 32);
// The descriptor is a file in memory of kRegionSlots RegionProgress, for the client to map for reading.
struct RegionRegistered {
  uint32_t region_id;
  uint32_t device;  // the daemon's number of it, for humans
  uint64_t reserved;
};
static_assert(sizeof(RegionRegistered) == 16);
// Written by the daemon while an operation that named this slot runs; its reply ends the operation. value: the
// operation's request_id in the upper half; lower half: loads: leading planes that are there and checked;
// stores: 1 when no page is read any more.
struct RegionProgress {
  uint64_t value;  // atomic
};
struct UnregisterRegion {
  uint32_t region_id;
  uint32_t reserved;
};
struct RegionBlock {
  uint8_t key[32];
  uint64_t page;
};
static_assert(sizeof(RegionBlock) == 40);
inline constexpr uint32_t kNoRegionEvent = ~0u;
inline constexpr uint32_t kRegionStoreHasParent = 1;
inline constexpr uint32_t kRegionStoreIndependent = 2;  // no block has a parent; else each one's is the one before
struct RegionStore {
  uint32_t region_id, key_space_id;
  uint32_t n_blocks;  // 1 .. kMaxRegionBlocks; that many RegionBlock follow
  uint32_t flags;
  uint32_t slot;         // < kRegionSlots, of no other operation under way on this region
  uint32_t after_event;  // of the region, recorded by the engine; kNoRegionEvent
  uint8_t parent[32];
  Retention retention;
  uint32_t reserved;
};
static_assert(sizeof(RegionStore) == 72);
// Loads blocks that some lease of the tenant holds; PENDING ones are waited for.
struct RegionLoad {
  uint32_t region_id, key_space_id;
  uint32_t n_blocks;
  uint32_t slot;
  uint32_t after_event;
  uint32_t timeout_us;  // for what is on its way from a lower tier; at most kMaxLocateUs
};
static_assert(sizeof(RegionLoad) == 24);
struct RegionDone {
  uint32_t n_blocks;  // that many reasons follow, one byte each
  uint32_t reserved;
};
static_assert(sizeof(RegionDone) == 8);

}  // namespace terrace::wire
