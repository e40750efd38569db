// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Faults, counters, and what every function does first.
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "gpu/softcuda/state.h"

namespace softcuda {
namespace {

struct Fault {
  int result = 0;
  int after = 0;
  int times = 0;
};

struct Faults {
  std::mutex mu;
  std::condition_variable changed;
  std::map<std::string, Fault> faults;
  std::map<std::string, uint64_t> calls;
  int flip_in = 0;
  bool hanging = false;
  uint64_t copies = 0, copied_bytes = 0, kernels = 0;
};

// "cuMemcpyAsync=2@10": code 2 after 10 calls, for ever; "cuMemAlloc=2@0x3": three times. Several: by commas.
void ReadEnvironment(Faults& f) {
  const char* const text = std::getenv("SOFTCUDA_FAIL");
  std::string rest = text == nullptr ? "" : text;
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    const std::string one = rest.substr(0, comma);
    rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
    const size_t equal = one.find('=');
    Fault fault{.times = -1};
    if (equal == std::string::npos ||
        std::sscanf(one.c_str() + equal + 1, "%d@%dx%d", &fault.result, &fault.after, &fault.times) < 1) {
      std::fprintf(stderr, "softcuda: SOFTCUDA_FAIL: cannot read '%s'\n", one.c_str());
      std::abort();
    }
    f.faults[one.substr(0, equal)] = fault;
  }
}

Faults& All() {
  static Faults* const faults = [] {
    auto* const made = new Faults;
    ReadEnvironment(*made);
    return made;
  }();
  return *faults;
}

CUresult Injected(const char* function) {
  Faults& f = All();
  const std::lock_guard lock(f.mu);
  ++f.calls[function];
  const auto found = f.faults.find(function);
  if (found == f.faults.end()) return CUDA_SUCCESS;
  Fault& fault = found->second;
  if (fault.after > 0) {
    --fault.after;
    return CUDA_SUCCESS;
  }
  if (fault.times == 0) return CUDA_SUCCESS;
  if (fault.times > 0) --fault.times;
  return static_cast<CUresult>(fault.result);
}

uint64_t Alive(const std::string& what) {
  State& s = Get();
  const std::lock_guard lock(s.mu);
  uint64_t n = 0;
  if (what == "live_streams") return s.streams.size();
  if (what == "live_events") return s.events.size();
  if (what == "live_modules") return s.modules.size();
  if (what == "live_reservations") return s.reservations.size();
  if (what == "live_vmm") {
    for (const auto& [handle, vmm] : s.vmm) n += static_cast<uint64_t>(vmm.references);
  } else if (what == "live_bytes" || what == "live_contexts") {
    for (int i = 0; i < s.n_devices; ++i) {
      n += what == "live_bytes" ? s.devices[i].used.load() : (s.devices[i].context.uses > 0 ? 1 : 0);
    }
  } else {
    for (const auto& [base, range] : s.ranges) {
      if (what == "live_allocations") n += range.kind == Kind::kAlloc;
      if (what == "live_mappings") n += range.kind == Kind::kVmm;
      if (what == "live_registered") n += range.kind == Kind::kHostRegistered || range.kind == Kind::kHostAllocated;
      if (what == "live_ipc") n += static_cast<uint64_t>(range.opened);
    }
  }
  return n;
}

}  // namespace

CUresult EnterUninitialised(const char* function) { return Injected(function); }

CUresult Enter(const char* function) {
  if (const CUresult injected = Injected(function); injected != CUDA_SUCCESS) return injected;
  State& s = Get();
  const std::lock_guard lock(s.mu);
  // The driver is of no use in a child made by fork().
  if (!s.is_initialised || s.pid != getpid()) return CUDA_ERROR_NOT_INITIALIZED;
  return CUDA_SUCCESS;
}

CUresult DeviceError(int device) { return static_cast<CUresult>(Get().devices[device].broken.load()); }

void BreakDevice(int device, CUresult result) {
  int intact = 0;  // the first error stands
  Get().devices[device].broken.compare_exchange_strong(intact, result);
  const std::lock_guard lock(All().mu);
  All().changed.notify_all();
}

bool IsHanging() {
  const std::lock_guard lock(All().mu);
  return All().hanging;
}

void WaitWhileHanging(int device) {
  Faults& f = All();
  std::unique_lock lock(f.mu);
  f.changed.wait(lock, [&] { return !f.hanging || DeviceError(device) != CUDA_SUCCESS; });
}

void CountCopy(std::byte* target, size_t bytes) {
  Faults& f = All();
  const std::lock_guard lock(f.mu);
  ++f.copies;
  f.copied_bytes += bytes;
  if (f.flip_in > 0 && --f.flip_in == 0) target[bytes / 2] ^= std::byte{1};
}

void CountKernel() {
  const std::lock_guard lock(All().mu);
  ++All().kernels;
}

}  // namespace softcuda

extern "C" {

void softcuda_fail(const char* function, int result, int after_calls, int times) {
  softcuda::Faults& f = softcuda::All();
  const std::lock_guard lock(f.mu);
  if (function == nullptr) {
    f.faults.clear();
  } else {
    f.faults[function] = {.result = result, .after = after_calls, .times = times};
  }
}

void softcuda_flip_bit(int nth_copy) {
  const std::lock_guard lock(softcuda::All().mu);
  softcuda::All().flip_in = nth_copy;
}

void softcuda_hang(int on) {
  const std::lock_guard lock(softcuda::All().mu);
  softcuda::All().hanging = on != 0;
  softcuda::All().changed.notify_all();
}

void softcuda_break_device(int device, int result) {
  if (device < 0 || device >= softcuda::State::kMaxDevices) return;
  if (result == 0) {
    softcuda::Get().devices[device].broken.store(0);
  } else {
    softcuda::BreakDevice(device, static_cast<CUresult>(result));
  }
}

uint64_t softcuda_counter(const char* name) {
  if (std::strncmp(name, "live_", 5) == 0) return softcuda::Alive(name);
  softcuda::Faults& f = softcuda::All();
  const std::lock_guard lock(f.mu);
  if (std::strcmp(name, "copies") == 0) return f.copies;
  if (std::strcmp(name, "copied_bytes") == 0) return f.copied_bytes;
  if (std::strcmp(name, "kernels") == 0) return f.kernels;
  const auto found = f.calls.find(name);
  return found == f.calls.end() ? 0 : found->second;
}

void softcuda_reset() {
  for (auto& device : softcuda::Get().devices) device.broken.store(0);
  softcuda::Faults& f = softcuda::All();
  const std::lock_guard lock(f.mu);
  f.faults.clear();
  f.calls.clear();
  f.flip_in = 0;
  f.hanging = false;
  f.copies = f.copied_bytes = f.kernels = 0;
  f.changed.notify_all();
}
}
