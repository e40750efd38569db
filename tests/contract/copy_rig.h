// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// CopyRig: what an implementation of CopyEngine brings to its contract suite (copy_engine_contract.h): an engine,
// memory as an inference engine has it, and frames.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "gpu/copy_engine.h"
#include "gpu/region.h"

namespace terrace::gpu {

// An inference engine's allocations and its stream. Owner: the test; outlives the regions made of it. The destructor
// releases what is held.
class EngineMemory {
 public:
  virtual ~EngineMemory() = default;
  // With the events that the memory was made with. Any number of regions.
  virtual std::shared_ptr<Region> MakeRegion(const RegionLayout& layout) = 0;
  // Plain access, done when it returns. Any thread.
  virtual void Write(uint32_t allocation, uint64_t offset, std::span<const std::byte> bytes) = 0;
  virtual void Read(uint32_t allocation, uint64_t offset, std::span<std::byte> bytes) = 0;
  // Gives the stream work that does not end before Release(): to write these bytes. Then records the event.
  virtual void HoldThenWrite(uint32_t event, uint32_t allocation, uint64_t offset,
                             std::span<const std::byte> bytes) = 0;
  virtual void Release() = 0;
};

// Made anew for each test. Owner: the test; ends after engine, memory and regions.
class CopyRig {
 public:
  virtual ~CopyRig() = default;
  // Not empty: there is no such device here; the test is reported as skipped.
  virtual std::string why_skipped() const = 0;
  virtual std::unique_ptr<CopyEngine> MakeEngine(uint32_t queue_depth) = 0;
  virtual std::unique_ptr<EngineMemory> MakeMemory(std::span<const uint64_t> allocation_bytes, uint32_t n_events) = 0;
  virtual bool has_events() const = 0;
  // So many done() that do not return keep the engine from doing anything.
  virtual int callback_threads() const = 0;
  virtual bool has_device_frames() const = 0;
  // Zeroed memory for frames that lives as long as the rig, aligned to 64 bytes.
  virtual std::byte* MakeFrames(uint64_t bytes, bool on_device) = 0;
  virtual void WriteFrame(std::byte* frame, std::span<const std::byte> bytes, bool on_device) = 0;
  virtual void ReadFrame(const std::byte* frame, std::span<std::byte> bytes, bool on_device) = 0;
};

// A layout in use, small.
struct NamedLayout {
  std::string name;
  std::vector<uint64_t> allocation_bytes;
  RegionLayout layout;
};

namespace layouts {

// n_allocations equal ones, in each of which planes_each pieces of a page lie as the arguments say.
struct Regular {
  uint32_t n_allocations = 1, planes_each = 1;
  uint64_t plane_distance = 0;  // from one plane's first piece to the next one's
  uint64_t stride = 0, bytes = 0, offset = 0, n_pages = 0;
};
inline NamedLayout Make(std::string name, const Regular& regular) {
  NamedLayout made{std::move(name), {}, {}};
  made.layout.n_pages = regular.n_pages;
  for (uint32_t a = 0; a < regular.n_allocations; ++a) {
    const uint64_t last_plane = regular.offset + (regular.planes_each - 1) * regular.plane_distance;
    made.allocation_bytes.push_back(last_plane + (regular.n_pages - 1) * regular.stride + regular.bytes);
    for (uint32_t p = 0; p < regular.planes_each; ++p) {
      made.layout.planes.push_back({a, regular.offset + p * regular.plane_distance, regular.stride, regular.bytes});
    }
  }
  return made;
}

// All that the daemon is to serve, and what is merely allowed.
inline std::vector<NamedLayout> All() {
  std::vector<NamedLayout> all;
  // A layer is one tensor [2, pages, tokens, heads, size]: its K and V lie apart.
  all.push_back(Make("k_and_v_apart", {.n_allocations = 5,
                                       .planes_each = 2,
                                       .plane_distance = 24 * 8192,
                                       .stride = 8192,
                                       .bytes = 8192,
                                       .n_pages = 24}));
  // [pages, 2, tokens, heads, size].
  all.push_back(Make("packed", {.n_allocations = 4, .stride = 65536, .bytes = 65536, .n_pages = 12}));
  // One tensor [pages, layers, ...].
  all.push_back(Make("across_layers", {.stride = 5 * 65536 + 4096, .bytes = 5 * 65536 + 4096, .n_pages = 7}));
  // The same with a plane for each layer, so that loads complete layer by layer.
  all.push_back(Make("across_layers_by_layer",
                     {.planes_each = 10, .plane_distance = 32768, .stride = 327680, .bytes = 32768, .n_pages = 6}));
  // One latent vector a token: 576 of 2 bytes, 16 tokens.
  all.push_back(Make("mla", {.n_allocations = 7, .stride = 18432, .bytes = 18432, .n_pages = 30}));
  // All layers in one allocation, tokens first: layer l's pages stand behind those of layer l - 1.
  all.push_back(
      Make("tokens_first",
           {.planes_each = 12, .plane_distance = 20 * 16384, .stride = 16384, .bytes = 16384, .n_pages = 20}));
  // [2, heads, pages, tokens, size]: one small piece a head.
  all.push_back(Make("heads_first", {.n_allocations = 3,
                                     .planes_each = 16,
                                     .plane_distance = 18 * 2048,
                                     .stride = 2048,
                                     .bytes = 2048,
                                     .n_pages = 18}));
  // Only every other head's piece belongs to the page, with gaps between the pages.
  all.push_back(Make("with_gaps", {.n_allocations = 2,
                                   .planes_each = 4,
                                   .plane_distance = 6144,
                                   .stride = 24576,
                                   .bytes = 3072,
                                   .offset = 512,
                                   .n_pages = 15}));
  all.push_back(Make("odd", {.n_allocations = 2,
                             .planes_each = 3,
                             .plane_distance = 30011,
                             .stride = 1237,
                             .bytes = 1001,
                             .offset = 7,
                             .n_pages = 21}));
  all.push_back(Make("bytes", {.planes_each = 5, .plane_distance = 64, .stride = 3, .bytes = 1, .n_pages = 20}));
  all.push_back(Make("odd_and_large", {.planes_each = 2,
                                       .plane_distance = 600'007,
                                       .stride = 200'003,
                                       .bytes = 199'999,
                                       .offset = 13,
                                       .n_pages = 3}));
  // Planes of different sizes; segments of 64 KiB begin and end inside them.
  NamedLayout mixed{"mixed", {700'000, 40'000}, {}};
  mixed.layout.n_pages = 4;
  mixed.layout.planes = {
      {0, 0, 100'000, 99'840}, {1, 128, 4096, 4000}, {0, 420'000, 70'000, 65'536}, {1, 17'000, 160, 160}};
  all.push_back(std::move(mixed));
  return all;
}

}  // namespace layouts
}  // namespace terrace::gpu
