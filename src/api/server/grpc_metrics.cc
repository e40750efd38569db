// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/server/grpc_metrics.h"

namespace terrace::api {
namespace {

constexpr const char* kOpNames[kGrpcOps] = {
    "open_session", "keep_alive", "close_session", "open_key_space", "lookup", "get",
    "put",          "stat",       "release",       "renew",          "hint", "admin"};
// The codes this door answers with.
constexpr absl::StatusCode kCodesUsed[] = {absl::StatusCode::kOk,
                                           absl::StatusCode::kCancelled,
                                           absl::StatusCode::kInvalidArgument,
                                           absl::StatusCode::kNotFound,
                                           absl::StatusCode::kPermissionDenied,
                                           absl::StatusCode::kResourceExhausted,
                                           absl::StatusCode::kInternal,
                                           absl::StatusCode::kUnavailable};

}  // namespace

GrpcMetrics::GrpcMetrics(MetricRegistry* metrics, const Clock* clock) : clock_(clock) {
  for (size_t op = 0; op < kGrpcOps; ++op) {
    for (const absl::StatusCode code : kCodesUsed) {
      requests_[op][static_cast<size_t>(code)] = metrics->AddCounter(
          "terrace_requests_total", "Requests answered, by operation, status code and door.",
          {{"op", kOpNames[op]}, {"code", absl::StatusCodeToString(code)}, {"transport", "grpc"}});
    }
    durations_[op] =
        metrics->AddHistogram("terrace_request_duration_seconds",
                              "From a request's arrival to its answer (put, locate: to its hand-over).",
                              {{"op", kOpNames[op]}, {"transport", "grpc"}});
  }
  const auto add_rejected = [&](const char* reason) {
    return metrics->AddCounter("terrace_rejected_total", "Connections and messages turned away.",
                               {{"reason", reason}, {"transport", "grpc"}});
  };
  rejected_auth = add_rejected("auth");
  rejected_connections = add_rejected("connections");
}

void GrpcMetrics::Answered(GrpcOp op, const absl::Status& status, int64_t begin_ns) {
  const auto row = static_cast<size_t>(op);
  Counter* counter = requests_[row][static_cast<size_t>(status.code())];
  if (counter == nullptr) {
    counter = requests_[row][static_cast<size_t>(absl::StatusCode::kInternal)];
  }
  counter->Add();
  durations_[row]->ObserveNs(clock_->NowNs() - begin_ns);
}

}  // namespace terrace::api
