// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/server/block_fetcher.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "kvstore/base/mutex.h"
#include "kvstore/base/status_macros.h"

namespace terrace::api {
namespace {

// After so long it looks whether anyone still waits for the block.
constexpr int64_t kSliceNs = 250'000'000;

// Where an answer is left for the call that waits. Shared: it may come when nobody waits any more.
struct Arrival {
  Mutex mu;
  CondVar changed;
  std::optional<tiering::BlockPlace> place ABSL_GUARDED_BY(mu);

  void Set(const tiering::BlockPlace& value) {
    MutexLock lock(&mu);
    place = value;
    changed.SignalAll();
  }
  tiering::BlockPlace Wait() {
    MutexLock lock(&mu);
    while (!place.has_value()) changed.Wait(&mu);
    return *place;
  }
};

}  // namespace

BlockFetcher::BlockFetcher(tiering::TierStack* stack, tiering::Session* session, const kv::KeySpace* key_space,
                           std::span<const kv::BlockKey> keys, const Clock* clock,
                           std::function<int64_t()> left_ns)
    : stack_(stack),
      session_(session),
      key_space_(key_space),
      keys_(keys),
      clock_(clock),
      left_ns_(std::move(left_ns)) {}

BlockFetcher::~BlockFetcher() { EndLease(); }

void BlockFetcher::EndLease() {
  // NotFound when it grew too old meanwhile: nothing left to do.
  if (lease_id_ != 0) session_->Release(lease_id_).IgnoreError();
  lease_id_ = 0;
}

absl::Status BlockFetcher::LookAhead() {
  EndLease();
  const size_t most =
      std::clamp<size_t>(kAheadBytes / key_space_->identity.block_bytes, 1, kAheadBlocks);
  begin_ = next_;
  tiering::LookupOptions options;
  options.mode = tiering::LookupMode::kAll;
  options.may_wait = true;
  ASSIGN_OR_RETURN(tiering::LookupAnswer answer,
                   session_->Lookup(key_space_->id, keys_.subspan(begin_, std::min(most, keys_.size() - begin_)),
                                    options));
  lease_id_ = answer.lease_id;
  places_ = std::move(answer.places);
  return absl::OkStatus();
}

absl::StatusOr<Reason> BlockFetcher::Next(std::span<std::byte> target) {
  if (next_ >= begin_ + places_.size()) RETURN_IF_ERROR(LookAhead());
  const kv::BlockKey& key = keys_[next_];
  tiering::BlockPlace place = places_.at(next_ - begin_);
  ++next_;
  if (place.reason == Reason::kPending) {
    ASSIGN_OR_RETURN(place, Await(key));
  }
  if (place.reason != Reason::kNone) return place.reason;
  const absl::Status status = stack_->ReadLeased(*key_space_, key, place, target);
  if (absl::IsDataLoss(status)) return Reason::kCorrupt;
  if (absl::IsNotFound(status)) return Reason::kFlushed;  // by an operator, since the lookup
  RETURN_IF_ERROR(status);
  return Reason::kNone;
}

absl::StatusOr<tiering::BlockPlace> BlockFetcher::Await(const kv::BlockKey& key) {
  const int64_t until_ns = clock_->NowNs() + kWaitNs;
  tiering::BlockPlace place;
  place.reason = Reason::kPending;
  while (place.reason == Reason::kPending) {
    const int64_t left_ns = std::min(until_ns - clock_->NowNs(), left_ns_());
    if (left_ns <= 0) {
      place.reason = Reason::kDeadline;
      return place;
    }
    const auto arrival = std::make_shared<Arrival>();
    RETURN_IF_ERROR(session_->Locate(key_space_->id, {&key, 1}, std::min(left_ns, kSliceNs),
                                     [arrival](const std::vector<tiering::BlockPlace>& places) {
                                       arrival->Set(places.at(0));
                                     }));
    place = arrival->Wait();
  }
  return place;
}

}  // namespace terrace::api
