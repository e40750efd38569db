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
    if (!Depart(*departure)) break;
    const uint64_t bytes = departure->key_space->identity.block_bytes;
    wanted -= std::min(wanted, bytes);
    ++begun;
  }
  if (begun > 0) nvme_->Kick();
  return begun;
}

bool Demoter::Depart(const Catalog::Departure& departure) {
  const kv::KeySpace& key_space = *departure.key_space;
  const uint64_t bytes = key_space.identity.block_bytes;
  const NvmeBlock block{key_space.digest, departure.key, bytes};
  const auto end = [&](bool leave) {
    catalog_->EndCopy(departure);
    catalog_->EndDeparture(departure, leave);
  };
  if (nvme_->Find(block) == NvmeTier::Presence::kHere) {
    end(true);
    return true;
  }
  AdmissionPolicy::Decision decision;
  {
    MutexLock lock(&admission_mu_);
    RetentionHint hint;
    hint.done = departure.done;
    decision = admission_->Decide({.fingerprint = departure.fingerprint,
                                   .bytes = bytes,
                                   .uses = departure.uses,
                                   .reuse_chance = departure.reuse_chance,
                                   .depth = departure.depth,
                                   .hint = hint},
                                  clock_->NowNs());
  }
  if (decision != AdmissionPolicy::Decision::kAdmit) {
    const bool for_budget = decision == AdmissionPolicy::Decision::kRejectBudget;
    (for_budget ? counters_.rejected_budget : counters_.rejected_once)->Add();
    end(true);
    return true;
  }
  const std::vector<uint64_t> checksums = tier_->Checksums(departure.frame, bytes);
  bytes_leaving_.fetch_add(bytes, std::memory_order_relaxed);
  MutexLock lock(&append_mu_);
  if (key_space.flushes.load(std::memory_order_relaxed) != departure.as_of_flushes) {
    bytes_leaving_.fetch_sub(bytes, std::memory_order_relaxed);
    end(false);
    return true;
  }
  const auto appended = nvme_->TryAppend(
      block, departure.parent, {tier_->Payload(departure.frame), bytes}, checksums,
      [this, departure, bytes](bool written) {
        if (written) {
          counters_.demoted_blocks->Add();
          counters_.demoted_bytes->Add(bytes);
        }
        catalog_->EndDeparture(departure, written);
        bytes_leaving_.fetch_sub(bytes, std::memory_order_relaxed);
      });
  if (appended == NvmeTier::Append::kAccepted) {
    counters_.admitted->Add();
    catalog_->EndCopy(departure);
    return true;
  }
  bytes_leaving_.fetch_sub(bytes, std::memory_order_relaxed);
  switch (appended) {
    case NvmeTier::Append::kPresent:
      end(true);
      return true;
    case NvmeTier::Append::kCorrupt:
      catalog_->EndCopy(departure);
      catalog_->Drop(key_space, departure.key, departure.frame, Reason::kCorrupt);
      return true;
    case NvmeTier::Append::kTooLarge:
      end(true);
      return true;
    case NvmeTier::Append::kBudget:
      counters_.rejected_budget->Add();
      end(false);
      return false;
    default:  // busy or out of service: it stays, and stores evict by need
      end(false);
      return false;
  }
}

}  // namespace terrace::tiering
