// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// RegionLink: the connection on which the daemon is asked to copy from and to this process's own
// pages. It opens the regions at every new daemon and says when an operation is over, whatever
// becomes of the daemon.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_set>
#include <vector>

#include "api/client/link.h"
#include "api/client/region.h"
#include "api/client/region_op.h"
#include "api/client/result.h"
#include "api/client/thread.h"

namespace terrace::client {

// The daemon may write to the pages of an operation until it has answered it or has closed its end
// of the connection: it does that when its last copy has ended, or by dying. So a connection that
// breaks or whose daemon hangs is shut down on our side, which fences its regions there, and its
// operations end when the other end is closed, too. A daemon that is frozen (SIGSTOP) holds them as
// long. Owner: Core. Threads: Add, Remove, Submit from any; everything else happens on the region
// thread, which starts with the first region, as does the connection. Limits: kMaxQueued
// operations, kMaxPartsInFlight requests at the daemon, stores half of them. Failure: a region that
// is refused stays closed until there is another daemon; its pages are copied otherwise.
class RegionLink {
 public:
  static constexpr size_t kMaxQueued = 1024;
  static constexpr uint32_t kMaxPartsInFlight = 32;
  explicit RegionLink(Link* link) : link_(link) {}  // link must outlive it
  ~RegionLink() { Stop(); }

  // From now on it is opened at every daemon. Returns after the first attempt, or at the deadline.
  Result Add(const std::shared_ptr<Region>& region, Deadline deadline);
  // Returns when the daemon has closed it or is gone, or at the deadline. REQUIRES: no operation
  // uses it.
  void Remove(const std::shared_ptr<Region>& region, Deadline deadline);
  // Unavailable: the region was closed meanwhile.
  Result Submit(std::shared_ptr<RegionOp> op);
  // Fences the regions and ends all operations as cancelled once that is certain, at most at the
  // deadline's end. Joins the thread.
  void Stop();

 private:
  void Run();
  void TakeNew();
  void Maintain();
  void Connect();
  void Register(const std::shared_ptr<Region>& region);
  void Unregister(const std::shared_ptr<Region>& region);
  bool OpenKeySpace(RegionOp* op);
  bool SendAll();
  bool SendSome(const std::shared_ptr<RegionOp>& op, uint32_t limit);
  bool CollectAnswers();
  bool TakeAnswer(RegionOp* op, RegionPart* part);
  void WatchDaemon();            // pings one that is silent; one that hangs is given up
  void GiveUp(std::string why);  // shuts our side down: nothing new is asked
  void Finish();                 // what is left of a broken connection
  bool DeviceIsQuiet();          // the daemon's process does not write to a GPU any more
  void EndAll(Reason reason);
  void Sleep();

  Link* const link_;
  const std::shared_ptr<WakeFd> wake_ = std::make_shared<WakeFd>();
  std::atomic<bool> stopping_{false};

  std::mutex mu_;  // all of this group
  std::condition_variable changed_;
  std::deque<std::shared_ptr<RegionOp>> queue_;
  std::vector<std::shared_ptr<Region>> added_, removed_;
  size_t unfinished_ = 0;                  // operations: queued and in ops_
  std::shared_ptr<Connection> breakable_;  // connection_, for Stop()
  Thread thread_;

  // Of the region thread.
  std::shared_ptr<Connection> connection_;
  std::vector<std::shared_ptr<Region>> regions_;
  std::vector<std::shared_ptr<Region>> untried_;  // of regions_: not asked for on this connection
  std::deque<std::shared_ptr<RegionOp>> ops_;     // in the order of their submission
  std::unordered_set<uint32_t> opened_here_;      // ids of key spaces
  std::string why_down_;
  uint64_t connection_number_ = 0;
  uint32_t in_flight_ = 0, stores_in_flight_ = 0;
  uint64_t refused_epoch_ = 0;  // of a daemon that cannot open regions
  int64_t retry_at_ns_ = 0, retry_ns_ = 0;
  int64_t last_sign_ns_ = 0;  // of life: when something was received, or asked after silence
  int64_t pinged_at_ns_ = 0;  // 0: no ping is under way
  int64_t ended_at_ns_ = 0;   // when the daemon's end of the connection was found closed
  int daemon_fd_ = -1;        // pidfd of its process; -1: not to be had
};

}  // namespace terrace::client
