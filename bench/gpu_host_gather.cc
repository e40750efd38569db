// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// host_gather: pages of 8 KiB pieces to frames and back by one thread of HostCopyEngine, checksums computed and
// verified, against one memcpy of as many bytes each way.
#include <sys/mman.h>

#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gpu/host_copy_engine.h"
#include "gpu/host_region.h"
#include "gpu_cases.h"
#include "kvstore/base/block_copy.h"
#include "kvstore/base/status_macros.h"
#include "machine.h"
#include "payload.h"
#include "stopwatch.h"

namespace terrace::bench {
namespace {

using gpu::CopyBatch;
using gpu::Direction;
using gpu::PageCopy;

constexpr uint64_t kPieceBytes = 8192;
constexpr uint32_t kPlanes = 64;  // K and V of 32 layers
constexpr uint64_t kPages = 256;
constexpr uint64_t kPageBytes = kPlanes * kPieceBytes;
constexpr uint64_t kTotalBytes = kPages * kPageBytes;  // 128 MiB: beyond the caches

// Anonymous memory with huge pages where the system gives them, as the daemon's and engines' arenas have.
class WarmMemory {
 public:
  explicit WarmMemory(uint64_t seed) {
    void* base = mmap(nullptr, kTotalBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) return;
    madvise(base, kTotalBytes, MADV_HUGEPAGE);
    bytes_ = {static_cast<std::byte*>(base), kTotalBytes};
    FillPayload(MakeKeys(seed, 1).data(), bytes_);
  }
  ~WarmMemory() {
    if (!bytes_.empty()) munmap(bytes_.data(), bytes_.size());
  }
  WarmMemory(const WarmMemory&) = delete;
  std::span<std::byte> bytes() const { return bytes_; }

 private:
  std::span<std::byte> bytes_;
};

// What is copied, and how.
class HostGather {
 public:
  HostGather() {
    layout_.n_pages = kPages;
    for (uint32_t p = 0; p < kPlanes; ++p)
      layout_.planes.push_back({0, p * kPages * kPieceBytes, kPieceBytes, kPieceBytes});
    pages_.resize(kPages);
    std::iota(pages_.begin(), pages_.end(), 0);
    for (uint64_t i = kPages - 1; i > 0; --i) std::swap(pages_[i], pages_[Mix(i) % (i + 1)]);
    checksums_.assign(kPages, std::vector<uint64_t>(ChecksumCount(kPageBytes)));
  }
  absl::Status Open() {
    if (engine_memory_.bytes().empty() || frames_.bytes().empty()) return absl::ResourceExhaustedError("no memory");
    const std::span<std::byte> allocation = engine_memory_.bytes();
    ASSIGN_OR_RETURN(region_, gpu::HostRegion::Wrap(layout_, {&allocation, 1}));
    return absl::OkStatus();
  }
  // Seconds of one batch of all pages.
  absl::StatusOr<double> Run(Direction direction) {
    CopyBatch batch;
    batch.region = region_;
    batch.direction = direction;
    for (uint64_t i = 0; i < kPages; ++i) {
      PageCopy copy;
      copy.page = pages_[i];
      copy.frame = frames_.bytes().data() + i * kPageBytes;
      copy.identity_seed = i;
      copy.checksums = checksums_[i];
      batch.pages.push_back(std::move(copy));
    }
    absl::Status status;
    batch.done = [&](CopyBatch& ended, const absl::Status& how) {
      status = how;
      for (uint64_t i = 0; i < kPages && status.ok(); ++i) {
        if (!ended.pages[i].intact) status = absl::DataLossError(absl::StrCat("page ", i, " is not intact"));
        if (direction == Direction::kStore) checksums_[i] = std::move(ended.pages[i].checksums);
      }
    };
    const double begun = Seconds();
    RETURN_IF_ERROR(engine_.Submit(batch));
    engine_.Drain();
    const double seconds = Seconds() - begun;
    RETURN_IF_ERROR(status);
    return seconds;
  }
  double Memcpy(bool to_frames) {
    const std::span<std::byte> from = to_frames ? engine_memory_.bytes() : plain_.bytes();
    const std::span<std::byte> to = to_frames ? plain_.bytes() : engine_memory_.bytes();
    return TimeOf([&] { std::memcpy(to.data(), from.data(), kTotalBytes); });
  }
  // Whether the frames hold what the pages do.
  bool FramesAreRight() const {
    for (uint64_t i = 0; i < kPages; ++i) {
      for (uint32_t p = 0; p < kPlanes; ++p) {
        const std::byte* frame = frames_.bytes().data() + i * kPageBytes + p * kPieceBytes;
        if (std::memcmp(region_->Piece(p, pages_[i]), frame, kPieceBytes) != 0) return false;
      }
    }
    return true;
  }
  void SpoilPages() { std::memset(engine_memory_.bytes().data(), 0x55, kTotalBytes); }

 private:
  gpu::RegionLayout layout_;
  std::vector<uint64_t> pages_;
  std::vector<std::vector<uint64_t>> checksums_;
  WarmMemory engine_memory_{1}, frames_{2}, plain_{3};
  std::shared_ptr<gpu::HostRegion> region_;
  gpu::HostCopyEngine engine_{1, 4};
};

}  // namespace

absl::Status RunHostGather(const GpuBenchContext& context) {
  HostGather gather;
  RETURN_IF_ERROR(gather.Open());
  RETURN_IF_ERROR(gather.Run(Direction::kStore).status());
  if (!gather.FramesAreRight()) return absl::DataLossError("frames hold other bytes than the pages");
  gather.SpoilPages();
  RETURN_IF_ERROR(gather.Run(Direction::kLoad).status());
  if (!gather.FramesAreRight()) return absl::DataLossError("pages hold other bytes than the frames");

  Measurement m{
      .name = "host_gather",
      .what = "128 MiB of pages of 64 pieces of 8 KiB to frames and back, by one thread, checksums on the way",
      .unit = "GB/s"};
  m.limit_name = "memcpy";
  m.target = 0.7;
  m.aim = 0.9;
  std::vector<double> stores, loads, store_ratios, load_ratios;
  const OthersMeter meter({});
  for (int round = 0; round < context.Rounds(30) + 2; ++round) {
    ASSIGN_OR_RETURN(const double store_s, gather.Run(Direction::kStore));
    const double out_s = gather.Memcpy(true);
    ASSIGN_OR_RETURN(const double load_s, gather.Run(Direction::kLoad));
    const double back_s = gather.Memcpy(false);
    if (round < 2) continue;  // warm-up
    stores.push_back(kTotalBytes / store_s / 1e9);
    loads.push_back(kTotalBytes / load_s / 1e9);
    store_ratios.push_back(out_s / store_s);
    load_ratios.push_back(back_s / load_s);
    m.values.push_back(2 * kTotalBytes / (store_s + load_s) / 1e9);
    m.limits.push_back(2 * kTotalBytes / (out_s + back_s) / 1e9);
  }
  m.more = {{"store_gbps", Median(stores)},
            {"store_ratio", Median(store_ratios)},
            {"load_gbps", Median(loads)},
            {"load_ratio", Median(load_ratios)}};
  context.report->Add(m, meter.Cores());
  return absl::OkStatus();
}

}  // namespace terrace::bench
