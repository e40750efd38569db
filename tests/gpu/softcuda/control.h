// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// How tests reach softcuda: its path (GpuOptions::driver) and its faults. Tests run on softcuda; those that may run
// on a real GPU, too, ask TestDriver().
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace terrace::gpu {

// The real driver only where TERRACE_TEST_DRIVER says so (./test.sh --gpu sets it to libcuda.so.1).
inline bool OnRealDriver() { return std::getenv("TERRACE_TEST_DRIVER") != nullptr; }
inline std::string TestDriver() {
  const char* const driver = std::getenv("TERRACE_TEST_DRIVER");
  return driver == nullptr ? SOFTCUDA_LIBRARY : driver;
}

// softcuda.h's functions. Constructed and destroyed without faults, so that a test leaves none to the next one.
class Softcuda {
 public:
  Softcuda() : library_(dlopen(SOFTCUDA_LIBRARY, RTLD_NOW | RTLD_LOCAL)) {
    if (library_ == nullptr) {
      std::fprintf(stderr, "%s\n", dlerror());
      std::abort();
    }
    Reset();
  }
  ~Softcuda() { Reset(); }  // the library stays loaded, as the driver does
  Softcuda(const Softcuda&) = delete;

  void Reset() { Find<void()>("softcuda_reset")(); }
  void Fail(const char* function, int result, int after_calls = 0, int times = 1) {
    Find<void(const char*, int, int, int)>("softcuda_fail")(function, result, after_calls, times);
  }
  void FlipBit(int nth_copy) { Find<void(int)>("softcuda_flip_bit")(nth_copy); }
  void Hang(bool on) { Find<void(int)>("softcuda_hang")(on ? 1 : 0); }
  void BreakDevice(int device, int result) { Find<void(int, int)>("softcuda_break_device")(device, result); }
  uint64_t Counter(const char* name) { return Find<uint64_t(const char*)>("softcuda_counter")(name); }

 private:
  template <class F>
  F* Find(const char* name) {
    return reinterpret_cast<F*>(dlsym(library_, name));
  }
  void* const library_;
};

}  // namespace terrace::gpu
