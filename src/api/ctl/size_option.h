// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Sizes on terracectl's command line, read as terraced reads them: "2MiB", "10GB" (decimal), "4096" (bytes).
#pragma once

#include <CLI/CLI.hpp>

namespace terrace::ctl {

// For Option::transform: the text becomes plain bytes, or is refused with what is accepted.
CLI::Validator AsSize();

}  // namespace terrace::ctl
