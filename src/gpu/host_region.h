// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// HostRegion: a region in host memory: shared memory that an engine registered, or memory of this process.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu/region.h"

namespace terrace::gpu {

// Owner, threads: as Region. Unmaps what it mapped.
class HostRegion final : public Region {
 public:
  // Maps the descriptors read-write and checks the layout against their real sizes. InvalidArgument: not sealed
  // against shrinking (F_SEAL_SHRINK: a file that shrinks would kill this process), a sparse file (its holes would be
  // filled on this process's account, outside of its budget), or another kind of handle.
  static absl::StatusOr<std::shared_ptr<HostRegion>> Open(RegionLayout layout,
                                                          std::span<const AllocationHandle> allocations);
  // Memory of this process; it must stay until the region's last owner lets go.
  static absl::StatusOr<std::shared_ptr<HostRegion>> Wrap(RegionLayout layout,
                                                          std::span<const std::span<std::byte>> allocations);
  ~HostRegion() override;

 private:
  struct Mapping {
    void* base;
    uint64_t bytes;
  };
  HostRegion(RegionLayout layout, std::vector<std::byte*> bases, std::vector<Mapping> mappings);
  const std::vector<Mapping> mappings_;
};

}  // namespace terrace::gpu
