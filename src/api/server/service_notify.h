// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Tells the service manager how far we are: systemd's notify protocol (a datagram to $NOTIFY_SOCKET, see
// sd_notify(3)), without libsystemd.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace terrace::api {

// Sends state ("READY=1", "STOPPING=1\nSTATUS=..."). Does nothing when socket_path is empty. Failure is
// ignored: the manager then acts on its own time limit.
void NotifyServiceManager(const std::string& socket_path, absl::string_view state);

}  // namespace terrace::api
