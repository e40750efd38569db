// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/tier_stack.h"

#include <algorithm>
#include <random>
#include <thread>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/check.h"
#include "kvstore/base/status_macros.h"
#include "tiering/tier_stack_impl.h"

namespace terrace::tiering {

using kv::BlockKey;
using kv::FrameId;
using kv::KeySpace;
using kv::PrefixIndex;

namespace {

constexpr uint64_t kLeastArena = 16 << 20;

uint64_t Random64() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

uint64_t SegmentBytes(uint64_t arena_bytes) {
  const uint64_t even = kv::kExtentBytes * 2;  // whole huge pages
  return std::clamp<uint64_t>(arena_bytes / 64 / even * even, 16 << 20, 1 << 30);
}

uint32_t CopyThreads(uint32_t configured) {
  if (configured != 0) return configured;
  return std::thread::hardware_concurrency() <= 4 ? 1 : 2;
}

}  // namespace

absl::Status TierStackOptions::Validate() const {
  if (tenants.empty()) return absl::InvalidArgumentError("tenants: at least one tenant is needed");
  if (tenants.size() > 4096) return absl::InvalidArgumentError("tenants: at most 4096");
  if (budget_bytes < process_bytes + 2 * kLeastArena) {
    return absl::InvalidArgumentError(
        absl::StrCat("host.budget is ", budget_bytes, " bytes; of these ", process_bytes,
                     " are for the process itself (host.process_bytes) and at least ", 2 * kLeastArena,
                     " must remain for blocks"));
  }
  if (!(max_leased_ratio > 0 && max_leased_ratio <= 1)) {
    return absl::InvalidArgumentError("host.max_leased_ratio must be above 0 and at most 1");
  }
  if (lease_max_age_ns <= 0) return absl::InvalidArgumentError("host.lease_max_age must be positive");
  if (max_key_spaces == 0 || max_leases_per_session == 0 || store_queue_depth == 0) {
    return absl::InvalidArgumentError(
        "host.max_key_spaces, host.max_leases_per_session and host.store_queue_depth must be positive");
  }
  if (store_threads > 64) return absl::InvalidArgumentError("host.store_threads must be at most 64");
  return MakeEvictionPolicy(eviction_policy, 1, 1).status();
}

absl::StatusOr<std::unique_ptr<TierStack>> TierStack::Create(const TierStackOptions& options,
                                                             const Clock* clock, MetricRegistry* metrics) {
  RETURN_IF_ERROR(options.Validate());
  // A share for staging, and 3 % for the tables of frames (they depend on the block size); what those need
  // beyond it comes out of segments nobody uses yet.
  const uint64_t for_blocks = options.budget_bytes - options.process_bytes;
  const uint64_t staging = StagingShare::BytesFor(for_blocks);
  uint64_t arena = (for_blocks - staging) / 100 * 97;
  arena = arena / (2 * kv::kExtentBytes) * (2 * kv::kExtentBytes);
  const uint64_t index_capacity = arena / kv::kFrameAlign;
  const uint64_t buckets = index_capacity * 5;
  const uint64_t misses = std::clamp<uint64_t>(index_capacity * 2, 1 << 12, 1 << 20) * 4;
  ASSIGN_OR_RETURN(auto policy, MakeEvictionPolicy(options.eviction_policy, index_capacity + (1 << 20), 0));
  return absl::WrapUnique(new TierStack(std::make_unique<Impl>(
      options, clock, metrics, std::move(policy), arena, index_capacity, options.process_bytes + buckets + misses,
      staging)));
}

TierStack::Impl::Impl(const TierStackOptions& stack_options, const Clock* the_clock, MetricRegistry* metrics,
                      std::unique_ptr<EvictionPolicy> policy, uint64_t arena_bytes, uint64_t index_capacity,
                      uint64_t static_bytes, uint64_t staging_bytes)
    : options(stack_options),
      clock(the_clock),
      budget(stack_options.budget_bytes),
      staging(staging_bytes, &budget),
      key_spaces(stack_options.max_key_spaces),
      // 4 bytes a pin: at most a thousandth of the arena, or 8 MiB.
      max_pins(std::clamp<uint64_t>(index_capacity, 1 << 21, 1 << 29)),
      lease_secret(Random64()),
      tier((RegisterMetrics(metrics), TERRACE_CHECK(budget.TryCharge(static_bytes + staging_bytes)),
            HostTier::Options{.segment_bytes = SegmentBytes(arena_bytes),
                              .arena_bytes = arena_bytes,
                              .prefault = stack_options.prefault,
                              .huge_pages = stack_options.huge_pages,
                              .overhead_bytes_per_frame = Catalog::kBytesPerBlock}),
           &budget,
           [this](kv::TenantId tenant, uint32_t segment_id) {
             std::function<void(kv::TenantId, uint32_t)> callback;
             {
               MutexLock lock(&mu);
               callback = segment_gone;
             }
             if (callback) callback(tenant, segment_id);
           }),
      catalog(index_capacity, Random64(), std::move(policy), &tier, &key_spaces,
              {evictions, evicted_bytes, moved_bytes, integrity_checksum}),
      copies(CopyThreads(stack_options.store_threads), stack_options.store_queue_depth) {}

TierStack::Impl::~Impl() {
  copies.Drain();
  MutexLock lock(&mu);
  TERRACE_CHECK(sessions.empty());
}

uint64_t TierStack::Impl::NewLeaseId() {
  while (true) {  // splitmix64: unique for unique counters. Leases belong to sessions: it need not be secret
    uint64_t x = lease_secret + next_lease.fetch_add(1, std::memory_order_relaxed) * 0x9E3779B97F4A7C15ull;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    x ^= x >> 31;
    if (x != Session::kNewLease && x != Session::kNoLease) return x;
  }
}

bool TierStack::Impl::TryChargePins(uint64_t pins) {
  if (charged_pins.fetch_add(pins, std::memory_order_relaxed) + pins <= max_pins) return true;
  charged_pins.fetch_sub(pins, std::memory_order_relaxed);
  return false;
}

void TierStack::Impl::Unpin(const std::vector<FrameId>& frames) {
  tier.UnpinAll(frames);
  charged_pins.fetch_sub(frames.size() + kPinsPerLease, std::memory_order_relaxed);
}

bool TierStack::Impl::IsFilling(const FillKey& block) const {
  MutexLock lock(&fill_mu);
  return filling.contains(block);
}

void TierStack::Impl::SetFilling(const FillKey& block, bool on) {
  MutexLock lock(&fill_mu);
  int& stores = filling[block];
  stores += on ? 1 : -1;
  if (stores == 0) filling.erase(block);
}

void TierStack::Impl::Put(const Session& session, PutRequest request) {
  const KeySpace& key_space = *request.key_space;
  const kv::TenantId tenant = session.tenant();
  const auto finish = [this, tenant](const std::function<void(Reason)>& done, Reason reason) {
    tenants[tenant].store_blocks[static_cast<int>(reason)]->Add();
    done(reason);
  };
  if (draining.load(std::memory_order_relaxed)) return finish(request.done, Reason::kCancelled);
  // First: which blocks another tenant has is none of this one's business.
  if (key_space.tenant != tenant) return finish(request.done, Reason::kBadChecksum);
  if (catalog.index().Find(key_space.id, request.key).has_value()) {
    return finish(request.done, Reason::kDuplicate);
  }
  const uint64_t bytes = key_space.identity.block_bytes;
  if (request.source.size() != bytes || request.checksums.size() != ChecksumCount(bytes)) {
    return finish(request.done, Reason::kBadChecksum);
  }
  // A block is of use only behind its parent. The parent stays until the block is in; where it is not
  // here nor on its way, nothing is evicted for a block that no prefix would reach.
  if (request.parent == request.key) request.parent.reset();
  const FillKey mine{key_space.id, request.key};
  std::optional<FrameId> parent_frame;
  bool reachable = true;
  if (request.parent.has_value()) {
    parent_frame = catalog.PinIfHere(key_space, *request.parent);
    reachable = parent_frame.has_value() || IsFilling({key_space.id, *request.parent});
  }
  const auto frame = catalog.Allocate(tenant, bytes, reachable);
  if (!frame.has_value()) {
    if (parent_frame.has_value()) tier.Unpin(*parent_frame);
    return finish(request.done, Reason::kBudget);
  }
  SetFilling(mine, true);
  const auto end = [this, mine, parent_frame] {
    SetFilling(mine, false);
    if (parent_frame.has_value()) tier.Unpin(*parent_frame);
  };

  gpu::CopyJob job;
  job.source = {const_cast<std::byte*>(request.source.data()), bytes};
  job.target = {tier.Payload(*frame), bytes};
  job.identity_seed = IdentitySeed(key_space.digest.data(), request.key.bytes.data(), bytes);
  job.checksums = std::move(request.checksums);
  job.done = [this, finish, end, frame = *frame, started = clock->NowNs(), &key_space, key = request.key,
              parent = request.parent, done = request.done](gpu::CopyJob& copied, bool intact) {
    if (!intact) {
      tier.Abandon(frame);
      end();
      return finish(done, Reason::kBadChecksum);
    }
    const uint64_t generation = tier.WriteHeader(frame, key_space, key, copied.checksums);
    tier.pool().MakeReady(frame, generation);
    const Reason reason = catalog.Publish(key_space, key, parent, frame);
    end();
    if (reason == Reason::kNone) host_in_bytes->Add(key_space.identity.block_bytes);
    store_duration->ObserveNs(clock->NowNs() - started);
    finish(done, reason);
  };
  if (!copies.Submit(job).ok()) {
    tier.Abandon(*frame);
    end();
    finish(request.done, Reason::kOverload);
  }
}

bool TierStack::Impl::CheckPinned(const KeySpace& key_space, const BlockKey& key, FrameId frame,
                                  std::span<std::byte> target) {
  if (tier.Check(frame, key_space, key, target)) return true;
  catalog.Drop(key_space, key, frame, Reason::kCorrupt);
  return false;
}

TierStack::TierStack(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
TierStack::~TierStack() = default;

std::unique_ptr<Session> TierStack::OpenSession(kv::TenantId tenant) {
  TERRACE_CHECK(tenant < impl_->options.tenants.size());
  const uint64_t id = impl_->next_session.fetch_add(1, std::memory_order_relaxed);
  auto session = absl::WrapUnique(new Session(this, id, tenant));
  MutexLock lock(&impl_->mu);
  impl_->sessions[id] = session.get();
  return session;
}

absl::StatusOr<kv::TenantId> TierStack::FindTenant(absl::string_view name) const {
  const auto& tenants = impl_->options.tenants;
  for (size_t i = 0; i < tenants.size(); ++i) {
    if (tenants[i].name == name) return static_cast<kv::TenantId>(i);
  }
  return absl::NotFoundError(absl::StrCat("no tenant \"", name, "\" is configured (tenants:)"));
}

absl::StatusOr<SegmentFds> TierStack::FindSegment(kv::TenantId tenant, uint32_t segment_id) const {
  auto fds = impl_->tier.FindSegment(segment_id, tenant);
  if (!fds.has_value()) return absl::NotFoundError(absl::StrCat("no segment ", segment_id, "; look up again"));
  return SegmentFds{fds->payload, fds->headers, fds->payload_bytes, fds->header_bytes};
}

void TierStack::SetSegmentGoneCallback(std::function<void(kv::TenantId, uint32_t)> callback) {
  MutexLock lock(&impl_->mu);
  impl_->segment_gone = std::move(callback);
}

absl::Status TierStack::ChargeStaging(uint64_t bytes) {
  do {
    if (impl_->staging.TryCharge(bytes)) return absl::OkStatus();
  } while (impl_->tier.GiveUpSpare());
  return absl::ResourceExhaustedError(
      absl::StrCat("no ", bytes, " bytes of staging memory left in host.budget; raise it, lower "
                   "engine.staging_bytes, or use fewer storing clients"));
}

void TierStack::ReleaseStaging(uint64_t bytes) { impl_->staging.Release(bytes); }

absl::Status TierStack::ReadLeased(const KeySpace& key_space, const BlockKey& key, const BlockPlace& place,
                                   std::span<std::byte> target) {
  PrefixIndex::Found found;
  bool refused;
  impl_->catalog.index().FindChain(key_space.id, {&key, 1}, true, &impl_->tier.pool(), [](uint64_t) { return true; },
                                   {&found, 1}, &refused);
  if (found.block == kv::kNoBlock) return absl::NotFoundError("the block was flushed");
  const bool same = impl_->tier.pool().PlaceOf(found.frame).generation == place.generation;
  const bool good = same && impl_->CheckPinned(key_space, key, found.frame, target);
  impl_->tier.Unpin(found.frame);
  if (!same) return absl::NotFoundError("the block was replaced; look up again");
  if (!good) return absl::DataLossError("the block failed its checksum and was dropped");
  impl_->host_out_bytes->Add(target.size());
  return absl::OkStatus();
}

bool TierStack::CheckReported(const KeySpace& key_space, const BlockKey& key, uint64_t generation) {
  PrefixIndex::Found found;
  bool refused;
  impl_->catalog.index().FindChain(key_space.id, {&key, 1}, true, &impl_->tier.pool(), [](uint64_t) { return true; },
                                   {&found, 1}, &refused);
  if (found.block == kv::kNoBlock) return false;
  const bool same = impl_->tier.pool().PlaceOf(found.frame).generation == generation;
  const bool bad = same && !impl_->CheckPinned(key_space, key, found.frame, {});
  impl_->tier.Unpin(found.frame);
  return bad;
}

void TierStack::Step() {
  impl_->catalog.DrainTouches();
  const int64_t now = impl_->clock->NowNs();
  MutexLock lock(&impl_->mu);
  for (auto& [id, session] : impl_->sessions) session->ExpireLeases(now);
}

void TierStack::WaitForStores() { impl_->copies.Drain(); }

void TierStack::Drain() {
  impl_->draining.store(true, std::memory_order_relaxed);
  WaitForStores();
}

}  // namespace terrace::tiering
