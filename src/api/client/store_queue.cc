// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/store_queue.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "kvstore/base/block_copy.h"

namespace terrace::client {
namespace {

// A daemon that has not answered a store for so long hangs or is hopelessly late: give up on it.
constexpr int64_t kStallNs = 10'000'000'000;
// Below this, gathering a block that is there already is cheaper than asking for it first.
constexpr uint64_t kAskFromBytes = 128 * 1024;

class GetStagingRequest : public Request {
 public:
  explicit GetStagingRequest(StagingRing* ring) : ring_(ring) {}

 private:
  Result OnReply(Reply& reply) override {
    wire::StagingInfo info;
    const int fd = reply.descriptors->Take(0);
    Result mapped;
    if (!reply.Read(&info) || fd < 0) {
      mapped = Fail(TERRACE_INTERNAL, "the daemon's answer about staging has the wrong form");
    } else {
      mapped = ring_->Map(fd, info.bytes);
    }
    if (fd >= 0) close(fd);
    return mapped;
  }
  StagingRing* const ring_;
};

}  // namespace

Result StoreQueue::Submit(std::shared_ptr<StoreOp> op) {
  {
    std::lock_guard lock(mu_);
    if (stopping_) return Fail(TERRACE_FAILED_PRECONDITION, "the client is closed");
    if (queue_.size() >= kMaxQueued) {
      return Fail(TERRACE_RESOURCE_EXHAUSTED, "%zu stores are waiting already; wait for some of them",
                  queue_.size());
    }
    if (!thread_.started() &&
        (wake_->fd() < 0 || !thread_.Start("terrace-store", [this] { Run(); }))) {
      return Fail(TERRACE_RESOURCE_EXHAUSTED,
                  "no thread or descriptor is left; raise the process limits");
    }
    queue_.push_back(std::move(op));
  }
  wake_->Wake();
  return {};
}

void StoreQueue::Stop() {
  {
    std::lock_guard lock(mu_);
    stopping_ = true;
    if (breakable_ != nullptr) breakable_->Break();
  }
  wake_->Wake();
  thread_.Join();
}

void StoreQueue::Run() {
  while (!stopping_) {
    TakeNext();
    const bool advanced = present_ != nullptr && Advance();
    const bool collected = CollectAnswers();
    if (!advanced && !collected) Sleep();
  }
  EndInFlight(Reason::kCancelled);
  for (TakeNext(); present_ != nullptr; TakeNext()) EndPresent(Reason::kCancelled);
}

void StoreQueue::TakeNext() {
  if (present_ != nullptr) return;
  std::lock_guard lock(mu_);
  if (queue_.empty()) return;
  present_ = std::move(queue_.front());
  queue_.pop_front();
  prepared_ = false;
  next_ = 0;
}

void StoreQueue::Sleep() {
  int64_t limit_ns = 3'600'000'000'000;
  if (!in_flight_.empty()) {
    limit_ns = in_flight_.front()->sent_at_ns + kStallNs - NowNs();
    if (limit_ns <= 0) {
      EndInFlight(Reason::kUnavailable);
      if (present_ != nullptr) EndPresent(Reason::kUnavailable);
      return;
    }
  }
  if (connection_ != nullptr) {
    connection_->WaitForEvents(/*receive=*/true, *wake_, Deadline::AfterNs(limit_ns));
  } else {
    wake_->Wait(Deadline::AfterNs(limit_ns));
    wake_->Clear();
  }
}

bool StoreQueue::Advance() {
  if (!prepared_) {
    const uint64_t block_bytes = present_->work.key_space->block_bytes();
    // Another, larger staging memory: only when nobody reads the old one any more.
    if (ring_ != nullptr && ring_->bytes() < block_bytes && !in_flight_.empty()) return false;
    if (!Prepare()) return true;
  }
  const uint32_t n = present_->n();
  while (next_ < n && here_[next_]) present_->EndBlock(next_++, Reason::kDuplicate);
  if (next_ < n) {
    if (in_flight_.size() >= kMaxPutsInFlight) return false;
    const auto offset = ring_->Take(present_->work.key_space->block_bytes());
    if (!offset.has_value()) return false;
    const uint32_t i = next_++;
    if (!SendBlock(i, *offset)) {
      EndInFlight(Reason::kUnavailable);
      EndPresent(Reason::kUnavailable);
      return true;
    }
  }
  if (next_ == n) {
    present_->SetSourcesRead();
    present_.reset();
  }
  return true;
}

bool StoreQueue::Prepare() {
  const uint64_t block_bytes = present_->work.key_space->block_bytes();
  const uint64_t epoch = present_->work.opened.epoch;
  Result ready;
  if (connection_ == nullptr || connection_->broken() || ring_->bytes() < block_bytes ||
      connection_->welcome().epoch != epoch) {
    EndInFlight(Reason::kUnavailable);
    ready = Connect(block_bytes);
  }
  if (ready.ok() && connection_->suspect()) {
    ready = Fail(TERRACE_UNAVAILABLE, "the daemon hangs");
  }
  if (ready.ok() && connection_->welcome().epoch != epoch) {
    ready = Fail(TERRACE_UNAVAILABLE, "the daemon was restarted");
  }
  // The daemon takes stores into key spaces that this very connection has opened.
  const auto& key_space = present_->work.key_space;
  if (ready.ok() && !opened_here_.contains(present_->work.opened.id)) {
    ready = key_space->Open(connection_.get(), Deadline::AfterMs(link_->request_timeout_ms()));
    if (ready.ok()) opened_here_.insert(key_space->opened().id);
  }
  here_.assign(present_->n(), false);
  if (ready.ok() && block_bytes * present_->n() >= kAskFromBytes) ready = FindDuplicates();
  if (!ready.ok()) {
    const bool full = ready.code == TERRACE_RESOURCE_EXHAUSTED;
    EndPresent(full ? Reason::kBudget : Reason::kUnavailable);
    return false;
  }
  prepared_ = true;
  return true;
}

Result StoreQueue::Connect(uint64_t block_bytes) {
  std::shared_ptr<Connection> control;
  if (Result usable = link_->Use(&control); !usable.ok()) return usable;
  auto connection = std::make_shared<Connection>(link_->ConnectionOptions());
  {
    std::lock_guard lock(mu_);
    if (stopping_) return Fail(TERRACE_UNAVAILABLE, "the client is closed");
    breakable_ = connection;
  }
  const Deadline deadline = Deadline::AfterMs(link_->request_timeout_ms());
  if (Result opened = connection->Open(deadline); !opened.ok()) return opened;
  const wire::Welcome& welcome = connection->welcome();
  const uint64_t usual =
      wanted_staging_bytes_ > 0 ? wanted_staging_bytes_ : welcome.staging_bytes_default;
  wire::GetStaging question{
      std::min(std::max(usual, 2 * block_bytes), welcome.staging_bytes_max)};
  // 0: what is usual, or less where the daemon has no more.
  if (wanted_staging_bytes_ == 0 && question.bytes == welcome.staging_bytes_default) question.bytes = 0;
  auto ring = std::make_unique<StagingRing>();
  GetStagingRequest request(ring.get());
  Result got = connection->Call(wire::Type::kGetStaging, {{&question, sizeof(question)}}, &request,
                                deadline);
  if (!got.ok()) return got;
  if (ring->bytes() < block_bytes) {
    return Fail(TERRACE_RESOURCE_EXHAUSTED, "the daemon's staging memory holds no block of this size");
  }
  connection_ = std::move(connection);
  ring_ = std::move(ring);
  return {};
}

Result StoreQueue::FindDuplicates() {
  const auto& keys = present_->work.keys;
  const Deadline deadline = Deadline::AfterMs(link_->request_timeout_ms());
  const uint32_t most = std::clamp<uint32_t>(connection_->welcome().max_keys, 1,
                                             wire::kMaxKeysPerMessage);
  for (uint32_t begin = 0; begin < keys.size(); begin += most) {
    const uint32_t count = std::min(most, present_->n() - begin);
    wire::Lookup lookup{present_->work.opened.id, count, wire::kLookupProbe, 0, 0};
    DuplicatesRequest request(&here_, begin, count);
    Result asked = connection_->Call(
        wire::Type::kLookup,
        {{&lookup, sizeof(lookup)},
         {const_cast<KeyBytes*>(&keys[begin]), count * sizeof(KeyBytes)}},
        &request, deadline);
    if (!asked.ok()) return asked;
  }
  return {};
}

// False: the connection is gone; the block is among those in flight all the same.
bool StoreQueue::SendBlock(uint32_t i, uint64_t offset) {
  StoreOp& op = *present_;
  const uint64_t block_bytes = op.work.key_space->block_bytes();
  in_flight_.push_back(std::make_unique<PutRequest>(present_, i, offset));
  PutRequest* const request = in_flight_.back().get();
  request->sent_at_ns = NowNs();
  if (!op.EnterMemory()) {
    request->End(Reason::kCancelled);
    return true;
  }
  op.work.memory.GetPieces(i, &pieces_);
  checksums_.resize(ChecksumCount(block_bytes));
  const Piece target{ring_->At(offset), block_bytes};
  const uint64_t seed =
      IdentitySeed(op.work.opened.digest.data(), op.work.keys[i].data(), block_bytes);
  // Past the caches: the daemon reads this on another core, and a cached store into lines that it has just
  // read costs three times as much (it has to take each of them away from there).
  CopyBlock(pieces_, {&target, 1}, seed, CopyCheck::kCompute, checksums_, CopyStores::kStreaming);
  op.LeaveMemory();

  wire::Put put{};
  put.key_space_id = op.work.opened.id;
  put.staging_offset = offset;
  put.payload_bytes = block_bytes;
  std::memcpy(put.key, op.work.keys[i].data(), sizeof(put.key));
  if (const KeyBytes* parent = op.ParentOf(i); parent != nullptr) {
    put.flags |= wire::kPutHasParent;
    std::memcpy(put.parent, parent->data(), sizeof(put.parent));
  }
  put.n_checksums = static_cast<uint32_t>(checksums_.size());
  put.retention = op.retention;
  const Result sent =
      connection_->Send(wire::Type::kPut,
                        {{&put, sizeof(put)},
                         {checksums_.data(), checksums_.size() * sizeof(uint64_t)}},
                        request, Deadline::AfterNs(kStallNs));
  return sent.ok();
}

bool StoreQueue::CollectAnswers() {
  if (connection_ == nullptr) return false;
  if (!connection_->broken()) connection_->Drain();
  bool any = false;
  for (const auto& put : in_flight_) {
    if (put->done() && !put->ended()) {
      put->End(put->FinalReason());
      any = true;
    }
  }
  while (!in_flight_.empty() && in_flight_.front()->ended()) {
    ring_->GiveBackOldest(in_flight_.front()->staging_offset,
                          in_flight_.front()->op->work.key_space->block_bytes());
    in_flight_.pop_front();
  }
  if (connection_->broken()) {
    EndInFlight(Reason::kUnavailable);
    if (present_ != nullptr) EndPresent(Reason::kUnavailable);
    return true;
  }
  return any;
}

void StoreQueue::EndPresent(Reason reason) {
  for (; next_ < present_->n(); ++next_) {
    const bool is_here = prepared_ && here_[next_];
    present_->EndBlock(next_, is_here ? Reason::kDuplicate : reason);
  }
  present_->SetSourcesRead();
  present_.reset();
}

void StoreQueue::EndInFlight(Reason reason) {
  if (connection_ != nullptr) {
    connection_->Break();
    for (const auto& put : in_flight_) connection_->Forget(put.get());
  }
  for (const auto& put : in_flight_) {
    if (!put->ended()) put->End(put->done() ? put->FinalReason() : reason);
  }
  in_flight_.clear();
  ring_.reset();
  connection_.reset();
  opened_here_.clear();
  std::lock_guard lock(mu_);
  breakable_.reset();
}

}  // namespace terrace::client
