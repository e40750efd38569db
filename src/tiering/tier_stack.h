// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// TierStack: the only class the doors (engine socket, gRPC, admin) drive. It owns the key spaces, the
// index, the host tier and its eviction, and hands out Sessions.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu/copy_engine.h"
#include "gpu/gpus.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/metrics.h"
#include "kvstore/base/mutex.h"
#include "kvstore/base/reason.h"
#include "kvstore/block_key.h"
#include "kvstore/key_space.h"
#include "tiering/nvme/nvme_tier.h"
#include "tiering/policy/retention.h"
#include "tiering/region_requests.h"
#include "tiering/tier_stack_stats.h"

namespace terrace::tiering {

struct TenantOptions {
  std::string name;
};

struct TierStackOptions {
  std::vector<TenantOptions> tenants = {{"default"}};  // index = kv::TenantId
  uint64_t budget_bytes = 0;      // everything this process may use: payloads, tables, staging, itself
  uint64_t process_bytes = 48ull << 20;  // of the budget: code, gRPC, stacks, small allocations
  bool prefault = true;           // fill the arena's page tables in the background
  bool huge_pages = true;         // use hugetlb pages for payloads as far as there are free ones
  std::string eviction_policy = "terrace";
  uint32_t store_threads = 0;     // 0: 1 on up to 4 cores, else 2
  uint32_t max_key_spaces = 4096;
  uint32_t max_leases_per_session = 65536;
  double max_leased_ratio = 0.8;  // of the host tier's bytes; beyond it blocks are not leased
  int64_t lease_max_age_ns = 300'000'000'000;  // second line of defence; the session's end is the first
  uint32_t store_queue_depth = 1024;  // blocks waiting to be copied in, all sessions
  uint64_t client_staging_bytes = 0;  // what one storing client usually asks for: kept free for the first
  std::string memory_dir;         // tmpfs directory for the blocks' memory, which then outlives the process
                                  // and is taken over by the next one. Empty: anonymous, gone with it
  std::string run_dir;            // whose memory it is: one daemon per run_dir
  bool threads = true;            // false: nothing happens outside Step() and the calls (simulation)
  double class_floor[kBlockClasses] = {0.5, 0.1};  // of the blocks' memory, by BlockClass
  double max_pin_ratio = 0.1;     // of the blocks' memory: what one tenant's hints may pin
  NvmeOptions nvme;               // no devices: no NVMe tier
  uint64_t nvme_index_bytes = 0;  // memory for the index of all disks; 0: for blocks of 48 KiB and more
  std::string admission_policy = "adaptive";
  bool host_regions = true;       // engines may register host memory for copies by the daemon
  uint32_t region_threads = 0;    // that copy it; 0: as store_threads
  bool gpu = true;                // use the GPUs there are
  gpu::GpuOptions gpu_options;
  uint64_t gpu_tier_bytes = 0;    // of each GPU's memory for hot blocks; 0: no GPU tier
  BlockDeviceFactory device_factory;  // for tests; empty: OpenBlockDevice
  std::function<std::unique_ptr<gpu::Gpus>(const gpu::GpuOptions&)> gpus_factory;  // for tests; empty: Gpus::Open

  absl::Status Validate() const;  // each message names the config key
};

// Where a leased block lies: what a client needs to map and check it.
struct BlockPlace {
  Reason reason = Reason::kNone;  // kNone: here
  uint32_t segment_id = 0;
  uint32_t header_offset = 0;   // units of 64 bytes in the segment's header mapping
  uint32_t payload_bytes = 0;
  uint64_t payload_offset = 0;  // bytes in the segment's payload mapping
  uint64_t generation = 0;
};

enum class LookupMode {
  kPrefix,  // stop at the first miss
  kAll,     // answer for every key
  kProbe,   // kAll for one who is about to store: never leases, counts neither hits nor misses
};

struct LookupOptions {
  LookupMode mode = LookupMode::kPrefix;
  uint64_t lease = 0;  // Session::kNewLease, kNoLease, or the lease to add to
  bool may_wait = false;  // start loads of what lies on lower tiers and answer kPending for it
  int64_t recompute_ns_per_token = 0;  // 0: unknown
};

struct LookupAnswer {
  uint64_t lease_id = 0;  // 0: nothing leased
  uint32_t n_prefix = 0;  // leading run that is here or pending
  uint32_t n_here = 0;    // here or pending
  uint32_t n_pending = 0;
  // kPrefix: the leading run, and one more entry with the reason if it ends early. kAll: every key.
  std::vector<BlockPlace> places;
};

// One block to be stored. The source must stay readable until done was called; it may change under
// our hands (it is a client's memory): what is stored is what the checksums say, or nothing.
struct PutRequest {
  const kv::KeySpace* key_space = nullptr;
  kv::BlockKey key;
  std::optional<kv::BlockKey> parent;
  std::span<const std::byte> source;      // exactly block_bytes
  std::vector<uint64_t> checksums;        // one a segment, see kvstore/base/block_copy.h
  RetentionHint hint;
  // Called exactly once, on a store thread or inside Put(): kNone (visible), kDuplicate, or why not.
  std::function<void(Reason)> done;
};

class TierStack;
struct RegionShare;

// What one client holds: its leases. Its end gives all of them back.
// Owner: the door that opened it. Must end before the TierStack does.
// Threads: any; calls of one session are serialised by its mutex.
class Session {
 public:
  ~Session();
  Session(const Session&) = delete;

  uint64_t id() const { return id_; }
  kv::TenantId tenant() const { return tenant_; }

  absl::StatusOr<const kv::KeySpace*> OpenKeySpace(const kv::KeySpaceIdentity& identity);

  // Lookup and lease in one step: what the answer says is here stays here until the lease ends.
  // lease: kNoLease only asks (places carry reasons but no place); kNewLease; or an id to add to.
  // Pending blocks belong to the lease like the others, and come in in the order of the keys.
  // NotFound: no such key space for this tenant, or no such lease in this session.
  static constexpr uint64_t kNewLease = 0;
  static constexpr uint64_t kNoLease = ~0ull;
  absl::StatusOr<LookupAnswer> Lookup(kv::KeySpaceId key_space, std::span<const kv::BlockKey> keys,
                                      const LookupOptions& options);
  absl::StatusOr<LookupAnswer> Lookup(kv::KeySpaceId key_space, std::span<const kv::BlockKey> keys,
                                      LookupMode mode, uint64_t lease) {
    return Lookup(key_space, keys, LookupOptions{.mode = mode, .lease = lease});
  }
  // Where blocks are that a lease (any session's of this tenant) holds. done: exactly once, on any
  // thread, maybe inside the call: as soon as the first key is settled or after timeout_ns. It gets the
  // places of the leading settled keys (here, or a reason), or one kPending when the time was up.
  // A place stays valid as long as the lease that holds the block.
  // NotFound: no such key space. ResourceExhausted: too many wait already.
  absl::Status Locate(kv::KeySpaceId key_space, std::span<const kv::BlockKey> keys, int64_t timeout_ns,
                      std::function<void(std::vector<BlockPlace>)> done);
  // Retention hints for blocks that are here, keys in chain order. Returns how many took it.
  absl::StatusOr<uint32_t> Hint(kv::KeySpaceId key_space, std::span<const kv::BlockKey> keys,
                                const RetentionHint& hint);
  // NotFound: not a lease of this session (any more).
  absl::Status Release(uint64_t lease_id);
  // Restarts the lease's age.
  absl::Status Renew(uint64_t lease_id);

  // Copies the block in, checks it and makes it visible. Never waits; see PutRequest::done.
  void Put(PutRequest request);

  // Opens an engine's memory for copies by the daemon. The region is the caller's: when its client is gone, it
  // calls Fence() and lets go. device_uuid all zero: host memory. FailedPrecondition: this daemon cannot reach
  // that memory (no GPU, regions are switched off), the client must copy by itself.
  absl::StatusOr<std::shared_ptr<gpu::Region>> OpenRegion(const gpu::DeviceUuid& device_uuid,
                                                          gpu::RegionLayout layout,
                                                          std::span<const gpu::AllocationHandle> allocations,
                                                          std::span<const gpu::EventHandle> events);
  // Never wait. InvalidArgument: sizes, counts or pages do not fit; ResourceExhausted: too much is being copied
  // already; Unavailable: the region's GPU is out of service. Then done is not called.
  absl::Status StoreRegion(RegionStoreRequest request);
  absl::Status LoadRegion(RegionLoadRequest request);

  uint64_t lease_count() const;

 private:
  friend class TierStack;
  struct Lease;
  Session(TierStack* stack, uint64_t id, kv::TenantId tenant);
  void ExpireLeases(int64_t now_ns);

  TierStack* const stack_;
  const uint64_t id_;
  const kv::TenantId tenant_;
  const std::shared_ptr<RegionShare> regions_;  // what it has under way of regions' stores and loads
  mutable Mutex mu_;
  absl::flat_hash_map<uint64_t, std::unique_ptr<Lease>> leases_ ABSL_GUARDED_BY(mu_);
};

// Descriptors of one shared-memory segment, for a client to map read-only. The receiver closes them.
struct SegmentFds {
  int payload_fd = -1, header_fd = -1;
  uint64_t payload_bytes = 0, header_bytes = 0;
};

// Threads: any. Limits: see TierStackOptions. Failure: a block that fails a check is dropped, counted
// and answered as a miss; a store that finds no room is refused with a reason.
class TierStack {
 public:
  // clock and metrics must outlive it.
  static absl::StatusOr<std::unique_ptr<TierStack>> Create(const TierStackOptions& options,
                                                           const Clock* clock, MetricRegistry* metrics);
  ~TierStack();
  TierStack(const TierStack&) = delete;

  std::unique_ptr<Session> OpenSession(kv::TenantId tenant);
  absl::StatusOr<kv::TenantId> FindTenant(absl::string_view name) const;

  // NotFound when the segment does not exist (any more) or belongs to another tenant.
  absl::StatusOr<SegmentFds> FindSegment(kv::TenantId tenant, uint32_t segment_id) const;
  // Called (on any thread, under no lock of ours) when a segment's memory is given up.
  void SetSegmentGoneCallback(std::function<void(kv::TenantId, uint32_t segment_id)> callback);

  // As Session::OpenRegion, for a door that opens regions when their session may have ended.
  absl::StatusOr<std::shared_ptr<gpu::Region>> OpenRegion(const gpu::DeviceUuid& device_uuid,
                                                          gpu::RegionLayout layout,
                                                          std::span<const gpu::AllocationHandle> allocations,
                                                          std::span<const gpu::EventHandle> events);
  // Index of the GPU whose memory the region is; nullopt: host memory.
  std::optional<uint32_t> DeviceOf(const gpu::Region& region) const;

  // Reserves bytes for a client's staging memory: of the share kept for it, then of what else the budget
  // has left. ResourceExhausted when there are none.
  absl::Status ChargeStaging(uint64_t bytes);
  void ReleaseStaging(uint64_t bytes);

  // Copies a leased block out, checking it: for the streamed gRPC Get. DataLoss: dropped as corrupt.
  absl::Status ReadLeased(const kv::KeySpace& key_space, const kv::BlockKey& key, const BlockPlace& place,
                          std::span<std::byte> target);

  // A client saw a bad block. Checks it here and drops it if it is bad; true if it was dropped.
  bool CheckReported(const kv::KeySpace& key_space, const kv::BlockKey& key, uint64_t generation);

  // Operators.
  TierStackStats Stats() const;
  std::vector<const kv::KeySpace*> KeySpaces() const;
  // nullptr when there is none of this id or it belongs to another tenant. Takes no lock.
  const kv::KeySpace* FindKeySpace(kv::TenantId tenant, kv::KeySpaceId id) const;
  std::string TenantName(kv::TenantId tenant) const;
  std::optional<BlockInfo> Stat(const kv::KeySpace& key_space, const kv::BlockKey& key) const;
  // Up to limit blocks, in no order; of one key space or of all (nullptr).
  std::vector<BlockInfo> List(const kv::KeySpace* key_space, size_t limit) const;
  // Takes all (or one key space's) blocks out of sight; memory under lease is freed when released.
  // Returns how many blocks.
  uint64_t Flush(const kv::KeySpace* key_space);
  // Re-reads and checks every block; drops what is bad. May be called while serving. stop may be null.
  VerifyReport Verify(const std::atomic<bool>* stop = nullptr);

  // One round of background work (lease ages, touch records). Called by a thread of its own every
  // ~100 ms; public so that tests with a fake clock can drive it.
  void Step();

  // Waits for the stores under way (their done was called).
  void WaitForStores();
  // For a start that fails after this was made: disks' files that were not there before go with it.
  void DiscardNew();
  // No new stores; waits for those under way. Lookups go on.
  void Drain();

 private:
  friend class Session;
  class Impl;
  explicit TierStack(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace terrace::tiering
