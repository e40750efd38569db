// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What happens at fork(): the child gets copies of our sockets, but not our threads, and locks in
// whatever state they were. So the child closes the sockets (or the daemon would believe that a killed
// parent lives on in its child) and everything made before the fork refuses to work there.
#pragma once

#include <cstdint>

namespace terrace::client {

// Counts the forks between the process's first client and now. An object remembers the value at its
// birth; another value means that this process is a child that inherited it. Never blocks.
uint32_t ForkGeneration();

// Descriptors that a forked child must not keep open. At most kMaxGuardedFds at once; beyond that a
// descriptor is not guarded (the child then keeps the connection alive until it ends or executes).
// Opening and guarding happens under one lock, so that no fork falls in between.
inline constexpr int kMaxGuardedFds = 4096;
// socket(2) with SOCK_CLOEXEC, guarded. -1 and errno on failure.
int OpenGuardedSocket(int domain, int type);
void CloseGuarded(int fd);

}  // namespace terrace::client
