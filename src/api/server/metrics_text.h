// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The registry's families as Prometheus text, and the metrics of the process itself.
#pragma once

#include <cstdint>
#include <string>

#include "kvstore/base/metrics.h"

namespace terrace::api {

// Prometheus text format 0.0.4, families in order of registration.
std::string MetricsText(const MetricRegistry& registry);

// terrace_build_info, terrace_up_since_timestamp_seconds and process_*. Call once, at the start.
void AddProcessMetrics(MetricRegistry* registry);

}  // namespace terrace::api
