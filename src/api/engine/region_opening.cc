// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/engine/region_opening.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "api/engine/packet_body.h"
#include "api/engine/wire_region.h"
#include "kvstore/base/status_macros.h"

namespace terrace::api {
namespace {

static_assert(wire::kMaxRegionPlanes == gpu::RegionLayout::kMaxPlanes);
static_assert(wire::kMaxRegionAllocations == gpu::RegionLayout::kMaxAllocations);

absl::StatusOr<gpu::AllocationHandle> ToHandle(const wire::RegionAllocation& said, bool is_host) {
  if (said.kind > static_cast<uint32_t>(gpu::HandleKind::kCudaVmm) ||
      (said.flags & ~wire::kRegionAllocationContinues) != 0) {
    return Malformed(absl::StrCat("RegisterRegion: an allocation of kind ", said.kind, ", flags ", said.flags));
  }
  gpu::AllocationHandle handle;
  handle.kind = static_cast<gpu::HandleKind>(said.kind);
  if ((handle.kind == gpu::HandleKind::kHostFd) != is_host) {
    return absl::InvalidArgumentError(
        is_host ? "an allocation of a GPU in a region of host memory; name the GPU in device_uuid"
                : "an allocation of host memory in a region of a GPU; leave device_uuid zero");
  }
  handle.bytes = said.bytes;
  handle.continues = (said.flags & wire::kRegionAllocationContinues) != 0;
  if (handle.continues && handle.kind != gpu::HandleKind::kCudaVmm) {
    return absl::InvalidArgumentError("only VMM memory continues an allocation");
  }
  std::memcpy(handle.ipc.data(), said.ipc, sizeof(said.ipc));
  return handle;
}

}  // namespace

PacketFds::~PacketFds() {
  for (const int fd : fds_) close(fd);
}

absl::StatusOr<std::unique_ptr<RegionOpening>> RegionOpening::Parse(std::span<const std::byte> body, PacketFds* fds,
                                                                    uint64_t bytes_max) {
  auto opening = std::make_unique<RegionOpening>();
  opening->fds.Swap(fds);
  wire::RegisterRegion said;
  if (!Take(&body, &said) || said.reserved != 0) return Malformed("RegisterRegion");
  if (said.n_allocations == 0 || said.n_allocations > wire::kMaxRegionAllocations || said.n_planes == 0 ||
      said.n_planes > wire::kMaxRegionPlanes || said.n_events > wire::kMaxRegionEvents ||
      body.size() != said.n_allocations * sizeof(wire::RegionAllocation) +
                         said.n_planes * sizeof(wire::RegionPlane) + said.n_events * sizeof(gpu::EventHandle)) {
    return Malformed(absl::StrCat("RegisterRegion of ", said.n_allocations, " allocations, ", said.n_planes,
                                  " planes and ", said.n_events, " events in ", body.size(), " bytes"));
  }
  std::memcpy(opening->device_uuid.data(), said.device_uuid, sizeof(said.device_uuid));
  const bool is_host = opening->device_uuid == gpu::DeviceUuid{};
  size_t n_fds = 0;
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < said.n_allocations; ++i) {
    wire::RegionAllocation allocation;
    Take(&body, &allocation);
    ASSIGN_OR_RETURN(gpu::AllocationHandle handle, ToHandle(allocation, is_host));
    if (handle.kind != gpu::HandleKind::kCudaIpc) {
      if (n_fds < opening->fds.size()) handle.fd = opening->fds[n_fds];
      ++n_fds;
    }
    if (handle.bytes > bytes_max - std::min(bytes, bytes_max)) {
      return absl::InvalidArgumentError(
          absl::StrCat("a region of more than ", bytes_max, " bytes (engine.region_bytes_max)"));
    }
    bytes += handle.bytes;
    opening->allocations.push_back(handle);
  }
  if (n_fds != opening->fds.size() || n_fds > wire::kMaxRegionFds) {
    return Malformed(absl::StrCat("RegisterRegion with ", opening->fds.size(), " descriptors for ", n_fds,
                                  " allocations that have one (at most ", wire::kMaxRegionFds, ")"));
  }
  for (uint32_t i = 0; i < said.n_planes; ++i) {
    wire::RegionPlane plane;
    Take(&body, &plane);
    if (plane.reserved != 0) return Malformed("RegisterRegion: plane");
    opening->layout.planes.push_back({plane.allocation, plane.offset, plane.stride, plane.bytes});
  }
  opening->layout.n_pages = said.n_pages;
  opening->events.resize(said.n_events);
  for (gpu::EventHandle& event : opening->events) Take(&body, &event);
  return opening;
}

}  // namespace terrace::api
