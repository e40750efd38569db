// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Retention hints on their way from the C API to the daemon.
#pragma once

#include <cstdint>

#include "api/client/connection.h"
#include "api/client/result.h"
#include "api/client/terrace.h"
#include "api/engine/wire.h"

namespace terrace::client {

// from may be NULL: nothing is said. InvalidArgument names the field; times are cut by the daemon.
Result ReadRetention(const terrace_retention* from, wire::Retention* out);

// Does not wait for answers. A full socket: DeadlineExceeded at once, the rest of the hints is lost, which
// costs no one anything but room.
Result SendHints(Connection* connection, uint32_t key_space_id, const uint8_t* keys, uint32_t n,
                 const wire::Retention& retention);

}  // namespace terrace::client
