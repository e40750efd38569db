// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Link: the client's tie to whatever daemon is there at the moment. Its keeper thread connects, connects
// again when the daemon went, opens the key spaces again, and watches over a daemon that hangs.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "api/client/connection.h"
#include "api/client/key_space.h"
#include "api/client/segment_map.h"
#include "api/client/stats.h"
#include "api/client/thread.h"

namespace terrace::client {

// Callers never connect: without a connection they are refused at once.
// Owner: Core. Threads: any. Limits: kMaxKeySpaces, the daemon's own default.
class Link {
 public:
  static constexpr size_t kMaxKeySpaces = 4096;
  struct Options {
    std::string path, tenant, token, client_name;
    uint32_t request_timeout_ms = 1000;
  };
  Link(Options options, std::shared_ptr<Stats> stats);
  ~Link() { Stop(); }

  Result Start();  // starts the keeper
  void Stop();     // breaks the connection and joins the keeper

  // The connection for one more request; UNAVAILABLE, with the cause, if there is none or it hangs.
  Result Use(std::shared_ptr<Connection>* out);
  // The same for a release, which waits for nothing: also when the daemon hangs.
  Result UseForRelease(std::shared_ptr<Connection>* out);
  bool ready();
  // Waits for a connection. Returns early when the daemon has refused this client for good.
  Result WaitReady(Deadline deadline);
  // Waits for the end of the first attempt to connect only.
  Result WaitFirstAttempt(Deadline deadline);

  // From now on the key space is opened at every new daemon. Tries at once if there is a connection.
  Result AddKeySpace(const std::shared_ptr<KeySpace>& key_space);
  void RemoveKeySpace(const std::shared_ptr<KeySpace>& key_space);

  // For another connection of the same client (stores): same names, its own leases.
  Connection::Options ConnectionOptions() const;
  const std::shared_ptr<SegmentMap>& segments() const { return segments_; }
  uint32_t request_timeout_ms() const { return options_.request_timeout_ms; }

 private:
  void Run();
  Result Connect(std::shared_ptr<Connection>* out);
  void OpenKeySpaces(Connection* connection);
  void Watch(Connection* connection);
  void Publish(std::shared_ptr<Connection> connection, Result outcome);
  Result UnavailableLocked() const;

  const Options options_;
  const std::shared_ptr<Stats> stats_;
  const std::shared_ptr<SegmentMap> segments_ = std::make_shared<SegmentMap>();
  const std::shared_ptr<WakeFd> wake_ = std::make_shared<WakeFd>();
  Thread keeper_;
  std::atomic<bool> stopping_{false};

  std::mutex mu_;  // all below
  std::condition_variable changed_;
  std::shared_ptr<Connection> connection_;  // ready for use; null: none
  std::shared_ptr<Connection> connecting_;  // only so that Stop() can break it
  uint64_t attempts_ = 0;
  Result last_outcome_;  // of the last attempt
  std::vector<std::shared_ptr<KeySpace>> key_spaces_;
};

}  // namespace terrace::client
