// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Generated traces: workloads that no public trace shows, so that a policy is judged on more than one.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tiering/replay/trace.h"

namespace terrace::testing {

struct Workload {
  const char* name;
  const char* what;
  // Equal seeds, equal traces.
  std::function<tiering::Trace(uint64_t seed)> make;
};

// chats, agents, documents, zipf, loop, scans, mix, shift: see the definitions.
const std::vector<Workload>& Workloads();

}  // namespace terrace::testing
