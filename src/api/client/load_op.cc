// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/load_op.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace terrace::client {
namespace {

// One take: about 50 us of copying, against well under 1 us for the taking.
constexpr uint64_t kBytesPerTake = 256 * 1024;
constexpr uint64_t kMaxBlocksPerTake = 64;
// A waiting caller starts no block that may not be ready by its deadline at this pessimistic rate.
constexpr uint64_t kSlowBytesPerUs = 500;

}  // namespace

void ReportBadBlock(Connection* connection, uint32_t key_space_id, uint64_t generation,
                    const uint8_t key[32]) {
  wire::Report report{};
  report.key_space_id = key_space_id;
  report.generation = generation;
  std::memcpy(report.key, key, sizeof(report.key));
  // Only a hint: if it cannot be sent now, the next reader reports.
  Result sent = connection->Send(wire::Type::kReport, {{&report, sizeof(report)}}, nullptr, Deadline{});
  (void)sent;
}

LoadOp::LoadOp(Work op_work, const terrace_ref* refs, std::shared_ptr<Connection> connection,
               std::shared_ptr<SegmentMap> segments, uint32_t request_timeout_ms)
    : Op(std::move(op_work)),
      refs_(refs, refs + n()),
      connection_(std::move(connection)),
      segments_(std::move(segments)),
      request_timeout_ms_(request_timeout_ms),
      blocks_per_take_(static_cast<uint32_t>(std::clamp<uint64_t>(
          kBytesPerTake / work.key_space->block_bytes(), 1, kMaxBlocksPerTake))) {
  for (uint32_t i = 0; i < n(); ++i) {
    Ref ref;
    if (DecodeRef(refs_[i], &ref) && IsPending(ref) && ref.epoch == work.opened.epoch) pending_.push_back(i);
  }
  if (!pending_.empty()) {
    order_.reserve(n());
    size_t next_pending = 0;
    for (uint32_t i = 0; i < n(); ++i) {
      if (next_pending < pending_.size() && pending_[next_pending] == i) {
        ++next_pending;
      } else {
        order_.push_back(i);
      }
    }
    order_.resize(n());
  }
  available_ = n() - static_cast<uint32_t>(pending_.size());
}

void LoadOp::Arrive(uint32_t block, const wire::Ref& place) {
  refs_[block] = EncodeRef({place, work.opened.epoch});
  const uint32_t position = available_.load(std::memory_order_relaxed);
  order_[position] = block;
  available_.store(position + 1, std::memory_order_release);
}

void LoadOp::FailPending(uint32_t block, Reason reason) {
  SetReason(block, reason);
  work.stats->AddReason(reason);
  Stats::Add(work.stats->load_failed_blocks, 1);
  Finish(1);
}

uint32_t LoadOp::Take(uint32_t most, uint32_t limit, uint32_t* begin) {
  uint32_t first = next_.load(std::memory_order_relaxed);
  for (;;) {
    const uint32_t end = std::min(limit, available_.load(std::memory_order_acquire));
    if (first >= end) return 0;
    const uint32_t count = std::min(most, end - first);
    if (!next_.compare_exchange_weak(first, first + count, std::memory_order_relaxed)) continue;
    *begin = first;
    return count;
  }
}

// False: nothing was left below limit.
bool LoadOp::CopySome(CopyScratch* scratch, uint32_t limit, bool may_ask) {
  uint32_t begin = 0;
  const uint32_t count = Take(blocks_per_take_, limit, &begin);
  if (count == 0) return false;
  for (uint32_t position = begin; position < begin + count; ++position) {
    const uint32_t i = BlockAt(position);
    Reason reason = Reason::kCancelled;
    if (EnterMemory()) {
      reason = CopyOne(i, scratch, may_ask);
      LeaveMemory();
    }
    SetReason(i, reason);
    work.stats->AddReason(reason);
    Stats::Add(reason == Reason::kNone ? work.stats->load_blocks : work.stats->load_failed_blocks, 1);
    if (reason == Reason::kNone) {
      Stats::Add(work.stats->load_bytes, work.key_space->block_bytes());
    }
  }
  Finish(count);
  return true;
}

Reason LoadOp::CopyOne(uint32_t i, CopyScratch* scratch, bool may_ask) {
  Ref ref;
  if (!DecodeRef(refs_[i], &ref) || IsPending(ref) || ref.epoch != work.opened.epoch) {
    return Reason::kStale;
  }
  std::shared_ptr<Segment> segment;
  if (const Reason found = FindSegment(ref, may_ask, &segment); found != Reason::kNone) return found;
  work.memory.GetPieces(i, &scratch->target);
  const Reason reason =
      scratch->reader.Read(*segment, ref.place, work.opened.digest.data(),
                           work.keys[i].data(), work.key_space->block_bytes(), scratch->target);
  // Stale may be a flipped bit in the generation: the daemon, who knows it, looks for itself.
  if (reason == Reason::kCorrupt || reason == Reason::kStale) {
    ReportBadBlock(connection_.get(), work.opened.id, ref.place.generation, work.keys[i].data());
  }
  return reason;
}

Reason LoadOp::FindSegment(const Ref& ref, bool may_ask, std::shared_ptr<Segment>* segment) {
  const uint32_t id = ref.place.segment_id;
  *segment = segments_->Find(ref.epoch, id);
  if (*segment != nullptr) return Reason::kNone;
  if (!may_ask) return Reason::kStale;  // it was there when the caller began to help: given up since
  const Result got = segments_->Get(connection_.get(), ref.epoch, id,
                                    Deadline::AfterMs(request_timeout_ms_), segment);
  if (got.ok()) return Reason::kNone;
  return got.code == TERRACE_NOT_FOUND ? Reason::kStale : Reason::kUnavailable;
}

void LoadOp::EndRest(Reason reason) {
  uint32_t begin = 0;
  const uint32_t count = Take(n(), n(), &begin);
  if (count == 0) return;
  for (uint32_t position = begin; position < begin + count; ++position) {
    SetReason(BlockAt(position), reason);
  }
  work.stats->AddReason(reason, count);
  Stats::Add(work.stats->load_failed_blocks, count);
  Finish(count);
}

bool LoadOp::AllMapped(uint32_t begin, uint32_t end) {
  std::shared_ptr<Segment> last;
  uint32_t last_id = 0;
  for (uint32_t position = begin; position < end; ++position) {
    Ref ref;
    if (!DecodeRef(refs_[BlockAt(position)], &ref) || IsPending(ref) || ref.epoch != work.opened.epoch) {
      continue;
    }
    if (last != nullptr && ref.place.segment_id == last_id) continue;
    last_id = ref.place.segment_id;
    last = segments_->Find(ref.epoch, last_id);
    if (last == nullptr) return false;
  }
  return true;
}

void LoadOp::Help(Deadline deadline) {
  const uint64_t take_us = 1 + blocks_per_take_ * work.key_space->block_bytes() / kSlowBytesPerUs;
  // What arrives later is left to the copy threads.
  const uint32_t limit = available_.load(std::memory_order_acquire);
  // Only the library's own threads wait for the daemon; see terrace_op_wait's time limit.
  if (done() || !HasWork() || !AllMapped(next_.load(std::memory_order_relaxed), limit)) return;
  CopyScratch scratch;
  while (static_cast<uint64_t>(deadline.LeftNs()) / 1000 >= take_us) {
    if (!CopySome(&scratch, limit, /*may_ask=*/false)) return;
  }
}

}  // namespace terrace::client
