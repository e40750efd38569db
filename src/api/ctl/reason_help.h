// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What each reason of the closed list means for an operator.
#pragma once

#include <cstdint>
#include <string>

#include "kvstore/base/reason.h"

namespace terrace::ctl {

// One line: what it means, and after ';' what to do where there is something to do.
const char* ReasonHelp(Reason reason);
// What to look at when so many blocks were corrupt, on_disk of them on a disk and the others in memory.
std::string CorruptHelp(uint64_t blocks, uint64_t on_disk);

}  // namespace terrace::ctl
