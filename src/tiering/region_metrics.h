// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// RegionMetrics: what RegionMover counts, all label sets present from the start.
#pragma once

#include <array>
#include <cstdint>

#include "absl/status/status.h"
#include "gpu/copy_engine.h"
#include "kvstore/base/metrics.h"

namespace terrace::tiering {

// What an engine's memory is.
enum class RegionMemory : uint8_t { kHost, kGpu };
inline constexpr int kRegionMemories = 2;

// Owner: RegionMover; the metrics are the registry's. Threads: any.
struct RegionMetrics {
  explicit RegionMetrics(MetricRegistry* metrics);

  // A batch has ended. copied_bytes: of the pages that are intact.
  void Ended(gpu::Direction direction, RegionMemory memory, const absl::Status& status, uint64_t copied_bytes,
             int64_t duration_ns);

  std::array<Gauge*, kRegionMemories> open;
  Counter* lost_bytes;        // of frames that are never used again
  Counter* gpu_tier_bytes;    // loads whose bytes came from the GPU tier

 private:
  enum Failure { kCancelled, kDeadline, kUnavailable, kOverload, kOther, kFailures };
  struct Way {  // one direction, one kind of memory
    Counter *bytes, *batches;
    Histogram* duration;
    std::array<Counter*, kFailures> failures;
  };
  std::array<std::array<Way, kRegionMemories>, 2> ways_;
};

}  // namespace terrace::tiering
