// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// RegionMetrics: what RegionMover counts, all label sets present from the start.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "gpu/copy_engine.h"
#include "kvstore/base/metrics.h"

namespace terrace::tiering {

// What an engine's memory is.
enum class RegionMemory : uint8_t { kHost, kGpu };
inline constexpr int kRegionMemories = 2;
// What is on the other side.
enum class FrameMemory : uint8_t { kHost, kGpuTier };

// Owner: RegionMover; the metrics are the registry's. Threads: any.
struct RegionMetrics {
  explicit RegionMetrics(MetricRegistry* metrics);

  // A batch has ended. copied_bytes: of the pages that are intact. REQUIRES: only loads come from a GPU tier.
  void Ended(gpu::Direction direction, RegionMemory memory, FrameMemory frames, const absl::Status& status,
             uint64_t copied_bytes, int64_t duration_ns);

  std::array<Gauge*, kRegionMemories> open;
  Counter* lost_bytes;        // of frames that are never used again
  Counter* gpu_tier_corrupt;  // blocks of GPU tiers that failed their check

 private:
  enum Failure { kCancelled, kDeadline, kUnavailable, kOverload, kOther, kFailures };
  struct Way {  // one direction, one kind of memory
    Counter *bytes, *batches;
    Histogram* duration;
    std::array<Counter*, kFailures> failures;
  };
  static Way MakeWay(MetricRegistry* metrics, const std::string& source, const std::string& target);

  std::array<std::array<Way, kRegionMemories>, 2> ways_;
  Way from_gpu_tier_;
};

}  // namespace terrace::tiering
