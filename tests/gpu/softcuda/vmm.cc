// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// softcuda: virtual memory management: allocations, reservations, mappings, shareable descriptors. A descriptor is
// the allocation's memfd, known again by its name.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>

#include "gpu/softcuda/state.h"

namespace softcuda {
namespace {

bool IsWhole(size_t bytes) { return bytes != 0 && bytes % State::kGranularity == 0; }

CUresult CheckProperties(const CUmemAllocationProp* properties) {
  if (properties == nullptr || properties->type != CU_MEM_ALLOCATION_TYPE_PINNED ||
      properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (properties->location.id < 0 || properties->location.id >= Get().n_devices) return CUDA_ERROR_INVALID_DEVICE;
  if ((properties->requestedHandleTypes & ~CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) != 0) {
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  return CUDA_SUCCESS;
}

// The device of an exported descriptor; -1: it is none.
int DeviceOf(int fd) {
  char target[128] = {};
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  int device = -1;
  if (readlink(path.c_str(), target, sizeof(target) - 1) <= 0 ||
      std::sscanf(target, "/memfd:softcuda-vmm-%d", &device) != 1 || device >= Get().n_devices) {
    return -1;
  }
  return device;
}

CUmemGenericAllocationHandle AddVmm(std::shared_ptr<Backing> backing) {
  State& s = Get();
  const CUmemGenericAllocationHandle handle = s.next_vmm++;
  s.vmm[handle] = {std::move(backing), 1};
  return handle;
}

}  // namespace
}  // namespace softcuda

using softcuda::Get;
using softcuda::Kind;
using softcuda::Range;
using softcuda::State;

CUresult cuMemGetAllocationGranularity(size_t* bytes, const CUmemAllocationProp* properties,
                                       CUmemAllocationGranularity_flags) {
  SOFTCUDA_ENTER(cuMemGetAllocationGranularity);
  if (bytes == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *bytes = State::kGranularity;
  return softcuda::CheckProperties(properties);
}

CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp* properties,
                     unsigned long long flags) {
  SOFTCUDA_ENTER(cuMemCreate);
  if (handle == nullptr || flags != 0 || !softcuda::IsWhole(bytes)) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult e = softcuda::CheckProperties(properties); e != CUDA_SUCCESS) return e;
  if (const CUresult e = softcuda::DeviceError(properties->location.id); e != CUDA_SUCCESS) return e;
  const std::lock_guard lock(Get().mu);
  auto backing = softcuda::NewBacking(properties->location.id, bytes, "vmm");
  if (backing == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
  backing->exportable = (properties->requestedHandleTypes & CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) != 0;
  *handle = softcuda::AddVmm(std::move(backing));
  return CUDA_SUCCESS;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  SOFTCUDA_ENTER(cuMemRelease);
  State& s = Get();
  const std::lock_guard lock(s.mu);
  const auto found = s.vmm.find(handle);
  if (found == s.vmm.end()) return CUDA_ERROR_INVALID_VALUE;
  if (--found->second.references == 0) s.vmm.erase(found);  // mappings keep the memory
  return CUDA_SUCCESS;
}

CUresult cuMemAddressReserve(CUdeviceptr* pointer, size_t bytes, size_t alignment, CUdeviceptr,
                             unsigned long long flags) {
  SOFTCUDA_ENTER(cuMemAddressReserve);
  if (pointer == nullptr || flags != 0 || !softcuda::IsWhole(bytes) || (alignment & (alignment - 1)) != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  auto reservation = std::make_shared<softcuda::Reservation>();
  void* const shadow = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (shadow == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  reservation->shadow = static_cast<std::byte*>(shadow);
  reservation->bytes = bytes;
  State& s = Get();
  const std::lock_guard lock(s.mu);
  const uintptr_t address = softcuda::TakeAddressAt(bytes, std::max(alignment, size_t{State::kGranularity}));
  if (address == 0) return CUDA_ERROR_OUT_OF_MEMORY;
  s.reservations[address] = std::move(reservation);
  *pointer = address;
  return CUDA_SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr pointer, size_t bytes) {
  SOFTCUDA_ENTER(cuMemAddressFree);
  State& s = Get();
  const std::lock_guard lock(s.mu);
  const auto found = s.reservations.find(pointer);
  if (found == s.reservations.end() || found->second->bytes != bytes) return CUDA_ERROR_INVALID_VALUE;
  const auto mapped = s.ranges.lower_bound(pointer);
  if (mapped != s.ranges.end() && mapped->first < pointer + bytes) return CUDA_ERROR_INVALID_VALUE;
  s.reservations.erase(found);
  s.taken.erase(pointer);
  return CUDA_SUCCESS;
}

CUresult cuMemMap(CUdeviceptr pointer, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long flags) {
  SOFTCUDA_ENTER(cuMemMap);
  State& s = Get();
  const std::lock_guard lock(s.mu);
  const auto vmm = s.vmm.find(handle);
  if (vmm == s.vmm.end() || offset != 0 || flags != 0 || !softcuda::IsWhole(bytes) ||
      pointer % State::kGranularity != 0 || bytes > vmm->second.backing->bytes) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  auto reserved = s.reservations.upper_bound(pointer);
  if (reserved == s.reservations.begin()) return CUDA_ERROR_INVALID_VALUE;
  --reserved;
  softcuda::Reservation& reservation = *reserved->second;
  const uintptr_t inside = pointer - reserved->first;
  if (inside >= reservation.bytes || bytes > reservation.bytes - inside) return CUDA_ERROR_INVALID_VALUE;
  const auto above = s.ranges.lower_bound(pointer);
  if (softcuda::FindRange(pointer) != s.ranges.end() || (above != s.ranges.end() && above->first < pointer + bytes)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  std::byte* const shadow = reservation.shadow + inside;
  if (mmap(shadow, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, vmm->second.backing->fd, 0) == MAP_FAILED) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  Range& range = s.ranges[pointer];
  range.bytes = bytes;
  range.shadow = shadow;
  range.kind = Kind::kVmm;
  range.device = vmm->second.backing->device;
  range.accessible = false;  // until cuMemSetAccess
  range.backing = vmm->second.backing;
  range.reservation = reserved->second;
  return CUDA_SUCCESS;
}

// Whole mappings only. The shadow stays until it is mapped anew, for copies on their way.
CUresult cuMemUnmap(CUdeviceptr pointer, size_t bytes) {
  SOFTCUDA_ENTER(cuMemUnmap);
  State& s = Get();
  const std::lock_guard lock(s.mu);
  std::vector<uintptr_t> mappings;
  uintptr_t next = pointer;
  for (auto at = s.ranges.find(pointer); next < pointer + bytes; ++at) {
    if (at == s.ranges.end() || at->first != next || at->second.kind != Kind::kVmm) return CUDA_ERROR_INVALID_VALUE;
    mappings.push_back(at->first);
    next += at->second.bytes;
  }
  if (bytes == 0 || next != pointer + bytes) return CUDA_ERROR_INVALID_VALUE;
  for (const uintptr_t mapping : mappings) s.ranges.erase(mapping);
  return CUDA_SUCCESS;
}

CUresult cuMemSetAccess(CUdeviceptr pointer, size_t bytes, const CUmemAccessDesc* access, size_t count) {
  SOFTCUDA_ENTER(cuMemSetAccess);
  if (access == nullptr || count == 0) return CUDA_ERROR_INVALID_VALUE;
  for (size_t i = 0; i < count; ++i) {
    if (access[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE || access[i].location.id < 0 ||
        access[i].location.id >= Get().n_devices) {
      return CUDA_ERROR_INVALID_DEVICE;
    }
  }
  State& s = Get();
  const std::lock_guard lock(s.mu);
  std::vector<Range*> mappings;
  uintptr_t next = pointer;
  for (auto at = s.ranges.find(pointer); next < pointer + bytes; ++at) {
    if (at == s.ranges.end() || at->first != next || at->second.kind != Kind::kVmm) return CUDA_ERROR_INVALID_VALUE;
    mappings.push_back(&at->second);
    next += at->second.bytes;
  }
  if (bytes == 0 || next != pointer + bytes) return CUDA_ERROR_INVALID_VALUE;
  for (Range* const range : mappings) range->accessible = access[0].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  return CUDA_SUCCESS;
}

CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle* handle, void* address) {
  SOFTCUDA_ENTER(cuMemRetainAllocationHandle);
  State& s = Get();
  const std::lock_guard lock(s.mu);
  const auto range = softcuda::FindRange(reinterpret_cast<uintptr_t>(address));
  if (handle == nullptr || range == s.ranges.end() || range->second.kind != Kind::kVmm) return CUDA_ERROR_INVALID_VALUE;
  for (auto& [known, vmm] : s.vmm) {
    if (vmm.backing != range->second.backing) continue;
    ++vmm.references;
    *handle = known;
    return CUDA_SUCCESS;
  }
  *handle = softcuda::AddVmm(range->second.backing);
  return CUDA_SUCCESS;
}

CUresult cuMemExportToShareableHandle(void* shareable, CUmemGenericAllocationHandle handle,
                                      CUmemAllocationHandleType type, unsigned long long flags) {
  SOFTCUDA_ENTER(cuMemExportToShareableHandle);
  State& s = Get();
  const std::lock_guard lock(s.mu);
  const auto found = s.vmm.find(handle);
  if (shareable == nullptr || flags != 0 || found == s.vmm.end()) return CUDA_ERROR_INVALID_VALUE;
  if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || !found->second.backing->exportable) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const int fd = fcntl(found->second.backing->fd, F_DUPFD_CLOEXEC, 0);
  if (fd < 0) return CUDA_ERROR_OUT_OF_MEMORY;
  *static_cast<int*>(shareable) = fd;
  return CUDA_SUCCESS;
}

CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle* handle, void* os_handle,
                                        CUmemAllocationHandleType type) {
  SOFTCUDA_ENTER(cuMemImportFromShareableHandle);
  if (handle == nullptr || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return CUDA_ERROR_INVALID_VALUE;
  const int fd = static_cast<int>(reinterpret_cast<intptr_t>(os_handle));
  const int device = softcuda::DeviceOf(fd);
  if (device < 0) return CUDA_ERROR_INVALID_VALUE;
  const int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (own < 0) return CUDA_ERROR_OUT_OF_MEMORY;
  auto backing = softcuda::AdoptBacking(own, device);
  if (backing == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
  backing->exportable = true;
  const std::lock_guard lock(Get().mu);
  *handle = softcuda::AddVmm(std::move(backing));
  return CUDA_SUCCESS;
}

CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp* properties, CUmemGenericAllocationHandle handle) {
  SOFTCUDA_ENTER(cuMemGetAllocationPropertiesFromHandle);
  const std::lock_guard lock(Get().mu);
  const auto found = Get().vmm.find(handle);
  if (properties == nullptr || found == Get().vmm.end()) return CUDA_ERROR_INVALID_VALUE;
  *properties = {};
  properties->type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties->location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties->location.id = found->second.backing->device;
  properties->requestedHandleTypes = found->second.backing->exportable ? CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
                                                                       : CU_MEM_HANDLE_TYPE_NONE;
  return CUDA_SUCCESS;
}
