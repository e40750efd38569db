// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/device_pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "gpu/cuda/driver.h"

namespace terrace::client {
namespace {

using gpu::Driver;
using gpu::ScopedContext;
using ull = unsigned long long;  // for printf

// The process's driver; never given back, because nothing may call into it while the process ends.
Result FindDriver(std::shared_ptr<const Driver>* out) {
  static std::mutex mu;
  static auto* const kKept = new std::shared_ptr<const Driver>;
  {
    std::lock_guard lock(mu);
    *out = *kKept;
  }
  if (*out != nullptr) return {};
  std::string why;
  *out = Driver::Load("libcuda.so.1", &why);  // twice at a time does no harm
  if (*out == nullptr) return Fail(TERRACE_FAILED_PRECONDITION, "%s", why.c_str());
  std::lock_guard lock(mu);
  *kKept = *out;
  return {};
}

CUdeviceptr Address(const void* pointer) { return reinterpret_cast<CUdeviceptr>(pointer); }

// The planes as given, and the device that they must lie on.
struct Wanted {
  const Driver& driver;
  const terrace_device_pages& pages;
  CUdevice device;
};

struct Extent {
  CUdeviceptr base = 0;
  uint64_t bytes = 0;
};

Result FindExtent(const Wanted& wanted, uint32_t p, CUdeviceptr at, Extent* out) {
  size_t bytes = 0;
  int ordinal = -1;
  const Driver& driver = wanted.driver;
  CUresult found = driver.cuMemGetAddressRange(&out->base, &bytes, at);
  if (found == CUDA_SUCCESS) {
    found = driver.cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, at);
  }
  if (found != CUDA_SUCCESS) {
    return Fail(TERRACE_INVALID_ARGUMENT, "planes[%u]: %p is not GPU memory of this process (%s)",
                p, reinterpret_cast<void*>(at), driver.Explain(found).c_str());
  }
  CUdevice device = -1;
  if (driver.cuDeviceGet(&device, ordinal) != CUDA_SUCCESS || device != wanted.device) {
    return Fail(TERRACE_INVALID_ARGUMENT,
                "planes[%u] lies on device %d, the current context is of another one", p, ordinal);
  }
  out->bytes = bytes;
  return {};
}

// By address.
using Extents = std::map<CUdeviceptr, Extent>;

// All of a plane must be memory. Adds the allocations that it lies in.
Result CheckPlane(const Wanted& wanted, uint32_t p, Extents* extents) {
  const terrace_plane& plane = wanted.pages.planes[p];
  const CUdeviceptr begin = Address(plane.base);
  const CUdeviceptr end = begin + plane.stride * (wanted.pages.n_blocks - 1) + plane.bytes;
  Extent last;
  if (const auto at = extents->upper_bound(begin); at != extents->begin()) last = std::prev(at)->second;
  if (begin < last.base || begin >= last.base + last.bytes) {
    if (Result found = FindExtent(wanted, p, begin, &last); !found.ok()) return found;
    extents->emplace(last.base, last);
  }
  while (last.base + last.bytes < end) {  // VMM memory is mapped piece by piece
    const CUdeviceptr next = last.base + last.bytes;
    if (!FindExtent(wanted, p, next, &last).ok() || last.base != next) {
      return Fail(
          TERRACE_INVALID_ARGUMENT,
          "planes[%u] ends %llu bytes behind its allocation: its stride, or n_blocks, is too large",
          p, static_cast<ull>(end - next));
    }
    extents->emplace(last.base, last);
  }
  return {};
}

// False: *why says why the allocation cannot be opened by another process.
bool ExportOne(const Driver& driver, const Extent& extent, Region::Allocation* out,
               std::string* why) {
  out->said.bytes = extent.bytes;
  CUmemGenericAllocationHandle vmm = 0;
  if (driver.cuMemRetainAllocationHandle(&vmm, reinterpret_cast<void*>(extent.base)) ==
      CUDA_SUCCESS) {
    int fd = -1;
    const CUresult exported =
        driver.cuMemExportToShareableHandle(&fd, vmm, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
    driver.cuMemRelease(vmm);
    if (exported != CUDA_SUCCESS) {
      *why =
          "VMM memory that was not made for export (CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR): " +
          driver.Explain(exported);
      return false;
    }
    out->said.kind = 2;
    out->fd = OwnedFd(fd);
    return true;
  }
  CUipcMemHandle handle;
  const CUresult exported = driver.cuIpcGetMemHandle(&handle, extent.base);
  if (exported != CUDA_SUCCESS) {
    *why = "the memory has no CUDA IPC handle: " + driver.Explain(exported);
    return false;
  }
  static_assert(sizeof(handle) == sizeof(out->said.ipc));
  out->said.kind = 1;
  std::memcpy(out->said.ipc, &handle, sizeof(handle));
  return true;
}

// Exports all. Pieces of VMM memory that adjoin continue each other: the whole is one allocation, by the number of its
// first piece. runs: those numbers, by the address at which the whole begins.
void ExportAll(const Driver& driver, const Extents& extents, Region::Source* source,
               std::map<CUdeviceptr, uint32_t>* runs, std::string* why) {
  constexpr uint32_t kVmm = 2;
  CUdeviceptr end = 0;
  uint32_t kind = 0;
  for (const auto& [base, extent] : extents) {
    Region::Allocation allocation;
    if (!ExportOne(driver, extent, &allocation, why)) return;
    if (base == end && kind == kVmm && allocation.said.kind == kVmm) {
      allocation.said.flags = wire::kRegionAllocationContinues;
    } else {
      runs->emplace(base, static_cast<uint32_t>(source->allocations.size()));
    }
    end = base + extent.bytes;
    kind = allocation.said.kind;
    source->allocations.push_back(std::move(allocation));
  }
}

}  // namespace

Result DevicePages::Check(int result, const char* call) {
  const auto code = static_cast<CUresult>(result);
  if (code == CUDA_SUCCESS) return {};
  const std::string text = std::string("the engine's GPU: ") + call + ": " + driver_->Explain(code);
  if (Driver::IsSticky(code)) {
    std::lock_guard lock(mu_);
    if (broken_why_.empty())
      broken_why_ = text + ". Its context is of no use any more: restart the engine";
    broken_ = true;
  }
  return Fail(TERRACE_UNAVAILABLE, "%s", text.c_str());
}

#define TERRACE_GPU_CALL(call, ...)                                             \
  do {                                                                          \
    Result called = Check(static_cast<int>(driver_->call(__VA_ARGS__)), #call); \
    if (!called.ok()) return called;                                            \
  } while (false)
// First in every function that calls the driver.
#define TERRACE_GPU_ENTER()                                                          \
  if (broken_) {                                                                     \
    std::lock_guard broken_lock(mu_);                                                \
    return Fail(TERRACE_UNAVAILABLE, "%s", broken_why_.c_str());                     \
  }                                                                                  \
  const ScopedContext scoped(*driver_, context_);                                    \
  if (Result entered = Check(static_cast<int>(scoped.result()), "cuCtxPushCurrent"); \
      !entered.ok())                                                                 \
  return entered

Result DevicePages::Create(const terrace_device_pages& wanted, std::shared_ptr<DevicePages>* out,
                           std::shared_ptr<Region>* region, std::string* why) {
  std::shared_ptr<const Driver> driver;
  if (Result found = FindDriver(&driver); !found.ok()) return found;
  CUcontext context = nullptr;
  CUdevice device = -1;
  CUresult current = driver->cuCtxGetCurrent(&context);
  if (current == CUDA_SUCCESS && context != nullptr) current = driver->cuCtxGetDevice(&device);
  if (current != CUDA_SUCCESS || context == nullptr) {
    return Fail(TERRACE_FAILED_PRECONDITION, "the calling thread has no current CUDA context%s%s",
                current == CUDA_SUCCESS ? "" : ": ",
                current == CUDA_SUCCESS ? "" : driver->Explain(current).c_str());
  }
  Region::Source source;
  source.n_pages = wanted.n_blocks;
  Extents extents;
  for (uint32_t p = 0; p < wanted.n_planes; ++p) {
    if (Result checked = CheckPlane({*driver, wanted, device}, p, &extents); !checked.ok())
      return checked;
  }
  std::shared_ptr<DevicePages> pages(
      new DevicePages(driver, context, static_cast<CUstream>(wanted.stream)));
  if ((wanted.flags & TERRACE_PAGES_NO_EXPORT) != 0) *why = "TERRACE_PAGES_NO_EXPORT was asked for";
  CUuuid uuid;
  if (why->empty() && driver->cuDeviceGetUuid(&uuid, device) != CUDA_SUCCESS)
    *why = "the device has no UUID";
  if (why->empty()) std::memcpy(source.device_uuid.data(), uuid.bytes, sizeof(uuid.bytes));
  std::map<CUdeviceptr, uint32_t> runs;
  if (why->empty()) ExportAll(*driver, extents, &source, &runs, why);
  for (uint32_t p = 0; p < wanted.n_planes && why->empty(); ++p) {
    const terrace_plane& plane = wanted.planes[p];
    const auto run = std::prev(runs.upper_bound(Address(plane.base)));
    source.planes.push_back({run->second, 0, Address(plane.base) - run->first,
                             std::max(plane.stride, plane.bytes), plane.bytes});
  }
  if (why->empty()) pages->MakeEvents(&source, why);
  if (why->empty()) *region = std::make_shared<Region>(std::move(source));
  *out = std::move(pages);
  return {};
}

void DevicePages::MakeEvents(Region::Source* source, std::string* why) {
  const ScopedContext scoped(*driver_, context_);
  for (uint32_t i = 0; i < wire::kMaxRegionEvents; ++i) {
    CUevent event = nullptr;
    CUipcEventHandle handle;
    CUresult made = driver_->cuEventCreate(&event, CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS);
    if (made == CUDA_SUCCESS) {
      region_events_.push_back(event);
      made = driver_->cuIpcGetEventHandle(&handle, event);
    }
    if (made != CUDA_SUCCESS) {
      *why = "no interprocess events: " + driver_->Explain(made);
      return;
    }
    static_assert(sizeof(handle) == 64);
    std::memcpy(source->events.emplace_back().data(), &handle, sizeof(handle));
  }
}

DevicePages::~DevicePages() = default;

void DevicePages::Close() {
  if (broken_) return;  // its memory went with the context
  const ScopedContext scoped(*driver_, context_);
  if (scoped.result() != CUDA_SUCCESS) return;
  if (stream_ != nullptr) driver_->cuStreamDestroy(std::exchange(stream_, nullptr));
  for (CUevent event : region_events_) driver_->cuEventDestroy(event);
  region_events_.clear();
  std::vector<CUevent> marks;
  {
    std::lock_guard lock(mu_);
    marks.swap(marks_);
  }
  for (CUevent mark : marks) driver_->cuEventDestroy(mark);
  bool idle = true;
  for (Buffer& buffer : buffers_) {
    idle = idle && !buffer.in_use;
    if (buffer.copied != nullptr) driver_->cuEventDestroy(buffer.copied);
  }
  buffers_.clear();
  // What the GPU may still write to is left to the process's end.
  if (memory_ == nullptr || !idle) return;
  if (pinned_) driver_->cuMemHostUnregister(memory_);
  munmap(std::exchange(memory_, nullptr), memory_bytes_);
}

Result DevicePages::Record(uint32_t* event) {
  TERRACE_GPU_ENTER();
  // One that is recorded again while the daemon has not waited for it yet makes it wait for more,
  // never for less.
  *event = next_event_.fetch_add(1, std::memory_order_relaxed) % wire::kMaxRegionEvents;
  TERRACE_GPU_CALL(cuEventRecord, region_events_[*event], engine_stream_);
  return {};
}

Result DevicePages::TakeMark(CUevent* mark) {
  TERRACE_GPU_ENTER();
  *mark = nullptr;
  {
    std::lock_guard lock(mu_);
    if (!marks_.empty()) {
      *mark = marks_.back();
      marks_.pop_back();
    }
  }
  if (*mark == nullptr) TERRACE_GPU_CALL(cuEventCreate, mark, CU_EVENT_DISABLE_TIMING);
  Result recorded =
      Check(static_cast<int>(driver_->cuEventRecord(*mark, engine_stream_)), "cuEventRecord");
  if (!recorded.ok()) GiveBackMark(std::exchange(*mark, nullptr));
  return recorded;
}

void DevicePages::GiveBackMark(CUevent mark) {
  std::lock_guard lock(mu_);
  marks_.push_back(mark);
}

Result DevicePages::Prepare(uint64_t block_bytes, uint32_t* blocks_per_buffer) {
  if (buffers_.empty()) {
    if (Result made = MakeBuffers(block_bytes); !made.ok()) return made;
  }
  *blocks_per_buffer = static_cast<uint32_t>(buffer_bytes_ / block_bytes);
  return {};
}

Result DevicePages::MakeBuffers(uint64_t block_bytes) {
  TERRACE_GPU_ENTER();
  buffer_bytes_ = std::max(block_bytes, kBounceBytes / kMaxBuffers);
  const uint64_t count = std::clamp<uint64_t>(kBounceBytes / buffer_bytes_, 2, kMaxBuffers);
  if (stream_ == nullptr) {
    TERRACE_GPU_CALL(cuStreamCreateWithPriority, &stream_, CU_STREAM_NON_BLOCKING, 0);
  }
  if (memory_ == nullptr) {
    void* const memory = mmap(nullptr, count * buffer_bytes_, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      return Fail(TERRACE_RESOURCE_EXHAUSTED, "no memory for %llu bytes to copy through",
                  ull{count * buffer_bytes_});
    }
    (void)madvise(memory, count * buffer_bytes_, MADV_DONTFORK);
    memory_ = static_cast<std::byte*>(memory);
    memory_bytes_ = count * buffer_bytes_;
    // Memory that is not pinned is only slower.
    pinned_ = driver_->cuMemHostRegister(memory_, memory_bytes_, 0) == CUDA_SUCCESS;
  }
  std::vector<Buffer> buffers(count);
  for (uint64_t i = 0; i < count; ++i) {
    buffers[i].data = memory_ + i * buffer_bytes_;
    TERRACE_GPU_CALL(cuEventCreate, &buffers[i].copied, CU_EVENT_DISABLE_TIMING);
  }
  buffers_ = std::move(buffers);
  return {};
}

DevicePages::Buffer* DevicePages::TakeBuffer(uint32_t leave) {
  uint32_t free = 0;
  Buffer* found = nullptr;
  for (Buffer& buffer : buffers_) {
    if (buffer.in_use) continue;
    ++free;
    found = &buffer;
  }
  if (free <= leave) return nullptr;
  found->in_use = true;
  return found;
}

Result DevicePages::Begin(CUevent mark) {
  TERRACE_GPU_ENTER();
  TERRACE_GPU_CALL(cuStreamWaitEvent, stream_, mark, 0);
  return {};
}

Result DevicePages::Copy(Way way, std::span<const Piece> device, std::byte* host) {
  TERRACE_GPU_ENTER();
  for (const Piece& piece : device) {
    const CUdeviceptr from = way == Way::kFromDevice ? Address(piece.base) : Address(host);
    const CUdeviceptr to = way == Way::kFromDevice ? Address(host) : Address(piece.base);
    TERRACE_GPU_CALL(cuMemcpyAsync, to, from, piece.bytes, stream_);
    host += piece.bytes;
  }
  return {};
}

Result DevicePages::End(Buffer* buffer) {
  TERRACE_GPU_ENTER();
  TERRACE_GPU_CALL(cuEventRecord, buffer->copied, stream_);
  return {};
}

Result DevicePages::Poll(Buffer* buffer, bool* done) {
  TERRACE_GPU_ENTER();
  const CUresult result = driver_->cuEventQuery(buffer->copied);
  *done = result == CUDA_SUCCESS;
  return result == CUDA_ERROR_NOT_READY ? Result{}
                                        : Check(static_cast<int>(result), "cuEventQuery");
}

}  // namespace terrace::client
