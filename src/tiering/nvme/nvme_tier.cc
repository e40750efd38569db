// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/nvme/nvme_tier.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/check.h"
#include "kvstore/base/mutex.h"
#include "tiering/nvme/nvme_metrics.h"
#include "tiering/nvme/nvme_store.h"

namespace terrace::tiering {
namespace {

// Beside the read and write buffers: one segment's table, or the state.
constexpr uint64_t kControlBytes = 1ull << 20;

}  // namespace

absl::Status NvmeOptions::Validate() const {
  for (const BlockDeviceOptions& device : devices) {
    if (device.path.empty()) return absl::InvalidArgumentError("nvme.devices: path is empty");
    if (device.bytes % kIoAlign != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("nvme.devices: bytes of ", device.path, " must be a multiple of ", kIoAlign));
    }
    const auto same = [&](const BlockDeviceOptions& other) { return other.path == device.path; };
    if (std::count_if(devices.begin(), devices.end(), same) > 1) {
      return absl::InvalidArgumentError(absl::StrCat("nvme.devices: ", device.path, " is there twice"));
    }
  }
  if (segment_bytes != 0 && (!std::has_single_bit(segment_bytes) || segment_bytes < kNvmeMinSegment ||
                             segment_bytes > kNvmeMaxSegment)) {
    return absl::InvalidArgumentError("nvme.segment_bytes: a power of two, 1 MiB to 256 MiB, or 0");
  }
  if (io_memory_bytes % (2 * kIoAlign) != 0 || io_memory_bytes < 4ull << 20) {
    return absl::InvalidArgumentError("nvme.io_memory_bytes: at least 4 MiB, a multiple of 8 KiB");
  }
  if (read_deadline_ns <= 0) return absl::InvalidArgumentError("nvme.read_deadline: must be above 0");
  if (retry_ns <= 0) return absl::InvalidArgumentError("nvme.retry: must be above 0");
  if (scrub_period_ns < 0) return absl::InvalidArgumentError("nvme.scrub_period: must not be negative");
  if (checkpoint_ns <= 0) return absl::InvalidArgumentError("nvme.checkpoint: must be above 0");
  return absl::OkStatus();
}

struct NvmeTier::Impl {
  NvmeOptions options;
  BlockDeviceFactory factory;
  MemoryBudget* budget = nullptr;
  std::unique_ptr<NvmeMetrics> metrics;
  uint64_t memory_bytes = 0;
  std::vector<std::byte*> memory;  // one piece a device
  std::vector<std::unique_ptr<NvmeStore>> stores;
  Mutex verify_mu;  // one Verify at a time

  ~Impl() {
    for (const auto& store : stores) store->Stop();
    stores.clear();
    for (std::byte* piece : memory) munmap(piece, memory_bytes);
    budget->Release(memory_bytes * memory.size());
  }

  // Blocks are spread by key; each block's devices in the order in which they are asked.
  template <typename F>
  void ForEach(const NvmeBlock& block, F&& f) {
    const size_t n = stores.size();
    if (n == 0) return;
    const uint64_t home = Checksum64(block.key.bytes.data(), block.key.bytes.size(), n);
    for (size_t i = 0; i < n; ++i) {
      if (f(*stores[(home + i) % n])) return;
    }
  }
};

absl::StatusOr<std::unique_ptr<NvmeTier>> NvmeTier::Create(const NvmeOptions& options,
                                                           BlockDeviceFactory factory, const Clock* clock,
                                                           MemoryBudget* budget, MetricRegistry* metrics,
                                                           gpu::BlockCopier* copies) {
  if (absl::Status status = options.Validate(); !status.ok()) return status;
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  impl->factory = std::move(factory);
  impl->budget = budget;
  impl->memory_bytes = options.io_memory_bytes + kControlBytes;
  impl->metrics = std::make_unique<NvmeMetrics>(metrics, impl->options.devices);
  for (size_t i = 0; i < options.devices.size(); ++i) {
    if (!budget->TryCharge(impl->memory_bytes)) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "nvme.io_memory_bytes: ", impl->memory_bytes, " bytes a device do not fit into the memory budget"));
    }
    void* piece = mmap(nullptr, impl->memory_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TERRACE_CHECK(piece != MAP_FAILED);
    impl->memory.push_back(static_cast<std::byte*>(piece));
    const std::span<std::byte> memory(impl->memory.back(), impl->memory_bytes);
    impl->stores.push_back(std::make_unique<NvmeStore>(
        &impl->options, i, &impl->factory, clock, budget, impl->metrics.get(), copies,
        memory.first(options.io_memory_bytes), memory.subspan(options.io_memory_bytes)));
  }
  if (options.threads) {
    for (const auto& store : impl->stores) store->StartThread();
  }
  return std::unique_ptr<NvmeTier>(new NvmeTier(std::move(impl)));
}

NvmeTier::NvmeTier(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
NvmeTier::~NvmeTier() = default;

NvmeTier::Presence NvmeTier::Find(const NvmeBlock& block) const {
  Presence presence = Presence::kAbsent;
  impl_->ForEach(block, [&](NvmeStore& store) {
    if (!store.Contains(block)) {
      if (presence == Presence::kAbsent && !store.knows_all()) presence = Presence::kUnknown;
      return false;
    }
    presence = store.state() == TierState::kOffline ? Presence::kOffline : Presence::kHere;
    return presence == Presence::kHere;
  });
  return presence;
}

bool NvmeTier::MayHaveSpace(const std::array<uint8_t, 32>& key_space_digest) const {
  return std::any_of(impl_->stores.begin(), impl_->stores.end(),
                     [&](const auto& store) { return store->MayHaveSpace(key_space_digest); });
}

void NvmeTier::Read(const NvmeBlock& block, std::span<std::byte> target, std::function<void(ReadResult)> done) {
  TERRACE_CHECK(target.size() == block.payload_bytes);
  bool is_taken = false;
  impl_->ForEach(block, [&](NvmeStore& store) { return is_taken = store.Read(block, target, done); });
  if (is_taken) return;
  ReadResult result;
  result.reason = Reason::kEvicted;
  done(std::move(result));
}

NvmeTier::Append NvmeTier::TryAppend(const NvmeBlock& block, const std::optional<kv::BlockKey>& parent,
                                     std::span<const std::byte> payload, std::span<const uint64_t> checksums,
                                     std::function<void(bool)> done) {
  if (Find(block) == Presence::kHere) return Append::kPresent;
  Append answer = Append::kOffline;
  impl_->ForEach(block, [&](NvmeStore& store) {
    answer = store.TryAppend(block, parent, payload, checksums, done);
    return answer != Append::kOffline;
  });
  return answer;
}

bool NvmeTier::HasFreeRoom(const NvmeBlock& block) const {
  bool is_free = false;
  impl_->ForEach(block, [&](NvmeStore& store) {
    if (store.state() != TierState::kOnline) return false;
    is_free = store.has_free_room();
    return true;
  });
  return is_free;
}

void NvmeTier::MarkUsed(const NvmeBlock& block) {
  impl_->ForEach(block, [&](NvmeStore& store) { return store.MarkUsed(block); });
}

void NvmeTier::DiscardNew() {
  for (const auto& store : impl_->stores) store->DiscardNew();
}

void NvmeTier::Kick() {
  for (const auto& store : impl_->stores) store->Kick();
}

bool NvmeTier::Drop(const NvmeBlock& block) {
  bool dropped = false;
  for (const auto& store : impl_->stores) dropped = store->Drop(block) || dropped;
  return dropped;
}

uint64_t NvmeTier::Flush(const std::optional<std::array<uint8_t, 32>>& key_space_digest) {
  uint64_t blocks = 0;
  for (const auto& store : impl_->stores) blocks += store->Flush(key_space_digest);
  return blocks;
}

int64_t NvmeTier::EstimateReadNs(uint64_t bytes) const {
  int64_t longest = 0;
  for (const auto& store : impl_->stores) {
    longest = std::max(longest, store->reader().EstimateNs(bytes / impl_->stores.size()));
  }
  return longest;
}

NvmeTier::Verified NvmeTier::Verify(const std::atomic<bool>* stop) {
  constexpr int kMaxQuietRounds = 10'000;  // without threads, time stands still between rounds
  MutexLock lock(&impl_->verify_mu);
  for (const auto& store : impl_->stores) store->RequestVerify();
  Mutex mu;
  CondVar tick;
  MutexLock tick_lock(&mu);
  for (int round = 0;; ++round) {
    if (!impl_->options.threads) Step();
    const bool is_done = std::all_of(impl_->stores.begin(), impl_->stores.end(),
                                     [](const auto& store) { return store->verify_result().has_value(); });
    if (is_done) break;
    const bool must_stop = stop != nullptr && stop->load(std::memory_order_relaxed);
    if (must_stop || (!impl_->options.threads && round > kMaxQuietRounds)) {
      for (const auto& store : impl_->stores) store->StopVerify();
    }
    if (!impl_->options.threads && round > 2 * kMaxQuietRounds) break;
    if (impl_->options.threads) tick.WaitFor(&mu, std::chrono::milliseconds(5));
  }
  Verified sum;
  for (const auto& store : impl_->stores) {
    const Verified one = store->verify_result().value_or(Verified{});
    sum.blocks += one.blocks;
    sum.bytes += one.bytes;
    sum.corrupt += one.corrupt;
  }
  return sum;
}

bool NvmeTier::Checkpoint(int64_t timeout_ns) {
  TERRACE_CHECK(impl_->options.threads);
  std::vector<uint64_t> tickets;
  for (const auto& store : impl_->stores) tickets.push_back(store->RequestCheckpoint());
  Mutex mu;
  CondVar tick;
  MutexLock lock(&mu);
  constexpr int64_t kTickNs = 2'000'000;
  for (int64_t waited = 0;; waited += kTickNs) {
    bool is_done = true;
    for (size_t i = 0; i < impl_->stores.size(); ++i) {
      NvmeStore& store = *impl_->stores[i];
      is_done = is_done && (store.state() != TierState::kOnline || store.checkpoint_ticket() >= tickets[i]);
    }
    if (is_done) break;
    if (waited >= timeout_ns) return false;
    tick.WaitFor(&mu, std::chrono::nanoseconds(kTickNs));
  }
  return std::any_of(impl_->stores.begin(), impl_->stores.end(),
                     [](const auto& store) { return store->state() == TierState::kOnline; });
}

NvmeTier::Stats NvmeTier::GetStats() const {
  Stats stats;
  for (const auto& store : impl_->stores) {
    const DeviceStats& device = stats.devices.emplace_back(store->GetStats());
    stats.capacity_bytes += device.capacity_bytes;
    stats.used_bytes += device.used_bytes;
    stats.blocks += device.blocks;
    stats.index_bytes += store->index_bytes();
    if (impl_->options.write_bytes_per_day > 0) stats.write_budget_bytes += store->write_budget_bytes();
  }
  stats.state = impl_->metrics->state();
  return stats;
}

void NvmeTier::Step() {
  TERRACE_CHECK(!impl_->options.threads);
  for (const auto& store : impl_->stores) store->Step(0);
}

}  // namespace terrace::tiering
