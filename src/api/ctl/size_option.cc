// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/ctl/size_option.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "api/server/config_value.h"

namespace terrace::ctl {

CLI::Validator AsSize() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        const absl::StatusOr<uint64_t> bytes = api::ParseSize(text);
        if (!bytes.ok()) return absl::StrCat("\"", text, "\" is not ", bytes.status().message());
        text = absl::StrCat(*bytes);
        return "";
      },
      "SIZE");
}

}  // namespace terrace::ctl
