// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "testing/memory_device.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/check.h"

namespace terrace::testing {

using tiering::IoOp;
using tiering::IoRequest;
using tiering::IoResult;

// ---- MemoryDisk ----

void MemoryDisk::Read(uint64_t offset, std::span<std::byte> out) const {
  MutexLock lock(&mu_);
  TERRACE_CHECK(offset + out.size() <= bytes_);
  std::memcpy(out.data(), &image_[offset], out.size());
}

void MemoryDisk::KeepOldPage(uint64_t page) {
  Unsynced& entry = unsynced_[page];
  if (entry.versions.empty() || entry.last_write <= begun_sync_) {
    const uint64_t at = page * kPage;
    entry.versions.push_back({writes_, {&image_[at], &image_[at] + std::min(kPage, bytes_ - at)}});
  }
  entry.last_write = writes_;
}

void MemoryDisk::Write(uint64_t offset, std::span<const std::byte> data) {
  if (data.empty()) return;
  MutexLock lock(&mu_);
  TERRACE_CHECK(offset + data.size() <= bytes_);
  ++writes_;
  for (uint64_t page = offset / kPage; page <= (offset + data.size() - 1) / kPage; ++page) KeepOldPage(page);
  std::memcpy(&image_[offset], data.data(), data.size());
}

uint64_t MemoryDisk::BeginSync() {
  MutexLock lock(&mu_);
  return begun_sync_ = writes_;
}

void MemoryDisk::FinishSync(uint64_t mark) {
  MutexLock lock(&mu_);
  for (auto it = unsynced_.begin(); it != unsynced_.end();) {
    std::vector<Version>& versions = it->second.versions;
    while (!versions.empty() && versions.front().write <= mark) versions.erase(versions.begin());
    const auto here = it++;
    if (versions.empty()) unsynced_.erase(here);
  }
}

void MemoryDisk::LosePower(uint64_t seed) {
  MutexLock lock(&mu_);
  std::vector<uint64_t> pages;  // in order: a seed always draws the same
  for (const auto& [page, entry] : unsynced_) pages.push_back(page);
  std::sort(pages.begin(), pages.end());
  Random random(seed);
  for (const uint64_t page : pages) {
    const std::vector<std::byte>& old = unsynced_[page].versions.front().content;
    const uint64_t fate = random.Below(5);  // 0, 1: new. 2, 3: old. 4: torn
    for (uint64_t at = 0; at < old.size(); at += kSector) {
      if (fate < 2 || (fate == 4 && random.OneIn(2))) continue;
      std::memcpy(&image_[page * kPage + at], old.data() + at, std::min(kSector, old.size() - at));
    }
  }
  unsynced_.clear();
}

void MemoryDisk::FlipBit(uint64_t byte, int bit) {
  MutexLock lock(&mu_);
  TERRACE_CHECK(byte < bytes_);
  image_[byte] ^= static_cast<std::byte>(1u << bit);
}

void MemoryDisk::CopyRange(uint64_t from, uint64_t to, uint64_t bytes) {
  MutexLock lock(&mu_);
  TERRACE_CHECK(from + bytes <= bytes_);
  TERRACE_CHECK(to + bytes <= bytes_);
  std::memmove(&image_[to], &image_[from], bytes);
}

uint64_t MemoryDisk::unsynced_pages() const {
  MutexLock lock(&mu_);
  return unsynced_.size();
}

// ---- MemoryDevice ----

MemoryDevice::MemoryDevice(std::shared_ptr<MemoryDisk> disk, const Clock* clock, uint32_t depth,
                           const DiskCosts& costs)
    : disk_(std::move(disk)), clock_(clock), depth_(depth), costs_(costs), random_(costs.seed) {}

bool MemoryDevice::IsInside(const IoRequest& request) const {
  return request.offset <= disk_->bytes() && request.buffer.size() <= disk_->bytes() - request.offset;
}

bool MemoryDevice::Submit(const IoRequest& request) {
  if (request.op != IoOp::kSync) {  // what O_DIRECT would refuse is a bug of the caller
    TERRACE_CHECK(request.offset % tiering::kIoAlign == 0);
    TERRACE_CHECK(request.buffer.size() % tiering::kIoAlign == 0);
    TERRACE_CHECK(reinterpret_cast<uintptr_t>(request.buffer.data()) % tiering::kIoAlign == 0);
  }
  {
    MutexLock lock(&mu_);
    if (pending_.size() == depth_) return false;
    int64_t due_ns = clock_->NowNs();
    uint64_t sync_mark = 0;
    if (request.op == IoOp::kSync) {
      due_ns = std::max(due_ns, busy_until_ns_) + costs_.sync_ns;
      sync_mark = disk_->BeginSync();
    } else {
      const double rate = request.op == IoOp::kRead ? costs_.read_bytes_per_s : costs_.write_bytes_per_s;
      busy_until_ns_ = std::max(due_ns, busy_until_ns_) +
                       static_cast<int64_t>(static_cast<double>(request.buffer.size()) * 1e9 / rate);
      due_ns = busy_until_ns_ + costs_.latency_ns;
    }
    if (costs_.jitter_ns > 0) due_ns += static_cast<int64_t>(random_.Below(static_cast<uint64_t>(costs_.jitter_ns)));
    pending_.push_back({request, due_ns, sync_mark});
  }
  return true;
}

int MemoryDevice::Apply(const Pending& pending) {
  const IoRequest& request = pending.request;
  if (is_cut_) return EIO;
  if (request.op == IoOp::kSync) {
    disk_->FinishSync(pending.sync_mark);
    return 0;
  }
  if (!IsInside(request)) return EIO;
  if (request.op == IoOp::kRead) disk_->Read(request.offset, request.buffer);
  else disk_->Write(request.offset, request.buffer);
  return 0;
}

size_t MemoryDevice::Poll(std::span<IoResult> results, int64_t wait_ns) {
  const bool waits = clock_ == Clock::Real();
  const int64_t deadline_ns = clock_->NowNs() + wait_ns;
  MutexLock lock(&mu_);
  while (true) {
    const int64_t now_ns = clock_->NowNs();
    std::stable_sort(pending_.begin(), pending_.end(),
                     [](const Pending& a, const Pending& b) { return a.due_ns < b.due_ns; });
    size_t n = 0;
    while (n < results.size() && n < pending_.size() && (pending_[n].due_ns <= now_ns || is_cut_)) {
      results[n] = {pending_[n].request.tag, Apply(pending_[n])};
      ++n;
    }
    pending_.erase(pending_.begin(), pending_.begin() + static_cast<ptrdiff_t>(n));
    const int64_t next_ns = std::min(deadline_ns, pending_.empty() ? kNever : pending_.front().due_ns);
    if (n > 0 || is_woken_ || !waits || now_ns >= deadline_ns) {
      is_woken_ = false;
      return n;
    }
    changed_.WaitFor(&mu_, std::chrono::nanoseconds(std::max<int64_t>(next_ns - now_ns, 1)));
  }
}

void MemoryDevice::Wake() {
  {
    MutexLock lock(&mu_);
    is_woken_ = true;
  }
  changed_.SignalAll();
}

int64_t MemoryDevice::NextDueNs() const {
  MutexLock lock(&mu_);
  int64_t next_ns = kNever;
  for (const Pending& pending : pending_) next_ns = std::min(next_ns, pending.due_ns);
  return next_ns;
}

void MemoryDevice::Cut(uint64_t seed) {
  {
    MutexLock lock(&mu_);
    if (is_cut_) return;
    is_cut_ = true;
    Random random(seed);
    for (const Pending& pending : pending_) {
      const IoRequest& request = pending.request;
      if (request.op != IoOp::kWrite || !IsInside(request)) continue;
      const uint64_t fate = random.Below(3);  // 0: nothing of it. 1: all. 2: some sectors
      for (size_t at = 0; fate > 0 && at < request.buffer.size(); at += MemoryDisk::kSector) {
        if (fate == 1 || random.OneIn(2)) {
          disk_->Write(request.offset + at, request.buffer.subspan(at, MemoryDisk::kSector));
        }
      }
    }
  }
  changed_.SignalAll();
}

// ---- MemoryDisks ----

// One opening of a disk, known to MemoryDisks as long as it lives.
class MemoryDisks::Opening final : public tiering::BlockDevice {
 public:
  Opening(MemoryDisks* disks, std::string path, std::shared_ptr<MemoryDisk> disk, uint32_t depth)
      : disks_(disks), path_(std::move(path)), device_(std::move(disk), disks->clock_, depth, disks->costs_) {}
  ~Opening() override { disks_->Close(this); }
  uint64_t bytes() const override { return device_.bytes(); }
  uint32_t depth() const override { return device_.depth(); }
  std::string_view backend() const override { return device_.backend(); }
  void RegisterBuffers(std::span<std::byte> memory) override { device_.RegisterBuffers(memory); }
  bool Submit(const IoRequest& request) override { return device_.Submit(request); }
  size_t Poll(std::span<IoResult> results, int64_t wait_ns) override { return device_.Poll(results, wait_ns); }
  void Wake() override { device_.Wake(); }
  MemoryDevice& device() { return device_; }
  const std::string& path() const { return path_; }

 private:
  MemoryDisks* const disks_;
  const std::string path_;
  MemoryDevice device_;
};

tiering::BlockDeviceFactory MemoryDisks::Factory() {
  return [this](const tiering::BlockDeviceOptions& options) { return Open(options); };
}

absl::StatusOr<std::unique_ptr<tiering::BlockDevice>> MemoryDisks::Open(const tiering::BlockDeviceOptions& options) {
  MutexLock lock(&mu_);
  if (openings_.count(options.path) > 0) {
    return absl::FailedPreconditionError(absl::StrCat(options.path, " is in use by this process"));
  }
  std::shared_ptr<MemoryDisk>& disk = disks_[options.path];
  if (disk == nullptr || disk->bytes() != options.bytes) {
    auto resized = std::make_shared<MemoryDisk>(options.bytes);
    if (disk != nullptr) {
      std::vector<std::byte> kept(std::min(disk->bytes(), options.bytes));
      disk->Read(0, kept);
      resized->Write(0, kept);
      resized->Sync();
    }
    disk = std::move(resized);
  }
  auto opening = std::make_unique<Opening>(this, options.path, disk, options.depth);
  openings_[options.path] = opening.get();
  return std::unique_ptr<tiering::BlockDevice>(std::move(opening));
}

void MemoryDisks::Close(const Opening* opening) {
  MutexLock lock(&mu_);
  const auto it = openings_.find(opening->path());
  if (it != openings_.end() && it->second == opening) openings_.erase(it);
}

std::shared_ptr<MemoryDisk> MemoryDisks::Find(const std::string& path) const {
  MutexLock lock(&mu_);
  const auto it = disks_.find(path);
  return it == disks_.end() ? nullptr : it->second;
}

void MemoryDisks::End(uint64_t seed, bool loses_power) {
  MutexLock lock(&mu_);
  Random random(seed);
  for (auto& [path, opening] : openings_) opening->device().Cut(random.Next());
  if (loses_power) {
    for (auto& [path, disk] : disks_) disk->LosePower(random.Next());
  }
  openings_.clear();
}

int64_t MemoryDisks::NextDueNs() const {
  MutexLock lock(&mu_);
  int64_t next_ns = MemoryDevice::kNever;
  for (const auto& [path, opening] : openings_) next_ns = std::min(next_ns, opening->device().NextDueNs());
  return next_ns;
}

}  // namespace terrace::testing
