// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The one table of options of terraced. Parsing, TERRACE_* names, flags, `terraced config` and
// docs/configuration.md all come from it; a test holds the document to it.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "api/config.h"

namespace terrace::api {

// One scalar option. `set` parses a text into the configuration; its error says what is accepted
// (a noun phrase, "a size such as 64GiB"). `get` gives the text back, as `set` accepts it.
struct ConfigOption {
  const char* key;   // "host.budget"
  const char* type;  // "size"
  const char* doc;   // one sentence or two, Markdown
  absl::Status (*set)(absl::string_view text, Config* config);
  std::string (*get)(const Config& config);

  std::string EnvironmentName() const;  // "TERRACE_HOST_BUDGET"
  std::string FlagName() const;         // "--host-budget"
};

// Every option but `tenants`, in the order of the documentation. Lives for ever.
const std::vector<ConfigOption>& ConfigOptions();
const ConfigOption* FindConfigOption(absl::string_view key);

inline constexpr char kTenantsKey[] = "tenants";
inline constexpr char kTenantsDoc[] =
    "List of tenants: `name` (1 to 63 bytes), `uids` (user ids that may use it; empty: anyone who may open the "
    "socket), `token_file` (its first line must be presented too). In a variable or flag: the same as YAML on one "
    "line, `[{name: a, uids: [1000]}]`.";

// The known key with the smallest edit distance, or "" when none is near.
std::string NearestConfigKey(absl::string_view key);

}  // namespace terrace::api
