// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/engine/engine_metrics.h"

#include <string>

namespace terrace::api {
namespace {

constexpr const char* kOpNames[] = {"hello",       "open_key_space", "lookup", "release", "get_segment",
                                    "get_staging", "put",            "report", "ping",    "locate", "hint",
                                    "register_region", "unregister_region", "region_store", "region_load"};
// The codes this door answers with.
constexpr absl::StatusCode kCodesUsed[] = {
    absl::StatusCode::kOk,         absl::StatusCode::kInvalidArgument,    absl::StatusCode::kNotFound,
    absl::StatusCode::kPermissionDenied, absl::StatusCode::kResourceExhausted,
    absl::StatusCode::kFailedPrecondition, absl::StatusCode::kInternal, absl::StatusCode::kUnavailable};

}  // namespace

EngineMetrics::EngineMetrics(MetricRegistry* metrics) {
  for (int op = 0; op < kOps; ++op) {
    for (const absl::StatusCode code : kCodesUsed) {
      requests_[op][static_cast<int>(code)] = metrics->AddCounter(
          "terrace_requests_total", "Requests answered, by operation, status code and door.",
          {{"op", kOpNames[op]}, {"code", absl::StatusCodeToString(code)}, {"transport", "engine"}});
    }
    durations_[op] = metrics->AddHistogram(
        "terrace_request_duration_seconds",
        "From a request's arrival to its answer (put, locate and those about regions: to its hand-over).",
        {{"op", kOpNames[op]}, {"transport", "engine"}});
  }
  constexpr const char* kReasons[] = {"auth", "malformed", "version", "connections", "slow_reader"};
  for (int i = 0; i < kRejections; ++i) {
    rejected[i] = metrics->AddCounter("terrace_rejected_total", "Connections and messages turned away.",
                                      {{"reason", kReasons[i]}, {"transport", "engine"}});
  }
  connections = metrics->AddGauge("terrace_engines_connected", "Open connections of the engine socket.");
  accepted = metrics->AddCounter("terrace_engine_registrations_total", "Connections that said hello and were let in.");
  corrupt_reports = metrics->AddCounter("terrace_corrupt_reports_total",
                                        "Reports of bad blocks by clients that the daemon's own check confirmed.");
}

void EngineMetrics::Request(wire::Type type, absl::StatusCode code, int64_t duration_ns) {
  const int op = static_cast<int>(type) - 1;
  if (op < 0 || op >= kOps) return;
  Counter* counter = requests_[op][static_cast<int>(code)];
  if (counter == nullptr) counter = requests_[op][static_cast<int>(absl::StatusCode::kInternal)];
  counter->Add();
  durations_[op]->ObserveNs(duration_ns);
}

}  // namespace terrace::api
