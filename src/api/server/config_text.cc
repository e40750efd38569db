// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/server/config_text.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "api/server/config_options.h"

namespace terrace::api {
namespace {

// Always quoted where YAML or a reader could take it for something else.
std::string YamlValue(const ConfigOption& option, const std::string& value) {
  const absl::string_view type = option.type;
  if (type == "user ids") return absl::StrCat("[", value, "]");
  if (type == "path" || type == "address" || type == "mode" || value.empty()) {
    return absl::StrCat("\"", absl::StrReplaceAll(value, {{"\\", "\\\\"}, {"\"", "\\\""}}), "\"");
  }
  return value;
}

void AppendComment(absl::string_view indent, absl::string_view text, std::string* yaml) {
  absl::string_view::size_type column = 0;
  for (const absl::string_view word : absl::StrSplit(text, ' ')) {
    if (column == 0 || column + word.size() > 90) {
      absl::StrAppend(yaml, column == 0 ? "" : "\n", indent, "#");
      column = indent.size() + 1;
    }
    absl::StrAppend(yaml, " ", word);
    column += word.size() + 1;
  }
  absl::StrAppend(yaml, "\n");
}

}  // namespace

std::string ConfigYaml(const Config& config, bool with_docs) {
  std::string yaml;
  std::string section;
  for (const ConfigOption& option : ConfigOptions()) {
    const std::vector<std::string> parts = absl::StrSplit(option.key, absl::MaxSplits('.', 1));
    const bool nested = parts.size() == 2;
    if (nested && parts[0] != section) {
      section = parts[0];
      absl::StrAppend(&yaml, with_docs ? "\n" : "", section, ":\n");
    }
    const absl::string_view indent = nested ? "  " : "";
    if (with_docs) AppendComment(indent, option.doc, &yaml);
    absl::StrAppend(&yaml, indent, parts.back(), ": ", YamlValue(option, option.get(config)), "\n");
  }
  if (with_docs) {
    absl::StrAppend(&yaml, "\n");
    AppendComment("", kTenantsDoc, &yaml);
  }
  absl::StrAppend(&yaml, "tenants:\n");
  for (const TenantConfig& tenant : config.tenants) {
    absl::StrAppend(&yaml, "  - name: \"", tenant.name, "\"\n    uids: [", absl::StrJoin(tenant.uids, ", "), "]\n");
    if (!tenant.token_file.empty()) absl::StrAppend(&yaml, "    token_file: \"", tenant.token_file, "\"\n");
  }
  return yaml;
}

std::string ConfigMarkdown() {
  const Config defaults;
  std::string text = "| key | type | default | variable | what it is |\n|---|---|---|---|---|\n";
  for (const ConfigOption& option : ConfigOptions()) {
    const std::string value = option.get(defaults);
    absl::StrAppend(&text, "| `", option.key, "` | ", option.type, " | ",
                    value.empty() ? "empty" : absl::StrCat("`", value, "`"), " | `", option.EnvironmentName(), "` | ",
                    option.doc, " |\n");
  }
  absl::StrAppend(&text, "| `", kTenantsKey, "` | list | `[{name: default}]` | `TERRACE_TENANTS` | ", kTenantsDoc,
                  " |\n");
  return text;
}

LogLevel LogLevelFromText(absl::string_view text) {
  if (text == "debug") return LogLevel::kDebug;
  if (text == "warning") return LogLevel::kWarning;
  if (text == "error") return LogLevel::kError;
  return LogLevel::kInfo;
}

}  // namespace terrace::api
