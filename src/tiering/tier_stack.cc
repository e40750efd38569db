// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/tier_stack.h"

#include <pthread.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <random>
#include <thread>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/check.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/kill_point.h"
#include "tiering/tier_stack_impl.h"

namespace terrace::tiering {

using kv::BlockKey;
using kv::FrameId;
using kv::KeySpace;

namespace {

constexpr double kPromotionShare = 0.25;  // of the arena: what may be on its way up at a time
constexpr double kRegionShare = 0.25;     // of the arena: what may be in copy between it and regions, each way
constexpr uint32_t kLoadQueueDepth = 4096;
// How long the start waits for what the last process left, before the rest comes in beside serving.
constexpr int64_t kRecoverAtStartNs = 150'000'000;

uint64_t Random64() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

uint64_t SegmentBytes(uint64_t arena_bytes) {
  const uint64_t even = kv::kExtentBytes * 2;  // whole huge pages
  return std::clamp<uint64_t>(arena_bytes / 64 / even * even, 16 << 20, 1 << 30);
}

uint64_t Share(uint64_t bytes, double ratio) {
  return static_cast<uint64_t>(static_cast<double>(bytes) * ratio);
}

std::vector<std::string> TenantNames(const TierStackOptions& options) {
  std::vector<std::string> names;
  for (const TenantOptions& tenant : options.tenants) names.push_back(tenant.name);
  return names;
}

// Null where memory that outlives the process cannot be had: the cache then works, but starts cold.
absl::StatusOr<std::unique_ptr<HostMemoryDir>> OpenMemoryDir(const TierStackOptions& options,
                                                             const MemoryPlan& plan) {
  if (options.memory_dir.empty()) return nullptr;
  const auto go_without = [&](absl::string_view why, absl::string_view mend) {
    Log(LogLevel::kWarning, "host_memory_is_anonymous",
        {{"memory_dir", options.memory_dir},
         {"why", why},
         {"consequence", "blocks in host memory will not survive a restart of the daemon"},
         {"mend", mend}});
    return std::unique_ptr<HostMemoryDir>();
  };
  struct statvfs fs {};
  if (statvfs(options.memory_dir.c_str(), &fs) != 0) {
    return go_without(std::strerror(errno), "mount a tmpfs there, or set host.memory_dir");
  }
  // Headers take up to a sixteenth beside the payload.
  const uint64_t needed = plan.arena_bytes + plan.arena_bytes / 16;
  // A hugetlbfs without a limit of its own says 0.
  if (const uint64_t size = fs.f_blocks * fs.f_frsize; size != 0 && size < needed) {
    return go_without(absl::StrCat("it holds ", size >> 20, " MiB, the host tier needs ", needed >> 20, " MiB"),
                      "enlarge it (mount -o remount,size=...; docker run --shm-size), or lower host.budget");
  }
  auto dir = HostMemoryDir::Open(HostMemoryDir::PathFor(options.memory_dir, options.run_dir), options.run_dir);
  if (dir.ok() || absl::IsAlreadyExists(dir.status())) return dir;
  return go_without(dir.status().message(), "mend it, or set host.memory_dir");
}

// Null: GPUs are not used.
std::unique_ptr<gpu::Gpus> OpenGpus(const TierStackOptions& options) {
  if (!options.gpu) return nullptr;
  if (options.gpus_factory) return options.gpus_factory(options.gpu_options);
  return options.threads ? gpu::Gpus::Open(options.gpu_options) : nullptr;
}

uint32_t CopyThreads(uint32_t configured) {
  if (configured != 0) return configured;
  return std::thread::hardware_concurrency() <= 4 ? 1 : 2;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TierStack>> TierStack::Create(const TierStackOptions& options,
                                                             const Clock* clock, MetricRegistry* metrics) {
  RETURN_IF_ERROR(options.Validate());
  const MemoryPlan plan = MemoryPlan::For(options);
  if (plan.budget_for_staging_bytes != 0) {
    Log(LogLevel::kWarning, "staging_is_short",
        {{"kept_bytes", plan.staging_bytes}, {"asked_bytes", options.client_staging_bytes},
         {"consequence", "storing clients get less staging memory, or none; large blocks may not be stored"},
         {"mend", absl::StrCat("raise host.budget to ", plan.budget_for_staging_bytes >> 20,
                               "MiB, or lower engine.staging_bytes")}});
  }
  Catalog::Policies policies;
  for (auto& policy : policies) {
    ASSIGN_OR_RETURN(policy, MakeEvictionPolicy(options.eviction_policy, plan.index_capacity + (1 << 20),
                                                plan.expected_blocks));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<HostMemoryDir> memory_dir, OpenMemoryDir(options, plan));
  auto impl = std::make_unique<Impl>(options, plan, std::move(memory_dir), std::move(policies), clock, metrics);
  RETURN_IF_ERROR(impl->AddLowerTiers(metrics));
  impl->AddRegions(metrics);
  impl->Recover();
  return absl::WrapUnique(new TierStack(std::move(impl)));
}

TierStack::Impl::Impl(const TierStackOptions& stack_options, const MemoryPlan& memory_plan,
                      std::unique_ptr<HostMemoryDir> dir, Catalog::Policies policies, const Clock* the_clock,
                      MetricRegistry* metrics)
    : options(stack_options),
      plan(memory_plan),
      clock(the_clock),
      memory_dir(std::move(dir)),
      budget(stack_options.budget_bytes),
      disk_budget(plan.disk_bytes),
      staging(plan.staging_bytes, &budget),
      key_spaces(stack_options.max_key_spaces),
      // 4 bytes a pin: at most a thousandth of the arena, or 8 MiB.
      max_pins(std::clamp<uint64_t>(plan.index_capacity, 1 << 21, 1 << 29)),
      lease_secret(Random64()),
      gpus(OpenGpus(options)),
      pinner(gpus == nullptr || gpus->devices().empty() ? nullptr : std::make_unique<HostPinner>(gpus.get())),
      // The disks' share is theirs alone: neither memory that is taken over nor tables of frames eat it up.
      tier((RegisterMetrics(metrics),
            TERRACE_CHECK(budget.TryCharge(plan.static_bytes + plan.staging_bytes + plan.disk_bytes)),
            HostTier::Options{.segment_bytes = SegmentBytes(plan.arena_bytes),
                              .arena_bytes = plan.arena_bytes,
                              .prefault = options.prefault,
                              .huge_pages = options.huge_pages,
                              .overhead_bytes_per_frame = Catalog::kBytesPerBlock,
                              .memory_dir = memory_dir.get(),
                              .key_spaces = &key_spaces,
                              .tenants = TenantNames(options),
                              .observer = pinner.get()}),
           &budget,
           [this](kv::TenantId tenant, uint32_t segment_id) {
             std::function<void(kv::TenantId, uint32_t)> callback;
             {
               MutexLock lock(&mu);
               callback = segment_gone;
             }
             if (callback) callback(tenant, segment_id);
           }),
      catalog({.capacity = plan.index_capacity,
               .hash_seed = Random64(),
               .floor_bytes = {Share(plan.arena_bytes, options.class_floor[0]),
                               Share(plan.arena_bytes, options.class_floor[1])},
               .max_pin_bytes = Share(plan.arena_bytes, options.max_pin_ratio)},
              std::move(policies), &tier, &key_spaces, clock,
              {evictions, evicted_bytes, demote_evictions, demote_evicted_bytes, moved_bytes, integrity_checksum}),
      copies(options.threads ? CopyThreads(stack_options.store_threads) : 0, stack_options.store_queue_depth),
      load_copies(options.threads ? CopyThreads(0) : 0, kLoadQueueDepth) {}

absl::Status TierStack::Impl::AddLowerTiers(MetricRegistry* metrics) {
  if (!options.nvme.devices.empty()) {
    NvmeOptions nvme_options = options.nvme;
    nvme_options.threads = options.threads;
    ASSIGN_OR_RETURN(nvme, NvmeTier::Create(nvme_options,
                                            options.device_factory ? options.device_factory : OpenBlockDevice,
                                            clock, &disk_budget, metrics, &load_copies));
  }
  promotions.settled = [this](const KeySpace& key_space, Reason reason, uint64_t lookups) {
    CountSettled(key_space, reason, lookups);
  };
  // There without lower tiers, too: Locate answers what is here and why the rest is not.
  promoter = std::make_unique<Promoter>(&tier, &catalog, nvme.get(), clock, &rates,
                                        Share(plan.arena_bytes, kPromotionShare), promotions);
  if (nvme == nullptr) return absl::OkStatus();
  catalog.SetIsBelow([this](const KeySpace& key_space) {
    return nvme != nullptr && nvme->MayHaveSpace(key_space.digest);
  });
  uint64_t disk_bytes = 0;
  for (const BlockDeviceOptions& device : options.nvme.devices) disk_bytes += device.bytes;
  ASSIGN_OR_RETURN(auto admission,
                   MakeAdmissionPolicy(options.admission_policy,
                                       {.capacity_bytes = disk_bytes,
                                        .write_bytes_per_day = options.nvme.write_bytes_per_day,
                                        .expected_blocks = disk_bytes >> 20}));
  demoter = std::make_unique<Demoter>(&tier, &catalog, nvme.get(), std::move(admission), clock, demotions,
                                      options.threads);
  lower = std::make_unique<LowerTierLookup>(&catalog, nvme.get(), promoter.get(), demoter.get(), &rates,
                                            [this](uint64_t more_bytes) { return MayLease(more_bytes); });
  return absl::OkStatus();
}

// After the lower tiers: loads wait for what comes from there.
void TierStack::Impl::AddRegions(MetricRegistry* metrics) {
  RegionMover::Options region_options;
  region_options.host_regions = options.host_regions;
  region_options.host_threads = options.threads ? CopyThreads(options.region_threads) : 0;
  region_options.queue_depth = options.gpu_options.queue_depth;
  region_options.max_bytes = Share(plan.arena_bytes, kRegionShare);
  region_options.gpu_tier_bytes = options.gpu_tier_bytes;
  region_options.policy = options.eviction_policy;
  RegionMover::Parts parts;
  parts.tier = &tier;
  parts.catalog = &catalog;
  parts.promoter = promoter.get();
  parts.demoter = demoter.get();
  parts.fills = &fills;
  parts.gpus = gpus.get();
  parts.clock = clock;
  parts.is_coming = [this](const KeySpace& key_space, const BlockKey& key) { return IsComing(key_space, key); };
  parts.is_below = [this](const KeySpace& key_space, const BlockKey& key) { return IsBelow(key_space, key); };
  parts.count_store = [this](kv::TenantId tenant, Reason reason) {
    tenants[tenant].store_blocks[static_cast<int>(reason)]->Add();
  };
  regions = std::make_unique<RegionMover>(region_options, parts, metrics);
  RegisterGpuGauges(metrics);
}

// What is little is there before the first client; the rest comes in beside serving.
void TierStack::Impl::Recover() {
  if (memory_dir == nullptr) return;
  is_recovered = false;
  const auto publish = [this](const HostTier::AdoptedBlock& block) {
    static constexpr std::array<uint8_t, 24> kNoParent{};
    const kv::KeySpaceId id = block.key_space->id;
    const uint64_t parent =
        block.parent_tag == kNoParent ? 0 : Catalog::TagOf(id, block.parent_tag.data());
    const bool adopted = catalog.Adopt(*block.key_space, block.key, block.frame,
                                       Catalog::TagOf(id, block.key.bytes.data()), parent);
    recovered_blocks.fetch_add(adopted, std::memory_order_relaxed);
    return adopted;
  };
  const auto finish = [this] {
    catalog.LinkAdopted();
    is_recovered = true;
    Log(LogLevel::kInfo, "host_memory_adopted", {{"blocks", recovered_blocks.load()}});
  };
  const int64_t until_ns = Clock::Real()->NowNs() + kRecoverAtStartNs;
  while (tier.AdoptStep(publish)) {
    if (!options.threads || Clock::Real()->NowNs() < until_ns) continue;
    recovery = std::thread([this, publish, finish] {
      while (!stopping.load(std::memory_order_relaxed) && tier.AdoptStep(publish)) {
      }
      if (!stopping.load(std::memory_order_relaxed)) finish();
    });
    pthread_setname_np(recovery.native_handle(), "terrace-adopt");
    return;
  }
  finish();
}

TierStack::Impl::~Impl() {
  stopping = true;
  if (recovery.joinable()) recovery.join();
  if (demoter != nullptr) demoter->Stop();
  copies.Drain();
  if (regions != nullptr) regions->Stop();
  nvme.reset();  // ends what is under way; the promoter and the demoter hear of it
  if (promoter != nullptr) promoter->EndWaiting();
  regions.reset();
  if (pinner != nullptr) pinner->Stop();
  gpus.reset();  // before the memory that they copy goes
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

void TierStack::Impl::End(Session::Lease* lease) {
  tier.UnpinAll(lease->frames);
  lease->promotions.clear();
  charged_pins.fetch_sub(lease->charged_pins, std::memory_order_relaxed);
}

bool TierStack::Impl::IsBelow(const KeySpace& key_space, const BlockKey& key) const {
  return nvme != nullptr && nvme->Find({key_space.digest, key, key_space.identity.block_bytes}) ==
                                NvmeTier::Presence::kHere;
}

bool TierStack::Impl::IsComing(const KeySpace& key_space, const BlockKey& key) const {
  return fills.Has(key_space, key) || promoter->IsUnderWay(key_space, key) || IsBelow(key_space, key);
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
  std::optional<FrameId> parent_frame;
  bool reachable = true;
  if (request.parent.has_value()) {
    parent_frame = catalog.PinIfHere(key_space, *request.parent);
    reachable = parent_frame.has_value() || IsComing(key_space, *request.parent);
  }
  const auto frame = catalog.Allocate(key_space, reachable);
  if (!frame.has_value()) {
    if (parent_frame.has_value()) tier.Unpin(*parent_frame);
    return finish(request.done, Reason::kBudget);
  }
  if (demoter != nullptr) demoter->OnAllocated(bytes);
  fills.Begin(key_space, request.key);
  const auto end = [this, &key_space, key = request.key, parent_frame] {
    fills.End(key_space, key);
    if (parent_frame.has_value()) tier.Unpin(*parent_frame);
  };

  gpu::CopyJob job;
  job.source = {const_cast<std::byte*>(request.source.data()), bytes};
  job.target = {tier.Payload(*frame), bytes};
  job.identity_seed = IdentitySeed(key_space.digest.data(), request.key.bytes.data(), bytes);
  job.checksums = std::move(request.checksums);
  job.done = [this, finish, end, frame = *frame, started = clock->NowNs(), &key_space, key = request.key,
              parent = request.parent, hint = request.hint, done = request.done](gpu::CopyJob& copied, bool intact) {
    if (!intact) {
      tier.Abandon(frame);
      end();
      return finish(done, Reason::kBadChecksum);
    }
    KillPoint("store_before_header");
    const uint64_t generation = tier.WriteHeader(frame, key_space, key, copied.checksums, parent);
    tier.pool().MakeReady(frame, generation);
    KillPoint("store_before_index");
    const Reason reason = catalog.Publish(key_space, key, parent, frame, hint);
    end();
    if (reason == Reason::kNone) {
      host_in_bytes->Add(key_space.identity.block_bytes);
      if (demoter != nullptr) demoter->OnStored(key_space, key);
    }
    store_duration->ObserveNs(clock->NowNs() - started);
    finish(done, reason);
  };
  KillPoint("store_before_payload");
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
  const auto frame = impl_->catalog.PinIfHere(key_space, key);
  if (!frame.has_value()) return absl::NotFoundError("the block was flushed");
  const bool same = impl_->tier.pool().PlaceOf(*frame).generation == place.generation;
  const bool good = same && impl_->CheckPinned(key_space, key, *frame, target);
  impl_->tier.Unpin(*frame);
  if (!same) return absl::NotFoundError("the block was replaced; look up again");
  if (!good) return absl::DataLossError("the block failed its checksum and was dropped");
  impl_->host_out_bytes->Add(target.size());
  return absl::OkStatus();
}

bool TierStack::CheckReported(const KeySpace& key_space, const BlockKey& key, uint64_t generation) {
  const auto frame = impl_->catalog.PinIfHere(key_space, key);
  if (!frame.has_value()) return false;
  const bool same = impl_->tier.pool().PlaceOf(*frame).generation == generation;
  const bool bad = same && !impl_->CheckPinned(key_space, key, *frame, {});
  impl_->tier.Unpin(*frame);
  return bad;
}

// Once for each change, and never for the first.
void TierStack::Impl::SayWhoEvicts() {
  const EvictionPolicy::Stats stats = catalog.GetClassStats(BlockClass::kKv).policy;
  if (!evicting_policy.empty() && stats.name != evicting_policy) {
    Log(LogLevel::kWarning, "eviction_policy_changed",
        {{"from", evicting_policy}, {"to", stats.name}, {"fallbacks", stats.fallbacks},
         {"why", stats.name == "lru" ? "it did worse than LRU on recent traffic" : "tried again"}});
  }
  evicting_policy = stats.name;
}

void TierStack::Impl::WarnIfTooLargeForDisks(const KeySpace& key_space) {
  const uint64_t most = options.nvme.io_memory_bytes / 4;
  if (nvme == nullptr || key_space.identity.block_bytes <= most || key_space.is_warned.exchange(true)) return;
  Log(LogLevel::kWarning, "blocks_too_large_for_disks",
      {{"model", key_space.identity.model}, {"block_bytes", key_space.identity.block_bytes}, {"most_bytes", most},
       {"consequence", "they live in host memory only"}, {"mend", "raise nvme.io_memory to 4 times a block"}});
}

void TierStack::Step() {
  Impl& impl = *impl_;
  impl.catalog.Step();
  if (!impl.options.threads) {
    if (impl.demoter != nullptr) impl.demoter->Round();
    if (impl.nvme != nullptr) impl.nvme->Step();
  }
  impl.promoter->Step();
  impl.regions->Step();
  impl.SayWhoEvicts();
  const int64_t now = impl.clock->NowNs();
  MutexLock lock(&impl.mu);
  for (auto& [id, session] : impl.sessions) session->ExpireLeases(now);
}

void TierStack::WaitForStores() {
  impl_->copies.Drain();
  impl_->regions->Drain();
}

void TierStack::Drain() {
  impl_->draining.store(true, std::memory_order_relaxed);
  impl_->regions->StopStores();
  WaitForStores();
}

}  // namespace terrace::tiering
