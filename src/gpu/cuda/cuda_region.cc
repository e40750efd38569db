// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// CudaRegion: opens what another process exports. Nothing of it is believed: sizes and device are the driver's.
#include <cstring>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "gpu/cuda/cuda_device.h"
#include "kvstore/base/status_macros.h"

namespace terrace::gpu {
namespace {

std::byte* AsPointer(CUdeviceptr address) { return reinterpret_cast<std::byte*>(address); }

absl::Status Annotated(const absl::Status& status, const std::string& before, const char* after = "") {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(before, status.message(), after));
}

// Of allocation i with those that continue it; 0: it continues the one before, and no plane may name it.
absl::StatusOr<uint64_t> RangeBytes(std::span<const AllocationHandle> allocations, size_t i) {
  if (allocations[i].continues) {
    if (i > 0 && allocations[i].kind == HandleKind::kCudaVmm && allocations[i - 1].kind == HandleKind::kCudaVmm) {
      return 0;
    }
    return absl::InvalidArgumentError(absl::StrCat("allocation ", i, ": nothing is there that it could continue"));
  }
  uint64_t bytes = allocations[i].bytes;
  for (size_t next = i + 1; next < allocations.size() && allocations[next].continues; ++next) {
    if (__builtin_add_overflow(bytes, allocations[next].bytes, &bytes)) {
      return absl::InvalidArgumentError(absl::StrCat("allocation ", i, ": its pieces' sizes do not add up"));
    }
  }
  return bytes;
}

}  // namespace

// Opens one allocation or event after the other. Owner: the stack. What was opened is closed again unless it is taken.
class CudaRegion::Opener {
 public:
  explicit Opener(CudaDevice& device) : device_(device), driver_(device.driver()) {}
  ~Opener() { Close(device_, opened_, events_); }
  Opener(const Opener&) = delete;

  // range_bytes: of it and of those that continue it; 0: it continues the one before.
  absl::Status OpenAllocation(const AllocationHandle& handle, uint64_t range_bytes) {
    if (handle.bytes == 0 || handle.bytes > device_.info().total_bytes) {
      return absl::InvalidArgumentError(absl::StrCat(handle.bytes, " bytes on a GPU of ", device_.info().total_bytes));
    }
    switch (handle.kind) {
      case HandleKind::kCudaIpc:
        return OpenIpc(handle);
      case HandleKind::kCudaVmm:
        return OpenVmm(handle, range_bytes);
      default:
        return absl::InvalidArgumentError("host memory in a region of GPU memory");
    }
  }

  absl::Status OpenEvent(const EventHandle& handle) {
    CUipcEventHandle wire;
    static_assert(sizeof(wire) == sizeof(handle));
    std::memcpy(&wire, handle.data(), sizeof(wire));
    CUevent event = nullptr;
    RETURN_IF_ERROR(device_.CheckForeign(driver_.cuIpcOpenEventHandle(&event, wire), "cuIpcOpenEventHandle"));
    events_.push_back(event);
    return absl::OkStatus();
  }

  const std::vector<Opened>& opened() const { return opened_; }
  std::vector<Opened> TakeOpened() { return std::exchange(opened_, {}); }
  std::vector<CUevent> TakeEvents() { return std::exchange(events_, {}); }

 private:
  absl::Status OpenIpc(const AllocationHandle& handle) {
    CUdeviceptr base = 0;
    RETURN_IF_ERROR(Annotated(
        device_.CheckForeign(device_.opened().Open(driver_, handle.ipc, &base), "cuIpcOpenMemHandle"), "",
        " (the process that exported it must be alive, another one than terraced, and visible to it: containers need "
        "--ipc=host --pid=host)"));
    opened_.push_back({.base = base, .kind = HandleKind::kCudaIpc, .ipc = handle.ipc});
    int ordinal = -1;
    RETURN_IF_ERROR(device_.Check(
        driver_.cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, base), "cuPointerGetAttribute"));
    RETURN_IF_ERROR(CheckOrdinal(ordinal));
    CUdeviceptr start = 0;
    size_t bytes = 0;
    RETURN_IF_ERROR(device_.Check(driver_.cuMemGetAddressRange(&start, &bytes, base), "cuMemGetAddressRange"));
    opened_.back().bytes = bytes - (base - start);
    return CheckBytes(handle.bytes);
  }

  absl::Status OpenVmm(const AllocationHandle& handle, uint64_t range_bytes) {
    CUmemGenericAllocationHandle vmm = 0;
    RETURN_IF_ERROR(device_.CheckForeign(
        driver_.cuMemImportFromShareableHandle(&vmm, reinterpret_cast<void*>(static_cast<intptr_t>(handle.fd)),
                                               CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
        "cuMemImportFromShareableHandle"));
    opened_.push_back({.kind = HandleKind::kCudaVmm, .vmm = vmm});
    CUmemAllocationProp properties{};
    RETURN_IF_ERROR(device_.CheckForeign(driver_.cuMemGetAllocationPropertiesFromHandle(&properties, vmm),
                                         "cuMemGetAllocationPropertiesFromHandle"));
    if (properties.location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
      return absl::InvalidArgumentError("not memory of a GPU");
    }
    RETURN_IF_ERROR(CheckOrdinal(properties.location.id));
    size_t unit = 0;
    RETURN_IF_ERROR(device_.CheckForeign(
        driver_.cuMemGetAllocationGranularity(&unit, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
        "cuMemGetAllocationGranularity"));
    if (handle.bytes % unit != 0) {
      return absl::InvalidArgumentError(absl::StrCat(handle.bytes, " bytes; allocations are multiples of ", unit));
    }
    return MapVmm(handle.bytes, range_bytes);
  }

  // The driver does not say how large an imported allocation is; it refuses to map more.
  absl::Status MapVmm(uint64_t bytes, uint64_t range_bytes) {
    Opened& opened = opened_.back();
    CUdeviceptr base = 0;
    if (range_bytes > 0) {
      RETURN_IF_ERROR(device_.Check(driver_.cuMemAddressReserve(&base, range_bytes, 0, 0, 0), "cuMemAddressReserve"));
      opened.reserved_bytes = range_bytes;
    } else {
      const Opened& before = opened_[opened_.size() - 2];
      base = before.base + before.bytes;
    }
    opened.base = base;
    opened.bytes = bytes;
    RETURN_IF_ERROR(Annotated(device_.CheckForeign(driver_.cuMemMap(base, bytes, 0, opened.vmm, 0), "cuMemMap"),
                              absl::StrCat("is it smaller than ", bytes, " bytes? ")));
    opened.is_mapped = true;
    CUmemAccessDesc access{};
    access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    access.location.id = device_.device();
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    return device_.CheckForeign(driver_.cuMemSetAccess(base, bytes, &access, 1), "cuMemSetAccess");
  }

  absl::Status CheckOrdinal(int ordinal) const {
    if (ordinal == device_.device()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("it is memory of GPU ", ordinal, ", the region's is GPU ", device_.device()));
  }
  absl::Status CheckBytes(uint64_t said) const {
    const uint64_t bytes = opened_.back().bytes;
    if (bytes >= said) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("it has ", bytes, " bytes, not ", said));
  }

  CudaDevice& device_;
  const Driver& driver_;
  std::vector<Opened> opened_;
  std::vector<CUevent> events_;
};

CudaRegion::CudaRegion(std::shared_ptr<CudaDevice> device, RegionLayout layout, std::vector<std::byte*> bases,
                       std::vector<Opened> opened, std::vector<CUevent> events, bool owns_events)
    : Region(std::move(layout), std::move(bases), /*is_device=*/true, static_cast<uint32_t>(events.size())),
      device_(std::move(device)),
      opened_(std::move(opened)),
      events_(std::move(events)),
      owns_events_(owns_events) {}

CudaRegion::~CudaRegion() {
  if (opened_.empty() && !owns_events_) return;
  Close(*device_, opened_, owns_events_ ? std::span(events_) : std::span<const CUevent>());
}

// In the reverse order. Of a device that is out of service nothing is closed (CudaDevice says why).
void CudaRegion::Close(CudaDevice& device, std::span<const Opened> opened, std::span<const CUevent> events) {
  if (device.fenced() || (opened.empty() && events.empty())) return;
  const Driver& driver = device.driver();
  const ScopedContext current(driver, device.context());
  for (const CUevent event : events) driver.cuEventDestroy(event);
  for (auto one = opened.rbegin(); one != opened.rend(); ++one) {
    if (one->kind == HandleKind::kCudaIpc) {
      device.opened().Close(driver, one->ipc);
      continue;
    }
    if (one->is_mapped) driver.cuMemUnmap(one->base, one->bytes);
    driver.cuMemRelease(one->vmm);
    if (one->reserved_bytes != 0) driver.cuMemAddressFree(one->base, one->reserved_bytes);
  }
}

absl::StatusOr<std::shared_ptr<CudaRegion>> CudaRegion::Open(std::shared_ptr<CudaDevice> device, RegionLayout layout,
                                                             std::span<const AllocationHandle> allocations,
                                                             std::span<const EventHandle> events) {
  if (device->fenced()) return device->health();
  if (allocations.empty() || allocations.size() > RegionLayout::kMaxAllocations) {
    return absl::InvalidArgumentError(absl::StrCat("a region of ", allocations.size(), " allocations; 1 to ",
                                                   RegionLayout::kMaxAllocations));
  }
  if (events.size() > kMaxEvents) {
    return absl::InvalidArgumentError(absl::StrCat("a region of ", events.size(), " events; at most ", kMaxEvents));
  }
  const ScopedContext current(device->driver(), device->context());
  RETURN_IF_ERROR(device->Check(current.result(), "cuCtxPushCurrent"));
  Opener opener(*device);
  std::vector<uint64_t> sizes;
  std::vector<std::byte*> bases;
  for (size_t i = 0; i < allocations.size(); ++i) {
    ASSIGN_OR_RETURN(const uint64_t range_bytes, RangeBytes(allocations, i));
    RETURN_IF_ERROR(
        Annotated(opener.OpenAllocation(allocations[i], range_bytes), absl::StrCat("allocation ", i, ": ")));
    const bool is_range = allocations[i].kind == HandleKind::kCudaVmm;
    sizes.push_back(is_range ? range_bytes : opener.opened().back().bytes);
    bases.push_back(AsPointer(opener.opened().back().base));
  }
  RETURN_IF_ERROR(layout.Validate(sizes));
  for (size_t i = 0; i < events.size(); ++i) {
    RETURN_IF_ERROR(Annotated(opener.OpenEvent(events[i]), absl::StrCat("event ", i, ": ")));
  }
  return std::shared_ptr<CudaRegion>(
      absl::WrapUnique(new CudaRegion(std::move(device), std::move(layout), std::move(bases), opener.TakeOpened(),
                                      opener.TakeEvents(), /*owns_events=*/true)));
}

absl::StatusOr<std::shared_ptr<CudaRegion>> CudaRegion::Wrap(
    std::shared_ptr<CudaDevice> device, RegionLayout layout,
    std::span<const std::pair<CUdeviceptr, uint64_t>> allocations, std::vector<CUevent> events) {
  std::vector<uint64_t> sizes;
  std::vector<std::byte*> bases;
  for (const auto& [address, bytes] : allocations) {
    sizes.push_back(bytes);
    bases.push_back(AsPointer(address));
  }
  RETURN_IF_ERROR(layout.Validate(sizes));
  return std::shared_ptr<CudaRegion>(absl::WrapUnique(new CudaRegion(
      std::move(device), std::move(layout), std::move(bases), {}, std::move(events), /*owns_events=*/false)));
}

}  // namespace terrace::gpu
