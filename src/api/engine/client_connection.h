// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// ClientConnection: one client of the engine socket: parses its packets, drives its session, sends the
// answers.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "api/config.h"
#include "api/engine/engine_metrics.h"
#include "api/engine/client_regions.h"
#include "api/engine/engine_server.h"
#include "api/engine/region_opening.h"
#include "api/engine/wire.h"
#include "api/door/tenant_access.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/mutex.h"
#include "tiering/region_worker.h"
#include "tiering/shared_segment.h"
#include "tiering/tier_stack.h"

namespace terrace::api {

// What all connections share. Owned by the server, outlives every connection.
struct EngineContext {
  const Config* config;
  uint64_t epoch;
  tiering::TierStack* stack;
  const Clock* clock;
  const TenantAccess* access;
  EngineMetrics* metrics;
  tiering::RegionWorker* region_opener;
  std::atomic<int>* regions_opening;  // of all connections: at most kMaxRegionsOpening
  std::atomic<int64_t>* may_say_refused_ns;  // when the log may say again that staging memory was refused
};
inline constexpr int kMaxRegionsOpening = 64;
inline constexpr int64_t kSayRefusedEveryNs = 60'000'000'000;

// A connection's staging memory; its bytes are the budget's until the last store from it is done.
struct Staging {
  Staging(tiering::TierStack* the_stack, std::unique_ptr<tiering::SharedMemory> the_memory)
      : stack(the_stack), memory(std::move(the_memory)) {}
  ~Staging() {
    const uint64_t bytes = memory->bytes();
    memory.reset();
    stack->ReleaseStaging(bytes);
  }
  tiering::TierStack* stack;
  std::unique_ptr<tiering::SharedMemory> memory;
};

// Owner: the server, and every store under way (by shared_ptr, to answer it). Threads: OnReadable and
// OnWritable on one server thread; answers to stores come from copy threads, those to Locate from any;
// Describe from any. Its regions are fenced when it is closed, but the client sees its end only when no
// copy from or to them is under way any more: until then its pages are not its own again. Limits:
// kMaxWaiting answers that the client has not taken yet, then it is closed; kMaxWaitingLocates questions
// that wait for blocks, more are refused.
class ClientConnection : public std::enable_shared_from_this<ClientConnection> {
 public:
  // Takes fd, which the caller has put into epoll_fd for EPOLLIN, level-triggered, data.fd = fd.
  ClientConnection(const EngineContext* context, int fd, int epoll_fd, uint32_t pid, uint32_t uid);
  ~ClientConnection();
  ClientConnection(const ClientConnection&) = delete;

  // Handles the packets that are there. False: the connection ends; call Close and let go of it.
  bool OnReadable();
  bool OnWritable();
  // Server thread. Ends the session: leases are freed now; the descriptor lives until the last store has finished.
  void Close();

  void SendSegmentGone(kv::TenantId tenant, uint32_t segment_id);

  // For operators; nothing before hello.
  std::optional<EngineConnection> Describe() const;
  int fd() const { return fd_; }
  uint32_t uid() const { return uid_; }
  int64_t connected_ns() const { return connected_ns_; }
  bool greeted() const { return greeted_.load(std::memory_order_acquire); }

 private:
  static constexpr size_t kMaxWaiting = 1024;
  static constexpr int kMaxUntakenSegments = 16;
  static constexpr int kMaxWaitingLocates = 64;
  // A turn; then others on this thread get theirs.
  static constexpr int kPacketsPerTurn = 64;
  static constexpr int64_t kTurnNs = 1'000'000;
  using Bytes = std::span<const std::byte>;

  absl::Status Handle(const wire::Header& header, Bytes body, PacketFds* fds);
  absl::Status OnHello(const wire::Header& header, Bytes body);
  absl::Status OnOpenKeySpace(const wire::Header& header, Bytes body);
  absl::Status OnLookup(const wire::Header& header, Bytes body);
  absl::Status OnRelease(const wire::Header& header, Bytes body);
  absl::Status OnGetSegment(const wire::Header& header, Bytes body);
  absl::Status OnGetStaging(const wire::Header& header, Bytes body);
  absl::Status OnPut(const wire::Header& header, Bytes body);
  absl::Status OnReport(const wire::Header& header, Bytes body);
  absl::Status OnLocate(const wire::Header& header, Bytes body);
  absl::Status OnHint(const wire::Header& header, Bytes body);
  absl::Status OnRegisterRegion(const wire::Header& header, Bytes body, PacketFds* fds);
  absl::Status OnUnregisterRegion(const wire::Header& header, Bytes body);
  absl::Status OnRegionStore(const wire::Header& header, Bytes body);
  absl::Status OnRegionLoad(const wire::Header& header, Bytes body);
  absl::StatusOr<const kv::KeySpace*> KeySpaceOf(uint32_t id) const;
  void OpenRegion(const wire::Header& header, const RegionOpening& opening);
  void EndRegionUse(const wire::Header& header, const ClientRegions::Use& use, std::span<const Reason> reasons);
  void ReplyPlaces(const wire::Header& request, const wire::LookupDone& done,
                   std::span<const tiering::BlockPlace> places, uint64_t block_bytes);
  uint64_t BlockBytes(kv::KeySpaceId id) const;  // 0: no such key space

  // Set and ended on the server thread only, so that it needs no lock there. No lock of ours is held
  // while the session works: it may call back about segments.
  tiering::Session& session() const ABSL_NO_THREAD_SAFETY_ANALYSIS { return *session_; }
  void WatchLocked(uint32_t events) ABSL_EXCLUSIVE_LOCKS_REQUIRED(send_mu_);
  void Reply(const wire::Header& request, Bytes body, std::span<const int> fds = {});
  void ReplyError(const wire::Header& request, const absl::Status& status);
  void Send(Bytes packet, std::span<const int> fds);
  // True when sent, false when the socket is full; a broken socket counts as sent.
  bool TrySend(Bytes packet, std::span<const int> fds);

  const EngineContext* const context_;
  const int fd_, epoll_fd_;
  const uint32_t pid_, uid_;
  const int64_t connected_ns_;
  std::atomic<bool> greeted_{false};
  std::atomic<int> waiting_locates_{0};
  int untaken_segments_ = 0;  // server thread only: answers with descriptors since all were last seen taken
  bool malformed_ = false;  // server thread only: close after the answer

  mutable Mutex mu_;
  std::unique_ptr<tiering::Session> session_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<Staging> staging_ ABSL_GUARDED_BY(mu_);
  std::string client_name_ ABSL_GUARDED_BY(mu_);
  uint16_t version_ = wire::kVersion;
  ClientRegions regions_;

  Mutex send_mu_ ABSL_ACQUIRED_AFTER(mu_);
  bool closed_ ABSL_GUARDED_BY(send_mu_) = false;
  std::deque<std::vector<std::byte>> waiting_ ABSL_GUARDED_BY(send_mu_);
};

}  // namespace terrace::api
