// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Op: a load or store under way: its blocks, their reasons, and the waiting for its end.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "api/client/block_memory.h"
#include "api/client/deadline.h"
#include "api/client/gate.h"
#include "api/client/key_space.h"
#include "api/client/stats.h"
#include "kvstore/base/reason.h"

namespace terrace::client {

using KeyBytes = std::array<uint8_t, 32>;

// Every block gets exactly one reason, set by the thread that has taken it; when all have one, the
// operation is done, for good.
// Owner: shared by the caller's handle and the threads at work. Threads: any.
class Op {
 public:
  // What loads and stores have in common. A move-only value.
  struct Work {
    std::shared_ptr<KeySpace> key_space;
    KeySpace::Opened opened;
    std::vector<KeyBytes> keys;
    BlockMemory memory;
    std::shared_ptr<Stats> stats;
  };
  explicit Op(Work op_work);
  virtual ~Op() = default;
  Op(const Op&) = delete;

  uint32_t n() const { return static_cast<uint32_t>(work.keys.size()); }
  bool done() const { return done_.load(std::memory_order_acquire); }
  bool sources_read() const { return sources_read_.load(std::memory_order_acquire) || CheckSourcesRead(); }
  // False when the deadline passed first.
  bool WaitDone(Deadline deadline);
  bool WaitSourcesRead(Deadline deadline);
  // True when that many planes are there; false: the operation is done without, or the deadline passed first.
  bool WaitPlanes(uint32_t n_planes, Deadline deadline);
  const std::vector<uint8_t>& reasons() const { return reasons_; }  // REQUIRES: done
  bool all_fine() const;                                            // REQUIRES: done

  // Leading planes of all blocks that are there. Blocks come as a whole unless somebody knows better.
  virtual uint32_t PlanesDone() const { return done() && all_fine() ? work.memory.n_planes() : 0; }
  // Progress that wakes nobody is looked at so often; 0: there is none.
  virtual int64_t PollNs() const { return 0; }

  // The waiting thread lends a hand as long as there is something to do before the deadline.
  virtual void Help(Deadline /*deadline*/) {}
  // The caller gives the operation up: returns when its memory is not touched any more.
  void Abandon() {
    abandoned_.store(true, std::memory_order_relaxed);
    gate_.Close();
  }
  bool abandoned() const { return abandoned_.load(std::memory_order_relaxed); }

  // For the threads at work. Around each touch of the caller's memory; false: it is not to be touched.
  bool EnterMemory();
  void LeaveMemory();
  void SetReason(uint32_t i, Reason reason) { reasons_[i] = static_cast<uint8_t>(reason); }
  void Finish(uint32_t count);  // that many more blocks have their reason
  void SetSourcesRead();

  const Work work;

 protected:
  virtual bool CheckSourcesRead() const { return false; }

 private:
  void WaitChange(std::unique_lock<std::mutex>& lock, Deadline deadline);
  Gate gate_;
  std::vector<uint8_t> reasons_;
  std::atomic<bool> done_{false}, sources_read_{false}, abandoned_{false};
  std::mutex mu_;
  std::condition_variable changed_;
  uint32_t finished_ = 0;  // guarded by mu_
};

}  // namespace terrace::client
