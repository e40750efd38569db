// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// RegionMover: stores of blocks out of engines' regions and loads into them. Decides which block goes from or to
// which frame; the bytes are copied and checked by CopyEngines.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu/gpus.h"
#include "gpu/host_copy_engine.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/mutex.h"
#include "kvstore/base/reason.h"
#include "tiering/catalog.h"
#include "tiering/demoter.h"
#include "tiering/fill_table.h"
#include "tiering/gpu_tier.h"
#include "tiering/host_tier.h"
#include "tiering/promoter.h"
#include "tiering/region_metrics.h"
#include "tiering/region_requests.h"
#include "tiering/region_worker.h"

namespace terrace::tiering {

// Owner: TierStack. Threads: any; answers come on threads of the copy engines and on its own. Locks: its own, none
// held while anything else is called.
// Limits: max_bytes in copy in each direction, RegionShare::kMaxOperations of a session; beyond them requests are
// refused. A store holds its frames and parents, a load pins its blocks until its bytes are there.
// Failure: what could not be copied is answered with a reason and is not visible; frames to which a lost copy may
// still write are never used again.
class RegionMover {
 public:
  struct Options {
    bool host_regions = true;
    uint32_t host_threads = 1;  // that copy host memory; 0: nothing happens but on callers' threads (simulation)
    uint32_t queue_depth = 1024;
    uint64_t max_bytes = 0;
    uint64_t gpu_tier_bytes = 0;  // of each GPU
    std::string policy;           // of the GPU tier
  };
  struct Parts {  // all outlive it
    HostTier* tier = nullptr;
    Catalog* catalog = nullptr;
    Promoter* promoter = nullptr;
    Demoter* demoter = nullptr;  // may be null
    FillTable* fills = nullptr;
    gpu::Gpus* gpus = nullptr;  // may be null
    const Clock* clock = nullptr;
    // The block is not here, but is being stored or on a lower tier.
    std::function<bool(const kv::KeySpace&, const kv::BlockKey&)> is_coming;
    std::function<void(kv::TenantId, Reason)> count_store;
    // The block is on a lower tier, from where the promoter can bring it.
    std::function<bool(const kv::KeySpace&, const kv::BlockKey&)> is_below;
  };
  using Share = RegionShare;

  RegionMover(const Options& options, const Parts& parts, MetricRegistry* metrics);
  // REQUIRES: nobody waits in the promoter.
  ~RegionMover();

  // See Session.
  absl::StatusOr<std::shared_ptr<gpu::Region>> OpenRegion(const gpu::DeviceUuid& device_uuid,
                                                          gpu::RegionLayout layout,
                                                          std::span<const gpu::AllocationHandle> allocations,
                                                          std::span<const gpu::EventHandle> events);
  absl::Status Store(kv::TenantId tenant, std::shared_ptr<Share> share, RegionStoreRequest request);
  absl::Status Load(kv::TenantId tenant, std::shared_ptr<Share> share, RegionLoadRequest request);
  // Index into Gpus::devices() of a region that OpenRegion gave; nullopt: host memory.
  std::optional<uint32_t> DeviceOf(const gpu::Region& region) const;

  // After key_space.flushes was raised; nullptr: all.
  void Flush(const kv::KeySpace* key_space);
  // About every 100 ms, one thread.
  void Step();
  // New stores are refused from now on.
  void StopStores() { stores_stopped_.store(true, std::memory_order_relaxed); }
  // Waits for what is being copied; loads that wait for lower tiers stay.
  void Drain();
  // What still comes is answered with kCancelled. Waits as Drain.
  void Stop();

  // Of GPU tiers, by device.
  std::vector<GpuTier::Stats> GpuTierStats() const;
  uint64_t open_regions(RegionMemory memory) const {
    return static_cast<uint64_t>(metrics_.open[static_cast<size_t>(memory)]->Value());
  }

 private:
  struct StoreOperation;
  struct LoadOperation;
  struct LoadPart;
  struct Wait;
  using Stores = std::shared_ptr<StoreOperation>;
  using Loads = std::shared_ptr<LoadOperation>;
  // By region, the device that OpenRegion opened it on. Outlives the mover with the regions.
  struct Devices {
    mutable Mutex mu;
    absl::flat_hash_map<const gpu::Region*, std::optional<uint32_t>> by_region ABSL_GUARDED_BY(mu);
    std::shared_ptr<RegionWorker> worker;  // which closes them
  };

  absl::Status Check(kv::TenantId tenant, const std::shared_ptr<gpu::Region>& region, const kv::KeySpace* key_space,
                     size_t n_keys, std::span<const uint64_t> pages, uint32_t after_event) const;
  gpu::CopyEngine* EngineFor(std::optional<uint32_t> device) const;
  RegionMemory MemoryOf(std::optional<uint32_t> device) const {
    return device.has_value() ? RegionMemory::kGpu : RegionMemory::kHost;
  }
  // ResourceExhausted: the session or all together have too much under way.
  absl::Status TryBegin(gpu::Direction direction, Share* share, uint64_t bytes);
  void End(gpu::Direction direction, Share* share, uint64_t bytes);
  void BeginBusy();
  void EndBusy();
  void Quarantine(uint64_t bytes, const absl::Status& why);
  static Reason ReasonOf(const absl::Status& batch_status);
  // The copy engine did not take a batch: its blocks get ReasonOf(why), the log says more.
  void SayRefused(gpu::Direction direction, std::optional<uint32_t> device, const absl::Status& why) const;

  void PostPlan(Stores store);
  void PlanStore(const Stores& store);
  void PlanBlock(StoreOperation* store, size_t i, gpu::CopyBatch* batch);
  void SubmitStore(const Stores& store, gpu::CopyBatch batch);
  void FinishStore(const Stores& store, const gpu::CopyBatch& batch, const absl::Status& status);
  Reason PublishBlock(StoreOperation* store, size_t i, const gpu::PageCopy& copied);
  void AnswerStore(const Stores& store);
  void Demote(uint32_t device, GpuTier::Departure departure);

  // Settles the block (its reason), adds it to a part if it is here, or to what is pending.
  void FindBlock(LoadOperation* load, size_t i);
  bool FindOnGpu(LoadOperation* load, size_t i);
  bool AddFrame(LoadOperation* load, size_t i, kv::FrameId frame);
  // Finds all its blocks and begins to copy them.
  void Begin(const Loads& load);
  // Pages of a part that came from the GPU tier and are corrupt: from host memory, or below, into the same pages.
  void LoadAgain(const Loads& load, const LoadPart& part, const gpu::CopyBatch& batch, std::span<const size_t> pages);
  void SetPlanes(const Loads& load, size_t part, uint32_t n_planes);
  // What FindBlock has added.
  void SubmitParts(const Loads& load);
  void EndPart(const Loads& load, LoadPart* part, gpu::CopyBatch* batch, const absl::Status& status);
  void DropFromGpu(const LoadOperation& load, const LoadPart& part, size_t page);
  void OfferToGpu(const LoadOperation& load, size_t i, const gpu::PageCopy& copied, kv::FrameId frame);
  void WaitForPending(const Loads& load);
  void OnLocated(const Loads& load, const std::vector<BlockPlace>& places);
  void EndFencedWaits();
  void TellPlanes(const Loads& load);
  void Leave(const Loads& load);  // the last to leave answers

  const Options options_;
  const Parts parts_;
  RegionMetrics metrics_;
  std::shared_ptr<Devices> devices_ = std::make_shared<Devices>();
  std::array<std::atomic<uint64_t>, 2> bytes_in_copy_{};  // by Direction
  std::atomic<bool> stores_stopped_{false}, stopped_{false};

  Mutex waits_mu_;
  std::vector<std::shared_ptr<Wait>> waits_ ABSL_GUARDED_BY(waits_mu_);  // for lower tiers; some are over

  Mutex busy_mu_;
  CondVar idle_;
  uint64_t busy_ ABSL_GUARDED_BY(busy_mu_) = 0;  // jobs of the worker and batches of the copy engines

  const std::shared_ptr<RegionWorker> worker_;
  std::unique_ptr<gpu::HostCopyEngine> host_engine_;  // null: no host regions
  std::vector<std::unique_ptr<GpuTier>> gpu_tiers_;   // by device; null where there is none
};

}  // namespace terrace::tiering
