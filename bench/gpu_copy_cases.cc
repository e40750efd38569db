// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The GPU cases about bytes a second and latency, and the order of all GPU cases.
#include <atomic>
#include <utility>

#include "gpu_kernel_cases.h"
#include "gpu_rig.h"
#include "kvstore/base/status_macros.h"
#include "stopwatch.h"

namespace terrace::bench {
namespace {

using gpu::CopyBatch;
using gpu::Direction;

constexpr double kGiga = 1e9;

Measurement Against(const char* name, const char* what, double target, double aim) {
  Measurement m{.name = name, .what = what, .unit = "GB/s"};
  m.limit_name = "cuMemcpyAsync";
  m.target = target;
  m.aim = aim;
  return m;
}

absl::StatusOr<double> RunOne(GpuRig* rig, const PageSet& set, Direction direction) {
  std::vector<CopyBatch> batches;
  batches.push_back(set.MakeBatch(direction));
  return RunBatches(rig->engine(), std::move(batches));
}

// A plain copy of as many bytes between the same memory.
GpuRig::PlainCopy Plain(const PageSet& set, Direction direction) {
  const CUdeviceptr frames = reinterpret_cast<CUdeviceptr>(set.frames());
  if (direction == Direction::kStore) return {frames, set.pages(), set.shape().total_bytes()};
  return {set.pages(), frames, set.shape().total_bytes()};
}

// gpu_store, gpu_load: big pages one way. The plain copy beside it writes where the batch does, so what is read stays.
absl::Status RunOneWay(const GpuBenchContext& context, GpuRig* rig, Direction direction) {
  const bool is_store = direction == Direction::kStore;
  Measurement m = Against(is_store ? "gpu_store" : "gpu_load",
                          is_store ? "1,024 scattered pages of 256 KiB to pinned frames, one batch, with checksums"
                                   : "1,024 pinned frames of 256 KiB to scattered pages, one batch, verified",
                          0.95, 0.98);
  const PageShape shape{.piece_bytes = 256 << 10, .blocks = context.is_softcuda ? 24u : 1024u};
  ASSIGN_OR_RETURN(const auto set, PageSet::Make(rig, shape));
  RETURN_IF_ERROR(set->Prove());
  for (int round = 0; round < context.Rounds(20) + 2; ++round) {
    ASSIGN_OR_RETURN(const double ours_s, RunOne(rig, *set, direction));
    ASSIGN_OR_RETURN(const double plain_s, rig->TimeCopies({Plain(*set, direction)}));
    if (round < 2) continue;  // warm-up
    m.values.push_back(static_cast<double>(shape.total_bytes()) / ours_s / kGiga);
    m.limits.push_back(static_cast<double>(shape.total_bytes()) / plain_s / kGiga);
  }
  context.Add(std::move(m));
  return absl::OkStatus();
}

// Batches both ways at once, several of each, so that what one direction has at its end weighs little.
absl::Status RunBoth(const GpuBenchContext& context, GpuRig* rig) {
  Measurement m =
      Against("gpu_both", "stores and loads of pages of 256 KiB at once, 4 batches of 128 MiB each way", 0.75, 0.9);
  m.limit_name = "sum of one-way cuMemcpyAsync";
  const PageShape shape{.piece_bytes = 256 << 10, .blocks = context.is_softcuda ? 12u : 512u};
  ASSIGN_OR_RETURN(const auto out, PageSet::Make(rig, shape));
  ASSIGN_OR_RETURN(const auto in, PageSet::Make(rig, shape));
  RETURN_IF_ERROR(out->Prove());
  RETURN_IF_ERROR(in->Prove());
  std::vector<double> plain_both;
  const auto bytes = static_cast<double>(shape.total_bytes());
  constexpr int kBatches = 4;
  for (int round = 0; round < context.Rounds(12) + 2; ++round) {
    std::vector<CopyBatch> batches;
    for (int i = 0; i < kBatches; ++i) {
      batches.push_back(out->MakeBatch(Direction::kStore));
      batches.push_back(in->MakeBatch(Direction::kLoad));
    }
    ASSIGN_OR_RETURN(const double ours_s, RunBatches(rig->engine(), std::move(batches)));
    ASSIGN_OR_RETURN(const double out_s, rig->TimeCopies({Plain(*out, Direction::kStore)}));
    ASSIGN_OR_RETURN(const double in_s, rig->TimeCopies({Plain(*in, Direction::kLoad)}));
    ASSIGN_OR_RETURN(const double both_s,
                     rig->TimeCopies({Plain(*out, Direction::kStore), Plain(*in, Direction::kLoad)}));
    if (round < 2) continue;  // warm-up
    m.values.push_back(2 * kBatches * bytes / ours_s / kGiga);
    m.limits.push_back((bytes / out_s + bytes / in_s) / kGiga);
    plain_both.push_back(2 * bytes / both_s / kGiga);
  }
  if (!plain_both.empty()) m.more = {{"plain_both_gbps", Median(plain_both)}};
  context.Add(std::move(m));
  return absl::OkStatus();
}

// 4,096 runs of bytes each way, in blocks of 32 planes; besides, as 4,096 blocks of one run each.
absl::Status RunSmallPages(const GpuBenchContext& context, GpuRig* rig, uint64_t run_bytes) {
  const bool is_8k = run_bytes == 8192;
  Measurement m =
      is_8k ? Against("gpu_pages_8k", "4,096 scattered runs of 8 KiB as 128 blocks, one batch out and one back", 0.7,
                      0.9)
            : Against("gpu_pages_32k", "4,096 scattered runs of 32 KiB as 128 blocks, one batch out and one back",
                      0.85, 0.95);
  const uint64_t runs = context.is_softcuda ? 256 : 4096;
  const PageShape blocks{.planes = 32, .piece_bytes = run_bytes, .blocks = runs / 32};
  const PageShape singles{.planes = 1, .piece_bytes = run_bytes, .blocks = runs};
  ASSIGN_OR_RETURN(const auto set, PageSet::Make(rig, blocks));
  ASSIGN_OR_RETURN(const auto single, PageSet::Make(rig, singles));
  RETURN_IF_ERROR(set->Prove());
  RETURN_IF_ERROR(single->Prove());
  std::vector<double> store_ratios, load_ratios, single_ratios;
  const auto bytes = static_cast<double>(blocks.total_bytes());
  for (int round = 0; round < context.Rounds(30) + 4; ++round) {
    ASSIGN_OR_RETURN(const double store_s, RunOne(rig, *set, Direction::kStore));
    ASSIGN_OR_RETURN(const double load_s, RunOne(rig, *set, Direction::kLoad));
    ASSIGN_OR_RETURN(const double single_store_s, RunOne(rig, *single, Direction::kStore));
    ASSIGN_OR_RETURN(const double single_load_s, RunOne(rig, *single, Direction::kLoad));
    ASSIGN_OR_RETURN(const double out_s, rig->TimeCopies({Plain(*set, Direction::kStore)}));
    // Out in order and back in order: the pages hold what they held; the next store mends the frames.
    ASSIGN_OR_RETURN(const double back_s, rig->TimeCopies({Plain(*set, Direction::kLoad)}));
    if (round < 4) continue;  // warm-up: the planner has tried its means
    m.values.push_back(2 * bytes / (store_s + load_s) / kGiga);
    m.limits.push_back(2 * bytes / (out_s + back_s) / kGiga);
    store_ratios.push_back(out_s / store_s);
    load_ratios.push_back(back_s / load_s);
    single_ratios.push_back((out_s + back_s) / (single_store_s + single_load_s));
  }
  if (!store_ratios.empty()) {
    m.more = {{"store_ratio", Median(store_ratios)},
              {"load_ratio", Median(load_ratios)},
              {"ratio_of_single_runs", Median(single_ratios)}};
  }
  context.Add(std::move(m));
  return absl::OkStatus();
}

// From Submit until the first byte of a store of four pages of 32 KiB is in its frame.
absl::Status RunLatency(const GpuBenchContext& context, GpuRig* rig) {
  Measurement m{.name = "gpu_latency",
                .what = "from submitting a store of 4 pages of 32 KiB to its first byte in host memory",
                .unit = "us"};
  m.limit_name = "cuMemcpyAsync";
  m.lower_is_better = m.target_is_absolute = true;
  m.target = 30;
  m.aim = 15;
  constexpr uint64_t kBlocks = 4;
  ASSIGN_OR_RETURN(const auto set, PageSet::Make(rig, {.piece_bytes = 32 << 10, .blocks = 64}));
  RETURN_IF_ERROR(set->Prove());
  std::atomic_ref<uint64_t> first(*reinterpret_cast<uint64_t*>(set->frames()));
  const uint64_t expected = first.load();
  const auto wait_for_first = [&](double begun) -> absl::StatusOr<double> {
    while (first.load(std::memory_order_relaxed) != expected) {
      if (Seconds() > begun + 10) return absl::DeadlineExceededError("the first byte does not arrive");
    }
    return Seconds() - begun;
  };
  const CUdeviceptr page = reinterpret_cast<CUdeviceptr>(set->region()->Piece(0, set->page_numbers()[0]));
  std::vector<double> until_done, load_done;
  for (int round = 0; round < context.Rounds(500) + 20; ++round) {
    std::vector<CopyBatch> loads;
    loads.push_back(set->MakeBatch(Direction::kLoad, kBlocks));
    first.store(expected);
    ASSIGN_OR_RETURN(const double load_s, RunBatches(rig->engine(), std::move(loads)));
    CopyBatch batch = set->MakeBatch(Direction::kStore, kBlocks);
    std::atomic<bool> is_done{false};
    absl::Status how;
    batch.done = [&](CopyBatch&, const absl::Status& status) {
      how = status;
      is_done.store(true, std::memory_order_release);
    };
    first.store(~expected);
    const double begun = Seconds();
    RETURN_IF_ERROR(rig->engine().Submit(batch));
    const absl::StatusOr<double> first_s = wait_for_first(begun);
    while (!is_done.load(std::memory_order_acquire)) {
    }
    const double done_s = Seconds() - begun;
    rig->engine().Drain();
    RETURN_IF_ERROR(how);
    RETURN_IF_ERROR(first_s.status());
    first.store(~expected);
    const double plain_begun = Seconds();
    RETURN_IF_ERROR(rig->Check(
        rig->driver().cuMemcpyAsync(reinterpret_cast<CUdeviceptr>(set->frames()), page, 32 << 10, rig->stream(0)),
        "cuMemcpyAsync"));
    ASSIGN_OR_RETURN(const double plain_s, wait_for_first(plain_begun));
    RETURN_IF_ERROR(rig->Check(rig->driver().cuStreamSynchronize(rig->stream(0)), "cuStreamSynchronize"));
    if (round < 20) continue;  // warm-up
    m.values.push_back(*first_s * 1e6);
    m.limits.push_back(plain_s * 1e6);
    until_done.push_back(done_s * 1e6);
    load_done.push_back(load_s * 1e6);
  }
  if (!until_done.empty()) {
    m.more = {{"p99_us", Quantile(m.values, 0.99)},
              {"store_done_us", Median(until_done)},
              {"load_done_us", Median(load_done)}};
  }
  context.Add(std::move(m));
  return absl::OkStatus();
}

}  // namespace

absl::Status RunGpuCases(const GpuBenchContext& context) {
  ASSIGN_OR_RETURN(const auto rig, GpuRig::Open(context.options.driver, static_cast<int>(context.options.device)));
  absl::Status first_failure;
  const auto run = [&](const char* name, const auto& measure) {
    if (!context.Wants(name)) return;
    absl::Status status = measure();
    rig->Free();
    if (absl::IsUnimplemented(status)) {
      context.report->Skip(name, status.message());
    } else if (!status.ok()) {
      context.report->Skip(name, status.ToString());
      if (first_failure.ok()) first_failure = status;
    }
  };
  run("gpu_store", [&] { return RunOneWay(context, rig.get(), Direction::kStore); });
  run("gpu_load", [&] { return RunOneWay(context, rig.get(), Direction::kLoad); });
  run("gpu_both", [&] { return RunBoth(context, rig.get()); });
  run("gpu_pages_8k", [&] { return RunSmallPages(context, rig.get(), 8192); });
  run("gpu_pages_32k", [&] { return RunSmallPages(context, rig.get(), 32768); });
  run("gpu_interference", [&] { return RunInterference(context, rig.get()); });
  run("gpu_latency", [&] { return RunLatency(context, rig.get()); });
  run("gpu_checksum", [&] { return RunChecksum(context, rig.get()); });
  return first_failure;
}

}  // namespace terrace::bench
