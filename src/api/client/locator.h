// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Locator: loads whose blocks are still on their way from a lower tier. It asks the daemon for them in the
// order of the chain and hands each block to the copy threads as it arrives; nobody else waits for it.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "api/client/copy_pool.h"
#include "api/client/link.h"
#include "api/client/load_op.h"
#include "api/client/locate.h"
#include "api/client/result.h"
#include "api/client/thread.h"

namespace terrace::client {

// It has a connection of its own, so that a question that waits for a disk stands in nobody's way.
// Owner: Core. Threads: Submit from any; everything else happens on the locating thread, which starts with
// the first such load, as does the connection.
// Limits: kMaxQueued loads (then ResourceExhausted), kMaxAsked questions at the daemon; each waits there
// for kAskNs at most, then others have their turn.
// Failure: a block that fails at the daemon has its reason; a load's time limit ends what has not arrived
// as kDeadline; the connection's end, as kUnavailable.
class Locator {
 public:
  static constexpr size_t kMaxQueued = 1024;
  static constexpr size_t kMaxAsked = 32;
  static constexpr int64_t kAskNs = 1'000'000'000;
  // link and copies must outlive it.
  Locator(Link* link, CopyPool* copies, int64_t load_timeout_ns)
      : link_(link), copies_(copies), load_timeout_ns_(load_timeout_ns) {}
  ~Locator() { Stop(); }

  // REQUIRES: the load has pending blocks.
  Result Submit(std::shared_ptr<LoadOp> op);
  // Blocks that have not arrived are cancelled. Joins the thread.
  void Stop();

 private:
  // A load under way.
  struct Job {
    std::shared_ptr<LoadOp> op;
    Deadline deadline;
    uint32_t settled = 0;  // of op->pending(), from the front
    std::unique_ptr<LocateRequest> asked;
    int64_t ask_after_ns = 0;
  };

  void Run();
  void TakeNew();
  bool Connect(uint64_t epoch);  // false: there is no such daemon
  bool CollectAnswers();         // true if something has happened
  void TakeAnswer(Job* job);
  void AskAll();
  void Ask(Job* job);
  void End(Job* job, Reason reason);
  void EndAll(Reason reason);
  void Disconnect();
  void Sleep();

  Link* const link_;
  CopyPool* const copies_;
  const int64_t load_timeout_ns_;
  const std::shared_ptr<WakeFd> wake_ = std::make_shared<WakeFd>();
  std::atomic<bool> stopping_{false};

  std::mutex mu_;
  std::deque<Job> queue_;                  // guarded by mu_: new ones
  size_t unfinished_ = 0;                  // guarded by mu_: new ones and jobs_
  std::shared_ptr<Connection> breakable_;  // guarded by mu_; connection_, for Stop()
  Thread thread_;                          // guarded by mu_

  // Of the locating thread.
  std::shared_ptr<Connection> connection_;
  std::deque<Job> jobs_;  // who has waited longest for a turn is first
  size_t asked_ = 0;      // jobs with a question under way
};

}  // namespace terrace::client
