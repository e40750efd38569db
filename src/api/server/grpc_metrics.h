// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What the gRPC door counts of itself: the families of the engine socket's own, told apart by the
// label transport. Listed in docs/metrics.md.
#pragma once

#include <array>
#include <cstdint>

#include "absl/status/status.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/metrics.h"

namespace terrace::api {

enum class GrpcOp {
  kOpenSession,
  kKeepAlive,
  kCloseSession,
  kOpenKeySpace,
  kLookup,
  kGet,
  kPut,
  kStat,
  kRelease,
  kRenew,
  kHint,
  kAdmin,  // every call of AdminService
};
inline constexpr int kGrpcOps = 12;

// Owner: GrpcServer; one a registry. Threads: any.
class GrpcMetrics {
 public:
  GrpcMetrics(MetricRegistry* metrics, const Clock* clock);

  // A call that was answered; begin_ns by the same clock.
  void Answered(GrpcOp op, const absl::Status& status, int64_t begin_ns);
  int64_t NowNs() const { return clock_->NowNs(); }

  Counter* rejected_auth;         // sessions and administrators turned away
  Counter* rejected_connections;  // connections beyond a limit

 private:
  static constexpr int kCodes = 17;  // canonical codes
  const Clock* const clock_;
  std::array<std::array<Counter*, kCodes>, kGrpcOps> requests_{};
  std::array<Histogram*, kGrpcOps> durations_{};
};

}  // namespace terrace::api
