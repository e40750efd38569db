// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Memory shared with a child process that keeps changing it, as a hostile or broken client may.
#pragma once

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace terrace::testing {

// Zero-filled memory that children share.
inline std::byte* MapShared(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  return static_cast<std::byte*>(memory);
}
inline void UnmapShared(std::byte* memory, size_t bytes) { munmap(memory, bytes); }

// A child that flips one bit of the memory on and off, pausing in between as long as it flipped, until
// this object goes. Owner: the test.
class ScribblingProcess {
 public:
  ScribblingProcess(std::byte* memory, size_t bytes) : child_(fork()) {
    if (child_ == -1) std::abort();
    if (child_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      auto* words = reinterpret_cast<volatile uint8_t*>(memory);
      for (size_t at = 0;; at = (at + 4099) % bytes) {
        words[at] = words[at] ^ 1;
        for (int i = 0; i < 300; ++i) asm volatile("");
        words[at] = words[at] ^ 1;
        for (int i = 0; i < 3000; ++i) asm volatile("");
      }
    }
  }
  ~ScribblingProcess() {
    kill(child_, SIGKILL);
    waitpid(child_, nullptr, 0);
  }
  ScribblingProcess(const ScribblingProcess&) = delete;
  ScribblingProcess& operator=(const ScribblingProcess&) = delete;

 private:
  const pid_t child_;
};

}  // namespace terrace::testing
