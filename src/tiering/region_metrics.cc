// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/region_metrics.h"

namespace terrace::tiering {
namespace {

constexpr const char* kMemoryNames[] = {"engine", "gpu"};  // as src and dst
constexpr const char* kFailureNames[] = {"cancelled", "deadline", "unavailable", "overload", "other"};

}  // namespace

RegionMetrics::Way RegionMetrics::MakeWay(MetricRegistry* metrics, const std::string& source,
                                          const std::string& target) {
  const MetricRegistry::Labels labels{{"src", source}, {"dst", target}};
  Way way;
  way.bytes = metrics->AddCounter("terrace_transfer_bytes_total",
                                  "Bytes moved by the daemon (loads through shared memory are the client's).", labels);
  way.batches = metrics->AddCounter("terrace_region_batches_total",
                                    "Batches of pages copied between engines' regions and tiers.", labels);
  way.duration = metrics->AddHistogram("terrace_region_batch_duration_seconds",
                                       "From a batch's hand-over to the copy engine to its end.", labels);
  for (size_t f = 0; f < kFailures; ++f) {
    MetricRegistry::Labels with_reason = labels;
    with_reason.emplace_back("reason", kFailureNames[f]);
    way.failures[f] = metrics->AddCounter("terrace_region_failed_batches_total",
                                          "Batches that ended without their blocks, by reason.", with_reason);
  }
  return way;
}

RegionMetrics::RegionMetrics(MetricRegistry* metrics) {
  for (size_t m = 0; m < kRegionMemories; ++m) {
    const std::string memory = kMemoryNames[m];
    ways_[static_cast<size_t>(gpu::Direction::kStore)][m] = MakeWay(metrics, memory, "host");
    ways_[static_cast<size_t>(gpu::Direction::kLoad)][m] = MakeWay(metrics, "host", memory);
    open[m] = metrics->AddGauge("terrace_regions", "Regions of engines' memory that are open.", {{"memory", memory}});
  }
  from_gpu_tier_ = MakeWay(metrics, "gpu_tier", "gpu");
  lost_bytes = metrics->AddCounter(
      "terrace_lost_frame_bytes_total",
      "Host memory given up because a copy that could not be stopped may still use it. Restart if it rises.");
  gpu_tier_corrupt = metrics->AddCounter("terrace_integrity_failures_total",
                                         "Blocks that failed a check and were dropped. Page if it rises.",
                                         {{"tier", "gpu"}, {"reason", "checksum"}});
}

void RegionMetrics::Ended(gpu::Direction direction, RegionMemory memory, FrameMemory frames,
                          const absl::Status& status, uint64_t copied_bytes, int64_t duration_ns) {
  const Way& way = frames == FrameMemory::kGpuTier
                       ? from_gpu_tier_
                       : ways_[static_cast<size_t>(direction)][static_cast<size_t>(memory)];
  way.batches->Add();
  way.bytes->Add(copied_bytes);
  way.duration->ObserveNs(duration_ns);
  if (status.ok()) return;
  Failure failure = kOther;
  switch (status.code()) {
    case absl::StatusCode::kCancelled:
      failure = kCancelled;
      break;
    case absl::StatusCode::kDeadlineExceeded:
      failure = kDeadline;
      break;
    case absl::StatusCode::kUnavailable:
      failure = kUnavailable;
      break;
    case absl::StatusCode::kResourceExhausted:
      failure = kOverload;
      break;
    default:
      break;
  }
  way.failures[failure]->Add();
}

}  // namespace terrace::tiering
