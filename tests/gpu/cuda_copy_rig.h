// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// CopyRig of CudaCopyEngine, on softcuda or on a real GPU (control.h): the engine's memory is this process's own GPU
// memory. A Setup says what the engine is made to do without.
#pragma once

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "contract/copy_rig.h"
#include "gpu/cuda/cuda_copy_engine.h"
#include "gpu/cuda/cuda_device.h"
#include "gpu/softcuda/control.h"
#include "kvstore/base/check.h"
#include "kvstore/base/mutex.h"

namespace terrace::gpu {

// One driver for all tests of a process; null: *why.
inline std::shared_ptr<const Driver> LoadTestDriver(std::string* why) {
  static auto* const loaded = new std::pair<std::shared_ptr<const Driver>, std::string>([] {
    std::pair<std::shared_ptr<const Driver>, std::string> made;
    made.first = Driver::Load(TestDriver(), &made.second);
    return made;
  }());
  *why = loaded->second;
  return loaded->first;
}

// Calls with the device's context, checked. Owner: the test.
class CudaCalls {
 public:
  explicit CudaCalls(std::shared_ptr<CudaDevice> device) : device_(std::move(device)) {
    Do([&](const Driver& d) { return d.cuStreamCreateWithPriority(&stream_, CU_STREAM_NON_BLOCKING, 0); });
  }
  ~CudaCalls() {
    Do([&](const Driver& d) { return d.cuStreamDestroy(stream_); });
  }
  CudaCalls(const CudaCalls&) = delete;
  CUstream stream() const { return stream_; }
  template <class F>
  void Do(F call) const {
    const ScopedContext context(device_->driver(), device_->context());
    const CUresult result = call(device_->driver());
    TERRACE_CHECK(result == CUDA_SUCCESS || device_->fenced());
  }
  void Copy(CUdeviceptr target, CUdeviceptr source, uint64_t bytes) const {
    if (bytes == 0) return;
    Do([&](const Driver& d) {
      const CUresult result = d.cuMemcpyAsync(target, source, bytes, stream_);
      return result == CUDA_SUCCESS ? d.cuStreamSynchronize(stream_) : result;
    });
  }
  CUdeviceptr Allocate(uint64_t bytes) const {
    CUdeviceptr memory = 0;
    Do([&](const Driver& d) { return d.cuMemAlloc(&memory, bytes); });
    Do([&](const Driver& d) {
      const CUresult result = d.cuMemsetD8Async(memory, 0, bytes, stream_);
      return result == CUDA_SUCCESS ? d.cuStreamSynchronize(stream_) : result;
    });
    return memory;
  }

 private:
  const std::shared_ptr<CudaDevice> device_;
  CUstream stream_ = nullptr;
};

class CudaEngineMemory final : public EngineMemory {
 public:
  CudaEngineMemory(std::shared_ptr<CudaDevice> device, std::span<const uint64_t> allocation_bytes, uint32_t n_events)
      : device_(std::move(device)), calls_(device_), engine_calls_(device_) {
    for (const uint64_t bytes : allocation_bytes) allocations_.emplace_back(calls_.Allocate(bytes), bytes);
    events_.resize(n_events);
    for (CUevent& event : events_) {
      calls_.Do([&](const Driver& d) { return d.cuEventCreate(&event, CU_EVENT_DISABLE_TIMING); });
    }
  }
  ~CudaEngineMemory() override {
    Release();
    calls_.Do([&](const Driver& d) { return d.cuStreamSynchronize(engine_calls_.stream()); });
    for (const CUevent event : events_) calls_.Do([&](const Driver& d) { return d.cuEventDestroy(event); });
    for (const auto& [memory, bytes] : allocations_) {
      calls_.Do([&, at = memory](const Driver& d) { return d.cuMemFree(at); });
    }
  }
  std::shared_ptr<Region> MakeRegion(const RegionLayout& layout) override {
    auto region = CudaRegion::Wrap(device_, layout, allocations_, events_);
    TERRACE_CHECK(region.ok());
    return *std::move(region);
  }
  void Write(uint32_t allocation, uint64_t offset, std::span<const std::byte> bytes) override {
    calls_.Copy(allocations_[allocation].first + offset, reinterpret_cast<CUdeviceptr>(bytes.data()), bytes.size());
  }
  void Read(uint32_t allocation, uint64_t offset, std::span<std::byte> bytes) override {
    calls_.Copy(reinterpret_cast<CUdeviceptr>(bytes.data()), allocations_[allocation].first + offset, bytes.size());
  }
  void HoldThenWrite(uint32_t event, uint32_t allocation, uint64_t offset, std::span<const std::byte> bytes) override {
    {
      MutexLock lock(&mu_);
      is_held_ = true;
    }
    late_ = PinnedCopy(bytes);
    void* const library = dlopen(TestDriver().c_str(), RTLD_NOW | RTLD_LOCAL);
    const auto launch = reinterpret_cast<decltype(&::cuLaunchHostFunc)>(dlsym(library, "cuLaunchHostFunc"));
    const auto wait = [](void* self) { static_cast<CudaEngineMemory*>(self)->WaitForRelease(); };
    const CUstream stream = engine_calls_.stream();
    calls_.Do([&](const Driver&) { return launch(stream, wait, this); });
    calls_.Do([&](const Driver& d) {
      return d.cuMemcpyAsync(allocations_[allocation].first + offset, late_, bytes.size(), stream);
    });
    calls_.Do([&](const Driver& d) { return d.cuEventRecord(events_[event], stream); });
  }
  void Release() override {
    MutexLock lock(&mu_);
    is_held_ = false;
    released_.SignalAll();
  }

 private:
  void WaitForRelease() {
    MutexLock lock(&mu_);
    while (is_held_) released_.Wait(&mu_);
  }
  // In GPU memory: a copy from there is asynchronous for certain.
  CUdeviceptr PinnedCopy(std::span<const std::byte> bytes) {
    const CUdeviceptr copy = calls_.Allocate(bytes.size());
    calls_.Copy(copy, reinterpret_cast<CUdeviceptr>(bytes.data()), bytes.size());
    allocations_.emplace_back(copy, bytes.size());
    return copy;
  }

  const std::shared_ptr<CudaDevice> device_;
  const CudaCalls calls_, engine_calls_;
  std::vector<std::pair<CUdeviceptr, uint64_t>> allocations_;
  std::vector<CUevent> events_;
  CUdeviceptr late_ = 0;
  Mutex mu_;
  CondVar released_;
  bool is_held_ ABSL_GUARDED_BY(mu_) = false;
};

struct CudaSetup {
  std::optional<CopyMeans> only;
  bool is_pinned = true;       // frames in host memory
  bool has_kernels = true;
  bool has_batches = true;     // cuMemcpyBatchAsync
  uint64_t staging_bytes = 6 << 18;  // chunks of 224 KiB: batches have several
};

class CudaCopyRig : public CopyRig {
 public:
  explicit CudaCopyRig(const CudaSetup& setup = {}) : setup_(setup) {
    const std::shared_ptr<const Driver> loaded = LoadTestDriver(&why_skipped_);
    if (loaded == nullptr) return;
    auto driver = std::make_shared<Driver>(*loaded);
    if (!setup.has_batches) driver->cuMemcpyBatchAsync = nullptr;
    if (!setup.has_kernels) {
      driver->cuModuleLoadData = [](CUmodule*, const void*) { return CUDA_ERROR_NO_BINARY_FOR_GPU; };
    }
    auto device = CudaDevice::Open(driver, 0);
    if (!device.ok()) {
      why_skipped_ = std::string(device.status().message());
      return;
    }
    device_ = *std::move(device);
    calls_.emplace(device_);
  }
  ~CudaCopyRig() override {
    for (const CUdeviceptr memory : device_frames_) {
      calls_->Do([&](const Driver& d) { return d.cuMemFree(memory); });
    }
    for (void* const memory : host_frames_) {
      if (setup_.is_pinned) calls_->Do([&](const Driver& d) { return d.cuMemHostUnregister(memory); });
      std::free(memory);
    }
  }
  const std::shared_ptr<CudaDevice>& device() const { return device_; }
  const CudaCalls& calls() const { return *calls_; }
  GpuOptions Options(uint32_t queue_depth) const {
    GpuOptions options;
    options.queue_depth = queue_depth;
    options.staging_bytes = setup_.staging_bytes;
    options.max_sms = 3;
    options.batch_deadline_ns = 60'000'000'000;
    return options;
  }
  std::string why_skipped() const override { return why_skipped_; }
  std::unique_ptr<CopyEngine> MakeEngine(uint32_t queue_depth) override {
    auto engine = CudaCopyEngine::Make(device_, Options(queue_depth), setup_.only);
    TERRACE_CHECK(engine.ok());
    return *std::move(engine);
  }
  std::unique_ptr<EngineMemory> MakeMemory(std::span<const uint64_t> allocation_bytes, uint32_t n_events) override {
    return std::make_unique<CudaEngineMemory>(device_, allocation_bytes, n_events);
  }
  bool has_events() const override { return true; }
  int callback_threads() const override { return 1; }
  bool has_device_frames() const override { return true; }
  std::byte* MakeFrames(uint64_t bytes, bool on_device) override {
    if (on_device) {
      device_frames_.push_back(calls_->Allocate(bytes));
      return reinterpret_cast<std::byte*>(device_frames_.back());
    }
    bytes = (bytes + 4095) / 4096 * 4096;
    void* const memory = std::aligned_alloc(4096, bytes);
    std::memset(memory, 0, bytes);
    host_frames_.push_back(memory);
    if (setup_.is_pinned) {
      calls_->Do([&](const Driver& d) { return d.cuMemHostRegister(memory, bytes, CU_MEMHOSTREGISTER_PORTABLE); });
    }
    return static_cast<std::byte*>(memory);
  }
  void WriteFrame(std::byte* frame, std::span<const std::byte> bytes, bool on_device) override {
    if (on_device) {
      calls_->Copy(reinterpret_cast<CUdeviceptr>(frame), reinterpret_cast<CUdeviceptr>(bytes.data()), bytes.size());
    } else {
      std::memcpy(frame, bytes.data(), bytes.size());
    }
  }
  void ReadFrame(const std::byte* frame, std::span<std::byte> bytes, bool on_device) override {
    if (on_device) {
      calls_->Copy(reinterpret_cast<CUdeviceptr>(bytes.data()), reinterpret_cast<CUdeviceptr>(frame), bytes.size());
    } else {
      std::memcpy(bytes.data(), frame, bytes.size());
    }
  }

 private:
  const CudaSetup setup_;
  std::string why_skipped_;
  std::shared_ptr<CudaDevice> device_;
  std::optional<CudaCalls> calls_;
  std::vector<CUdeviceptr> device_frames_;
  std::vector<void*> host_frames_;
};

}  // namespace terrace::gpu
