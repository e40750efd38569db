// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// FakeRegionDaemon: the daemon's side of protocol 3 as far as regions need it, played by the test:
// it answers when the test says so, or not at all. No core behind it; blocks live in a map.
#pragma once

#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "api/client/terrace.h"
#include "api/engine/wire_region.h"

namespace terrace::api {

// One region of a connection, mapped. Owner: its connection.
struct FakeRegion {
  wire::RegisterRegion said{};
  std::vector<wire::RegionAllocation> allocations;
  std::vector<wire::RegionPlane> planes;
  std::vector<std::byte*> bases;
  wire::RegionProgress* progress = nullptr;
  int progress_fd = -1;

  FakeRegion() = default;
  FakeRegion(const FakeRegion&) = delete;
  ~FakeRegion() {
    for (size_t i = 0; i < bases.size(); ++i) munmap(bases[i], allocations[i].bytes);
    if (progress != nullptr) munmap(progress, wire::kRegionSlots * sizeof(wire::RegionProgress));
    if (progress_fd >= 0) close(progress_fd);
  }
  std::byte* Piece(size_t plane, uint64_t page) const {
    return bases[planes[plane].allocation] + planes[plane].offset + page * planes[plane].stride;
  }
  uint64_t PageBytes() const {
    uint64_t bytes = 0;
    for (const wire::RegionPlane& plane : planes) bytes += plane.bytes;
    return bytes;
  }
  void SetProgress(uint32_t slot, uint32_t request_id, uint32_t value) const {
    __atomic_store_n(&progress[slot].value, uint64_t{request_id} << 32 | value, __ATOMIC_RELEASE);
  }
};

// A RegionStore or RegionLoad that has arrived and waits for its answer.
struct FakeRequest {
  int fd = -1;
  wire::Header header{};
  bool is_load = false;
  wire::RegionStore store{};
  wire::RegionLoad load{};
  std::vector<wire::RegionBlock> blocks;
  std::shared_ptr<FakeRegion> region;
  uint32_t slot() const { return is_load ? load.slot : store.slot; }
};

// Threads: one of its own reads all connections; the test answers from its thread.
class FakeRegionDaemon {
 public:
  using Key = std::array<uint8_t, 32>;
  // What the daemon does by itself when something arrives; all guarded by mu.
  struct Manners {
    uint16_t version = 3;
    terrace_status refuse_regions = TERRACE_OK;  // else the answer to RegisterRegion
    bool answer_pings = true;
    bool answer_requests = true;  // copies and answers at once; else they wait in requests()
    int busy_answers = 0;         // so many requests are answered RESOURCE_EXHAUSTED first
    terrace_status request_error = TERRACE_OK;  // else the answer to requests
  };

  FakeRegionDaemon(const std::string& folder, uint64_t epoch)
      : path_(folder + "/engine.sock"), epoch_(epoch) {
    unlink(path_.c_str());
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path_.data(), path_.size());
    listener_ = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(listener_, 16), 0);
    thread_ = std::thread([this] { Run(); });
  }
  ~FakeRegionDaemon() {
    stopping_ = true;
    eventfd_write(wake_, 1);
    thread_.join();
    for (const auto& [fd, connection] : connections_) close(fd);
    close(listener_);
    close(wake_);
    unlink(path_.c_str());
  }

  const std::string& path() const { return path_; }
  template <class F>
  auto With(F f) {
    std::lock_guard lock(mu_);
    return f(manners_);
  }
  std::vector<FakeRequest> requests() {  // those that wait
    std::lock_guard lock(mu_);
    return requests_;
  }
  std::vector<FakeRequest> answered() {
    std::lock_guard lock(mu_);
    return answered_;
  }
  size_t open_regions() {
    std::lock_guard lock(mu_);
    size_t n = 0;
    for (const auto& [fd, connection] : connections_) n += connection.regions.size();
    return n;
  }
  std::vector<std::shared_ptr<FakeRegion>> regions() {
    std::lock_guard lock(mu_);
    std::vector<std::shared_ptr<FakeRegion>> all;
    for (const auto& [fd, connection] : connections_) {
      for (const auto& [id, region] : connection.regions) all.push_back(region);
    }
    return all;
  }
  int half_closed() {  // connections whose client has shut its side down, and which are open here
    std::lock_guard lock(mu_);
    int n = 0;
    for (const auto& [fd, connection] : connections_) n += connection.half_closed ? 1 : 0;
    return n;
  }
  // The end of those connections, as the daemon's last copy ends.
  void CloseHalfClosed() {
    std::lock_guard lock(mu_);
    for (auto it = connections_.begin(); it != connections_.end();) {
      if (!it->second.half_closed) {
        ++it;
        continue;
      }
      std::erase_if(requests_, [&](const FakeRequest& request) { return request.fd == it->first; });
      close(it->first);
      it = connections_.erase(it);
    }
  }
  // Copies what a waiting request asks for and answers it. reasons: instead of what the copying
  // gives.
  void Answer(const FakeRequest& request, std::vector<uint8_t> reasons = {}) {
    std::lock_guard lock(mu_);
    std::erase_if(requests_, [&](const FakeRequest& other) {
      return other.fd == request.fd && other.header.request_id == request.header.request_id;
    });
    const std::vector<uint8_t> copied = CopyLocked(request);
    ReplyLocked(request, reasons.empty() ? copied : reasons);
  }
  void AnswerError(const FakeRequest& request, terrace_status status) {
    std::lock_guard lock(mu_);
    SendError(request.fd, request.header, status);
  }
  void Put(const uint8_t* key, const std::vector<std::byte>& payload) {
    std::lock_guard lock(mu_);
    blocks_[ToKey(key)] = payload;
  }
  std::vector<std::byte> Get(const uint8_t* key) {
    std::lock_guard lock(mu_);
    const auto it = blocks_.find(ToKey(key));
    return it == blocks_.end() ? std::vector<std::byte>() : it->second;
  }

 private:
  struct Peer {
    std::map<uint32_t, std::shared_ptr<FakeRegion>> regions;
    bool half_closed = false;
  };
  static Key ToKey(const uint8_t* key) {
    Key out;
    std::memcpy(out.data(), key, out.size());
    return out;
  }

  void Run();
  void Receive(int fd);
  void HandleLocked(int fd, const wire::Header& header, const std::vector<std::byte>& body,
                    const std::vector<int>& descriptors);
  void RegisterLocked(int fd, const wire::Header& header, const std::vector<std::byte>& body,
                      const std::vector<int>& descriptors);
  void RequestLocked(int fd, const wire::Header& header, const std::vector<std::byte>& body);
  std::vector<uint8_t> CopyLocked(const FakeRequest& request);
  void ReplyLocked(const FakeRequest& request, const std::vector<uint8_t>& reasons);
  void SendError(int fd, const wire::Header& request, terrace_status status);
  void Send(int fd, const wire::Header& request, const void* body, size_t bytes,
            int descriptor = -1, terrace_status status = TERRACE_OK);

  const std::string path_;
  const uint64_t epoch_;
  int listener_ = -1;
  const int wake_ = eventfd(0, EFD_CLOEXEC);
  std::atomic<bool> stopping_{false};
  std::mutex mu_;
  Manners manners_;
  std::map<int, Peer> connections_;
  std::vector<FakeRequest> requests_, answered_;
  std::map<Key, std::vector<std::byte>> blocks_;
  uint32_t next_region_ = 0;
  std::thread thread_;
};

}  // namespace terrace::api
