// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The cases of terrace_gpu_bench ("terrace_bench gpu"): each measures one line of the GPU table in docs/benchmarks.md.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "report.h"

namespace terrace::bench {

// Plain values, set by the command line.
struct GpuBenchOptions {
  std::vector<std::string> cases;       // empty: all
  bool json = false;                    // one JSON object a line; else a table
  bool check = false;                   // exit code 4 when a target is not reached
  bool allow_softcuda = false;          // run on the stand-in for tests; what comes out is no figure of a GPU
  std::string driver = "libcuda.so.1";  // what dlopen() is given
  unsigned device = 0;
  double scale = 1;  // rounds are multiplied by it
};

struct GpuBenchContext {
  const GpuBenchOptions& options;
  Report* report;
  bool is_softcuda = false;  // small sizes, few rounds; nothing is judged

  int Rounds(int n) const {
    return is_softcuda ? 1 : n * options.scale < 1 ? 1 : static_cast<int>(n * options.scale);
  }
  bool Wants(const std::string& name) const;
  // Adds a measurement, without figures where they would be softcuda's.
  void Add(Measurement measurement) const;
};

// HostCopyEngine against memcpy. Needs no GPU.
absl::Status RunHostGather(const GpuBenchContext& context);

inline constexpr const char* kGpuCases[] = {"gpu_store",     "gpu_load",         "gpu_both",    "gpu_pages_8k",
                                            "gpu_pages_32k", "gpu_interference", "gpu_latency", "gpu_checksum"};

// All wanted ones of kGpuCases on a device that there is. In a build without CUDA: Unimplemented.
absl::Status RunGpuCases(const GpuBenchContext& context);

}  // namespace terrace::bench
