// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// softcuda: initialisation, devices, contexts, errors' names.
#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "gpu/softcuda/state.h"

namespace softcuda {
namespace {

thread_local std::vector<CUcontext> context_stack;

int Number(const char* variable, int otherwise) {
  const char* const text = std::getenv(variable);
  return text == nullptr ? otherwise : std::atoi(text);
}

CUresult DeviceExists(CUdevice device) {
  return device >= 0 && device < Get().n_devices ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

}  // namespace

State& Get() {
  static State* const state = new State;
  return *state;
}

CUresult Current(CUcontext* context) {
  if (context_stack.empty() || context_stack.back() == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  *context = context_stack.back();
  State& s = Get();
  const std::lock_guard lock(s.mu);
  if ((*context)->uses == 0) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  return DeviceError((*context)->device);
}

}  // namespace softcuda

using softcuda::Current;
using softcuda::DeviceError;
using softcuda::DeviceExists;
using softcuda::Get;
using softcuda::State;

CUresult cuInit(unsigned int flags) {
  if (const CUresult e = softcuda::EnterUninitialised("cuInit"); e != CUDA_SUCCESS) return e;
  if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
  State& s = Get();
  const std::lock_guard lock(s.mu);
  if (s.is_initialised) return s.pid == getpid() ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
  s.n_devices = softcuda::Number("SOFTCUDA_DEVICES", 1);
  if (s.n_devices <= 0) return CUDA_ERROR_NO_DEVICE;
  if (s.n_devices > State::kMaxDevices) s.n_devices = State::kMaxDevices;
  s.memory_bytes = static_cast<uint64_t>(softcuda::Number("SOFTCUDA_MEMORY_MB", 256)) << 20;
  for (int i = 0; i < s.n_devices; ++i) s.devices[i].context.device = i;
  // Not mmap(): sanitizers would walk all of it.
  const long arena = syscall(SYS_mmap, nullptr, State::kArenaBytes, PROT_NONE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (arena == -1) return CUDA_ERROR_OUT_OF_MEMORY;
  s.arena = (static_cast<uintptr_t>(arena) + State::kGranularity - 1) & ~(State::kGranularity - 1);
  s.next = s.arena;
  s.pid = getpid();
  s.is_initialised = true;
  return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int* version) {
  if (const CUresult e = softcuda::EnterUninitialised("cuDriverGetVersion"); e != CUDA_SUCCESS) return e;
  if (version == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *version = softcuda::Number("SOFTCUDA_VERSION", CUDA_VERSION);
  return CUDA_SUCCESS;
}

#define SOFTCUDA_ERRORS(E)                                                                                  \
  E(CUDA_SUCCESS, "no error") E(CUDA_ERROR_INVALID_VALUE, "invalid argument")                               \
  E(CUDA_ERROR_OUT_OF_MEMORY, "out of memory") E(CUDA_ERROR_NOT_INITIALIZED, "initialization error")        \
  E(CUDA_ERROR_DEINITIALIZED, "driver shutting down") E(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected") \
  E(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal")                                                    \
  E(CUDA_ERROR_DEVICE_UNAVAILABLE, "CUDA-capable device(s) is/are busy or unavailable")                     \
  E(CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid")                                             \
  E(CUDA_ERROR_INVALID_CONTEXT, "invalid device context")                                                   \
  E(CUDA_ERROR_MAP_FAILED, "mapping of buffer object failed")                                               \
  E(CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device")               \
  E(CUDA_ERROR_ECC_UNCORRECTABLE, "uncorrectable ECC error encountered")                                    \
  E(CUDA_ERROR_NVLINK_UNCORRECTABLE, "uncorrectable NVLink error detected during the execution")            \
  E(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle") E(CUDA_ERROR_NOT_FOUND, "named symbol not found") \
  E(CUDA_ERROR_NOT_READY, "device not ready")                                                               \
  E(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered")                                 \
  E(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch")                          \
  E(CUDA_ERROR_LAUNCH_TIMEOUT, "the launch timed out and was terminated")                                   \
  E(CUDA_ERROR_CONTEXT_IS_DESTROYED, "context is destroyed")                                                \
  E(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "part or all of the requested memory range is already mapped") \
  E(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "pointer does not correspond to a registered memory region")     \
  E(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure")                                                 \
  E(CUDA_ERROR_NOT_PERMITTED, "operation not permitted") E(CUDA_ERROR_NOT_SUPPORTED, "operation not supported") \
  E(CUDA_ERROR_SYSTEM_NOT_READY, "system not yet initialized")                                              \
  E(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, "system has unsupported display driver / cuda driver combination")   \
  E(CUDA_ERROR_UNKNOWN, "unknown error")

CUresult cuGetErrorName(CUresult error, const char** text) {
  switch (error) {
#define SOFTCUDA_NAME(code, words) \
  case code:                       \
    *text = #code;                 \
    return CUDA_SUCCESS;
    SOFTCUDA_ERRORS(SOFTCUDA_NAME)
    default:
      *text = nullptr;
      return CUDA_ERROR_INVALID_VALUE;
  }
}

CUresult cuGetErrorString(CUresult error, const char** text) {
  switch (error) {
#define SOFTCUDA_WORDS(code, words) \
  case code:                        \
    *text = words;                  \
    return CUDA_SUCCESS;
    SOFTCUDA_ERRORS(SOFTCUDA_WORDS)
    default:
      *text = nullptr;
      return CUDA_ERROR_INVALID_VALUE;
  }
}

CUresult cuGetProcAddress(const char* symbol, void** found, int version, cuuint64_t,
                          CUdriverProcAddressQueryResult* status) {
  if (const CUresult e = softcuda::EnterUninitialised("cuGetProcAddress"); e != CUDA_SUCCESS) return e;
  if (symbol == nullptr || found == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUdriverProcAddressQueryResult unused;
  if (status == nullptr) status = &unused;
  *found = nullptr;
  *status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  // The interface of CUDA 13.0 is the only one here.
  if (std::strcmp(symbol, "cuMemcpyBatchAsync") == 0 &&
      (version < 13000 || softcuda::Number("SOFTCUDA_VERSION", CUDA_VERSION) < 13000)) {
    *status = CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT;
    return CUDA_SUCCESS;
  }
  Dl_info self;
  if (dladdr(reinterpret_cast<void*>(&softcuda_reset), &self) == 0) return CUDA_ERROR_UNKNOWN;
  void* const library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) return CUDA_ERROR_UNKNOWN;
  *found = dlsym(library, (std::string(symbol) + "_v2").c_str());
  if (*found == nullptr) *found = dlsym(library, symbol);
  dlclose(library);
  if (*found != nullptr) *status = CU_GET_PROC_ADDRESS_SUCCESS;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int* count) {
  SOFTCUDA_ENTER(cuDeviceGetCount);
  if (count == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *count = Get().n_devices;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  SOFTCUDA_ENTER(cuDeviceGet);
  if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *device = ordinal;
  return DeviceExists(ordinal);
}

CUresult cuDeviceGetName(char* name, int bytes, CUdevice device) {
  SOFTCUDA_ENTER(cuDeviceGetName);
  if (name == nullptr || bytes <= 0) return CUDA_ERROR_INVALID_VALUE;
  std::snprintf(name, static_cast<size_t>(bytes), "softcuda");
  return DeviceExists(device);
}

// The same in all processes: "softcuda", zeros, the number.
CUresult cuDeviceGetUuid(CUuuid* uuid, CUdevice device) {
  SOFTCUDA_ENTER(cuDeviceGetUuid);
  if (uuid == nullptr) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(uuid->bytes, "softcuda\0\0\0\0\0\0\0", 16);
  uuid->bytes[15] = static_cast<char>(device);
  return DeviceExists(device);
}

CUresult cuDeviceGetPCIBusId(char* text, int bytes, CUdevice device) {
  SOFTCUDA_ENTER(cuDeviceGetPCIBusId);
  if (text == nullptr || bytes < 13) return CUDA_ERROR_INVALID_VALUE;
  std::snprintf(text, static_cast<size_t>(bytes), "FFFE:%02X:00.0", device + 1);
  return DeviceExists(device);
}

CUresult cuDeviceTotalMem(size_t* bytes, CUdevice device) {
  SOFTCUDA_ENTER(cuDeviceTotalMem);
  if (bytes == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *bytes = Get().memory_bytes;
  return DeviceExists(device);
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  SOFTCUDA_ENTER(cuDeviceGetAttribute);
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (DeviceExists(device) != CUDA_SUCCESS) return CUDA_ERROR_INVALID_DEVICE;
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 8; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: *value = 2048; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_MAX_PITCH: *value = 0x7fffffff; break;
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: *value = 3; break;
    case CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID: *value = -1; break;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM:
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_IPC_EVENT_SUPPORTED: *value = 1; break;
    default: *value = 0; break;
  }
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  SOFTCUDA_ENTER(cuDevicePrimaryCtxRetain);
  if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (DeviceExists(device) != CUDA_SUCCESS) return CUDA_ERROR_INVALID_DEVICE;
  if (const CUresult broken = DeviceError(device); broken != CUDA_SUCCESS) return broken;
  State& s = Get();
  const std::lock_guard lock(s.mu);
  CUctx_st& primary = s.devices[device].context;
  if (primary.uses++ == 0) primary.default_stream = softcuda::NewStream(&primary, CU_STREAM_DEFAULT);
  *context = &primary;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxSetFlags(CUdevice device, unsigned int flags) {
  SOFTCUDA_ENTER(cuDevicePrimaryCtxSetFlags);
  if ((flags & CU_CTX_SCHED_MASK) > CU_CTX_SCHED_BLOCKING_SYNC) return CUDA_ERROR_INVALID_VALUE;
  return DeviceExists(device);
}

// The last release ends everything of the context, as the driver does.
CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
  SOFTCUDA_ENTER(cuDevicePrimaryCtxRelease);
  if (DeviceExists(device) != CUDA_SUCCESS) return CUDA_ERROR_INVALID_DEVICE;
  State& s = Get();
  const std::lock_guard lock(s.mu);
  CUctx_st& primary = s.devices[device].context;
  if (primary.uses == 0) return CUDA_ERROR_INVALID_CONTEXT;
  if (--primary.uses > 0) return CUDA_SUCCESS;
  softcuda::CloseStreams(&primary);
  softcuda::DropContextEvents(&primary);
  softcuda::DropContextMemory(&primary);
  return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent(CUcontext context) {
  SOFTCUDA_ENTER(cuCtxPushCurrent);
  State& s = Get();
  bool is_known = false;
  for (auto& device : s.devices) is_known |= context == &device.context;
  if (!is_known) return CUDA_ERROR_INVALID_CONTEXT;
  const std::lock_guard lock(s.mu);
  if (context->uses == 0) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  softcuda::context_stack.push_back(context);
  return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent(CUcontext* context) {
  SOFTCUDA_ENTER(cuCtxPopCurrent);
  if (softcuda::context_stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  if (context != nullptr) *context = softcuda::context_stack.back();
  softcuda::context_stack.pop_back();
  return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
  SOFTCUDA_ENTER(cuCtxSetCurrent);
  if (!softcuda::context_stack.empty()) softcuda::context_stack.pop_back();
  if (context != nullptr) softcuda::context_stack.push_back(context);
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context) {
  SOFTCUDA_ENTER(cuCtxGetCurrent);
  if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *context = softcuda::context_stack.empty() ? nullptr : softcuda::context_stack.back();
  return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice* device) {
  SOFTCUDA_ENTER(cuCtxGetDevice);
  CUcontext context;
  if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult e = Current(&context); e != CUDA_SUCCESS) return e;
  *device = context->device;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  SOFTCUDA_ENTER(cuCtxGetStreamPriorityRange);
  CUcontext context;
  if (const CUresult e = Current(&context); e != CUDA_SUCCESS) return e;
  if (least != nullptr) *least = 0;
  if (greatest != nullptr) *greatest = -5;
  return CUDA_SUCCESS;
}
