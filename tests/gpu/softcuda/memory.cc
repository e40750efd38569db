// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// softcuda: device memory, registered host memory, memory handles between processes.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "gpu/softcuda/state.h"

namespace softcuda {
namespace {

constexpr char kMagic[8] = {'s', 'o', 'f', 't', 'm', 'e', 'm', '1'};
struct WireMemory {
  char magic[8];
  int32_t pid, fd;
  uint64_t inode;
  int32_t device, unused;
  char rest[32];
};
static_assert(sizeof(WireMemory) == sizeof(CUipcMemHandle));

thread_local std::vector<std::shared_ptr<void>> pins;

void Pin(const std::shared_ptr<void>& what) {
  if (what != nullptr && std::find(pins.rbegin(), pins.rend(), what) == pins.rend()) pins.push_back(what);
}

size_t RoundUp(size_t bytes) { return (bytes + State::kGranularity - 1) & ~(State::kGranularity - 1); }

// Memory is not zero when it is new.
void Scribble(Backing& backing) {
  constexpr size_t kEnd = 64u << 10;
  if (backing.bytes <= 1u << 20) {
    std::memset(backing.data, 0xa5, backing.bytes);
  } else {
    std::memset(backing.data, 0xa5, kEnd);
    std::memset(backing.data + backing.bytes - kEnd, 0xa5, kEnd);
  }
}

bool Map(Backing& backing) {
  void* const data = mmap(nullptr, backing.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, backing.fd, 0);
  if (data != MAP_FAILED) backing.data = static_cast<std::byte*>(data);
  return data != MAP_FAILED;
}

}  // namespace

Backing::~Backing() {
  if (data != nullptr) munmap(data, bytes);
  if (fd >= 0) close(fd);
  if (charged != nullptr) charged->fetch_sub(bytes);
}

Reservation::~Reservation() {
  if (shadow != nullptr) munmap(shadow, bytes);
}

std::shared_ptr<Backing> NewBacking(int device, size_t bytes, const char* use) {
  State& s = Get();
  if (bytes > s.memory_bytes || s.devices[device].used.load() > s.memory_bytes - bytes) return nullptr;
  auto backing = std::make_shared<Backing>();
  backing->device = device;
  backing->bytes = bytes;
  backing->fd = memfd_create(("softcuda-" + std::string(use) + "-" + std::to_string(device)).c_str(), MFD_CLOEXEC);
  if (backing->fd < 0 || ftruncate(backing->fd, static_cast<off_t>(bytes)) != 0 || !Map(*backing)) return nullptr;
  backing->charged = &s.devices[device].used;
  backing->charged->fetch_add(bytes);
  Scribble(*backing);
  return backing;
}

std::shared_ptr<Backing> AdoptBacking(int fd, int device) {
  auto backing = std::make_shared<Backing>();
  backing->fd = fd;
  backing->device = device;
  struct stat file{};
  if (fstat(fd, &file) != 0) return nullptr;
  backing->bytes = static_cast<size_t>(file.st_size);
  return Map(*backing) ? backing : nullptr;
}

uintptr_t TakeAddress(size_t bytes) { return TakeAddressAt(bytes, State::kGranularity); }

// The next gap behind the last one given, so that an address is not soon used again.
uintptr_t TakeAddressAt(size_t bytes, size_t alignment) {
  State& s = Get();
  bytes = RoundUp(bytes) + State::kGranularity;  // nothing lies next to it
  const uintptr_t limit = s.arena + State::kArenaBytes - State::kGranularity;
  const auto align = [&](uintptr_t at) { return (at + alignment - 1) & ~(alignment - 1); };
  for (const uintptr_t start : {s.next, s.arena}) {
    uintptr_t at = align(start);
    auto above = s.taken.upper_bound(at);
    if (above != s.taken.begin()) {
      const auto below = std::prev(above);
      at = std::max(at, align(below->first + below->second));
    }
    while (above != s.taken.end() && at + bytes > above->first) {
      at = align(above->first + above->second);
      ++above;
    }
    if (at + bytes > limit) continue;
    s.taken[at] = bytes;
    s.next = at + bytes;
    return at;
  }
  return 0;
}

std::map<uintptr_t, Range>::iterator FindRange(uintptr_t address) {
  State& s = Get();
  auto found = s.ranges.upper_bound(address);
  if (found == s.ranges.begin()) return s.ranges.end();
  --found;
  return address - found->first < found->second.bytes ? found : s.ranges.end();
}

void DropContextMemory(CUcontext context) {
  State& s = Get();
  for (auto i = s.ranges.begin(); i != s.ranges.end();) {
    if (i->second.context != context) {
      ++i;
      continue;
    }
    s.taken.erase(i->first);
    i = s.ranges.erase(i);
  }
}

// A copy may go over several mappings of one reservation, as on a GPU.
CUresult Classify(const void* pointer, size_t bytes, Place* place) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (address == 0) return CUDA_ERROR_INVALID_VALUE;
  State& s = Get();
  const std::lock_guard lock(s.mu);
  place->is_device = s.InArena(address);
  auto at = FindRange(address);
  if (!place->is_device && at == s.ranges.end()) {
    const auto above = s.ranges.lower_bound(address);  // begins outside, ends inside
    if (above != s.ranges.end() && above->first < address + bytes) return CUDA_ERROR_INVALID_VALUE;
    place->is_pageable = true;
    return CUDA_SUCCESS;
  }
  for (uintptr_t next = address; next < address + bytes;) {
    if (at == s.ranges.end() || next < at->first || next >= at->first + at->second.bytes || !at->second.accessible) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    next = at->first + at->second.bytes;
    ++at;
  }
  return CUDA_SUCCESS;
}

std::byte* Translate(CUdeviceptr address, size_t bytes) {
  State& s = Get();
  const std::lock_guard lock(s.mu);
  auto at = FindRange(address);
  if (at == s.ranges.end()) return nullptr;
  std::byte* const start = at->second.shadow + (address - at->first);
  for (uintptr_t next = address; next < address + bytes || next == address;) {
    if (at == s.ranges.end() || next < at->first || next >= at->first + at->second.bytes || !at->second.accessible ||
        at->second.shadow + (next - at->first) != start + (next - address)) {
      return nullptr;
    }
    Pin(at->second.backing);
    Pin(at->second.reservation);
    next = at->first + at->second.bytes;
    ++at;
  }
  return start;
}

std::byte* TranslateAny(uintptr_t address, size_t bytes) {
  std::byte* const known = Translate(address, bytes);
  if (known != nullptr || Get().InArena(address)) return known;
  return reinterpret_cast<std::byte*>(address);
}

void ReleasePins() { pins.clear(); }

}  // namespace softcuda

using softcuda::Current;
using softcuda::FindRange;
using softcuda::Get;
using softcuda::Kind;
using softcuda::Range;
using softcuda::State;

CUresult cuMemAlloc(CUdeviceptr* pointer, size_t bytes) {
  SOFTCUDA_ENTER(cuMemAlloc);
  CUcontext context;
  if (const CUresult e = Current(&context); e != CUDA_SUCCESS) return e;
  if (pointer == nullptr || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  State& s = Get();
  const std::lock_guard lock(s.mu);
  auto backing = softcuda::NewBacking(context->device, bytes, "alloc");
  const uintptr_t address = backing == nullptr ? 0 : softcuda::TakeAddress(bytes);
  if (address == 0) return CUDA_ERROR_OUT_OF_MEMORY;
  Range& range = s.ranges[address];
  range.bytes = bytes;
  range.shadow = backing->data;
  range.device = context->device;
  range.context = context;
  range.backing = std::move(backing);
  *pointer = address;
  return CUDA_SUCCESS;
}

CUresult cuMemFree(CUdeviceptr pointer) {
  SOFTCUDA_ENTER(cuMemFree);
  CUcontext context;
  const CUresult current = Current(&context);
  if (current == CUDA_ERROR_INVALID_CONTEXT) return current;
  State& s = Get();
  const std::lock_guard lock(s.mu);
  const auto found = s.ranges.find(pointer);
  if (found == s.ranges.end() || found->second.kind != Kind::kAlloc) return CUDA_ERROR_INVALID_VALUE;
  s.ranges.erase(found);
  s.taken.erase(pointer);
  return current;
}

CUresult cuMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  SOFTCUDA_ENTER(cuMemGetInfo);
  CUcontext context;
  if (const CUresult e = Current(&context); e != CUDA_SUCCESS) return e;
  if (free_bytes != nullptr) *free_bytes = Get().memory_bytes - Get().devices[context->device].used.load();
  if (total_bytes != nullptr) *total_bytes = Get().memory_bytes;
  return CUDA_SUCCESS;
}

CUresult cuMemGetAddressRange(CUdeviceptr* base, size_t* bytes, CUdeviceptr pointer) {
  SOFTCUDA_ENTER(cuMemGetAddressRange);
  CUcontext context;
  if (const CUresult e = Current(&context); e != CUDA_SUCCESS) return e;
  State& s = Get();
  const std::lock_guard lock(s.mu);
  const auto found = FindRange(pointer);
  if (found == s.ranges.end() || found->second.kind == Kind::kHostRegistered) return CUDA_ERROR_NOT_FOUND;
  if (base != nullptr) *base = found->first;
  if (bytes != nullptr) *bytes = found->second.bytes;
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  SOFTCUDA_ENTER(cuPointerGetAttribute);
  CUcontext context;
  if (const CUresult e = Current(&context); e != CUDA_SUCCESS) return e;
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  State& s = Get();
  const std::lock_guard lock(s.mu);
  const auto found = FindRange(pointer);
  if (found == s.ranges.end()) return CUDA_ERROR_INVALID_VALUE;
  const Range& range = found->second;
  const bool is_host = range.kind == Kind::kHostRegistered || range.kind == Kind::kHostAllocated;
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: *static_cast<CUcontext*>(value) = range.context; break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      *static_cast<unsigned*>(value) = is_host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
      break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *static_cast<CUdeviceptr*>(value) = pointer; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *static_cast<int*>(value) = range.device; break;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: *static_cast<CUdeviceptr*>(value) = found->first; break;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE: *static_cast<size_t*>(value) = range.bytes; break;
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
      *static_cast<int*>(value) = range.kind == Kind::kAlloc ? 1 : 0;
      break;
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
      *static_cast<uint64_t*>(value) = range.kind == Kind::kVmm && range.backing->exportable
                                           ? CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
                                           : CU_MEM_HANDLE_TYPE_NONE;
      break;
    default: return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

CUresult cuMemHostRegister(void* pointer, size_t bytes, unsigned int flags) {
  SOFTCUDA_ENTER(cuMemHostRegister);
  CUcontext context;
  if (const CUresult e = Current(&context); e != CUDA_SUCCESS) return e;
  constexpr unsigned kKnown =
      CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP | CU_MEMHOSTREGISTER_READ_ONLY;
  if (pointer == nullptr || bytes == 0 || (flags & ~kKnown) != 0) return CUDA_ERROR_INVALID_VALUE;
  // It must be memory.
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const uintptr_t page = address & ~uintptr_t{4095};
  std::vector<unsigned char> resident((address + bytes - page + 4095) / 4096);
  if (mincore(reinterpret_cast<void*>(page), address + bytes - page, resident.data()) != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  State& s = Get();
  const std::lock_guard lock(s.mu);
  const auto above = s.ranges.lower_bound(address);
  if (FindRange(address) != s.ranges.end() || (above != s.ranges.end() && above->first < address + bytes)) {
    return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
  }
  Range& range = s.ranges[address];
  range.bytes = bytes;
  range.shadow = static_cast<std::byte*>(pointer);
  range.kind = Kind::kHostRegistered;
  range.device = context->device;
  range.context = context;
  return CUDA_SUCCESS;
}

CUresult cuMemHostUnregister(void* pointer) {
  SOFTCUDA_ENTER(cuMemHostUnregister);
  CUcontext context;
  const CUresult current = Current(&context);
  if (current == CUDA_ERROR_INVALID_CONTEXT) return current;
  State& s = Get();
  const std::lock_guard lock(s.mu);
  const auto found = s.ranges.find(reinterpret_cast<uintptr_t>(pointer));
  if (found == s.ranges.end() || found->second.kind != Kind::kHostRegistered) {
    return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
  }
  s.ranges.erase(found);
  return current;
}

CUresult cuMemHostAlloc(void** pointer, size_t bytes, unsigned int) {
  SOFTCUDA_ENTER(cuMemHostAlloc);
  CUcontext context;
  if (const CUresult e = Current(&context); e != CUDA_SUCCESS) return e;
  if (pointer == nullptr || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  auto owner = std::make_shared<softcuda::Reservation>();
  void* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  owner->shadow = static_cast<std::byte*>(data);
  owner->bytes = bytes;
  State& s = Get();
  const std::lock_guard lock(s.mu);
  Range& range = s.ranges[reinterpret_cast<uintptr_t>(data)];
  range.bytes = bytes;
  range.shadow = owner->shadow;
  range.kind = Kind::kHostAllocated;
  range.device = context->device;
  range.context = context;
  range.reservation = std::move(owner);
  *pointer = data;
  return CUDA_SUCCESS;
}

CUresult cuMemFreeHost(void* pointer) {
  SOFTCUDA_ENTER(cuMemFreeHost);
  CUcontext context;
  const CUresult current = Current(&context);
  if (current == CUDA_ERROR_INVALID_CONTEXT) return current;
  State& s = Get();
  const std::lock_guard lock(s.mu);
  const auto found = s.ranges.find(reinterpret_cast<uintptr_t>(pointer));
  if (found == s.ranges.end() || found->second.kind != Kind::kHostAllocated) return CUDA_ERROR_INVALID_VALUE;
  s.ranges.erase(found);
  return current;
}

CUresult cuMemHostGetDevicePointer(CUdeviceptr* device_pointer, void* pointer, unsigned int flags) {
  SOFTCUDA_ENTER(cuMemHostGetDevicePointer);
  CUcontext context;
  if (const CUresult e = Current(&context); e != CUDA_SUCCESS) return e;
  State& s = Get();
  const std::lock_guard lock(s.mu);
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (device_pointer == nullptr || flags != 0 || s.InArena(address) || FindRange(address) == s.ranges.end()) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *device_pointer = address;
  return CUDA_SUCCESS;
}

CUresult cuIpcGetMemHandle(CUipcMemHandle* wire, CUdeviceptr pointer) {
  SOFTCUDA_ENTER(cuIpcGetMemHandle);
  CUcontext context;
  if (const CUresult e = Current(&context); e != CUDA_SUCCESS) return e;
  if (wire == nullptr) return CUDA_ERROR_INVALID_VALUE;
  State& s = Get();
  const std::lock_guard lock(s.mu);
  const auto found = FindRange(pointer);
  struct stat file{};
  if (found == s.ranges.end() || found->second.kind != Kind::kAlloc || fstat(found->second.backing->fd, &file) != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  softcuda::WireMemory said{};
  std::memcpy(said.magic, softcuda::kMagic, sizeof(said.magic));
  said.pid = getpid();
  said.fd = found->second.backing->fd;
  said.inode = file.st_ino;
  said.device = found->second.device;
  std::memcpy(wire, &said, sizeof(said));
  return CUDA_SUCCESS;
}

// Opened again: the same address, counted.
CUresult cuIpcOpenMemHandle(CUdeviceptr* pointer, CUipcMemHandle wire, unsigned int flags) {
  SOFTCUDA_ENTER(cuIpcOpenMemHandle);
  CUcontext context;
  if (const CUresult e = Current(&context); e != CUDA_SUCCESS) return e;
  if (pointer == nullptr || flags != CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS) return CUDA_ERROR_INVALID_VALUE;
  softcuda::WireMemory said;
  std::memcpy(&said, &wire, sizeof(said));
  State& s = Get();
  if (std::memcmp(said.magic, softcuda::kMagic, sizeof(said.magic)) != 0) return CUDA_ERROR_INVALID_VALUE;
  if (said.device < 0 || said.device >= s.n_devices) return CUDA_ERROR_INVALID_DEVICE;
  if (said.pid == getpid()) return CUDA_ERROR_INVALID_CONTEXT;  // an exporter cannot open its own
  const std::string key(wire.reserved, sizeof(wire.reserved));
  const std::lock_guard lock(s.mu);
  for (auto& [base, range] : s.ranges) {
    if (range.kind == Kind::kIpc && range.ipc == key && range.context == context) {
      ++range.opened;
      *pointer = base;
      return CUDA_SUCCESS;
    }
  }
  const int fd = softcuda::OpenOfProcess(said.pid, said.fd, said.inode);
  if (fd < 0) return CUDA_ERROR_INVALID_HANDLE;
  auto backing = softcuda::AdoptBacking(fd, said.device);
  const uintptr_t address = backing == nullptr ? 0 : softcuda::TakeAddress(backing->bytes);
  if (address == 0) return CUDA_ERROR_MAP_FAILED;
  Range& range = s.ranges[address];
  range.bytes = backing->bytes;
  range.shadow = backing->data;
  range.kind = Kind::kIpc;
  range.device = said.device;
  range.context = context;
  range.backing = std::move(backing);
  range.ipc = key;
  range.opened = 1;
  *pointer = address;
  return CUDA_SUCCESS;
}

CUresult cuIpcCloseMemHandle(CUdeviceptr pointer) {
  SOFTCUDA_ENTER(cuIpcCloseMemHandle);
  CUcontext context;
  const CUresult current = Current(&context);
  if (current == CUDA_ERROR_INVALID_CONTEXT) return current;
  State& s = Get();
  const std::lock_guard lock(s.mu);
  const auto found = s.ranges.find(pointer);
  if (found == s.ranges.end() || found->second.kind != Kind::kIpc) return CUDA_ERROR_INVALID_VALUE;
  if (--found->second.opened == 0) {
    s.ranges.erase(found);
    s.taken.erase(pointer);
  }
  return current;
}
