// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Kill points: named places in the code at which a crash is most interesting. A test installs a hook that
// ends the process there (kill -9 to itself); in production there is none, and a point costs a load.
#pragma once

#include <atomic>

namespace terrace {

using KillPointHook = void (*)(const char* name);
inline std::atomic<KillPointHook> kill_point_hook{nullptr};

inline void KillPoint(const char* name) {
  if (const KillPointHook hook = kill_point_hook.load(std::memory_order_relaxed)) hook(name);
}

}  // namespace terrace
