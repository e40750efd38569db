// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// A warp on the processor: what src/gpu/cuda/kernels/segment_copy.h needs, lane after lane. Loads and stores go through
// Memory: Byte* Map(address, bytes), nullptr where there is none.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "gpu/cuda/kernels/segment_copy.h"

namespace softcuda {

// Owner: the stack. One thread. After a bad address all loads give 0, stores do nothing and ok() is false.
template <class Memory>
class HostWarp {
 public:
  explicit HostWarp(Memory* memory) : memory_(memory) {}
  bool ok() const { return ok_; }

  template <class F>
  void Each(F f) {
    for (uint32_t lane = 0; lane < terrace::gpu::xxh3::kLanes; ++lane) f(lane, states_[lane], words_[lane]);
  }
  void SumBlock() {
    for (uint32_t i = 0; i < 2; ++i) {
      for (uint32_t first = 0; first < 4; ++first) {
        uint64_t sum = 0;
        for (uint32_t lane = first; lane < terrace::gpu::xxh3::kLanes; lane += 4) sum += states_[lane].sum[i];
        for (uint32_t lane = first; lane < terrace::gpu::xxh3::kLanes; lane += 4) states_[lane].sum[i] = sum;
      }
    }
  }
  template <class F>
  uint64_t SumFour(F f) {
    uint64_t sum = 0;
    for (uint32_t lane = 0; lane < 4; ++lane) sum += f(lane, states_[lane]);
    return sum;
  }
  void Sync() {}
  uint8_t* Tail() { return tail_; }
  terrace::gpu::xxh3::Word16 Load(uint64_t address) {
    terrace::gpu::xxh3::Word16 word;
    ok_ = ok_ && address % 16 == 0;  // a GPU would trap
    if (const std::byte* const at = Map(address, 16)) std::memcpy(&word, at, 16);
    return word;
  }
  void Store(uint64_t address, const terrace::gpu::xxh3::Word16& word) {
    ok_ = ok_ && address % 16 == 0;
    if (std::byte* const at = Map(address, 16)) std::memcpy(at, &word, 16);
  }
  uint8_t LoadByte(uint64_t address) {
    const std::byte* const at = Map(address, 1);
    return at == nullptr ? uint8_t{0} : static_cast<uint8_t>(*at);
  }
  void StoreByte(uint64_t address, uint8_t byte) {
    if (std::byte* const at = Map(address, 1)) *at = static_cast<std::byte>(byte);
  }
  template <class F>
  void Publish(uint64_t* to, F f) {
    const uint64_t value = f();
    if (std::byte* const at = Map(reinterpret_cast<uint64_t>(to), 8)) std::memcpy(at, &value, 8);
  }

 private:
  static constexpr uint64_t kWindow = 4096;
  struct Window {
    uint64_t begin = 1;
    std::byte* at = nullptr;
  };
  // Remembers two windows: what is read and what is written.
  std::byte* Map(uint64_t address, uint64_t bytes) {
    const uint64_t begin = address / kWindow * kWindow;
    if (ok_ && address + bytes <= begin + kWindow) {
      for (const Window& window : windows_) {
        if (window.begin == begin) return window.at + (address - begin);
      }
      if (std::byte* const at = memory_->Map(begin, kWindow)) {
        windows_[next_ ^= 1] = {begin, at};
        return at + (address - begin);
      }
    }
    std::byte* const at = ok_ ? memory_->Map(address, bytes) : nullptr;
    ok_ = at != nullptr;
    return at;
  }

  Memory* const memory_;
  terrace::gpu::xxh3::LaneState states_[terrace::gpu::xxh3::kLanes];
  terrace::gpu::xxh3::Word16 words_[terrace::gpu::xxh3::kLanes][2 * terrace::gpu::kBlocksAtOnce];
  uint8_t tail_[terrace::gpu::kTailBytes] = {};
  Window windows_[2];
  uint32_t next_ = 0;
  bool ok_ = true;
};

// All items of a launch. False: an address that is not there, or not aligned.
template <terrace::gpu::SegmentWork kWork, bool kHash, class Memory>
bool RunCopyKernel(Memory memory, const terrace::gpu::CopyTable& table) {
  // The tables lie in the GPU's memory: they are read where they are mapped.
  terrace::gpu::CopyTable mapped = table;
  mapped.planes = reinterpret_cast<const terrace::gpu::PlaneEntry*>(
      memory.Map(reinterpret_cast<uint64_t>(table.planes), table.n_planes * sizeof(terrace::gpu::PlaneEntry)));
  mapped.blocks = reinterpret_cast<const terrace::gpu::BlockEntry*>(
      memory.Map(reinterpret_cast<uint64_t>(table.blocks), table.n_blocks * sizeof(terrace::gpu::BlockEntry)));
  if (mapped.planes == nullptr || mapped.blocks == nullptr) return false;
  HostWarp<Memory> warp(&memory);
  for (uint32_t item = 0; item < table.n_blocks * table.n_segments; ++item) {
    terrace::gpu::CopySegment<kWork, kHash>(warp, mapped, item);
    if (!warp.ok()) return false;
  }
  return true;
}

}  // namespace softcuda
