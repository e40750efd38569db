// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/promoter.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/check.h"
#include "kvstore/base/kill_point.h"

namespace terrace::tiering {

using kv::BlockKey;
using kv::KeySpace;

Promoter::Promoter(HostTier* tier, Catalog* catalog, NvmeTier* nvme, const Clock* clock, LoadRates* rates,
                   uint64_t max_bytes, const Counters& counters)
    : tier_(tier),
      catalog_(catalog),
      nvme_(nvme),
      clock_(clock),
      rates_(rates),
      max_bytes_(max_bytes),
      counters_(counters) {}

Promoter::~Promoter() {
  MutexLock lock(&mu_);
  TERRACE_CHECK(under_way_.empty());
}

std::shared_ptr<Promotion> Promoter::Start(const KeySpace& key_space, const BlockKey& key,
                                           const std::shared_ptr<Promotion>& behind, Reason* why,
                                           bool for_lookup) {
  const Name name{key_space.id, key};
  const uint64_t bytes = key_space.identity.block_bytes;
  auto promotion = std::make_shared<Promotion>(tier_);
  {
    MutexLock lock(&mu_);
    if (const auto it = under_way_.find(name); it != under_way_.end()) {
      it->second.lookups += for_lookup;
      return it->second.promotion;
    }
    if (bytes_under_way_ + bytes > max_bytes_) {
      *why = Reason::kOverload;
      return nullptr;
    }
    bytes_under_way_ += bytes;
    UnderWay entry;
    entry.promotion = promotion;
    entry.key_space = &key_space;
    entry.started_ns = clock_->NowNs();
    entry.as_of_flushes = key_space.flushes.load(std::memory_order_relaxed);
    entry.lookups = for_lookup;
    if (behind != nullptr) {
      if (const auto before = names_.find(behind.get()); before != names_.end()) {
        entry.behind_other = true;
        under_way_.at(before->second).next.push_back(name);
      }
    }
    under_way_.emplace(name, std::move(entry));
    names_[promotion.get()] = name;
  }
  const auto frame = catalog_->Allocate(key_space);
  if (!frame.has_value()) {
    *why = Reason::kBudget;
    {
      MutexLock lock(&mu_);
      under_way_.at(name).lookups -= for_lookup;  // it is not pending for this one; others may have joined
    }
    NvmeTier::ReadResult none;
    none.reason = Reason::kBudget;
    OnRead(name, std::move(none));
    return nullptr;
  }
  {
    MutexLock lock(&mu_);
    under_way_.at(name).frame = *frame;
  }
  NvmeBlock block{key_space.digest, key, bytes};
  nvme_->Read(block, {tier_->Payload(*frame), bytes},
              [this, name](NvmeTier::ReadResult result) { OnRead(name, std::move(result)); });
  return promotion;
}

std::shared_ptr<Promotion> Promoter::Join(const KeySpace& key_space, const BlockKey& key) const {
  MutexLock lock(&mu_);
  const auto it = under_way_.find(Name{key_space.id, key});
  return it == under_way_.end() ? nullptr : it->second.promotion;
}

bool Promoter::IsUnderWay(const KeySpace& key_space, const BlockKey& key) const {
  MutexLock lock(&mu_);
  return under_way_.contains(Name{key_space.id, key});
}

void Promoter::OnRead(const Name& name, NvmeTier::ReadResult result) {
  {
    MutexLock lock(&mu_);
    UnderWay& entry = under_way_.at(name);
    entry.result = std::move(result);
    if (entry.behind_other) return;  // whoever finishes the one before goes on with this
  }
  FinishFrom(name);
}

void Promoter::FinishFrom(Name first) {
  std::vector<Name> turn{std::move(first)};
  while (!turn.empty()) {
    const Name name = std::move(turn.back());
    turn.pop_back();
    Finish(name, &turn);
  }
}

void Promoter::Finish(const Name& name, std::vector<Name>* turn) {
  std::shared_ptr<Promotion> promotion;
  const KeySpace* key_space;
  kv::FrameId frame;
  NvmeTier::ReadResult result;
  int64_t started_ns;
  uint32_t as_of_flushes;
  {
    MutexLock lock(&mu_);
    UnderWay& entry = under_way_.at(name);
    as_of_flushes = entry.as_of_flushes;
    promotion = entry.promotion;
    key_space = entry.key_space;
    frame = entry.frame;
    started_ns = entry.started_ns;
    result = std::move(*entry.result);
  }
  // Its entry stays in the table until the block can be found: an asker in between must see one of both.
  const Reason reason =
      Publish(*key_space, name.second, frame, as_of_flushes, std::move(result), promotion.get());
  const int64_t now_ns = clock_->NowNs();
  if (reason == Reason::kNone) {
    const int64_t before = last_finish_ns_.exchange(now_ns, std::memory_order_relaxed);
    rates_->Observe(key_space->id, key_space->identity.block_bytes, now_ns - std::max(before, started_ns));
    counters_.promoted_blocks->Add();
    counters_.promoted_bytes->Add(key_space->identity.block_bytes);
    counters_.duration->ObserveNs(now_ns - started_ns);
  } else if (Counter* counter = counters_.failed_blocks[static_cast<int>(reason)]; counter != nullptr) {
    counter->Add();
  }
  std::vector<Waiter> waiters;
  uint64_t lookups;
  {
    MutexLock lock(&mu_);
    auto node = under_way_.extract(name);
    UnderWay& entry = node.mapped();
    names_.erase(promotion.get());
    bytes_under_way_ -= key_space->identity.block_bytes;
    lookups = entry.lookups;
    waiters = std::move(entry.waiters);
    waiter_count_ -= waiters.size();
    for (Name& next : entry.next) {
      const auto it = under_way_.find(next);
      if (it == under_way_.end()) continue;
      it->second.behind_other = false;
      if (it->second.result.has_value()) turn->push_back(std::move(next));
    }
  }
  if (lookups > 0 && counters_.settled) counters_.settled(*key_space, reason, lookups);
  for (Waiter& waiter : waiters) Answer(std::move(waiter));
}

Reason Promoter::Publish(const KeySpace& key_space, const BlockKey& key, kv::FrameId frame,
                         uint32_t as_of_flushes, NvmeTier::ReadResult result, Promotion* promotion) {
  if (result.reason != Reason::kNone) {
    if (frame != kv::kNoFrame) tier_->Abandon(frame);
    switch (result.reason) {
      case Reason::kCorrupt:
      case Reason::kEvicted:
      case Reason::kIoError:
      case Reason::kDeadline:
      case Reason::kTierOffline:
        catalog_->RememberMiss(key_space, key, result.reason);
        break;
      default:
        break;
    }
    return result.reason;
  }
  KillPoint("promote_before_header");
  const uint64_t generation = tier_->WriteHeader(frame, key_space, key, result.checksums, result.parent);
  tier_->pool().MakeReady(frame, generation);
  tier_->pool().Pin(frame);  // before it can be found: nothing evicts it before its askers have it
  const Reason reason = catalog_->Publish(key_space, key, result.parent, frame, {}, as_of_flushes);
  if (reason == Reason::kNone) {
    promotion->frame_ = frame;
    return reason;
  }
  tier_->Unpin(frame);
  if (reason != Reason::kDuplicate) return reason;
  // Stored by an engine meanwhile.
  if (const auto there = catalog_->PinIfHere(key_space, key)) promotion->frame_ = *there;
  return promotion->frame_ == kv::kNoFrame ? Reason::kEvicted : Reason::kNone;
}

std::optional<BlockPlace> Promoter::SettledPlace(const KeySpace& key_space, const BlockKey& key) const {
  if (IsUnderWay(key_space, key)) return std::nullopt;
  BlockPlace place;
  const auto frame = catalog_->PinIfHere(key_space, key);
  if (!frame.has_value()) {
    place.reason = catalog_->WhyMissing(key_space, key);
    return place;
  }
  const auto at = tier_->pool().PlaceOf(*frame);
  place = {Reason::kNone, at.segment_id, at.header_offset,
           static_cast<uint32_t>(key_space.identity.block_bytes), at.payload_offset, at.generation};
  tier_->Unpin(*frame);
  return place;
}

void Promoter::Answer(Waiter waiter) {
  std::vector<BlockPlace> places;
  for (const BlockKey& key : waiter.keys) {
    const auto place = SettledPlace(*waiter.key_space, key);
    if (!place.has_value()) break;
    places.push_back(*place);
  }
  if (places.empty()) {
    BlockPlace pending;
    pending.reason = Reason::kPending;
    pending.payload_bytes = static_cast<uint32_t>(waiter.key_space->identity.block_bytes);
    places.push_back(pending);
  }
  waiter.done(std::move(places));
}

absl::Status Promoter::Locate(const KeySpace& key_space, std::span<const BlockKey> keys, int64_t timeout_ns,
                              std::function<void(std::vector<BlockPlace>)> done) {
  Waiter waiter{&key_space, {keys.begin(), keys.end()}, clock_->NowNs() + timeout_ns, std::move(done)};
  {
    MutexLock lock(&mu_);
    const auto it = under_way_.find(Name{key_space.id, keys[0]});
    if (it != under_way_.end() && timeout_ns > 0) {
      if (waiter_count_ >= kMaxWaiters) {
        return absl::ResourceExhaustedError(
            absl::StrCat(kMaxWaiters, " requests wait for blocks from lower tiers already; ask again later"));
      }
      ++waiter_count_;
      it->second.waiters.push_back(std::move(waiter));
      return absl::OkStatus();
    }
  }
  Answer(std::move(waiter));
  return absl::OkStatus();
}

void Promoter::AnswerWhoseTimeIsUp(int64_t now_ns) {
  std::vector<Waiter> over;
  {
    MutexLock lock(&mu_);
    if (waiter_count_ == 0) return;
    for (auto& [name, entry] : under_way_) {
      const auto late = std::partition(entry.waiters.begin(), entry.waiters.end(),
                                       [now_ns](const Waiter& w) { return w.deadline_ns > now_ns; });
      std::move(late, entry.waiters.end(), std::back_inserter(over));
      entry.waiters.erase(late, entry.waiters.end());
    }
    waiter_count_ -= over.size();
  }
  for (Waiter& waiter : over) Answer(std::move(waiter));
}

void Promoter::Step() { AnswerWhoseTimeIsUp(clock_->NowNs()); }

void Promoter::EndWaiting() { AnswerWhoseTimeIsUp(std::numeric_limits<int64_t>::max()); }

}  // namespace terrace::tiering
