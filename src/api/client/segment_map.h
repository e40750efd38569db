// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// SegmentMap: the daemon's shared-memory segments as this process sees them, mapped read-only when first
// needed and unmapped when the daemon gave them up and nobody here uses them any more.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "api/client/connection.h"
#include "api/client/deadline.h"
#include "api/client/ref.h"
#include "api/client/result.h"
#include "kvstore/block_header.h"

namespace terrace::client {

// One segment's two mappings. Owner: the SegmentMap and every copy under way (shared). Threads: any.
class Segment {
 public:
  // Maps both files. Takes no descriptor over.
  static Result Map(uint64_t epoch, const wire::SegmentInfo& info, int payload_fd, int header_fd,
                    std::shared_ptr<Segment>* out);
  ~Segment();
  Segment(const Segment&) = delete;

  uint64_t epoch() const { return epoch_; }
  // True if the ref's header and payload lie inside the mappings. Only then may the two be asked for.
  bool Contains(const wire::Ref& ref) const;
  const kv::BlockHeader* HeaderOf(const wire::Ref& ref) const;
  const std::byte* PayloadOf(const wire::Ref& ref) const { return payload_ + ref.payload_offset; }

  // A view was handed out: the mapping must stay for the client's life.
  void KeepForViews() { has_views_.store(true, std::memory_order_relaxed); }
  bool has_views() const { return has_views_.load(std::memory_order_relaxed); }

 private:
  Segment() = default;
  uint64_t epoch_ = 0;
  const std::byte* payload_ = nullptr;
  const std::byte* headers_ = nullptr;
  uint64_t payload_bytes_ = 0, header_bytes_ = 0;
  std::atomic<bool> has_views_{false};
};

// Owner: Core. Threads: any. Limits: as many segments as the daemon has.
// Failure: a segment that cannot be had makes its blocks unavailable or stale, nothing else.
class SegmentMap {
 public:
  // The mapping for a segment of this epoch, or nullptr if it is not mapped (yet).
  std::shared_ptr<Segment> Find(uint64_t epoch, uint32_t segment_id);
  // The same, asking the daemon over `connection` if need be. NotFound: the daemon has no such segment.
  Result Get(Connection* connection, uint64_t epoch, uint32_t segment_id, Deadline deadline,
             std::shared_ptr<Segment>* out);

  // The daemon gave it up.
  void Remove(uint32_t segment_id);
  // Another daemon: all that is known belongs to the old one.
  void StartEpoch(uint64_t epoch);
  uint64_t epoch() const { return epoch_.load(std::memory_order_acquire); }

 private:
  friend class GetSegmentRequest;
  void Insert(uint64_t epoch, uint32_t segment_id, std::shared_ptr<Segment> segment);
  void RetireLocked(std::shared_ptr<Segment> segment);

  std::mutex fetch_mu_;  // one asks the daemon at a time. Taken before mu_
  std::mutex mu_;        // all below
  std::atomic<uint64_t> epoch_{0};
  std::unordered_map<uint32_t, std::shared_ptr<Segment>> segments_;
  std::vector<std::shared_ptr<Segment>> retired_;  // with views: mapped until the end
};

}  // namespace terrace::client
