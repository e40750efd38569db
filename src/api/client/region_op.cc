// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/region_op.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "api/client/ref.h"

namespace terrace::client {

Result RegionPart::OnReply(Reply& reply) {
  wire::RegionDone done;
  if (!reply.Read(&done) || done.n_blocks != count ||
      reply.body.size() != sizeof(done) + size_t{count}) {
    return Fail(TERRACE_INTERNAL, "the daemon's answer about a region has the wrong form");
  }
  const auto* first = reinterpret_cast<const uint8_t*>(reply.body.data()) + sizeof(done);
  reasons_.assign(first, first + count);
  return {};
}

RegionOp::RegionOp(Work op_work, std::shared_ptr<OpenRegion> region, const Options& options)
    : Op(std::move(op_work)),
      region_(std::move(region)),
      options_(options),
      deadline_ns_(NowNs() + options.load_timeout_ns) {
  for (uint32_t i = 0; options.refs != nullptr && i < n(); ++i) {
    Ref ref;
    if (DecodeRef(options.refs[i], &ref) && ref.epoch == work.opened.epoch) continue;
    stale_.push_back(i);
  }
  const uint32_t n_asked = n() - static_cast<uint32_t>(stale_.size());
  if (!stale_.empty()) {
    asked_.reserve(n_asked);
    for (uint32_t i = 0, next = 0; i < n(); ++i) {
      if (next < stale_.size() && stale_[next] == i) {
        ++next;
      } else {
        asked_.push_back(i);
      }
    }
  }
  for (uint32_t begin = 0; begin < n_asked; begin += wire::kMaxRegionBlocks) {
    parts_.push_back(
        std::make_unique<RegionPart>(begin, std::min(wire::kMaxRegionBlocks, n_asked - begin)));
  }
  parts_left_ = static_cast<uint32_t>(parts_.size());
}

bool RegionOp::Begin() {
  if (!EnterMemory()) {
    for (uint32_t i = 0; i < n(); ++i) EndBlock(i, Reason::kCancelled);
    Finish(n());
    return false;
  }
  for (const uint32_t i : stale_) EndBlock(i, Reason::kStale);
  if (parts_.empty()) LeaveMemory();
  if (!stale_.empty()) Finish(static_cast<uint32_t>(stale_.size()));
  return !parts_.empty();
}

Result RegionOp::SendPart(RegionPart* part, Connection* connection, Deadline deadline) {
  std::vector<wire::RegionBlock> blocks(part->count);
  const std::vector<uint64_t>& pages = work.memory.block_ids();
  for (uint32_t k = 0; k < part->count; ++k) {
    const uint32_t i = asked_.empty() ? part->begin + k : asked_[part->begin + k];
    std::memcpy(blocks[k].key, work.keys[i].data(), sizeof(blocks[k].key));
    blocks[k].page = pages[i];
  }
  const iovec body{blocks.data(), blocks.size() * sizeof(wire::RegionBlock)};
  Result sent;
  part->sent_at_ns = NowNs();
  if (is_load()) {
    const int64_t left_us = std::max<int64_t>(0, deadline_ns_ - NowNs()) / 1000;
    wire::RegionLoad load{region_->id(),
                          work.opened.id,
                          part->count,
                          part->slot,
                          options_.after_event,
                          static_cast<uint32_t>(std::min<int64_t>(left_us, wire::kMaxLocateUs))};
    sent = connection->Send(wire::Type::kRegionLoad, {{&load, sizeof(load)}, body}, part, deadline);
  } else {
    wire::RegionStore store{};
    store.region_id = region_->id();
    store.key_space_id = work.opened.id;
    store.n_blocks = part->count;
    store.slot = part->slot;
    store.after_event = options_.after_event;
    store.retention = options_.retention;
    if (options_.independent) {
      store.flags = wire::kRegionStoreIndependent;
    } else if (part->begin > 0 || options_.parent.has_value()) {
      const KeyBytes& parent = part->begin > 0 ? work.keys[part->begin - 1] : *options_.parent;
      store.flags = wire::kRegionStoreHasParent;
      std::memcpy(store.parent, parent.data(), sizeof(store.parent));
    }
    sent =
        connection->Send(wire::Type::kRegionStore, {{&store, sizeof(store)}, body}, part, deadline);
  }
  if (!sent.ok()) return sent;
  part->request_id_ = part->id();
  part->state_.store(RegionPart::kRunning, std::memory_order_release);
  return {};
}

void RegionOp::Again(RegionPart* part, int64_t after_ns) {
  part->state_.store(RegionPart::kWaiting, std::memory_order_relaxed);
  part->Renew();
  part->sent_at_ns = 0;
  part->retry_after_ns = after_ns;
}

void RegionOp::EndPart(RegionPart* part, Reason otherwise) {
  const bool answered = part->done() && part->result().ok();
  Reason all = otherwise;
  if (part->done() && !answered) {
    const uint32_t said = part->error_reason();
    if (said > 0 && said < kReasonCount) {
      all = static_cast<Reason>(said);
    } else if (part->result().code == TERRACE_RESOURCE_EXHAUSTED) {
      all = Reason::kOverload;
    }
  }
  bool fine = true;
  for (uint32_t k = 0; k < part->count; ++k) {
    const uint32_t i = asked_.empty() ? part->begin + k : asked_[part->begin + k];
    Reason reason = all;
    if (answered) {
      reason = part->reasons()[k] < kReasonCount ? static_cast<Reason>(part->reasons()[k])
                                                 : Reason::kUnavailable;
    }
    fine = fine && reason == Reason::kNone;
    EndBlock(i, reason);
  }
  const uint32_t n_planes = work.memory.n_planes();
  part->planes_.store(fine ? n_planes : std::min(Progress(*part), n_planes - 1),
                      std::memory_order_relaxed);
  part->state_.store(RegionPart::kEnded, std::memory_order_release);
  if (--parts_left_ == 0) LeaveMemory();
  Finish(part->count);
}

void RegionOp::EndBlock(uint32_t i, Reason reason) {
  Stats& stats = *work.stats;
  SetReason(i, reason);
  stats.AddReason(reason);
  const bool copied = reason == Reason::kNone;
  if (is_load()) {
    Stats::Add(copied ? stats.load_blocks : stats.load_failed_blocks, 1);
    if (copied) Stats::Add(stats.load_bytes, work.key_space->block_bytes());
    return;
  }
  if (copied) {
    Stats::Add(stats.store_blocks, 1);
    Stats::Add(stats.store_bytes, work.key_space->block_bytes());
  } else {
    Stats::Add(
        reason == Reason::kDuplicate ? stats.store_duplicate_blocks : stats.store_failed_blocks, 1);
  }
}

uint32_t RegionOp::Progress(const RegionPart& part) const {
  const uint32_t state = part.state_.load(std::memory_order_acquire);
  if (state == RegionPart::kRunning) {
    const uint32_t said = region_->Progress(part.slot, part.request_id_);
    // A slot of which nothing is known may be another's already.
    if (said > 0 || part.state_.load(std::memory_order_acquire) == RegionPart::kRunning) {
      return std::min(said, work.memory.n_planes());
    }
  } else if (state == RegionPart::kWaiting) {
    return 0;
  }
  return part.planes_.load(std::memory_order_relaxed);
}

uint32_t RegionOp::PlanesDone() const {
  if (!is_load() || !stale_.empty()) return 0;
  uint32_t planes = work.memory.n_planes();
  for (const auto& part : parts_) planes = std::min(planes, Progress(*part));
  return planes;
}

bool RegionOp::CheckSourcesRead() const {
  if (is_load()) return false;
  for (const auto& part : parts_) {
    const uint32_t state = part->state_.load(std::memory_order_acquire);
    if (state == RegionPart::kWaiting) return false;
    if (state == RegionPart::kRunning && region_->Progress(part->slot, part->request_id_) == 0)
      return false;
  }
  return true;
}

}  // namespace terrace::client
