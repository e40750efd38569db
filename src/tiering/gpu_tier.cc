// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/gpu_tier.h"

#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "kvstore/base/block_copy.h"
#include "kvstore/base/check.h"
#include "kvstore/base/status_macros.h"
#include "tiering/catalog.h"

namespace terrace::tiering {
namespace {

constexpr uint64_t kSeenPerBlock = 4;  // loads remembered, for each block of a MiB that there is room for
constexpr uint64_t kLeastSeen = 4096;

}  // namespace

uint64_t GpuTier::SlabBytes(uint64_t bytes) {
  return std::clamp(std::bit_floor(bytes / 16), kSmallestSlab, kLargestSlab);
}

absl::StatusOr<std::unique_ptr<GpuTier>> GpuTier::Create(const Options& options, gpu::Gpus* gpus,
                                                         const Clock* clock, Demote demote) {
  const uint64_t slab_bytes = SlabBytes(options.bytes);
  const uint64_t n_slabs = options.bytes / slab_bytes;
  if (n_slabs == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a GPU tier of ", options.bytes, " bytes; at least ", kSmallestSlab, " (gpu.tier_bytes)"));
  }
  ASSIGN_OR_RETURN(auto policy, MakeEvictionPolicy(options.policy, n_slabs * kSlotsPerSlab,
                                                   options.bytes / (1 << 20) + 1));
  ASSIGN_OR_RETURN(auto memory, gpus->Allocate(options.device, n_slabs * slab_bytes));
  return std::unique_ptr<GpuTier>(
      new GpuTier(options, gpus, clock, std::move(demote), std::move(memory), std::move(policy)));
}

GpuTier::GpuTier(const Options& options, gpu::Gpus* gpus, const Clock* clock, Demote demote,
                 std::unique_ptr<gpu::DeviceMemory> memory, std::unique_ptr<EvictionPolicy> policy)
    : options_(options),
      gpus_(gpus),
      clock_(clock),
      demote_(std::move(demote)),
      memory_(std::move(memory)),
      slab_bytes_(SlabBytes(options.bytes)),
      policy_(std::move(policy)),
      seen_(std::max(kLeastSeen, kSeenPerBlock * (options.bytes >> 20))),
      slabs_(options.bytes / slab_bytes_) {
  stats_.capacity_bytes = slabs_.size() * slab_bytes_;
}

GpuTier::~GpuTier() {
  MutexLock lock(&mu_);
  while (promotions_ > 0 || departures_ > 0) idle_.Wait(&mu_);
}

std::optional<GpuTier::Found> GpuTier::Find(const kv::KeySpace& key_space, const kv::BlockKey& key) {
  MutexLock lock(&mu_);
  const auto it = blocks_.find({key_space.id, key});
  if (it == blocks_.end()) return std::nullopt;
  Block& block = slots_[it->second];
  if (!block.is_here) return std::nullopt;
  ++block.pins;
  ++stats_.hits;
  policy_->OnAccess(it->second, clock_->NowNs());
  const uint32_t slot = it->second;
  return Found{slot,
               memory_->data() + slot / kSlotsPerSlab * slab_bytes_ +
                   slot % kSlotsPerSlab * key_space.identity.block_bytes,
               block.checksums};
}

void GpuTier::Unpin(uint32_t slot) {
  MutexLock lock(&mu_);
  Block& block = slots_[slot];
  TERRACE_CHECK(block.pins > 0);
  if (--block.pins == 0 && !block.is_here && !block.is_going) FreeLocked(slot);
}

bool GpuTier::Drop(uint32_t slot) {
  MutexLock lock(&mu_);
  if (!slots_[slot].is_here) return false;
  ++stats_.dropped;
  ForgetLocked(slot, false);
  return true;
}

// The first load is remembered, the second promotes: what is loaded once is a conversation of one user.
bool GpuTier::IsHotLocked(uint64_t fingerprint) {
  if (seen_.Contains(fingerprint)) return true;
  seen_.Add(fingerprint);
  return false;
}

void GpuTier::Offer(const kv::KeySpace& key_space, const kv::BlockKey& key,
                    absl::FunctionRef<std::optional<kv::BlockKey>()> parent_of, std::byte* host_frame,
                    std::span<const uint64_t> checksums, uint32_t as_of_flushes, std::function<void()> release) {
  std::vector<Departure> departures;
  std::optional<uint32_t> slot;
  const uint64_t fingerprint = Catalog::Fingerprint(key_space, key);
  {
    MutexLock lock(&mu_);
    if (promotions_ < kMaxPromotions && !blocks_.contains({key_space.id, key}) && IsHotLocked(fingerprint) &&
        gpus_->Health(options_.device).ok()) {
      slot = AllocateLocked(key_space);
      if (slot.has_value()) {
        slots_[*slot] = {.key_space = &key_space, .key = key,
                         .checksums = {checksums.begin(), checksums.end()}, .as_of_flushes = as_of_flushes};
        blocks_[{key_space.id, key}] = *slot;
        seen_.Remove(fingerprint);
        ++promotions_;
      } else {
        departures = MakeRoomLocked(key_space);  // there will be room for it at its next load
      }
    }
  }
  for (Departure& departure : departures) demote_(std::move(departure));
  if (!slot.has_value() || !SubmitPromotion(*slot, parent_of(), host_frame, release)) release();
}

// False: it was not begun, and the slot is free again.
bool GpuTier::SubmitPromotion(uint32_t slot, const std::optional<kv::BlockKey>& parent, std::byte* host_frame,
                              std::function<void()> release) {
  gpu::CopyBatch batch;
  batch.direction = gpu::Direction::kLoad;
  batch.pages.resize(1);
  {
    MutexLock lock(&mu_);
    Block& block = slots_[slot];
    block.parent = parent;
    const kv::KeySpace& key_space = *block.key_space;
    batch.region = slabs_[slot / kSlotsPerSlab].region;
    batch.pages[0] = {.page = slot % kSlotsPerSlab,
                      .frame = host_frame,
                      .identity_seed = IdentitySeed(key_space.digest.data(), block.key.bytes.data(),
                                                    key_space.identity.block_bytes),
                      .checksums = block.checksums};
  }
  batch.done = [this, slot, release = std::move(release)](gpu::CopyBatch& copied, const absl::Status& status) {
    release();
    EndPromotion(slot, status.ok() && copied.pages[0].intact, copied.frames_lost);
  };
  if (gpus_->engine(options_.device)->Submit(batch).ok()) return true;
  EndPromotion(slot, false, false);
  return false;
}

void GpuTier::EndPromotion(uint32_t slot, bool intact, bool frames_lost) {
  MutexLock lock(&mu_);
  Block& block = slots_[slot];
  const kv::KeySpace& key_space = *block.key_space;
  if (intact && key_space.flushes.load(std::memory_order_relaxed) == block.as_of_flushes) {
    block.is_here = true;
    ++stats_.promoted;
    ++stats_.blocks;
    policy_->OnInsert(slot, {.fingerprint = Catalog::Fingerprint(key_space, block.key)}, clock_->NowNs());
  } else {
    ++stats_.failed_promotions;
    blocks_.erase({key_space.id, block.key});
    // A copy that could not be stopped may still write there: that piece of memory is given up.
    if (!frames_lost) FreeLocked(slot);
  }
  if (--promotions_ == 0) idle_.SignalAll();
}

std::optional<uint32_t> GpuTier::AllocateLocked(const kv::KeySpace& key_space) {
  const uint64_t bytes = key_space.identity.block_bytes;
  if (bytes > slab_bytes_ || slab_bytes_ / bytes > kSlotsPerSlab) return std::nullopt;
  std::optional<uint32_t> clear;
  for (uint32_t i = 0; i < slabs_.size(); ++i) {
    Slab& slab = slabs_[i];
    if (slab.state == SlabState::kClear && !clear.has_value()) clear = i;
    if (slab.state != SlabState::kInUse || slab.tenant != key_space.tenant || slab.block_bytes != bytes ||
        slab.free.empty()) {
      continue;
    }
    const uint32_t slot = i * kSlotsPerSlab + slab.free.back();
    slab.free.pop_back();
    ++slab.used;
    stats_.used_bytes += bytes;
    return slot;
  }
  if (!clear.has_value() || !CutSlabLocked(*clear, key_space)) return std::nullopt;
  return AllocateLocked(key_space);
}

bool GpuTier::CutSlabLocked(uint32_t number, const kv::KeySpace& key_space) {
  const uint64_t bytes = key_space.identity.block_bytes;
  gpu::RegionLayout layout;
  layout.n_pages = slab_bytes_ / bytes;
  layout.planes = {{.allocation = 0, .offset = number * slab_bytes_, .stride = bytes, .bytes = bytes}};
  auto region = gpus_->WrapMemory(*memory_, layout);
  if (!region.ok()) return false;
  Slab& slab = slabs_[number];
  slab = {.state = SlabState::kInUse, .tenant = key_space.tenant, .block_bytes = bytes, .region = *std::move(region)};
  for (uint64_t i = layout.n_pages; i-- > 0;) slab.free.push_back(static_cast<uint16_t>(i));
  return true;
}

std::vector<GpuTier::Departure> GpuTier::MakeRoomLocked(const kv::KeySpace& wanted) {
  std::vector<Departure> departures;
  const uint64_t bytes = wanted.identity.block_bytes;
  if (bytes > slab_bytes_ || slab_bytes_ / bytes > kSlotsPerSlab) return departures;
  const auto may_go = [this](BlockId slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const auto it = slots_.find(slot);
    return it != slots_.end() && it->second.is_here && it->second.pins == 0;
  };
  const auto depart_all_of = [&](uint32_t number) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    for (uint32_t i = 0; i < kSlotsPerSlab && departures_ < kMaxDepartures; ++i) {
      const uint32_t slot = number * kSlotsPerSlab + i;
      if (may_go(slot)) departures.push_back(DepartLocked(slot));
    }
  };
  for (uint32_t i = 0; i < slabs_.size(); ++i) {
    if (slabs_[i].state != SlabState::kDraining) continue;
    depart_all_of(i);
    return departures;  // one at a time
  }
  // A slab on its way to being clear is room enough.
  for (const Slab& slab : slabs_) {
    if (slab.state == SlabState::kDirty || slab.state == SlabState::kClearing) return departures;
  }
  if (departures_ >= kMaxDepartures) return departures;
  const BlockId victim = policy_->Victim(may_go, clock_->NowNs());
  if (victim == kNoBlock) return departures;
  const uint32_t number = victim / kSlotsPerSlab;
  Slab& slab = slabs_[number];
  if (slab.tenant == wanted.tenant && slab.block_bytes == bytes) {
    departures.push_back(DepartLocked(victim));
  } else {
    slab.state = SlabState::kDraining;
    depart_all_of(number);
  }
  return departures;
}

GpuTier::Departure GpuTier::DepartLocked(uint32_t slot) {
  Block& block = slots_[slot];
  Departure departure{.key_space = block.key_space,
                      .key = block.key,
                      .parent = block.parent,
                      .region = slabs_[slot / kSlotsPerSlab].region,
                      .page = slot % kSlotsPerSlab,
                      .checksums = block.checksums,
                      .as_of_flushes = block.as_of_flushes,
                      .done = [this, slot] { EndDeparture(slot); }};
  block.is_going = true;
  ++departures_;
  ++stats_.evicted;
  ForgetLocked(slot, true);
  return departure;
}

void GpuTier::EndDeparture(uint32_t slot) {
  MutexLock lock(&mu_);
  Block& block = slots_[slot];
  block.is_going = false;
  if (block.pins == 0) FreeLocked(slot);
  if (--departures_ == 0) idle_.SignalAll();
}

// It is not found any more; its memory is free when nobody uses it.
void GpuTier::ForgetLocked(uint32_t slot, bool evicted) {
  Block& block = slots_[slot];
  block.is_here = false;
  --stats_.blocks;
  blocks_.erase({block.key_space->id, block.key});
  policy_->OnErase(slot, evicted);
  if (block.pins == 0 && !block.is_going) FreeLocked(slot);
}

void GpuTier::FreeLocked(uint32_t slot) {
  Slab& slab = slabs_[slot / kSlotsPerSlab];
  slots_.erase(slot);
  slab.free.push_back(static_cast<uint16_t>(slot % kSlotsPerSlab));
  --slab.used;
  stats_.used_bytes -= slab.block_bytes;
  if (slab.state == SlabState::kDraining && slab.used == 0) slab.state = SlabState::kDirty;
}

void GpuTier::Flush(const kv::KeySpace* key_space) {
  MutexLock lock(&mu_);
  std::vector<uint32_t> gone;
  for (const auto& [slot, block] : slots_) {
    if (block.is_here && (key_space == nullptr || block.key_space == key_space)) gone.push_back(slot);
  }
  for (const uint32_t slot : gone) {
    ++stats_.dropped;
    ForgetLocked(slot, false);
  }
}

void GpuTier::Step() {
  std::vector<uint32_t> dirty;
  {
    MutexLock lock(&mu_);
    for (uint32_t i = 0; i < slabs_.size(); ++i) {
      Slab& slab = slabs_[i];
      // What nobody uses may become another tenant's: only clear slabs change hands.
      if (slab.state != SlabState::kDirty) continue;
      slab.state = SlabState::kClearing;
      slab.region.reset();
      dirty.push_back(i);
    }
  }
  for (const uint32_t number : dirty) {
    const absl::Status zeroed = memory_->Zero(number * slab_bytes_, slab_bytes_);
    MutexLock lock(&mu_);
    slabs_[number].state = zeroed.ok() ? SlabState::kClear : SlabState::kDirty;
    if (!zeroed.ok()) return;  // the GPU is out of service, or will be asked again
  }
}

GpuTier::Stats GpuTier::GetStats() const {
  MutexLock lock(&mu_);
  return stats_;
}

}  // namespace terrace::tiering
