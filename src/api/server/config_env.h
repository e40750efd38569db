// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The only place of the daemon that reads the environment.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace terrace::api {

// Every variable that starts with TERRACE_, name and value.
std::vector<std::pair<std::string, std::string>> TerraceVariables();

// One variable, "" when it is not set.
std::string EnvironmentVariable(const char* name);

}  // namespace terrace::api
