// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/nvme/nvme_store.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>

#include "kvstore/base/log.h"

namespace terrace::tiering {

// Read and write buffers share the memory half and half.
NvmeStore::NvmeStore(const NvmeOptions* options, size_t number, const BlockDeviceFactory* factory,
                     const Clock* clock, MemoryBudget* budget, NvmeMetrics* metrics, gpu::BlockCopier* copies,
                     std::span<std::byte> io_memory, std::span<std::byte> control_memory)
    : disk_{.options = options,
            .device_options = &options->devices[number],
            .clock = clock,
            .budget = budget,
            .metrics = metrics,
            .device_metrics = metrics->device(number),
            .copies = copies,
            .io = NvmeIo(clock, metrics->device(number)),
            .arena = NvmeReadArena(io_memory.subspan(io_memory.size() / 2)),
            .log = NvmeLog(io_memory.first(io_memory.size() / 2)),
            .write_budget = WriteBudget(options->write_bytes_per_day / options->devices.size()),
            .control_memory = control_memory},
      number_(number),
      factory_(factory),
      io_memory_(io_memory),
      reader_(&disk_),
      writer_(&disk_, &reader_),
      scrubber_(&disk_, &reader_) {
  disk_.wake = [this] { Wake(); };
  MutexLock lock(&mu_);
  stats_.path = options->devices[number].path;
  stats_.detail = "opening";
  stats_.recovery_ratio = 0;
}

NvmeStore::~NvmeStore() { Stop(); }

bool NvmeStore::MayHaveSpace(const std::array<uint8_t, 32>& key_space_digest) const {
  const NvmeVolume* volume = disk_.volume.load(std::memory_order_acquire);
  return volume != nullptr && volume->index.MayHaveSpace(NvmeSpaceTag(key_space_digest, volume->fingerprint_seed));
}

bool NvmeStore::Contains(const NvmeBlock& block) const {
  const NvmeVolume* volume = disk_.volume.load(std::memory_order_acquire);
  return volume != nullptr && volume->index.Contains(NvmeFingerprint(block, volume->fingerprint_seed));
}

bool NvmeStore::Read(const NvmeBlock& block, std::span<std::byte> target, NvmeReader::Done& done) {
  NvmeVolume* volume = disk_.volume.load(std::memory_order_acquire);
  if (volume == nullptr) return false;
  const auto found = volume->index.Find(NvmeFingerprint(block, volume->fingerprint_seed), true);
  if (!found) return false;
  NvmeTier::ReadResult result;
  if (state() == TierState::kOffline) {
    result.reason = Reason::kTierOffline;
  } else if (reader_.Submit(volume, *found, block, target, done)) {
    Wake();
    return true;
  } else {
    result.reason = Reason::kOverload;
  }
  std::exchange(done, nullptr)(std::move(result));
  return true;
}

NvmeTier::Append NvmeStore::TryAppend(const NvmeBlock& block, const std::optional<kv::BlockKey>& parent,
                                      std::span<const std::byte> payload,
                                      std::span<const uint64_t> checksums, std::function<void(bool)> done) {
  switch (state()) {
    case TierState::kOnline: break;
    case TierState::kStarting: return NvmeTier::Append::kBusy;
    case TierState::kReadOnly:
    case TierState::kOffline: return NvmeTier::Append::kOffline;
  }
  NvmeVolume* volume = disk_.volume.load(std::memory_order_acquire);
  return writer_.TryAppend(
      volume, {.block = block, .parent = parent, .payload = payload, .checksums = checksums}, std::move(done));
}

void NvmeStore::Kick() {
  if (disk_.log.oldest_waiting_ns() == std::numeric_limits<int64_t>::max()) return;
  kick_.store(true, std::memory_order_release);
  Wake();
}

bool NvmeStore::MarkUsed(const NvmeBlock& block) {
  NvmeVolume* volume = disk_.volume.load(std::memory_order_acquire);
  return volume != nullptr && volume->index.Find(NvmeFingerprint(block, volume->fingerprint_seed), true).has_value();
}

bool NvmeStore::Drop(const NvmeBlock& block) {
  NvmeVolume* volume = disk_.volume.load(std::memory_order_acquire);
  return volume != nullptr &&
         volume->index.Drop(NvmeFingerprint(block, volume->fingerprint_seed), NvmeIndex::kNone);
}

uint64_t NvmeStore::Flush(const std::optional<std::array<uint8_t, 32>>& key_space_digest) {
  NvmeVolume* volume = disk_.volume.load(std::memory_order_acquire);
  if (volume == nullptr) return 0;
  std::optional<uint32_t> tag;
  if (key_space_digest) tag = NvmeSpaceTag(*key_space_digest, volume->fingerprint_seed);
  const NvmeLog::Position position = disk_.log.FlushPosition();
  volume->tombstones.Add({.space_tag = tag.value_or(0),
                          .all_spaces = tag ? 0u : 1u,
                          .sequence = position.sequence,
                          .page = position.page});
  const uint64_t dropped = volume->index.DropSpace(tag);
  flush_.store(true, std::memory_order_release);
  Wake();
  return dropped;
}

uint64_t NvmeStore::index_bytes() const {
  const NvmeVolume* volume = disk_.volume.load(std::memory_order_acquire);
  return volume == nullptr ? 0 : volume->index.charged_bytes();
}

uint64_t NvmeStore::write_budget_bytes() {
  return static_cast<uint64_t>(std::max<int64_t>(0, disk_.write_budget.Level(disk_.clock->NowNs())));
}

NvmeTier::DeviceStats NvmeStore::GetStats() const {
  NvmeTier::DeviceStats stats;
  {
    MutexLock lock(&mu_);
    stats = stats_;
  }
  stats.state = state();
  stats.read_bytes = disk_.device_metrics->read_total.load(std::memory_order_relaxed);
  stats.written_bytes = disk_.device_metrics->written_total.load(std::memory_order_relaxed);
  stats.read_bytes_per_s = static_cast<double>(reader_.bytes_per_second());
  if (const NvmeVolume* volume = disk_.volume.load(std::memory_order_acquire)) {
    stats.blocks = volume->index.blocks();
    stats.used_bytes = volume->index.used_bytes();
  }
  return stats;
}

uint64_t NvmeStore::RequestCheckpoint() {
  const uint64_t ticket = checkpoints_wanted_.fetch_add(1, std::memory_order_acq_rel) + 1;
  Wake();
  return ticket;
}

void NvmeStore::RequestVerify() {
  {
    MutexLock lock(&mu_);
    verified_.reset();
    verify_wanted_ = true;
  }
  verify_.store(true, std::memory_order_release);
  Wake();
}

void NvmeStore::StopVerify() {
  stop_verify_.store(true, std::memory_order_release);
  Wake();
}

std::optional<NvmeTier::Verified> NvmeStore::verify_result() const {
  MutexLock lock(&mu_);
  return verified_;
}

void NvmeStore::Wake() {
  MutexLock lock(&mu_);
  if (is_woken_) return;
  is_woken_ = true;
  if (wakeable_ != nullptr) wakeable_->Wake();
  wake_.SignalAll();
}

void NvmeStore::StartThread() {
  thread_ = std::thread([this] { Run(); });
}

void NvmeStore::Run() {
  while (true) {
    {
      MutexLock lock(&mu_);
      if (is_stopping_) break;
    }
    Step(WaitNs());
  }
}

void NvmeStore::Stop() {
  {
    MutexLock lock(&mu_);
    if (is_stopping_) return;
    is_stopping_ = true;
  }
  Wake();
  if (thread_.joinable()) thread_.join();
  Shutdown();
}

int64_t NvmeStore::WaitNs() const {
  constexpr int64_t kBusyNs = 5'000'000, kIdleNs = 100'000'000;
  const bool is_busy = disk_.io.in_flight() > 0 || recovery_ != nullptr || !writer_.idle() ||
                       disk_.log.oldest_waiting_ns() != std::numeric_limits<int64_t>::max() ||
                       reader_.has_waiting() || scrubber_.is_verifying();
  return is_busy ? kBusyNs : kIdleNs;
}

void NvmeStore::Step(int64_t wait_ns) {
  if (device_ != nullptr) {
    disk_.io.Poll(wait_ns);
    MutexLock lock(&mu_);
    is_woken_ = false;
  } else {
    MutexLock lock(&mu_);
    if (!is_woken_ && wait_ns > 0) wake_.WaitFor(&mu_, std::chrono::nanoseconds(wait_ns));
    is_woken_ = false;
  }
  const int64_t now = disk_.clock->NowNs();
  if (device_ == nullptr && now >= next_try_ns_) Open(now);
  if (recovery_ != nullptr) StepRecovery(now);
  if (state() == TierState::kOffline) {
    reader_.FailAll(Reason::kTierOffline);
    if (is_recovered_) writer_.GiveUp();
  } else if (is_recovered_) {
    StepReady(now);
  } else if (disk_.volume.load(std::memory_order_relaxed) != nullptr) {
    reader_.Step(now);
  }
  LookAtHealth(now);
  UpdateStats(now);
}

void NvmeStore::StepReady(int64_t now_ns) {
  TakeRequests();
  if (writer_.wants_checkpoint(now_ns)) writer_.RequestCheckpoint(false, 0);
  reader_.Step(now_ns);
  writer_.Step(now_ns, kick_.exchange(false, std::memory_order_acq_rel));
  scrubber_.Step(now_ns);
  has_free_room_.store(writer_.has_free_room(), std::memory_order_relaxed);
  checkpoint_ticket_.store(writer_.checkpoint_ticket(), std::memory_order_release);
}

void NvmeStore::TakeRequests() {
  if (flush_.exchange(false, std::memory_order_acq_rel)) writer_.RequestStateWrite();
  const uint64_t wanted = checkpoints_wanted_.load(std::memory_order_acquire);
  if (wanted > std::exchange(checkpoints_asked_, wanted)) writer_.RequestCheckpoint(false, wanted);
  if (verify_.exchange(false, std::memory_order_acq_rel)) scrubber_.StartVerify();
  if (stop_verify_.exchange(false, std::memory_order_acq_rel)) scrubber_.StopVerify();
}

void NvmeStore::UpdateStats(int64_t now_ns) {
  disk_.device_metrics->budget_bytes->Set(
      disk_.write_budget.limited() ? disk_.write_budget.Level(now_ns) : -1);
  MutexLock lock(&mu_);
  stats_.scrub_ratio = scrubber_.ratio();
  if (recovery_ != nullptr) stats_.recovery_ratio = recovery_->ratio();
  const bool verify_ended = verify_wanted_ && !verify_.load() && !scrubber_.is_verifying();
  const bool cannot_verify = verify_wanted_ && (state() == TierState::kOffline || device_ == nullptr);
  if (verify_ended || cannot_verify) {
    verified_ = scrubber_.verified();
    verify_wanted_ = false;
  }
}

void NvmeStore::Shutdown() {
  constexpr int64_t kTimeNs = 2'000'000'000, kWaitNs = 10'000'000;
  const int64_t end = disk_.clock->NowNs() + kTimeNs, wait = disk_.options->threads ? kWaitNs : 0;
  bool is_asked = false;
  uint64_t before = 0;
  writer_.End();
  const bool is_removed = discards_new_.load() && device_ != nullptr && device_->RemoveIfNew();
  for (int quiet = 0; quiet < kTimeNs / kWaitNs && disk_.clock->NowNs() < end;) {
    if (is_removed || device_ == nullptr || !is_recovered_ || state() != TierState::kOnline) break;
    quiet = disk_.io.Poll(wait) > 0 ? 0 : quiet + 1;
    writer_.Step(disk_.clock->NowNs(), true);
    if (disk_.write_error != 0) break;
    if (!is_asked && writer_.idle()) {
      is_asked = true;
      before = writer_.checkpoints();
      writer_.RequestCheckpoint(true, 0);
    } else if (is_asked && writer_.checkpoints() > before) {
      break;
    }
  }
  Close();
}

}  // namespace terrace::tiering
