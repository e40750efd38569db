// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// DevicePages: what the library has in the engine's GPU: events on the engine's stream, a stream of
// its own, and pinned memory to copy through. In a library built without CUDA
// (device_pages_none.cc) there are none.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "api/client/region.h"
#include "api/client/result.h"
#include "api/client/terrace.h"
#include "kvstore/base/block_copy.h"

struct CUctx_st;
struct CUevent_st;
struct CUstream_st;
namespace terrace::gpu {
struct Driver;
}

namespace terrace::client {

// Every call makes the context of the pages current and restores the caller's. None is made with a
// lock held, and none by a destructor: what was not closed ends with the process. Owner: the Pages.
// Threads: Record, TakeMark, GiveBackMark: any; copying: the copying thread. Limits: kBounceBytes
// of pinned memory, or two blocks, taken at the first copy.
// Failure: a driver error is a Result with its name. After one that leaves the context of no use,
// which is the engine's to repair, every call answers with it and the driver is not called again.
class DevicePages {
 public:
  static constexpr uint64_t kBounceBytes = 32ull << 20;
  static constexpr uint32_t kMaxBuffers = 8;
  // *region: null where the memory cannot be exported or must not be (flags); *why says why. Planes
  // are checked.
  static Result Create(const terrace_device_pages& wanted, std::shared_ptr<DevicePages>* out,
                       std::shared_ptr<Region>* region, std::string* why);
  ~DevicePages();
  DevicePages(const DevicePages&) = delete;
  // Gives everything back to the driver. REQUIRES: no operation uses the pages.
  void Close();

  // For the daemon: an event of the region that stands behind all that the engine's stream holds
  // now.
  Result Record(uint32_t* event);
  // For the library: the same as an event of this process, to be given back.
  Result TakeMark(CUevent_st** mark);
  void GiveBackMark(CUevent_st* mark);

  // A piece of pinned memory for whole blocks, and the copies to or from it.
  struct Buffer {
    std::byte* data = nullptr;
    bool in_use = false;
    CUevent_st* copied = nullptr;
  };
  enum class Way { kFromDevice, kToDevice };
  // Blocks that fit into a buffer; the buffers are made at the first call.
  Result Prepare(uint64_t block_bytes, uint32_t* blocks_per_buffer);
  Buffer* TakeBuffer(uint32_t leave);  // null: only `leave` are free
  void GiveBackBuffer(Buffer* buffer) { buffer->in_use = false; }
  // Enqueues the copy of a block's pieces, behind the mark.
  Result Begin(CUevent_st* mark);
  Result Copy(Way way, std::span<const Piece> device, std::byte* host);
  Result End(Buffer* buffer);
  // True when all that was enqueued before End(buffer) is done. Does not wait.
  Result Poll(Buffer* buffer, bool* done);

 private:
  DevicePages(std::shared_ptr<const gpu::Driver> driver, CUctx_st* context, CUstream_st* stream)
      : driver_(std::move(driver)), context_(context), engine_stream_(stream) {}
  Result Check(int result, const char* call);
  Result MakeBuffers(uint64_t bytes);
  static Result Export(const gpu::Driver& driver, const terrace_device_pages& wanted,
                       Region::Source* source, std::string* why);
  void MakeEvents(Region::Source* source, std::string* why);

  const std::shared_ptr<const gpu::Driver> driver_;
  CUctx_st* const context_;
  CUstream_st* const engine_stream_;
  std::vector<CUevent_st*> region_events_;  // constant once made
  std::atomic<uint32_t> next_event_{0};
  std::atomic<bool> broken_{false};

  std::mutex mu_;
  std::string broken_why_;          // guarded by mu_
  std::vector<CUevent_st*> marks_;  // guarded by mu_: free ones

  // Of the copying thread, and of Close().
  CUstream_st* stream_ = nullptr;
  std::vector<Buffer> buffers_;
  uint64_t buffer_bytes_ = 0;
  std::byte* memory_ = nullptr;
  uint64_t memory_bytes_ = 0;
  bool pinned_ = false;
};

}  // namespace terrace::client
