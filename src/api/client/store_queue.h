// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// StoreQueue: the store thread, its connection and its staging memory. It gathers block after block into
// the staging ring and hands each to the daemon at once, so that the two copy at the same time.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <unordered_set>
#include <vector>

#include "api/client/link.h"
#include "api/client/result.h"
#include "api/client/staging_ring.h"
#include "api/client/store_op.h"
#include "api/client/thread.h"

namespace terrace::client {

// Owner: Core. Threads: Submit from any; everything else happens on the store thread, which starts with
// the first store, as does the connection.
// Limits: kMaxQueued operations waiting (then ResourceExhausted), kMaxPutsInFlight blocks at the daemon.
// Failure: when the connection goes or the daemon stalls, what is not yet acknowledged ends as
// unavailable; the next operation connects anew.
class StoreQueue {
 public:
  static constexpr size_t kMaxQueued = 1024;
  static constexpr size_t kMaxPutsInFlight = 64;  // a fair share of the daemon's queue
  // link must outlive it. staging_bytes 0: the daemon's default.
  StoreQueue(Link* link, uint64_t staging_bytes) : link_(link), wanted_staging_bytes_(staging_bytes) {}
  ~StoreQueue() { Stop(); }

  Result Submit(std::shared_ptr<StoreOp> op);
  // Blocks not yet acknowledged are cancelled. Joins the thread.
  void Stop();

 private:
  void Run();
  void TakeNext();           // the next operation, if there is none at work
  bool Advance();            // one step of the present operation; false: must wait for the daemon
  bool Prepare();            // connection, staging, duplicates; false: the operation has ended
  bool SendBlock(uint32_t i, uint64_t offset);
  bool CollectAnswers();     // ends blocks that the daemon has answered; true if there were any
  void Sleep();
  Result Connect(uint64_t block_bytes);
  Result FindDuplicates();
  void EndPresent(Reason reason);  // the rest of the present operation
  void EndInFlight(Reason reason); // drops the connection too

  Link* const link_;
  const uint64_t wanted_staging_bytes_;
  const std::shared_ptr<WakeFd> wake_ = std::make_shared<WakeFd>();
  std::atomic<bool> stopping_{false};

  std::mutex mu_;
  std::deque<std::shared_ptr<StoreOp>> queue_;   // guarded by mu_
  std::shared_ptr<Connection> breakable_;        // guarded by mu_; connection_, for Stop()
  Thread thread_;                                // guarded by mu_

  // Of the store thread.
  std::shared_ptr<Connection> connection_;
  std::unique_ptr<StagingRing> ring_;
  std::unordered_set<uint32_t> opened_here_;  // ids of key spaces opened on connection_
  std::deque<std::unique_ptr<PutRequest>> in_flight_;  // in the order of their staging memory
  std::shared_ptr<StoreOp> present_;
  bool prepared_ = false;
  uint32_t next_ = 0;        // block of present_
  std::vector<bool> here_;   // blocks of present_ that need no copying
  std::vector<Piece> pieces_;
  std::vector<uint64_t> checksums_;
};

}  // namespace terrace::client
