// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/segment_map.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <utility>

namespace terrace::client {
namespace {

Result MapFile(int fd, uint64_t bytes, const std::byte** out) {
  struct stat info;
  // A file shorter than its mapping would kill this process with SIGBUS.
  if (bytes == 0 || fstat(fd, &info) != 0 || static_cast<uint64_t>(info.st_size) < bytes) {
    return Fail(TERRACE_INTERNAL, "the daemon announced a segment larger than its file");
  }
  void* memory = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) {
    return Fail(TERRACE_RESOURCE_EXHAUSTED, "cannot map %llu bytes of shared memory: %s",
                static_cast<unsigned long long>(bytes), strerrordesc_np(errno));
  }
  // A forked child has no use for it and would keep the memory alive.
  (void)madvise(memory, bytes, MADV_DONTFORK);
  *out = static_cast<const std::byte*>(memory);
  return {};
}

}  // namespace

// Maps the segment while the reply is dispatched, so that a later "gone" finds it in the table.
class GetSegmentRequest : public Request {
 public:
  GetSegmentRequest(SegmentMap* map, uint64_t epoch, uint32_t segment_id)
      : map_(map), epoch_(epoch), segment_id_(segment_id) {}
  std::shared_ptr<Segment> segment;

 private:
  Result OnReply(Reply& reply) override {
    wire::SegmentInfo info;
    const int payload_fd = reply.descriptors->Take(0), header_fd = reply.descriptors->Take(1);
    Result mapped;
    if (!reply.Read(&info) || info.segment_id != segment_id_ || payload_fd < 0 || header_fd < 0) {
      mapped = Fail(TERRACE_INTERNAL, "the daemon's answer for segment %u has the wrong form",
                    segment_id_);
    } else {
      mapped = Segment::Map(epoch_, info, payload_fd, header_fd, &segment);
    }
    if (payload_fd >= 0) close(payload_fd);
    if (header_fd >= 0) close(header_fd);
    if (mapped.ok()) map_->Insert(epoch_, segment_id_, segment);
    return mapped;
  }

  SegmentMap* const map_;
  const uint64_t epoch_;
  const uint32_t segment_id_;
};

Result Segment::Map(uint64_t epoch, const wire::SegmentInfo& info, int payload_fd, int header_fd,
                    std::shared_ptr<Segment>* out) {
  std::shared_ptr<Segment> segment(new Segment);
  segment->epoch_ = epoch;
  if (Result r = MapFile(payload_fd, info.payload_bytes, &segment->payload_); !r.ok()) return r;
  segment->payload_bytes_ = info.payload_bytes;
  if (Result r = MapFile(header_fd, info.header_bytes, &segment->headers_); !r.ok()) return r;
  segment->header_bytes_ = info.header_bytes;
  *out = std::move(segment);
  return {};
}

Segment::~Segment() {
  if (payload_bytes_ > 0) munmap(const_cast<std::byte*>(payload_), payload_bytes_);
  if (header_bytes_ > 0) munmap(const_cast<std::byte*>(headers_), header_bytes_);
}

bool Segment::Contains(const wire::Ref& ref) const {
  const uint64_t header_at = uint64_t{ref.header_offset} * kv::kHeaderUnit;
  const uint64_t header_bytes = kv::HeaderBytes(ref.payload_bytes);
  return header_at <= header_bytes_ && header_bytes <= header_bytes_ - header_at &&
         ref.payload_offset <= payload_bytes_ &&
         ref.payload_bytes <= payload_bytes_ - ref.payload_offset;
}

const kv::BlockHeader* Segment::HeaderOf(const wire::Ref& ref) const {
  return reinterpret_cast<const kv::BlockHeader*>(headers_ +
                                                  uint64_t{ref.header_offset} * kv::kHeaderUnit);
}

std::shared_ptr<Segment> SegmentMap::Find(uint64_t epoch, uint32_t segment_id) {
  std::lock_guard lock(mu_);
  if (epoch != epoch_.load(std::memory_order_relaxed)) return nullptr;
  const auto it = segments_.find(segment_id);
  return it == segments_.end() ? nullptr : it->second;
}

Result SegmentMap::Get(Connection* connection, uint64_t epoch, uint32_t segment_id,
                       Deadline deadline, std::shared_ptr<Segment>* out) {
  *out = Find(epoch, segment_id);
  if (*out != nullptr) return {};
  std::lock_guard fetch(fetch_mu_);
  *out = Find(epoch, segment_id);
  if (*out != nullptr) return {};
  if (connection->suspect()) return Fail(TERRACE_UNAVAILABLE, "the daemon hangs");
  wire::GetSegment question{segment_id, 0};
  GetSegmentRequest request(this, epoch, segment_id);
  Result asked = connection->Call(wire::Type::kGetSegment, {{&question, sizeof(question)}},
                                  &request, deadline);
  if (asked.ok()) *out = std::move(request.segment);
  return asked;
}

void SegmentMap::Insert(uint64_t epoch, uint32_t segment_id, std::shared_ptr<Segment> segment) {
  std::lock_guard lock(mu_);
  if (epoch == epoch_.load(std::memory_order_relaxed)) {
    segments_.insert_or_assign(segment_id, std::move(segment));
  }
}

void SegmentMap::Remove(uint32_t segment_id) {
  std::lock_guard lock(mu_);
  const auto it = segments_.find(segment_id);
  if (it == segments_.end()) return;
  RetireLocked(std::move(it->second));
  segments_.erase(it);
}

void SegmentMap::StartEpoch(uint64_t epoch) {
  std::lock_guard lock(mu_);
  if (epoch == epoch_.load(std::memory_order_relaxed)) return;
  for (auto& [id, segment] : segments_) RetireLocked(std::move(segment));
  segments_.clear();
  epoch_.store(epoch, std::memory_order_release);
}

void SegmentMap::RetireLocked(std::shared_ptr<Segment> segment) {
  if (segment->has_views()) retired_.push_back(std::move(segment));
}

}  // namespace terrace::client
