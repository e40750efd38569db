// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// EngineMetrics: what the engine socket counts, all label sets present from the start.
#pragma once

#include <array>
#include <cstdint>

#include "absl/status/status.h"
#include "api/engine/wire.h"
#include "kvstore/base/metrics.h"

namespace terrace::api {

// Owner: EngineServer; the metrics are the registry's. Threads: any.
struct EngineMetrics {
  explicit EngineMetrics(MetricRegistry* metrics);

  void Request(wire::Type type, absl::StatusCode code, int64_t duration_ns);

  enum Rejection { kAuth, kMalformed, kVersion, kConnections, kSlowReader, kRejections };
  std::array<Counter*, kRejections> rejected;
  Gauge* connections;
  Counter* accepted;
  Counter* corrupt_reports;

 private:
  static constexpr int kOps = 15;
  static constexpr int kCodes = 17;
  std::array<std::array<Counter*, kCodes>, kOps> requests_{};
  std::array<Histogram*, kOps> durations_{};
};

}  // namespace terrace::api
