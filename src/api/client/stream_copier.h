// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// StreamCopier: loads and stores of GPU pages that no daemon can open. Blocks go through pinned
// memory: the GPU's copies are made here, all the rest is an ordinary store or load from or to that
// memory.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <vector>

#include "api/client/copy_pool.h"
#include "api/client/device_op.h"
#include "api/client/link.h"
#include "api/client/locator.h"
#include "api/client/result.h"
#include "api/client/store_queue.h"
#include "api/client/thread.h"

namespace terrace::client {

// A store's bytes are those that the pages held when the stream came to the mark; they may be
// overwritten when all of them have left the GPU. A loaded block counts when its copy to the GPU
// has ended. Owner: Core. Threads: Submit from any; all else on the copying thread, which starts
// with the first operation. It never waits for the GPU, it looks. Limits: kMaxQueued operations;
// blocks under way: the buffers of their pages, one of them kept for the other direction. Failure:
// an error of the GPU ends the blocks it concerns as unavailable; memory that the GPU may still
// write to is not used again.
class StreamCopier {
 public:
  static constexpr size_t kMaxQueued = 1024;
  // All must outlive it.
  StreamCopier(Link* link, CopyPool* copies, StoreQueue* stores, Locator* locator)
      : link_(link), copies_(copies), stores_(stores), locator_(locator) {}
  ~StreamCopier() { Stop(); }

  Result Submit(std::shared_ptr<DeviceOp> op);
  // Blocks not yet copied are cancelled; waits for the GPU's copies, not for longer than kStopNs.
  // Joins the thread.
  void Stop();

 private:
  // Blocks of one operation in one buffer.
  struct Chunk {
    enum class State { kFromDevice, kToStore, kStoring, kToLoad, kLoading, kToDevice, kEnded };
    std::shared_ptr<DeviceOp> op;
    uint32_t begin = 0, count = 0;
    DevicePages::Buffer* buffer = nullptr;
    State state = State::kEnded;
    std::shared_ptr<Op> inner;  // the ordinary load or store
    std::vector<Reason> reasons;
  };

  void Run();
  bool TakeNew();
  bool StartChunks(const std::shared_ptr<DeviceOp>& op);
  void StartChunk(Chunk* chunk);
  bool Advance(Chunk* chunk);
  void CopyAll(Chunk* chunk, DevicePages::Way way);
  bool GpuIsDone(Chunk* chunk);
  static Result PlaceInBuffer(const Chunk& chunk, Op::Work* work);
  Result SubmitStore(Chunk* chunk);
  Result SubmitLoad(Chunk* chunk);
  bool TakeInner(Chunk* chunk);
  void EndChunk(Chunk* chunk);
  void Fail(Chunk* chunk, Reason reason);

  Link* const link_;
  CopyPool* const copies_;
  StoreQueue* const stores_;
  Locator* const locator_;
  const std::shared_ptr<Stats> inner_stats_ =
      std::make_shared<Stats>();  // nobody's: blocks are counted once
  std::atomic<bool> stopping_{false};

  std::mutex mu_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<DeviceOp>> queue_;  // guarded by mu_
  size_t unfinished_ = 0;                        // guarded by mu_
  Thread thread_;                                // guarded by mu_

  // Of the copying thread.
  std::list<std::shared_ptr<DeviceOp>> ops_;
  std::list<Chunk> chunks_;
};

}  // namespace terrace::client
