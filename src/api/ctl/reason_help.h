// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What each reason of the closed list means for an operator.
#pragma once

#include "kvstore/base/reason.h"

namespace terrace::ctl {

// One line: what it means, and after ';' what to do where there is something to do.
const char* ReasonHelp(Reason reason);

}  // namespace terrace::ctl
