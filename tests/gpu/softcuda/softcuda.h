// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What tests and kernels see of softcuda: faults, counters, kernels. README.md says what softcuda is. Tests reach
// these functions with dlsym() (control.h); they are no part of any real driver.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <vector>

extern "C" {
// The function ("cuMemAlloc": the name without a version) answers `result` after `after_calls` further calls, `times`
// times; times < 0: for ever. function nullptr: clears all.
void softcuda_fail(const char* function, int result, int after_calls, int times);
// Flips one bit in the target of the nth copy from now on (1: the next one). 0: off.
void softcuda_flip_bit(int nth_copy);
// 1: streams begin no further operation, until 0.
void softcuda_hang(int on);
// Every later call that has to do with the device answers `result`, work not begun is dropped; 0: repaired.
void softcuda_break_device(int device, int result);
// A function's name: calls of it. Also "copies", "copied_bytes", "kernels" (executed), and what is alive:
// "live_allocations", "live_bytes" (device memory of this process, VMM included), "live_ipc" (opened handles, each
// opening), "live_vmm" (references to VMM allocations held), "live_mappings" (VMM), "live_reservations",
// "live_streams", "live_events", "live_registered" (host ranges), "live_modules", "live_contexts". Else 0.
uint64_t softcuda_counter(const char* name);
// Faults are cleared, calls, copies and kernels counted from 0. What is alive stays.
void softcuda_reset();
}

namespace softcuda {

struct Dim3 {
  unsigned x, y, z;
};

// A kernel in place of the device code of the same name. It runs on its stream's thread. args: as for
// cuLaunchKernel, each pointing to a copy of the argument taken at the launch. The result is the device's: anything
// but CUDA_SUCCESS is sticky, as on a GPU.
struct Kernel {
  const char* name;
  std::vector<size_t> arg_bytes;  // sizes of the arguments, in order
  CUresult (*run)(Dim3 grid, Dim3 block, unsigned shared_bytes, void** args);
};
const std::vector<Kernel>& Kernels();  // kernels.cc

// Where [address, address + bytes) of device memory (or of registered host memory) can be read and written. nullptr:
// not wholly allocated and accessible; a kernel then returns CUDA_ERROR_ILLEGAL_ADDRESS. Valid until the kernel
// returns.
std::byte* Translate(CUdeviceptr address, size_t bytes);

}  // namespace softcuda
