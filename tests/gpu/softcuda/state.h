// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// softcuda's state: one of each process, never destroyed (streams' threads may outlive main). Device addresses come
// from one big reservation without access; what lies behind an address is a Range, seen by softcuda through another
// mapping. Lock order: State::mu, then a stream's.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gpu/softcuda/softcuda.h"

// An event's progress; in memory shared between processes where the event is interprocess.
struct EventState {
  std::atomic<uint32_t> recorded{0}, completed{0};  // numbers of recordings
};

struct CUevent_st {
  CUcontext context = nullptr;
  unsigned flags = 0;
  EventState* state = nullptr;
  int fd = -1;             // of the shared page, the exporter's
  bool is_shared = false;  // state is a mapping
  std::atomic<int64_t> when_ns{0};
  ~CUevent_st();
};

// A stream and its thread. Owner: State and the thread, whichever lives longer.
struct CUstream_st {
  struct Operation {
    std::function<CUresult()> run;
    // Not before these streams have finished so many operations (the legacy default stream's rules).
    std::vector<std::pair<std::shared_ptr<CUstream_st>, uint64_t>> after;
  };
  CUcontext context = nullptr;
  unsigned flags = 0;
  std::mutex mu;
  std::condition_variable changed;
  std::deque<Operation> queue;
  uint64_t enqueued = 0, finished = 0;
  bool closing = false;
  std::atomic<bool> discarded{false};  // its context is gone: nothing more is executed, and no error matters
};

struct CUctx_st {
  int device = 0;
  int uses = 0;  // retained so often; 0: destroyed
  std::shared_ptr<CUstream_st> default_stream;
};

struct CUmod_st {
  CUcontext context = nullptr;
};
struct CUfunc_st {
  const softcuda::Kernel* kernel = nullptr;
};

namespace softcuda {

// Memory of a device: a memfd and softcuda's mapping of it.
struct Backing {
  int fd = -1;
  size_t bytes = 0;
  std::byte* data = nullptr;
  int device = 0;
  std::atomic<uint64_t>* charged = nullptr;  // the device's use; null: another process's memory
  bool exportable = false;                   // VMM: made for export
  ~Backing();
};

// What cuMemAddressReserve gave: its shadow is one range, too, so that adjacent mappings are contiguous there.
struct Reservation {
  size_t bytes = 0;
  std::byte* shadow = nullptr;
  ~Reservation();
};

enum class Kind { kAlloc, kIpc, kVmm, kHostRegistered, kHostAllocated };

struct Range {
  size_t bytes = 0;
  std::byte* shadow = nullptr;
  Kind kind = Kind::kAlloc;
  int device = 0;
  CUcontext context = nullptr;
  bool accessible = true;
  std::shared_ptr<Backing> backing;
  std::shared_ptr<Reservation> reservation;
  std::string ipc;  // the handle, for kIpc
  int opened = 0;
};

struct Vmm {
  std::shared_ptr<Backing> backing;
  int references = 0;
};

struct Device {
  std::atomic<int> broken{0};
  std::atomic<uint64_t> used{0};
  CUctx_st context;
};

struct State {
  static constexpr size_t kGranularity = 2u << 20;
  static constexpr size_t kArenaBytes = 256ull << 30;
  static constexpr int kMaxDevices = 8;

  std::mutex mu;
  bool is_initialised = false;
  int pid = 0;
  int n_devices = 0;
  uint64_t memory_bytes = 0;
  Device devices[kMaxDevices];
  uintptr_t arena = 0, next = 0;
  std::map<uintptr_t, size_t> taken;  // addresses in use in the arena
  std::map<uintptr_t, Range> ranges;
  std::map<uintptr_t, std::shared_ptr<Reservation>> reservations;
  std::map<CUmemGenericAllocationHandle, Vmm> vmm;
  CUmemGenericAllocationHandle next_vmm = 0x5000;
  std::map<CUstream, std::shared_ptr<CUstream_st>> streams;
  std::map<CUevent, std::shared_ptr<CUevent_st>> events;
  std::set<CUmodule> modules;
  std::map<const Kernel*, CUfunc_st> functions;

  bool InArena(uintptr_t address) const { return address >= arena && address < arena + kArenaBytes; }
};
State& Get();

// Counts the call; the error that it answers: injected, after a fork, before cuInit.
CUresult Enter(const char* function);
CUresult EnterUninitialised(const char* function);
#define SOFTCUDA_ENTER(function)                                                               \
  if (const CUresult entered = ::softcuda::Enter(#function); entered != CUDA_SUCCESS) return entered

// The calling thread's context, usable.
CUresult Current(CUcontext* context);
CUresult DeviceError(int device);
void BreakDevice(int device, CUresult result);
bool IsHanging();
void WaitWhileHanging(int device);  // returns when it is over or the device is broken

// memory.cc. Callers hold State::mu.
std::shared_ptr<Backing> NewBacking(int device, size_t bytes, const char* use);  // null: no memory left
std::shared_ptr<Backing> AdoptBacking(int fd, int device);  // takes the descriptor; null: not a file of that kind
uintptr_t TakeAddress(size_t bytes);                        // 0: none left
uintptr_t TakeAddressAt(size_t bytes, size_t alignment);
void DropContextMemory(CUcontext context);
std::map<uintptr_t, Range>::iterator FindRange(uintptr_t address);  // that contains it, or end()

// Whether a copy may name these bytes. Locks.
struct Place {
  bool is_device = false, is_pageable = false;
};
CUresult Classify(const void* address, size_t bytes, Place* place);
// As Translate, but memory that softcuda does not know is itself: the host's.
std::byte* TranslateAny(uintptr_t address, size_t bytes);
void ReleasePins();  // of the calling thread's Translate()s

// stream.cc
std::shared_ptr<CUstream_st> NewStream(CUcontext context, unsigned flags);
// By handle; null handle: the current context's default stream. The stream is of the current context.
CUresult FindStream(CUstream handle, std::shared_ptr<CUstream_st>* stream);
// wait: until it was executed.
CUresult Enqueue(const std::shared_ptr<CUstream_st>& stream, std::function<CUresult()> run, bool wait = false);
void CloseStreams(CUcontext context);  // callers hold State::mu

// event.cc
void DropContextEvents(CUcontext context);  // callers hold State::mu
int OpenOfProcess(int pid, int fd, uint64_t inode);  // -1: gone, or not that file

// faults.cc
void CountCopy(std::byte* target, size_t bytes);  // after each copy; may flip a bit
void CountKernel();

}  // namespace softcuda
