// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/demoter.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>

#include "kvstore/base/block_copy.h"
#include "kvstore/base/check.h"

namespace terrace::tiering {

Demoter::Demoter(HostTier* tier, Catalog* catalog, NvmeTier* nvme, std::unique_ptr<AdmissionPolicy> admission,
                 const Clock* clock, const Counters& counters, bool thread)
    : tier_(tier),
      catalog_(catalog),
      nvme_(nvme),
      clock_(clock),
      counters_(counters),
      admission_(std::move(admission)) {
  if (thread) {
    thread_ = std::thread([this] { Run(); });
    pthread_setname_np(thread_.native_handle(), "terrace-demote");
  }
}

void Demoter::Stop() {
  {
    MutexLock lock(&mu_);
    stopping_.store(true, std::memory_order_relaxed);
  }
  wake_.SignalAll();
  if (thread_.joinable()) thread_.join();
}

Demoter::~Demoter() {
  Stop();
  TERRACE_CHECK(bytes_leaving_.load() == 0);
}

void Demoter::OnStored(const kv::KeySpace& key_space, const kv::BlockKey& key) {
  const uint64_t fingerprint = Catalog::Fingerprint(key_space, key);
  MutexLock lock(&admission_mu_);
  admission_->OnStore(fingerprint, clock_->NowNs());
}

void Demoter::OnNvmeHit(const kv::KeySpace& key_space, const kv::BlockKey& key) {
  const uint64_t fingerprint = Catalog::Fingerprint(key_space, key);
  MutexLock lock(&admission_mu_);
  admission_->OnHit(fingerprint, clock_->NowNs());
}

AdmissionPolicy::Stats Demoter::AdmissionStats() const {
  MutexLock lock(&admission_mu_);
  return admission_->GetStats();
}

void Demoter::Run() {
  while (true) {
    const int begun = stopping_.load(std::memory_order_relaxed) ? 0 : Round();
    MutexLock lock(&mu_);
    if (stopping_.load(std::memory_order_relaxed)) return;
    if (begun == 0) wake_.WaitFor(&mu_, std::chrono::milliseconds(10));
  }
}

uint64_t Demoter::Wanted() const {
  const uint64_t full_at = catalog_->full_at_bytes();
  const uint64_t used = tier_->pool().GetUsage().used_bytes;
  // Never full so far: the arena's size is a good guess until an allocation has failed.
  const uint64_t holds = full_at == 0 ? tier_->capacity_bytes() : std::max(full_at, used);
  const uint64_t free = holds - std::min(holds, used) + bytes_leaving_.load(std::memory_order_relaxed);
  if (free >= holds / kLowShare && bytes_leaving_.load(std::memory_order_relaxed) == 0) return 0;
  const uint64_t high = holds / kHighShare;
  return high - std::min(high, free);
}

int Demoter::Round() {
  allotted_.store(0, std::memory_order_relaxed);
  wake_after_.store(tier_->capacity_bytes() / (4 * kLowShare), std::memory_order_relaxed);
  uint64_t wanted = Wanted();
  int begun = 0;
  int64_t stay_ns = 0;
  if (wanted > 0) {
    MutexLock lock(&admission_mu_);
    stay_ns = admission_->StayNs(clock_->NowNs());
  }
  while (wanted > 0 && begun < kMaxPerRound && !stopping_.load(std::memory_order_relaxed)) {
    const auto departure = catalog_->BeginDeparture(stay_ns, AdmissionPolicy::kMaxDepth);
    if (!departure.has_value()) break;
    if (!Depart(*departure, stay_ns)) break;
    wanted -= std::min(wanted, departure->key_space->identity.block_bytes);
    begun += 1 + PayOwed(1);
  }
  if (wanted == 0) begun += PayOwed(kOwedPerIdleRound);
  if (begun > 0) nvme_->Kick();
  return begun;
}

bool Demoter::LeavesWhenWritten(const Catalog::Departure& departure) {
  MutexLock lock(&writing_mu_);
  const auto it = writing_.find({departure.key_space->id, departure.key});
  if (it == writing_.end()) return false;
  catalog_->EndCopy(departure);
  // Who stands there already was evicted by need and stored again: its bytes are counted.
  if (!it->second.has_value()) {
    bytes_leaving_.fetch_add(departure.key_space->identity.block_bytes, std::memory_order_relaxed);
  }
  it->second = departure;
  return true;
}

bool Demoter::IsOwed(const kv::KeySpace& key_space, const kv::BlockKey& key) const {
  return owed_.contains({key_space.id, key});
}

bool Demoter::IsBelow(const kv::KeySpace& key_space, const kv::BlockKey& key) const {
  const NvmeBlock block{key_space.digest, key, key_space.identity.block_bytes};
  if (IsOwed(key_space, key) || nvme_->Find(block) == NvmeTier::Presence::kHere) return true;
  MutexLock lock(&writing_mu_);
  return writing_.contains({key_space.id, key});
}

AdmissionPolicy::Decision Demoter::Decide(const Catalog::Departure& departure, const Departures& before) {
  const uint64_t bytes = departure.key_space->identity.block_bytes;
  const bool is_room_free = nvme_->HasFreeRoom({departure.key_space->digest, departure.key, bytes});
  const auto candidate_of = [&](const Catalog::Departure& one) {
    AdmissionPolicy::Candidate candidate{.fingerprint = one.fingerprint,
                                         .bytes = bytes,
                                         .uses = one.uses,
                                         .reuse_chance = one.reuse_chance,
                                         .depth = one.depth};
    candidate.hint.done = one.done;
    candidate.is_room_free = is_room_free;
    return candidate;
  };
  std::vector<AdmissionPolicy::Candidate> others;
  for (const Catalog::Departure& one : before) others.push_back(candidate_of(one));
  MutexLock lock(&admission_mu_);
  return admission_->Decide(candidate_of(departure), others, clock_->NowNs());
}

bool Demoter::Depart(const Catalog::Departure& departure, int64_t stay_ns) {
  const kv::KeySpace& key_space = *departure.key_space;
  const NvmeBlock block{key_space.digest, departure.key, key_space.identity.block_bytes};
  if (LeavesWhenWritten(departure)) return true;
  if (nvme_->Find(block) == NvmeTier::Presence::kHere) {
    End(departure, true);
    return true;
  }
  if (IsOwed(key_space, departure.key)) return Copy(departure);
  const Departures before =
      catalog_->Before(departure, stay_ns, AdmissionPolicy::kMaxBefore,
                       [&](const kv::BlockKey& key) { return IsBelow(key_space, key); });
  const AdmissionPolicy::Decision decision = Decide(departure, before);
  if (decision == AdmissionPolicy::Decision::kAdmit) {
    Owe(before);
    return Copy(departure);
  }
  const bool for_budget = decision == AdmissionPolicy::Decision::kRejectBudget;
  (for_budget ? counters_.rejected_budget : counters_.rejected_once)->Add();
  End(departure, true);
  return true;
}

void Demoter::Owe(const Departures& before) {
  for (auto one = before.rbegin(); one != before.rend(); ++one) {
    if (owed_list_.size() >= kMaxOwed) {
      NotWritten(*one->key_space);
    } else if (owed_.emplace(one->key_space->id, one->key).second) {
      owed_list_.emplace_back(one->key_space, one->key);
    }
  }
}

void Demoter::NotWritten(const kv::KeySpace& key_space) {
  MutexLock lock(&admission_mu_);
  admission_->OnNotWritten(1, key_space.identity.block_bytes);
}

int Demoter::PayOwed(int most) {
  int paid = 0;
  while (paid < most && !owed_list_.empty()) {
    const auto [key_space, key] = owed_list_.front();
    const bool is_settled = !IsOwed(*key_space, key);
    const auto copy = is_settled ? std::nullopt : catalog_->BeginCopy(*key_space, key);
    if (!copy.has_value()) {  // written meanwhile, or gone
      owed_list_.pop_front();
      if (owed_.erase({key_space->id, key}) > 0) NotWritten(*key_space);
      continue;
    }
    const NvmeTier::Append appended = Append(*copy, false);
    catalog_->EndCopy(*copy);
    if (appended == NvmeTier::Append::kBusy || appended == NvmeTier::Append::kOffline) break;
    owed_list_.pop_front();
    owed_.erase({key_space->id, key});
    if (appended == NvmeTier::Append::kCorrupt) catalog_->Drop(*key_space, key, copy->frame, Reason::kCorrupt);
    if (appended == NvmeTier::Append::kAccepted) {
      ++paid;
    } else {
      NotWritten(*key_space);
    }
  }
  return paid;
}

bool Demoter::Copy(const Catalog::Departure& departure) {
  const kv::KeySpace& key_space = *departure.key_space;
  const bool was_owed = owed_.erase({key_space.id, departure.key}) > 0;
  const NvmeTier::Append appended = Append(departure, true);
  if (appended == NvmeTier::Append::kAccepted) return true;  // OnWritten does the rest
  const bool is_for_later = appended == NvmeTier::Append::kBusy || appended == NvmeTier::Append::kOffline;
  if (was_owed && is_for_later) {
    Owe({departure});
  } else {
    NotWritten(key_space);
  }
  switch (appended) {
    case NvmeTier::Append::kPresent:
    case NvmeTier::Append::kTooLarge:
      End(departure, true);
      return true;
    case NvmeTier::Append::kCorrupt:
      End(departure, false);
      catalog_->Drop(key_space, departure.key, departure.frame, Reason::kCorrupt);
      return true;
    case NvmeTier::Append::kBudget: counters_.rejected_budget->Add(); break;
    default: break;  // busy or out of service: it stays, and stores evict by need
  }
  End(departure, false);
  return false;
}

NvmeTier::Append Demoter::Append(const Catalog::Departure& departure, bool leaves) {
  const kv::KeySpace& key_space = *departure.key_space;
  const uint64_t bytes = key_space.identity.block_bytes;
  const Name name(key_space.id, departure.key);
  const std::vector<uint64_t> checksums = tier_->Checksums(departure.frame, bytes);
  MutexLock lock(&append_mu_);
  if (key_space.flushes.load(std::memory_order_relaxed) != departure.as_of_flushes) return NvmeTier::Append::kOffline;
  {
    MutexLock writing_lock(&writing_mu_);
    writing_[name] = leaves ? std::optional(departure) : std::nullopt;
    if (leaves) bytes_leaving_.fetch_add(bytes, std::memory_order_relaxed);
  }
  const auto appended =
      nvme_->TryAppend({key_space.digest, departure.key, bytes}, departure.parent,
                       {tier_->Payload(departure.frame), bytes}, checksums,
                       [this, name, bytes](bool written) { OnWritten(name, bytes, written); });
  if (appended == NvmeTier::Append::kAccepted) {
    counters_.admitted->Add();
    if (leaves) catalog_->EndCopy(departure);
    return appended;
  }
  MutexLock writing_lock(&writing_mu_);
  writing_.erase(name);
  if (leaves) bytes_leaving_.fetch_sub(bytes, std::memory_order_relaxed);
  return appended;
}

void Demoter::OnWritten(const Name& name, uint64_t bytes, bool written) {
  std::optional<Catalog::Departure> departure;
  {
    MutexLock lock(&writing_mu_);
    const auto it = writing_.find(name);
    if (it == writing_.end()) return;
    departure = it->second;
    writing_.erase(it);
  }
  if (!departure.has_value()) return;
  if (written) {
    counters_.demoted_blocks->Add();
    counters_.demoted_bytes->Add(bytes);
  }
  catalog_->EndDeparture(*departure, written);
  bytes_leaving_.fetch_sub(bytes, std::memory_order_relaxed);
}

}  // namespace terrace::tiering
