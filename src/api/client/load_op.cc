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
          kBytesPerTake / work.key_space->block_bytes(), 1, kMaxBlocksPerTake))) {}

uint32_t LoadOp::Take(uint32_t most, uint32_t* begin) {
  const uint64_t first = next_.fetch_add(most, std::memory_order_relaxed);
  if (first >= n()) return 0;
  *begin = static_cast<uint32_t>(first);
  return std::min(most, n() - *begin);
}

bool LoadOp::CopySome(CopyScratch* scratch, bool may_ask) {
  uint32_t begin = 0;
  const uint32_t count = Take(blocks_per_take_, &begin);
  if (count == 0) return false;
  for (uint32_t i = begin; i < begin + count; ++i) {
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
  return next_.load(std::memory_order_relaxed) < n();
}

Reason LoadOp::CopyOne(uint32_t i, CopyScratch* scratch, bool may_ask) {
  Ref ref;
  if (!DecodeRef(refs_[i], &ref) || ref.epoch != work.opened.epoch) return Reason::kStale;
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
  const uint32_t count = Take(n(), &begin);
  if (count == 0) return;
  for (uint32_t i = begin; i < begin + count; ++i) SetReason(i, reason);
  work.stats->AddReason(reason, count);
  Stats::Add(work.stats->load_failed_blocks, count);
  Finish(count);
}

bool LoadOp::AllMapped() {
  std::shared_ptr<Segment> last;
  uint32_t last_id = 0;
  for (const terrace_ref& encoded : refs_) {
    Ref ref;
    if (!DecodeRef(encoded, &ref) || ref.epoch != work.opened.epoch) continue;
    if (last != nullptr && ref.place.segment_id == last_id) continue;
    last_id = ref.place.segment_id;
    last = segments_->Find(ref.epoch, last_id);
    if (last == nullptr) return false;
  }
  return true;
}

void LoadOp::Help(Deadline deadline) {
  const uint64_t take_us = 1 + blocks_per_take_ * work.key_space->block_bytes() / kSlowBytesPerUs;
  // Only the library's own threads wait for the daemon; see terrace_op_wait's time limit.
  if (done() || next_.load(std::memory_order_relaxed) >= n() || !AllMapped()) return;
  CopyScratch scratch;
  while (static_cast<uint64_t>(deadline.LeftNs()) / 1000 >= take_us) {
    if (!CopySome(&scratch, /*may_ask=*/false)) return;
  }
}

}  // namespace terrace::client
