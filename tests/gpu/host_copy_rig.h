// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// CopyRig of HostCopyEngine: the engine's memory is sealed memfds that the region maps a second time, as another
// process's would be.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "contract/copy_rig.h"
#include "gpu/host_copy_engine.h"
#include "gpu/host_region.h"
#include "kvstore/base/check.h"

namespace terrace::gpu {

// A sealed memfd and this process's own mapping of it. Owner: whoever made it.
class SealedMemory {
 public:
  explicit SealedMemory(uint64_t bytes, int seals = F_SEAL_SHRINK) : bytes_(bytes) {
    fd_ = memfd_create("engine", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    TERRACE_CHECK(fd_ >= 0 && posix_fallocate(fd_, 0, static_cast<off_t>(bytes)) == 0);
    base_ = static_cast<std::byte*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0));
    TERRACE_CHECK(base_ != MAP_FAILED);
    if (seals != 0) TERRACE_CHECK(fcntl(fd_, F_ADD_SEALS, seals) == 0);
  }
  ~SealedMemory() {
    munmap(base_, bytes_);
    close(fd_);
  }
  SealedMemory(const SealedMemory&) = delete;
  std::byte* data() const { return base_; }
  uint64_t bytes() const { return bytes_; }
  int fd() const { return fd_; }
  AllocationHandle handle() const { return {.kind = HandleKind::kHostFd, .fd = fd_, .bytes = bytes_}; }

 private:
  const uint64_t bytes_;
  int fd_ = -1;
  std::byte* base_ = nullptr;
};

class HostEngineMemory final : public EngineMemory {
 public:
  explicit HostEngineMemory(std::span<const uint64_t> allocation_bytes) {
    for (const uint64_t bytes : allocation_bytes) allocations_.push_back(std::make_unique<SealedMemory>(bytes));
  }
  std::shared_ptr<Region> MakeRegion(const RegionLayout& layout) override {
    std::vector<AllocationHandle> handles;
    for (const auto& allocation : allocations_) handles.push_back(allocation->handle());
    auto region = HostRegion::Open(layout, handles);
    TERRACE_CHECK(region.ok());
    return *std::move(region);
  }
  void Write(uint32_t allocation, uint64_t offset, std::span<const std::byte> bytes) override {
    std::memcpy(allocations_[allocation]->data() + offset, bytes.data(), bytes.size());
  }
  void Read(uint32_t allocation, uint64_t offset, std::span<std::byte> bytes) override {
    std::memcpy(bytes.data(), allocations_[allocation]->data() + offset, bytes.size());
  }
  void HoldThenWrite(uint32_t, uint32_t, uint64_t, std::span<const std::byte>) override {}  // has_events() is false
  void Release() override {}

 private:
  std::vector<std::unique_ptr<SealedMemory>> allocations_;
};

template <int kThreads>
class HostCopyRig final : public CopyRig {
 public:
  std::string why_skipped() const override { return ""; }
  std::unique_ptr<CopyEngine> MakeEngine(uint32_t queue_depth) override {
    return std::make_unique<HostCopyEngine>(kThreads, queue_depth);
  }
  std::unique_ptr<EngineMemory> MakeMemory(std::span<const uint64_t> allocation_bytes, uint32_t) override {
    return std::make_unique<HostEngineMemory>(allocation_bytes);
  }
  bool has_events() const override { return false; }
  int callback_threads() const override { return kThreads; }
  bool has_device_frames() const override { return false; }
  std::byte* MakeFrames(uint64_t bytes, bool) override {
    frames_.emplace_back(bytes + 63);
    const auto address = reinterpret_cast<uintptr_t>(frames_.back().data());
    return frames_.back().data() + (64 - address % 64) % 64;
  }
  void WriteFrame(std::byte* frame, std::span<const std::byte> bytes, bool) override {
    std::memcpy(frame, bytes.data(), bytes.size());
  }
  void ReadFrame(const std::byte* frame, std::span<std::byte> bytes, bool) override {
    std::memcpy(bytes.data(), frame, bytes.size());
  }

 private:
  std::vector<std::vector<std::byte>> frames_;  // a vector that moves keeps its bytes where they are
};

}  // namespace terrace::gpu
