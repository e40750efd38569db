// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Connection: requests and replies over one engine socket. There is no receiving thread: whoever waits
// for a reply receives, also for the others who wait, so that a call costs one round trip and no hand-over
// between threads. Protocol: api/engine/wire.h, docs/engine_protocol.md.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "api/client/deadline.h"
#include "api/client/packet_socket.h"
#include "api/client/result.h"
#include "api/engine/wire.h"

namespace terrace::client {

// One reply on its way to the request that asked for it. Valid during OnReply only.
struct Reply {
  std::span<const std::byte> body;
  Descriptors* descriptors;

  // Copies the body's first bytes into *out. False: the body is shorter.
  template <typename T>
  bool Read(T* out) const {
    if (body.size() < sizeof(T)) return false;
    __builtin_memcpy(out, body.data(), sizeof(T));
    return true;
  }
};

// A question under way; usually on the stack of the thread that waits for it.
// Owner: the asker, who must keep it until it is done or the connection has forgotten it.
class Request {
 public:
  Request() = default;
  Request(const Request&) = delete;
  virtual ~Request() = default;

  bool done() const { return done_; }
  // REQUIRES: done. What the daemon said, or what OnReply made of it.
  const Result& result() const { return result_; }
  uint32_t error_reason() const { return error_reason_; }  // of a failed reply; 0: none given
  uint32_t id() const { return id_; }                      // REQUIRES: sent
  // Makes it fit to be asked once more. REQUIRES: done, or never asked.
  void Renew() { done_ = false; }

 protected:
  // A good reply has come. Called at most once, under the connection's lock, by whichever thread
  // receives: short, and no call into the connection.
  virtual Result OnReply(Reply& reply) = 0;

 private:
  friend class Connection;
  uint32_t id_ = 0;
  bool done_ = false;
  Result result_;
  uint32_t error_reason_ = 0;
};

// Owner: shared by the client and the operations that use it. Threads: any.
// Limits: requests in flight as many as callers wait, or as the asker allows itself.
// Failure: a broken connection stays broken; its owner makes another. A request that is not answered in
// time makes the connection suspect until something arrives from the daemon (see suspect()).
class Connection {
 public:
  struct Options {
    std::string path, tenant, token, client_name;
    // Called under the connection's lock when the daemon gives up a segment.
    std::function<void(uint32_t segment_id)> on_segment_gone;
    std::shared_ptr<WakeFd> on_trouble;  // woken when the connection breaks or becomes suspect
    // A broken connection can still be read to its end, by AtEnd().
    bool watch_end = false;
  };
  explicit Connection(Options options);
  ~Connection();

  // Connects and says hello. Once, before anything else.
  Result Open(Deadline deadline);
  const wire::Welcome& welcome() const { return welcome_; }  // constant after Open

  // Sends header + parts. request == nullptr: no reply is wanted. On failure the request is not under way.
  // Waits (receiving meanwhile) only if the socket is full.
  Result Send(wire::Type type, std::initializer_list<iovec> parts, Request* request, Deadline deadline,
              std::span<const int> descriptors = {});
  // Waits until all are done. Those that are not when it fails are forgotten.
  Result Wait(std::span<Request* const> requests, Deadline deadline);
  Result Call(wire::Type type, std::initializer_list<iovec> parts, Request* request, Deadline deadline,
              std::span<const int> descriptors = {});
  // The request gets no reply any more. A lease that comes with a late answer is given back.
  void Forget(Request* request);

  // For owners of many requests (stores) and for the keeper: receives what has arrived, without waiting.
  // True if there was something.
  bool Drain();
  // Waits for one of: packets (if `receive`; else only for the end of the connection), `wake`, the deadline.
  void WaitForEvents(bool receive, const WakeFd& wake, Deadline deadline);

  // Leases of this connection, so that an id of another daemon or client is not released by chance.
  // REQUIRES: called from OnReply.
  void NoteLeaseFromReply(uint64_t lease_id) { leases_.insert(lease_id); }
  // NotFound: not a lease of this connection (any more). `wait`: asks the daemon for its word.
  Result Release(uint64_t lease_id, bool wait, Deadline deadline);

  bool broken() const { return broken_.load(std::memory_order_acquire); }
  // A request timed out and nothing has arrived since: the daemon hangs. Callers should not wait for it.
  bool suspect() const { return suspect_.load(std::memory_order_relaxed); }
  void Ping();  // asks for a sign of life; does not wait
  void Break(); // ends it: all who wait return at once
  // True when the daemon has closed its end, too, which it does when it has let go of all that the connection
  // had. REQUIRES: broken, options.watch_end, no other thread receives. Does not wait.
  bool AtEnd();
  int PeerPid() const { return socket_.PeerPid(); }  // of the process that listens; 0: unknown

 private:
  enum class Received { kPacket, kNothing, kBroken };
  PacketSocket::Io SendLocked(wire::Type type, std::initializer_list<iovec> parts, Request* request,
                              uint16_t flags, std::span<const int> descriptors = {});
  // REQUIRES: this thread has the receiving role. Releases the lock while it waits.
  Received ReceiveLocked(std::unique_lock<std::mutex>& lock, short events, int wake, Deadline deadline);
  bool DispatchLocked(size_t bytes, Descriptors* descriptors);
  void FinishLocked(Request* request, const wire::Header& header, Reply& reply);
  void ForgetLocked(Request* request);
  void BreakLocked();
  void ReleaseLaterLocked(uint64_t lease_id);
  void FlushReleasesLocked();
  Result BrokenResult() const;

  const Options options_;
  wire::Welcome welcome_{};
  PacketSocket socket_;
  const std::unique_ptr<std::byte[]> receive_buffer_;  // of the thread with the receiving role
  std::atomic<bool> broken_{false};
  std::atomic<bool> suspect_{false};

  std::mutex mu_;  // all below
  std::condition_variable changed_;
  bool receiving_ = false;  // a thread has the receiving role
  int followers_ = 0;       // threads that wait for it to bring their replies
  uint32_t next_id_ = 1;
  std::vector<Request*> pending_;  // few: searched from the front
  std::unordered_set<uint64_t> leases_;
  std::vector<uint64_t> unsent_releases_;  // the socket was full
};

}  // namespace terrace::client
