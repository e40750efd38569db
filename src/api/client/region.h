// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Region: pages that the daemon may copy by itself: what is told to it, and what the present one
// made of it.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "api/client/deadline.h"
#include "api/client/result.h"
#include "api/client/terrace.h"
#include "api/engine/wire_region.h"

namespace terrace::client {

// A region as one connection's daemon has opened it. Owner: shared by the Region and the operations
// that run on it, which read its progress after the daemon has gone. Threads: slots are the region
// thread's; else any.
class OpenRegion {
 public:
  // connection: the number that the region thread gave to the connection on which `id` is valid.
  static Result Map(int progress_fd, uint64_t epoch, uint64_t connection, uint32_t id,
                    std::shared_ptr<OpenRegion>* out);
  ~OpenRegion();
  OpenRegion(const OpenRegion&) = delete;

  uint64_t epoch() const { return epoch_; }
  uint64_t connection() const { return connection_; }
  uint32_t id() const { return id_; }
  // What the daemon says of the request in this slot: 0 before it has said anything.
  uint32_t Progress(uint32_t slot, uint32_t request_id) const;

  bool TakeSlot(uint32_t* slot);  // false: all are in use
  void GiveBackSlot(uint32_t slot) { free_slots_.push_back(slot); }

 private:
  OpenRegion() = default;
  uint64_t epoch_ = 0, connection_ = 0;
  uint32_t id_ = 0;
  const wire::RegionProgress* progress_ = nullptr;
  std::vector<uint32_t> free_slots_;
};

// A descriptor of ours. Owner: one object. Threads: one.
class OwnedFd {
 public:
  explicit OwnedFd(int fd = -1) : fd_(fd) {}
  OwnedFd(OwnedFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  OwnedFd& operator=(OwnedFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~OwnedFd();
  int get() const { return fd_; }

 private:
  int fd_;
};

// Owner: shared by the pages and the RegionLink, which opens it at every new daemon. Threads: any.
class Region {
 public:
  struct Allocation {
    wire::RegionAllocation said{};
    OwnedFd fd;  // of the kinds that have one
  };
  // What is told to the daemon; constant.
  struct Source {
    std::array<uint8_t, 16> device_uuid{};  // all zero: host memory
    uint64_t n_pages = 0;
    std::vector<Allocation> allocations;
    std::vector<wire::RegionPlane> planes;
    std::vector<std::array<uint8_t, 64>> events;
  };
  explicit Region(Source source) : source_(std::move(source)) {}
  Region(const Region&) = delete;

  // Host memory in files: finds the file of each plane. InvalidArgument says which plane and why.
  static Result FromSharedMemory(const terrace_shared_memory* memory, uint32_t n_memory,
                                 const terrace_plane* planes, uint32_t n_planes, uint64_t n_blocks,
                                 std::shared_ptr<Region>* out);

  const Source& source() const { return source_; }
  bool is_device() const { return source_.device_uuid != std::array<uint8_t, 16>{}; }

  // null: no daemon has it open at the moment, why() says why.
  std::shared_ptr<OpenRegion> opened() const;
  std::string why() const;
  // For the RegionLink: the outcome of an attempt to open it, or its end.
  void SetOpened(std::shared_ptr<OpenRegion> opened);
  void SetClosed(std::string why);
  // Until one of the two was called once.
  void WaitFirstAttempt(Deadline deadline);

 private:
  const Source source_;
  mutable std::mutex mu_;  // all below
  std::condition_variable changed_;
  std::shared_ptr<OpenRegion> opened_;
  std::string why_ = "not opened yet";
  bool attempted_ = false;
};

}  // namespace terrace::client
