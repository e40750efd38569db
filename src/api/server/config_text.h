// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The configuration as text: YAML that LoadConfig reads back, and the table of the documentation.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "api/config.h"
#include "kvstore/base/log.h"

namespace terrace::api {

// with_docs: each option's sentence as a comment above it.
std::string ConfigYaml(const Config& config, bool with_docs);

// One row an option: key, type, default, variable, what it is. For docs/configuration.md.
std::string ConfigMarkdown();

// REQUIRES: a value that log.level accepts.
LogLevel LogLevelFromText(absl::string_view text);

}  // namespace terrace::api
