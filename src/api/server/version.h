// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What this build is. The values come from CMake (src/api/server/version.cc.in).
#pragma once

namespace terrace::api {

extern const char kVersion[];   // "0.1.0"
extern const char kCommit[];    // 12 hex digits, "unknown" outside a git checkout
extern const char kCompiler[];  // "Clang 14.0.6"
extern const char kBuildType[]; // "RelWithDebInfo"
extern const char kCuda[];      // of the toolkit that GPU support was built with, "13.0"; "none" without

}  // namespace terrace::api
