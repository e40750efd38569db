// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// GpuTier: hot blocks (system prompts) in a budget of one GPU's memory, from where that GPU's engines get them
// without crossing the link to host memory. Inclusive: lookups go by host memory's index, a block here only
// shortens its load. Memory is cut into slabs, each of one tenant and one block size.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "gpu/gpus.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/mutex.h"
#include "kvstore/block_key.h"
#include "kvstore/key_space.h"
#include "tiering/policy/eviction_policy.h"
#include "tiering/policy/ghost_list.h"

namespace terrace::tiering {

// Owner: TierStack. Threads: any; copies by the GPU's CopyEngine, clearing of slabs by Step's caller.
// Limits: `bytes` of GPU memory; kMaxPromotions copies on their way up.
// Failure: a GPU out of service finds nothing and takes nothing; a block whose bytes changed is dropped.
class GpuTier {
 public:
  struct Options {
    uint32_t device = 0;
    uint64_t bytes = 0;            // of GPU memory
    std::string policy = "terrace";
  };
  // A block that leaves, to be copied down to host memory if it is not there: from that page of that region,
  // and only if its bytes still have these checksums. done: exactly once, when the page is read no more.
  struct Departure {
    const kv::KeySpace* key_space;
    kv::BlockKey key;
    std::optional<kv::BlockKey> parent;
    std::shared_ptr<gpu::Region> region;
    uint64_t page;
    std::vector<uint64_t> checksums;
    uint32_t as_of_flushes;  // key_space->flushes when the block was found: after a later one it is not wanted
    std::function<void()> done;
  };
  using Demote = std::function<void(Departure)>;

  // A block that is here, held until Unpin.
  struct Found {
    uint32_t slot;
    std::byte* frame;  // GPU memory of the device
    std::vector<uint64_t> checksums;
  };
  struct Stats {
    uint64_t capacity_bytes = 0, used_bytes = 0, blocks = 0;
    uint64_t hits = 0, promoted = 0, failed_promotions = 0, evicted = 0, dropped = 0;
  };

  // Takes the memory at once. ResourceExhausted: the GPU has not so much.
  static absl::StatusOr<std::unique_ptr<GpuTier>> Create(const Options& options, gpu::Gpus* gpus,
                                                         const Clock* clock, Demote demote);
  ~GpuTier();  // no Found may be held; waits for promotions under way

  // A use: counts for the policy.
  std::optional<Found> Find(const kv::KeySpace& key_space, const kv::BlockKey& key);
  void Unpin(uint32_t slot);
  // REQUIRES: held. Its bytes are not those of its checksums: it is not found any more. False: it was not already.
  bool Drop(uint32_t slot);

  // A block of host memory that an engine of this GPU has just loaded. On its second load within the last few
  // thousand blocks it is copied up: then `release` is called when host_frame is read no more; else inside.
  // Never waits. as_of_flushes: key_space.flushes when the block was found. parent_of: asked, under no lock, if the
  // block is copied up; its departure names the parent.
  void Offer(const kv::KeySpace& key_space, const kv::BlockKey& key,
             absl::FunctionRef<std::optional<kv::BlockKey>()> parent_of, std::byte* host_frame,
             std::span<const uint64_t> checksums, uint32_t as_of_flushes, std::function<void()> release);

  // After key_space.flushes was raised. nullptr: all.
  void Flush(const kv::KeySpace* key_space);
  // Clears slabs that are to change hands. About every 100 ms, one thread.
  void Step();
  Stats GetStats() const;
  uint32_t device() const { return options_.device; }

 private:
  static constexpr uint32_t kSlotsPerSlab = 4096;
  static constexpr uint64_t kLargestSlab = 64ull << 20, kSmallestSlab = 2ull << 20;
  static constexpr int kMaxPromotions = 64;
  static constexpr int kMaxDepartures = 16;
  using Key = std::pair<kv::KeySpaceId, kv::BlockKey>;

  enum class SlabState : uint8_t { kClear, kInUse, kDraining, kDirty, kClearing };
  struct Slab {
    SlabState state = SlabState::kClear;
    kv::TenantId tenant = 0;
    uint64_t block_bytes = 0;
    uint32_t used = 0;  // frames that are not in `free`
    std::vector<uint16_t> free;
    std::shared_ptr<gpu::Region> region;
  };
  struct Block {  // by slot; for used frames
    const kv::KeySpace* key_space = nullptr;
    kv::BlockKey key;
    std::optional<kv::BlockKey> parent;
    std::vector<uint64_t> checksums;
    uint32_t as_of_flushes = 0;
    uint32_t pins = 0;
    bool is_here = false;   // in blocks_ and known to the policy
    bool is_going = false;  // its departure is under way
  };

  GpuTier(const Options& options, gpu::Gpus* gpus, const Clock* clock, Demote demote,
          std::unique_ptr<gpu::DeviceMemory> memory, std::unique_ptr<EvictionPolicy> policy);
  static uint64_t SlabBytes(uint64_t bytes);
  bool IsHotLocked(uint64_t fingerprint) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::optional<uint32_t> AllocateLocked(const kv::KeySpace& key_space) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool CutSlabLocked(uint32_t slab, const kv::KeySpace& key_space) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Chooses blocks to go, the coldest or those of a slab that is wanted for other blocks.
  std::vector<Departure> MakeRoomLocked(const kv::KeySpace& wanted) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Departure DepartLocked(uint32_t slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ForgetLocked(uint32_t slot, bool evicted) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void FreeLocked(uint32_t slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndDeparture(uint32_t slot);
  void EndPromotion(uint32_t slot, bool intact, bool frames_lost);
  bool SubmitPromotion(uint32_t slot, const std::optional<kv::BlockKey>& parent, std::byte* host_frame,
                       std::function<void()> release);

  const Options options_;
  gpu::Gpus* const gpus_;
  const Clock* const clock_;
  const Demote demote_;
  const std::unique_ptr<gpu::DeviceMemory> memory_;
  const uint64_t slab_bytes_;

  mutable Mutex mu_;
  CondVar idle_;
  std::unique_ptr<EvictionPolicy> policy_ ABSL_GUARDED_BY(mu_);
  GhostList seen_ ABSL_GUARDED_BY(mu_);  // fingerprints of blocks that were loaded lately and are not here
  std::vector<Slab> slabs_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<uint32_t, Block> slots_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<Key, uint32_t> blocks_ ABSL_GUARDED_BY(mu_);  // here or on their way up
  int promotions_ ABSL_GUARDED_BY(mu_) = 0;
  int departures_ ABSL_GUARDED_BY(mu_) = 0;
  Stats stats_ ABSL_GUARDED_BY(mu_);
};

}  // namespace terrace::tiering
