// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"
#include "tiering/tier_stack_impl.h"

namespace terrace::tiering {

using kv::BlockKey;
using kv::KeySpace;
using kv::PrefixIndex;

namespace {

absl::Status NoSuchLease() {
  return absl::NotFoundError(
      "no such lease in this session: it was released, is too old, or never was; look up again");
}

// Reasons that say: nothing of the kind was ever here.
bool IsOfNoneKnown(Reason reason) {
  return reason == Reason::kCold || reason == Reason::kKeySpaceEmpty || reason == Reason::kModelDiffers ||
         reason == Reason::kLayoutDiffers || reason == Reason::kHashDiffers;
}

absl::Status NoSuchKeySpace(kv::KeySpaceId id) {
  return absl::NotFoundError(
      absl::StrCat("no key space ", id, " for this tenant; open it on this daemon first"));
}

}  // namespace

Session::Session(TierStack* stack, uint64_t id, kv::TenantId tenant)
    : stack_(stack), id_(id), tenant_(tenant), regions_(std::make_shared<RegionShare>()) {}

Session::~Session() {
  TierStack::Impl& impl = *stack_->impl_;
  {
    MutexLock lock(&impl.mu);
    impl.sessions.erase(id_);
  }
  MutexLock lock(&mu_);
  for (auto& [id, lease] : leases_) impl.End(lease.get());
  impl.leases.fetch_sub(static_cast<int64_t>(leases_.size()), std::memory_order_relaxed);
  impl.leases_reclaimed_session->Add(leases_.size());
}

absl::StatusOr<const KeySpace*> Session::OpenKeySpace(const kv::KeySpaceIdentity& identity) {
  TierStack::Impl& impl = *stack_->impl_;
  auto opened = impl.key_spaces.Open(tenant_, impl.options.tenants[tenant_].name, identity);
  if (opened.ok()) impl.WarnIfTooLargeForDisks(**opened);
  return opened;
}

absl::StatusOr<LookupAnswer> Session::Lookup(kv::KeySpaceId key_space_id, std::span<const BlockKey> keys,
                                             const LookupOptions& options) {
  const LookupMode mode = options.mode;
  const uint64_t lease_id = options.lease;
  TierStack::Impl& impl = *stack_->impl_;
  const KeySpace* key_space = impl.key_spaces.Find(tenant_, key_space_id);
  if (key_space == nullptr) return NoSuchKeySpace(key_space_id);
  const bool counted = mode != LookupMode::kProbe;
  const bool pin = lease_id != kNoLease && counted;
  MutexLock lock(&mu_);
  Lease* lease = nullptr;
  std::unique_ptr<Lease> fresh;
  if (pin && lease_id != kNewLease) {
    const auto it = leases_.find(lease_id);
    if (it == leases_.end()) return NoSuchLease();
    lease = it->second.get();
  } else if (pin) {
    if (leases_.size() >= impl.options.max_leases_per_session) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "this session holds ", leases_.size(), " leases already; release some (host.max_leases_per_session)"));
    }
    fresh = std::make_unique<Lease>();
    lease = fresh.get();
  }

  std::vector<PrefixIndex::Found> found(keys.size());
  bool refused = false;
  const bool prefix = mode == LookupMode::kPrefix;
  const uint64_t charge = pin ? keys.size() + (fresh != nullptr ? impl.kPinsPerLease : 0) : 0;
  const bool charged = impl.TryChargePins(charge);
  const uint32_t n_host = impl.catalog.Find(
      *key_space, keys, prefix, pin,
      [&impl, charged](uint64_t uncounted) { return charged && impl.MayLease(uncounted); }, found, &refused);
  std::vector<LowerTierLookup::Found> below;
  if (impl.lower != nullptr && n_host < keys.size() && counted) {
    const Reason why_not = refused || (pin && !charged)       ? Reason::kLeaseLimit
                           : !pin || !options.may_wait ? Reason::kPending
                                                       : Reason::kNone;
    below = impl.lower->Find(*key_space, keys, found, options, why_not);
  }

  LookupAnswer answer;
  answer.places.reserve(prefix && below.empty() ? std::min<size_t>(n_host + 1, keys.size()) : keys.size());
  if (pin && lease->frames.empty()) lease->frames.reserve(n_host);  // else it grows by doubling
  const TenantCounters& counters = impl.tenants[tenant_];
  bool leading = true;
  Reason why_empty = Reason::kNone;  // found out once: it looks at every key space
  for (size_t i = 0; i < keys.size(); ++i) {
    BlockPlace place;
    LowerTierLookup::Found* lower = below.empty() ? nullptr : &below[i];
    const kv::FrameId frame = lower != nullptr && lower->frame != kv::kNoFrame ? lower->frame : found[i].frame;
    if (frame != kv::kNoFrame) {
      ++answer.n_here;
      answer.n_prefix += leading;
      if (pin) {
        const auto at = impl.tier.pool().PlaceOf(frame);
        place = {Reason::kNone, at.segment_id, at.header_offset,
                 static_cast<uint32_t>(key_space->identity.block_bytes), at.payload_offset, at.generation};
        lease->frames.push_back(frame);
      }
    } else if (lower != nullptr && lower->promotion != nullptr) {
      ++answer.n_here;
      ++answer.n_pending;
      answer.n_prefix += leading;
      place.reason = Reason::kPending;
      place.payload_bytes = static_cast<uint32_t>(key_space->identity.block_bytes);
      lease->promotions.push_back(std::move(lower->promotion));
    } else {
      if (prefix && !leading) {
        if (counted) counters.miss_blocks[static_cast<int>(Reason::kAfterMiss)]->Add(keys.size() - i);
        break;
      }
      if (lower != nullptr && lower->reason != Reason::kNone) {
        place.reason = lower->reason;
      } else if (refused && impl.catalog.index().Find(key_space->id, keys[i]).has_value()) {
        place.reason = Reason::kLeaseLimit;
      } else {
        place.reason = impl.catalog.WhyMissing(*key_space, keys[i], &why_empty);
      }
      // Nothing is known of it here: while not all that an earlier process left was found, that says little.
      const bool may_be_there = !impl.is_recovered || (lower != nullptr && lower->may_be_there);
      if (may_be_there && IsOfNoneKnown(place.reason)) place.reason = Reason::kTierOffline;
      if (counted) counters.miss_blocks[static_cast<int>(place.reason)]->Add();
      leading = false;
    }
    answer.places.push_back(place);
  }
  if (counted) {
    const uint64_t tokens = key_space->identity.tokens_per_block;
    counters.lookup_blocks->Add(keys.size());
    counters.hit_blocks->Add(answer.n_here - answer.n_pending);  // pending ones: see CountSettled
    counters.lookup_tokens->Add(keys.size() * tokens);
    counters.hit_tokens->Add((answer.n_here - answer.n_pending) * tokens);
  }

  const bool kept = pin && (answer.n_here > 0 || fresh == nullptr);  // a new lease of nothing is none
  if (charged) {
    const uint64_t unused = kept ? keys.size() - answer.n_here : charge;
    impl.charged_pins.fetch_sub(unused, std::memory_order_relaxed);
    if (kept) lease->charged_pins += charge - unused;
  }
  if (kept) {
    lease->expires_ns = impl.clock->NowNs() + impl.options.lease_max_age_ns;
    answer.lease_id = lease_id;
    if (fresh != nullptr) {
      answer.lease_id = impl.NewLeaseId();
      leases_.emplace(answer.lease_id, std::move(fresh));
      impl.leases.fetch_add(1, std::memory_order_relaxed);
    }
  }
  return answer;
}

absl::Status Session::Locate(kv::KeySpaceId key_space_id, std::span<const BlockKey> keys, int64_t timeout_ns,
                             std::function<void(std::vector<BlockPlace>)> done) {
  TierStack::Impl& impl = *stack_->impl_;
  const KeySpace* key_space = impl.key_spaces.Find(tenant_, key_space_id);
  if (key_space == nullptr) return NoSuchKeySpace(key_space_id);
  if (keys.empty()) return absl::InvalidArgumentError("Locate needs at least one key");
  return impl.promoter->Locate(*key_space, keys, timeout_ns, std::move(done));
}

absl::StatusOr<uint32_t> Session::Hint(kv::KeySpaceId key_space_id, std::span<const BlockKey> keys,
                                       const RetentionHint& hint) {
  TierStack::Impl& impl = *stack_->impl_;
  const KeySpace* key_space = impl.key_spaces.Find(tenant_, key_space_id);
  if (key_space == nullptr) return NoSuchKeySpace(key_space_id);
  return impl.catalog.Hint(*key_space, keys, hint);
}

absl::Status Session::Release(uint64_t lease_id) {
  TierStack::Impl& impl = *stack_->impl_;
  std::unique_ptr<Lease> lease;
  {
    MutexLock lock(&mu_);
    auto node = leases_.extract(lease_id);
    if (node.empty()) return NoSuchLease();
    lease = std::move(node.mapped());
  }
  impl.End(lease.get());
  impl.leases.fetch_sub(1, std::memory_order_relaxed);
  impl.leases_released->Add();
  return absl::OkStatus();
}

absl::Status Session::Renew(uint64_t lease_id) {
  TierStack::Impl& impl = *stack_->impl_;
  MutexLock lock(&mu_);
  const auto it = leases_.find(lease_id);
  if (it == leases_.end()) return NoSuchLease();
  it->second->expires_ns = impl.clock->NowNs() + impl.options.lease_max_age_ns;
  return absl::OkStatus();
}

void Session::Put(PutRequest request) { stack_->impl_->Put(*this, std::move(request)); }

absl::StatusOr<std::shared_ptr<gpu::Region>> Session::OpenRegion(const gpu::DeviceUuid& device_uuid,
                                                                 gpu::RegionLayout layout,
                                                                 std::span<const gpu::AllocationHandle> allocations,
                                                                 std::span<const gpu::EventHandle> events) {
  return stack_->OpenRegion(device_uuid, std::move(layout), allocations, events);
}

absl::Status Session::StoreRegion(RegionStoreRequest request) {
  return stack_->impl_->regions->Store(tenant_, regions_, std::move(request));
}

absl::Status Session::LoadRegion(RegionLoadRequest request) {
  return stack_->impl_->regions->Load(tenant_, regions_, std::move(request));
}

uint64_t Session::lease_count() const {
  MutexLock lock(&mu_);
  return leases_.size();
}

void Session::ExpireLeases(int64_t now_ns) {
  TierStack::Impl& impl = *stack_->impl_;
  MutexLock lock(&mu_);
  for (auto it = leases_.begin(); it != leases_.end();) {
    if (it->second->expires_ns > now_ns) {
      ++it;
      continue;
    }
    impl.End(it->second.get());
    leases_.erase(it++);
    impl.leases.fetch_sub(1, std::memory_order_relaxed);
    impl.leases_expired->Add();
    Log(LogLevel::kWarning, "lease_expired", {{"session", id_}});
  }
}

}  // namespace terrace::tiering
