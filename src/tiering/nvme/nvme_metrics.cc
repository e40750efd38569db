// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/nvme/nvme_metrics.h"

namespace terrace::tiering {
namespace {

constexpr const char* kOps[] = {"read", "write", "sync"};
constexpr const char* kBad[] = {"checksum", "identity", "torn", "stale"};
constexpr const char* kStates[] = {"starting", "online", "readonly", "offline"};  // by TierState

// The better, the higher.
int Rank(TierState state) {
  switch (state) {
    case TierState::kOnline: return 3;
    case TierState::kReadOnly: return 2;
    case TierState::kStarting: return 1;
    case TierState::kOffline: return 0;
  }
  return 0;
}

}  // namespace

const char* NvmeBadName(NvmeBad bad) { return kBad[static_cast<size_t>(bad)]; }

void NvmeDeviceMetrics::Observe(IoOp op, int error, uint64_t bytes, int64_t ns) {
  const auto i = static_cast<size_t>(op);
  duration[i]->ObserveNs(ns);
  if (error != 0) {
    errors[i]->Add();
  } else if (op == IoOp::kRead) {
    read_total.fetch_add(bytes, std::memory_order_relaxed);
  } else if (op == IoOp::kWrite) {
    written_bytes->Add(bytes);
    written_total.fetch_add(bytes, std::memory_order_relaxed);
  }
}

NvmeMetrics::NvmeMetrics(MetricRegistry* metrics, const std::vector<BlockDeviceOptions>& devices)
    : device_states_(devices.size(), TierState::kStarting) {
  for (size_t i = 0; i < 4; ++i) {
    integrity_[i] = metrics->AddCounter("terrace_integrity_failures_total",
                                        "Blocks that failed a check and were dropped.",
                                        {{"tier", "nvme"}, {"reason", kBad[i]}});
  }
  const std::string moved = "Bytes moved by the daemon.";
  in_bytes = metrics->AddCounter("terrace_transfer_bytes_total", moved, {{"src", "host"}, {"dst", "nvme"}});
  out_bytes = metrics->AddCounter("terrace_transfer_bytes_total", moved, {{"src", "nvme"}, {"dst", "host"}});
  scrub_bytes =
      metrics->AddCounter("terrace_scrub_bytes_total", "Bytes re-read and checked.", {{"tier", "nvme"}});
  scrub_last_completed = metrics->AddGauge("terrace_scrub_last_completed_timestamp_seconds",
                                           "When everything had last been re-read.", {{"tier", "nvme"}});
  for (size_t i = 0; i < 4; ++i) {
    states_[i] = metrics->AddGauge("terrace_tier_state", "1 for the state that the tier is in.",
                                   {{"tier", "nvme"}, {"state", kStates[i]}});
  }
  states_[static_cast<size_t>(TierState::kStarting)]->Set(1);
  for (const BlockDeviceOptions& options : devices) {
    auto device = std::make_unique<NvmeDeviceMetrics>();
    for (size_t op = 0; op < 3; ++op) {
      const MetricRegistry::Labels labels = {{"device", options.path}, {"op", kOps[op]}};
      device->errors[op] = metrics->AddCounter("terrace_io_errors_total", "Requests that failed.", labels);
      device->duration[op] =
          metrics->AddHistogram("terrace_io_duration_seconds", "From submission to completion.", labels);
    }
    device->written_bytes = metrics->AddCounter("terrace_nvme_written_bytes_total",
                                                "Bytes written to the device.", {{"device", options.path}});
    device->budget_bytes =
        metrics->AddGauge("terrace_nvme_write_budget_bytes",
                          "What may be written now; -1: no limit is set.", {{"device", options.path}});
    devices_.push_back(std::move(device));
  }
}

void NvmeMetrics::SetState(size_t device, TierState state) {
  MutexLock lock(&mu_);
  device_states_[device] = state;
  TierState best = state;
  for (const TierState s : device_states_) {
    if (Rank(s) > Rank(best)) best = s;
  }
  for (size_t i = 0; i < 4; ++i) states_[i]->Set(static_cast<size_t>(best) == i ? 1 : 0);
}

TierState NvmeMetrics::state() const {
  MutexLock lock(&mu_);
  TierState best = TierState::kOffline;
  for (const TierState s : device_states_) {
    if (Rank(s) > Rank(best)) best = s;
  }
  return best;
}

}  // namespace terrace::tiering
