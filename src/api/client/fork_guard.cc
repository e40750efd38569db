// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/fork_guard.h"

#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>

namespace terrace::client {
namespace {

// All trivially destructible: our threads may run while the process exits.
pthread_mutex_t guard_mutex = PTHREAD_MUTEX_INITIALIZER;
pthread_once_t install_once = PTHREAD_ONCE_INIT;
std::atomic<uint32_t> fork_generation{1};
int guarded_fds[kMaxGuardedFds];  // fd + 1; 0: free entry. Guarded by guard_mutex

void BeforeFork() { pthread_mutex_lock(&guard_mutex); }
void AfterForkInParent() { pthread_mutex_unlock(&guard_mutex); }
void AfterForkInChild() {
  fork_generation.fetch_add(1, std::memory_order_relaxed);
  for (int& entry : guarded_fds) {
    if (entry != 0) close(entry - 1);
    entry = 0;
  }
  pthread_mutex_unlock(&guard_mutex);
}

void Install() { pthread_atfork(BeforeFork, AfterForkInParent, AfterForkInChild); }

}  // namespace

uint32_t ForkGeneration() {
  pthread_once(&install_once, Install);
  return fork_generation.load(std::memory_order_relaxed);
}

int OpenGuardedSocket(int domain, int type) {
  pthread_once(&install_once, Install);
  pthread_mutex_lock(&guard_mutex);
  const int fd = socket(domain, type | SOCK_CLOEXEC, 0);
  if (fd >= 0) {
    for (int& entry : guarded_fds) {
      if (entry == 0) {
        entry = fd + 1;
        break;
      }
    }
  }
  pthread_mutex_unlock(&guard_mutex);
  return fd;
}

void CloseGuarded(int fd) {
  pthread_mutex_lock(&guard_mutex);
  for (int& entry : guarded_fds) {
    if (entry == fd + 1) entry = 0;
  }
  close(fd);
  pthread_mutex_unlock(&guard_mutex);
}

}  // namespace terrace::client
