// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// softcuda: events, also between processes. A recording has a number; an event is done when the last number recorded
// is completed. Both numbers of an interprocess event lie in a page that other processes map.
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <climits>
#include <cstring>

#include "gpu/softcuda/state.h"

CUevent_st::~CUevent_st() {
  if (is_shared) {
    munmap(state, 4096);
  } else {
    delete state;
  }
  if (fd >= 0) close(fd);
}

namespace softcuda {
namespace {

constexpr char kMagic[8] = {'s', 'o', 'f', 't', 'e', 'v', 't', '1'};
struct WireEvent {
  char magic[8];
  int32_t pid, fd;
  uint64_t inode;
  int32_t device;
  char unused[36];
};
static_assert(sizeof(WireEvent) == sizeof(CUipcEventHandle));

int64_t Now() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

bool IsDone(const EventState& state, uint32_t n) {
  return static_cast<int32_t>(state.completed.load(std::memory_order_acquire) - n) >= 0;
}

// False: the device broke meanwhile.
bool Wait(EventState& state, uint32_t n, int device) {
  while (!IsDone(state, n)) {
    if (DeviceError(device) != CUDA_SUCCESS) return false;
    const uint32_t seen = state.completed.load(std::memory_order_acquire);
    if (static_cast<int32_t>(seen - n) >= 0) break;
    timespec time{0, 10'000'000};  // to look at the device again
    syscall(SYS_futex, &state.completed, FUTEX_WAIT, seen, &time, nullptr, 0);
  }
  return true;
}

void Complete(CUevent_st& event, uint32_t n) {
  event.when_ns.store(Now());
  uint32_t seen = event.state->completed.load(std::memory_order_relaxed);
  while (static_cast<int32_t>(n - seen) > 0 &&
         !event.state->completed.compare_exchange_weak(seen, n, std::memory_order_acq_rel)) {
  }
  syscall(SYS_futex, &event.state->completed, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

CUresult Find(CUevent handle, std::shared_ptr<CUevent_st>* event) {
  State& s = Get();
  const std::lock_guard lock(s.mu);
  const auto found = s.events.find(handle);
  if (found == s.events.end()) return CUDA_ERROR_INVALID_HANDLE;
  *event = found->second;
  return DeviceError((*event)->context->device);
}

EventState* MapState(int fd) {
  void* const page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  return page == MAP_FAILED ? nullptr : static_cast<EventState*>(page);
}

CUevent Add(std::shared_ptr<CUevent_st> event) {
  State& s = Get();
  const std::lock_guard lock(s.mu);
  const CUevent handle = event.get();
  s.events[handle] = std::move(event);
  return handle;
}

}  // namespace

void DropContextEvents(CUcontext context) {
  State& s = Get();
  for (auto i = s.events.begin(); i != s.events.end();) {
    i = i->second->context == context ? s.events.erase(i) : std::next(i);
  }
}

int OpenOfProcess(int pid, int fd, uint64_t inode) {
  const std::string path = "/proc/" + std::to_string(pid) + "/fd/" + std::to_string(fd);
  const int opened = open(path.c_str(), O_RDWR | O_CLOEXEC);
  struct stat found{};
  if (opened >= 0 && (fstat(opened, &found) != 0 || found.st_ino != inode)) {
    close(opened);
    return -1;
  }
  return opened;
}

}  // namespace softcuda

using softcuda::Current;
using softcuda::DeviceError;
using softcuda::Find;

CUresult cuEventCreate(CUevent* handle, unsigned int flags) {
  SOFTCUDA_ENTER(cuEventCreate);
  constexpr unsigned kKnown = CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS;
  if (handle == nullptr || (flags & ~kKnown) != 0) return CUDA_ERROR_INVALID_VALUE;
  if ((flags & CU_EVENT_INTERPROCESS) != 0 && (flags & CU_EVENT_DISABLE_TIMING) == 0) return CUDA_ERROR_INVALID_VALUE;
  auto event = std::make_shared<CUevent_st>();
  if (const CUresult e = Current(&event->context); e != CUDA_SUCCESS) return e;
  event->flags = flags;
  if ((flags & CU_EVENT_INTERPROCESS) != 0) {
    event->fd = memfd_create("softcuda-event", MFD_CLOEXEC);
    if (event->fd < 0 || ftruncate(event->fd, 4096) != 0) return CUDA_ERROR_OUT_OF_MEMORY;
    event->state = softcuda::MapState(event->fd);
    if (event->state == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
    event->is_shared = true;
  } else {
    event->state = new EventState;
  }
  *handle = softcuda::Add(std::move(event));
  return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent handle) {
  SOFTCUDA_ENTER(cuEventDestroy);
  CUcontext context;
  if (Current(&context) == CUDA_ERROR_INVALID_CONTEXT) return CUDA_ERROR_INVALID_CONTEXT;
  softcuda::State& s = softcuda::Get();
  const std::lock_guard lock(s.mu);
  const auto found = s.events.find(handle);
  if (found == s.events.end()) return CUDA_ERROR_INVALID_HANDLE;
  const int device = found->second->context->device;
  s.events.erase(found);
  return DeviceError(device);
}

CUresult cuEventRecord(CUevent handle, CUstream stream_handle) {
  SOFTCUDA_ENTER(cuEventRecord);
  std::shared_ptr<CUstream_st> stream;
  if (const CUresult e = softcuda::FindStream(stream_handle, &stream); e != CUDA_SUCCESS) return e;
  std::shared_ptr<CUevent_st> event;
  if (const CUresult e = Find(handle, &event); e != CUDA_SUCCESS) return e;
  if (event->context != stream->context) return CUDA_ERROR_INVALID_HANDLE;
  const uint32_t n = event->state->recorded.fetch_add(1, std::memory_order_acq_rel) + 1;
  return softcuda::Enqueue(stream, [event, n] {
    softcuda::Complete(*event, n);
    return CUDA_SUCCESS;
  });
}

CUresult cuEventQuery(CUevent handle) {
  SOFTCUDA_ENTER(cuEventQuery);
  std::shared_ptr<CUevent_st> event;
  if (const CUresult e = Find(handle, &event); e != CUDA_SUCCESS) return e;
  return softcuda::IsDone(*event->state, event->state->recorded.load(std::memory_order_acquire))
             ? CUDA_SUCCESS
             : CUDA_ERROR_NOT_READY;
}

CUresult cuEventSynchronize(CUevent handle) {
  SOFTCUDA_ENTER(cuEventSynchronize);
  CUcontext context;
  if (const CUresult e = Current(&context); e != CUDA_SUCCESS) return e;
  std::shared_ptr<CUevent_st> event;
  if (const CUresult e = Find(handle, &event); e != CUDA_SUCCESS) return e;
  const int device = event->context->device;
  softcuda::Wait(*event->state, event->state->recorded.load(std::memory_order_acquire), device);
  return DeviceError(device);
}

CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
  SOFTCUDA_ENTER(cuEventElapsedTime);
  CUcontext context;
  if (const CUresult e = Current(&context); e != CUDA_SUCCESS) return e;
  if (milliseconds == nullptr) return CUDA_ERROR_INVALID_VALUE;
  std::shared_ptr<CUevent_st> from, to;
  if (const CUresult e = Find(start, &from); e != CUDA_SUCCESS) return e;
  if (const CUresult e = Find(end, &to); e != CUDA_SUCCESS) return e;
  for (const auto& event : {from, to}) {
    const uint32_t n = event->state->recorded.load();
    if ((event->flags & CU_EVENT_DISABLE_TIMING) != 0 || n == 0) return CUDA_ERROR_INVALID_HANDLE;
    if (!softcuda::IsDone(*event->state, n)) return CUDA_ERROR_NOT_READY;
  }
  *milliseconds = static_cast<float>(to->when_ns.load() - from->when_ns.load()) / 1e6f;
  return CUDA_SUCCESS;
}

// What the event had recorded at this call is waited for, whatever is recorded later.
CUresult cuStreamWaitEvent(CUstream stream_handle, CUevent handle, unsigned int flags) {
  SOFTCUDA_ENTER(cuStreamWaitEvent);
  std::shared_ptr<CUstream_st> stream;
  if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult e = softcuda::FindStream(stream_handle, &stream); e != CUDA_SUCCESS) return e;
  std::shared_ptr<CUevent_st> event;
  if (const CUresult e = Find(handle, &event); e != CUDA_SUCCESS) return e;
  const uint32_t n = event->state->recorded.load(std::memory_order_acquire);
  const int device = stream->context->device;
  return softcuda::Enqueue(stream, [event, n, device] {
    softcuda::Wait(*event->state, n, device);
    return CUDA_SUCCESS;
  });
}

CUresult cuIpcGetEventHandle(CUipcEventHandle* wire, CUevent handle) {
  SOFTCUDA_ENTER(cuIpcGetEventHandle);
  std::shared_ptr<CUevent_st> event;
  if (wire == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult e = Find(handle, &event); e != CUDA_SUCCESS) return e;
  struct stat file{};
  if (event->fd < 0 || fstat(event->fd, &file) != 0) return CUDA_ERROR_INVALID_HANDLE;
  softcuda::WireEvent said{};
  std::memcpy(said.magic, softcuda::kMagic, sizeof(said.magic));
  said.pid = getpid();
  said.fd = event->fd;
  said.inode = file.st_ino;
  said.device = event->context->device;
  std::memcpy(wire, &said, sizeof(said));
  return CUDA_SUCCESS;
}

CUresult cuIpcOpenEventHandle(CUevent* handle, CUipcEventHandle wire) {
  SOFTCUDA_ENTER(cuIpcOpenEventHandle);
  if (handle == nullptr) return CUDA_ERROR_INVALID_VALUE;
  auto event = std::make_shared<CUevent_st>();
  if (const CUresult e = Current(&event->context); e != CUDA_SUCCESS) return e;
  softcuda::WireEvent said;
  std::memcpy(&said, &wire, sizeof(said));
  if (std::memcmp(said.magic, softcuda::kMagic, sizeof(said.magic)) != 0) return CUDA_ERROR_INVALID_HANDLE;
  if (said.pid == getpid()) return CUDA_ERROR_INVALID_CONTEXT;  // an exporter cannot open its own
  const int fd = softcuda::OpenOfProcess(said.pid, said.fd, said.inode);
  if (fd < 0) return CUDA_ERROR_INVALID_HANDLE;
  event->flags = CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS;
  event->state = softcuda::MapState(fd);
  close(fd);
  if (event->state == nullptr) return CUDA_ERROR_MAP_FAILED;
  event->is_shared = true;
  *handle = softcuda::Add(std::move(event));
  return CUDA_SUCCESS;
}
