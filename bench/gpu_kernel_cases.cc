// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu_kernel_cases.h"

#include <atomic>
#include <cstring>
#include <functional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gpu/cuda/kernel_image.h"
#include "gpu/cuda/kernels/copy_table.h"
#include "kvstore/base/block_copy.h"
#include "kvstore/base/status_macros.h"
#include "payload.h"
#include "stopwatch.h"

// bench/gpu_matmul.cu as the build made it.
asm(".section .rodata\n"
    ".balign 64\n"
    "terrace_bench_matmul_image:\n"
    ".incbin \"" TERRACE_BENCH_MATMUL_FILE
    "\"\n"
    ".balign 8\n"
    ".previous\n");
extern "C" const char terrace_bench_matmul_image[];

namespace terrace::bench {
namespace {

using gpu::CopyBatch;
using gpu::Direction;

// A module of kernels. Owner: a case.
class Module {
 public:
  explicit Module(GpuRig* rig) : rig_(*rig) {}
  ~Module() {
    if (module_ != nullptr) rig_.driver().cuModuleUnload(module_);
  }
  Module(const Module&) = delete;
  absl::Status Load(const void* image) {
    return rig_.Check(rig_.driver().cuModuleLoadData(&module_, image), "cuModuleLoadData");
  }
  absl::StatusOr<CUfunction> Function(const char* name) {
    CUfunction function = nullptr;
    RETURN_IF_ERROR(rig_.Check(rig_.driver().cuModuleGetFunction(&function, module_, name), "cuModuleGetFunction"));
    return function;
  }

 private:
  GpuRig& rig_;
  CUmodule module_ = nullptr;
};

// The matrices and their product. Owner: RunInterference. Its memory is the rig's.
class Matmul {
 public:
  explicit Matmul(GpuRig* rig) : rig_(*rig), module_(rig) {}
  absl::Status Open() {
    RETURN_IF_ERROR(module_.Load(terrace_bench_matmul_image));
    ASSIGN_OR_RETURN(function_, module_.Function("terrace_bench_matmul"));
    for (CUdeviceptr& matrix : matrices_) {
      ASSIGN_OR_RETURN(matrix, rig_.Device(kBytes));
    }
    ASSIGN_OR_RETURN(std::byte* const host, rig_.Pinned(kBytes));
    float* const values = reinterpret_cast<float*>(host);
    for (size_t i = 0; i < kBytes / sizeof(float); ++i) values[i] = static_cast<float>(Mix(i) % 5) - 2;
    RETURN_IF_ERROR(rig_.CopyNow(reinterpret_cast<void*>(matrices_[0]), host, kBytes));
    RETURN_IF_ERROR(rig_.CopyNow(reinterpret_cast<void*>(matrices_[1]), host, kBytes));
    return Prove(values);
  }
  // Milliseconds of kRepeats products.
  absl::StatusOr<double> Time() {
    return rig_.TimeKernels([&] {
      absl::Status status;
      for (int i = 0; i < kRepeats && status.ok(); ++i) status = Launch();
      return status;
    });
  }

 private:
  static constexpr int kN = 4096, kRepeats = 8;
  static constexpr uint64_t kBytes = sizeof(float) * kN * kN;
  absl::Status Launch() {
    int n = kN;
    void* arguments[] = {&matrices_[0], &matrices_[1], &matrices_[2], &n};
    return rig_.Check(rig_.driver().cuLaunchKernel(function_, kN / 64, kN / 64, 1, 256, 1, 1, 0, rig_.stream(0),
                                                   arguments, nullptr),
                      "cuLaunchKernel");
  }
  // Some elements of the product, calculated here: sums of small whole numbers, so exact.
  absl::Status Prove(const float* values) {
    RETURN_IF_ERROR(Time().status());
    for (int i = 0; i < 16; ++i) {
      const uint64_t row = Mix(i) % kN, column = Mix(100 + i) % kN;
      double expected = 0;
      for (uint64_t k = 0; k < kN; ++k)
        expected += static_cast<double>(values[row * kN + k]) * values[k * kN + column];
      float* element = nullptr;
      ASSIGN_OR_RETURN(std::byte* const host, rig_.Pinned(sizeof(float)));
      element = reinterpret_cast<float*>(host);
      RETURN_IF_ERROR(rig_.CopyNow(
          element, reinterpret_cast<void*>(matrices_[2] + (row * kN + column) * sizeof(float)), sizeof(float)));
      if (static_cast<double>(*element) != expected) return absl::InternalError("the matmul kernel is wrong");
    }
    return absl::OkStatus();
  }

  GpuRig& rig_;
  Module module_;
  CUfunction function_ = nullptr;
  CUdeviceptr matrices_[3] = {};
};

// Keeps batches under way both ways until it ends. Owner: RunInterference.
class Traffic {
 public:
  Traffic(GpuRig* rig, const PageSet* out, const PageSet* in)
      : engine_(rig->engine()), out_(*out), in_(*in), thread_([this] { Run(); }) {}
  ~Traffic() { End().IgnoreError(); }
  // The first failure, once and for all.
  absl::Status End() {
    ending_.store(true);
    if (thread_.joinable()) thread_.join();
    return status_;
  }
  uint64_t bytes() const { return bytes_.load(); }

 private:
  // Two batches of each direction, always: while one ends the other one runs.
  void Run() {
    while (!ending_.load() && status_.ok()) {
      std::vector<CopyBatch> batches;
      for (int i = 0; i < 2; ++i) {
        batches.push_back(out_.MakeBatch(Direction::kStore));
        batches.push_back(in_.MakeBatch(Direction::kLoad));
      }
      status_ = RunBatches(engine_, std::move(batches)).status();
      bytes_.fetch_add(4 * out_.shape().total_bytes());
    }
  }
  gpu::CopyEngine& engine_;
  const PageSet& out_;
  const PageSet& in_;
  std::atomic<bool> ending_{false};
  std::atomic<uint64_t> bytes_{0};
  absl::Status status_;
  std::thread thread_;  // last: it uses the rest
};

// Waits until copies are under way.
absl::Status WaitForTraffic(const Traffic& traffic) {
  const double deadline = Seconds() + 10;
  while (traffic.bytes() == 0) {
    if (Seconds() > deadline) return absl::DeadlineExceededError("no copy ends");
    std::this_thread::yield();
  }
  return absl::OkStatus();
}

struct Slowed {
  std::vector<double> percent, gbps;
};
// Products alone and with traffic, in turn.
absl::StatusOr<Slowed> Slow(const GpuBenchContext& context, GpuRig* rig, Matmul* matmul, const PageShape& shape) {
  ASSIGN_OR_RETURN(const auto out, PageSet::Make(rig, shape));
  ASSIGN_OR_RETURN(const auto in, PageSet::Make(rig, shape));
  RETURN_IF_ERROR(out->Prove());
  RETURN_IF_ERROR(in->Prove());
  Slowed slowed;
  for (int round = 0; round < context.Rounds(10) + 2; ++round) {
    ASSIGN_OR_RETURN(const double alone_ms, matmul->Time());
    Traffic traffic(rig, out.get(), in.get());
    RETURN_IF_ERROR(WaitForTraffic(traffic));
    const uint64_t before = traffic.bytes();
    const double begun = Seconds();
    ASSIGN_OR_RETURN(const double busy_ms, matmul->Time());
    const double gbps = static_cast<double>(traffic.bytes() - before) / (Seconds() - begun) / 1e9;
    RETURN_IF_ERROR(traffic.End());
    if (round < 2) continue;  // warm-up
    slowed.percent.push_back(100 * (busy_ms / alone_ms - 1));
    slowed.gbps.push_back(gbps);
  }
  return slowed;
}

}  // namespace

absl::Status RunInterference(const GpuBenchContext& context, GpuRig* rig) {
  if (context.is_softcuda) return absl::UnimplementedError("softcuda has no matmul to be slowed down");
  Matmul matmul(rig);
  RETURN_IF_ERROR(matmul.Open());
  Measurement m{
      .name = "gpu_interference",
      .what = "how much slower a matmul on all multiprocessors gets while pages of 256 KiB are copied both ways",
      .unit = "%"};
  m.lower_is_better = m.target_is_absolute = true;
  m.target = 10;
  m.aim = 3;
  ASSIGN_OR_RETURN(const Slowed big, Slow(context, rig, &matmul, {.piece_bytes = 256 << 10, .blocks = 256}));
  ASSIGN_OR_RETURN(const Slowed small,
                   Slow(context, rig, &matmul, {.planes = 32, .piece_bytes = 8192, .blocks = 256}));
  m.values = big.percent;
  m.more = {{"copied_gbps", Median(big.gbps)},
            {"with_8k_runs_percent", Median(small.percent)},
            {"with_8k_runs_gbps", Median(small.gbps)}};
  context.Add(std::move(m));
  return absl::OkStatus();
}

// The gather kernel with checksums and without, on as many multiprocessors as the engine may use.
absl::Status RunChecksum(const GpuBenchContext& context, GpuRig* rig) {
  Measurement m{
      .name = "gpu_checksum", .what = "gathering runs of 8 KiB on 8 multiprocessors, with checksums", .unit = "GB/s"};
  m.limit_name = "the same without checksums";
  m.target = 0.8;
  m.aim = 0.95;
  Module module(rig);
  RETURN_IF_ERROR(module.Load(gpu::KernelImage()));
  ASSIGN_OR_RETURN(const CUfunction hashing, module.Function(gpu::kGatherKernel));
  ASSIGN_OR_RETURN(const CUfunction plain, module.Function(gpu::kPlainGatherKernel));
  const PageShape shape{.planes = 32, .piece_bytes = 8192, .blocks = context.is_softcuda ? 8u : 256u};
  ASSIGN_OR_RETURN(const auto set, PageSet::Make(rig, shape));
  RETURN_IF_ERROR(set->Prove());

  // The table's arrays in GPU memory, the checksums in host memory, as the engine has them.
  const auto segments = static_cast<uint32_t>(ChecksumCount(shape.page_bytes()));
  ASSIGN_OR_RETURN(const CUdeviceptr target, rig->Device(shape.total_bytes()));
  ASSIGN_OR_RETURN(const CUdeviceptr arrays, rig->Device(65536));
  ASSIGN_OR_RETURN(std::byte* const host, rig->Pinned(65536));
  ASSIGN_OR_RETURN(std::byte* const sums, rig->Pinned(segments * shape.blocks * 8));
  auto* const planes = reinterpret_cast<gpu::PlaneEntry*>(host);
  auto* const blocks = reinterpret_cast<gpu::BlockEntry*>(host + 4096);
  for (uint64_t p = 0; p < shape.planes; ++p) {
    planes[p] = {set->pages() + p * shape.blocks * shape.piece_bytes, shape.piece_bytes, p * shape.piece_bytes,
                 shape.piece_bytes};
  }
  for (uint64_t i = 0; i < shape.blocks; ++i)
    blocks[i] = {set->page_numbers()[i], target + i * shape.page_bytes(), i};
  RETURN_IF_ERROR(rig->CopyNow(reinterpret_cast<void*>(arrays), host, 65536));
  gpu::CopyTable table{};
  table.planes = reinterpret_cast<const gpu::PlaneEntry*>(arrays);
  table.blocks = reinterpret_cast<const gpu::BlockEntry*>(arrays + 4096);
  table.checksums = reinterpret_cast<uint64_t*>(sums);
  table.page_bytes = shape.page_bytes();
  table.n_planes = shape.planes;
  table.n_blocks = static_cast<uint32_t>(shape.blocks);
  table.n_segments = segments;
  const auto time = [&](CUfunction kernel) {
    return rig->TimeKernels([&] {
      void* arguments[] = {&table};
      return rig->Check(rig->driver().cuLaunchKernel(kernel, gpu::GpuOptions().max_sms, 1, 1, gpu::kMaxKernelThreads,
                                                     1, 1, 0, rig->stream(0), arguments, nullptr),
                        "cuLaunchKernel");
    });
  };
  for (int round = 0; round < context.Rounds(50) + 2; ++round) {
    ASSIGN_OR_RETURN(const double hashing_ms, time(hashing));
    ASSIGN_OR_RETURN(const double plain_ms, time(plain));
    if (round < 2) continue;  // warm-up
    m.values.push_back(static_cast<double>(shape.total_bytes()) / hashing_ms / 1e6);
    m.limits.push_back(static_cast<double>(shape.total_bytes()) / plain_ms / 1e6);
  }
  // What was measured was the right work.
  ASSIGN_OR_RETURN(std::byte* const gathered, rig->Pinned(shape.total_bytes()));
  RETURN_IF_ERROR(rig->CopyNow(gathered, reinterpret_cast<void*>(target), shape.total_bytes()));
  for (uint64_t i = 0; i < shape.blocks; ++i) {
    const Piece piece{gathered + i * shape.page_bytes(), shape.page_bytes()};
    if (!CopyBlock({&piece, 1}, {}, i, CopyCheck::kVerify, {table.checksums + i * segments, segments},
                   CopyStores::kCached)) {
      return absl::DataLossError(
          absl::StrCat("block ", i, ": the kernel's checksums are not those of what it gathered"));
    }
  }
  context.Add(std::move(m));
  return absl::OkStatus();
}

}  // namespace terrace::bench
