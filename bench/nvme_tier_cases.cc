// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// nvme_write, nvme_read, nvme_read_64k and nvme_index_bytes: the NVMe tier alone, beside fio on the same
// file system.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench_tier.h"
#include "cases.h"
#include "fio_peer.h"
#include "kvstore/base/status_macros.h"
#include "machine.h"
#include "payload.h"
#include "stopwatch.h"

namespace terrace::bench {
namespace {

constexpr uint64_t kFileBytes = 2ull << 30;  // of each of the two files
constexpr uint64_t kRoundBytes = 1ull << 30;
constexpr uint32_t kLargeDepth = 16, kSmallDepth = 64;
// Before each half of a round: a virtual disk saves up credit while nobody uses it, and fio takes a
// moment to start.
constexpr auto kPause = std::chrono::milliseconds(700);

// One case: `ours` and fio's job, in turn, each first every other time. Both in bytes a second.
absl::Status Alternate(const CaseContext& context, Measurement m, const FioPeer& fio, const FioJob& job, int rounds,
                       const std::function<absl::StatusOr<double>(int round)>& ours) {
  m.unit = "GB/s";
  m.limit_name = absl::StrCat("fio ", job.pattern);
  const OthersMeter meter({});
  for (int round = 0; round < context.Rounds(rounds); ++round) {
    double rates[2] = {};
    for (int half = 0; half < 2; ++half) {
      const bool is_ours = half == round % 2;
      std::this_thread::sleep_for(kPause);
      const absl::StatusOr<double> rate = is_ours ? ours(round) : fio.Run(job);
      RETURN_IF_ERROR(rate.status());
      rates[is_ours ? 0 : 1] = *rate / 1e9;
    }
    m.values.push_back(rates[0]);
    m.limits.push_back(rates[1]);
  }
  context.report->Add(m, meter.Cores());
  return absl::OkStatus();
}

absl::Status ReadCase(const CaseContext& context, const char* name, const char* what, uint64_t block_bytes,
                      uint32_t depth, double target) {
  const TemporaryDirectory directory(context.options.directory);
  ASSIGN_OR_RETURN(const auto fio, FioPeer::Start(context.options.fio, directory.path(), kFileBytes));
  ASSIGN_OR_RETURN(const auto tier, BenchTier::Open(directory.path(), kFileBytes, block_bytes));
  // As many blocks as stay: less than the device, whose ring keeps some segments free.
  const uint64_t blocks = kFileBytes * 3 / 4 / (block_bytes + 4096);
  RETURN_IF_ERROR(tier->Append(0, blocks));
  RETURN_IF_ERROR(tier->CheckAll(0, blocks));
  Measurement m{.name = name, .what = what};
  m.target = target;
  m.aim = 0.95;
  const FioJob job = {.pattern = "randread", .block_bytes = block_bytes, .depth = depth, .bytes = kRoundBytes};
  return Alternate(context, m, *fio, job, 7, [&](int round) -> absl::StatusOr<double> {
    const uint64_t n = kRoundBytes / block_bytes;
    const double begun = Seconds();
    RETURN_IF_ERROR(tier->ReadRandom(Mix(static_cast<uint64_t>(round)), blocks, n, depth));
    return static_cast<double>(n * block_bytes) / (Seconds() - begun);
  });
}

}  // namespace

absl::Status RunNvmeWrite(const CaseContext& context) {
  constexpr uint64_t kBlockBytes = 2 << 20, kBlocks = kRoundBytes / kBlockBytes;
  const TemporaryDirectory directory(context.options.directory);
  ASSIGN_OR_RETURN(const auto fio, FioPeer::Start(context.options.fio, directory.path(), kFileBytes));
  ASSIGN_OR_RETURN(const auto tier, BenchTier::Open(directory.path(), kFileBytes, kBlockBytes));
  RETURN_IF_ERROR(tier->Append(0, 3 * kBlocks));  // once around the ring, so that both overwrite
  RETURN_IF_ERROR(tier->CheckAll(3 * kBlocks - kBlocks / 2, kBlocks / 2));
  Measurement m{.name = "nvme_write",
                .what = "tier write of 2 MiB blocks until all are on disk, against fio, O_DIRECT"};
  m.target = 0.85;
  m.aim = 0.95;
  const FioJob job = {.pattern = "write", .block_bytes = kBlockBytes, .depth = kLargeDepth, .bytes = kRoundBytes};
  return Alternate(context, m, *fio, job, 7, [&](int round) -> absl::StatusOr<double> {
    const uint64_t first = (static_cast<uint64_t>(round) + 3) * kBlocks;
    tier->Prepare(first, kBlocks);
    const double begun = Seconds();
    RETURN_IF_ERROR(tier->Append(first, kBlocks));
    return static_cast<double>(kRoundBytes) / (Seconds() - begun);
  });
}

absl::Status RunNvmeRead(const CaseContext& context) {
  return ReadCase(context, "nvme_read", "tier read of random 2 MiB blocks, 16 at a time, checked, against fio", 2 << 20,
                  kLargeDepth, 0.85);
}

absl::Status RunNvmeRead64k(const CaseContext& context) {
  return ReadCase(context, "nvme_read_64k", "tier read of random 64 KiB blocks, 64 at a time, checked, against fio",
                  64 << 10, kSmallDepth, 0.80);
}

// Child: a tier full of the smallest blocks; prints blocks, resident bytes and what the tier itself says.
int NvmeIndexWorkerMain(const std::string& directory, uint64_t file_bytes) {
  const auto run = [&]() -> absl::Status {
    const double before = ResidentAnonymousBytes();
    ASSIGN_OR_RETURN(const auto tier, BenchTier::Open(directory, file_bytes, 4096));
    // Until the ring goes round; the source of the blocks weighs nothing.
    const uint64_t blocks = file_bytes / 8192;
    constexpr uint64_t kBatch = 4096;
    for (uint64_t first = 0; first < blocks; first += kBatch) RETURN_IF_ERROR(tier->Append(first, kBatch));
    const auto stats = tier->stats();
    const double resident = ResidentAnonymousBytes() - before - static_cast<double>(tier->io_memory_bytes());
    std::printf("%llu %.0f %llu\n", static_cast<unsigned long long>(stats.blocks), resident,
                static_cast<unsigned long long>(stats.index_bytes));
    return absl::OkStatus();
  };
  const absl::Status status = run();
  if (status.ok()) return 0;
  std::fprintf(stderr, "terrace_bench: index worker: %s\n", status.ToString().c_str());
  return 1;
}

absl::Status RunNvmeIndexBytes(const CaseContext& context) {
  const double wanted_bytes = static_cast<double>(4ull << 30) * std::min(1.0, context.options.scale);
  const uint64_t file_bytes = static_cast<uint64_t>(wanted_bytes) / (64 << 20) * (64 << 20);
  const TemporaryDirectory directory(context.options.directory);
  const OthersMeter meter({});
  ASSIGN_OR_RETURN(ChildProcess worker,
                   ChildProcess::StartSelf({"child-nvme-index", directory.path(), absl::StrCat(file_bytes)}));
  ASSIGN_OR_RETURN(const std::string line, worker.ReadLine(300));
  double blocks = 0, resident = 0, stated = 0;
  if (std::sscanf(line.c_str(), "%lf %lf %lf", &blocks, &resident, &stated) != 3 || blocks == 0) {
    return absl::InternalError(line);
  }
  Measurement m{.name = "nvme_index_bytes",
                .what = "memory of the tier less its I/O buffers, resident bytes per block, disk full of 4 KiB blocks",
                .unit = "B"};
  m.values = {resident / blocks};
  m.lower_is_better = true;
  m.target = 64;
  m.aim = 32;
  m.target_is_absolute = true;
  m.more = {{"blocks", blocks}, {"stated_bytes", stated / blocks}};
  context.report->Add(m, meter.Cores());
  return absl::OkStatus();
}

}  // namespace terrace::bench
