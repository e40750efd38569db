// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/host_region.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"

namespace terrace::gpu {
namespace {

absl::Status Refuse(size_t i, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("allocation ", i, ": ", what));
}

// Whether a file can be mapped without danger: touching a mapped page must never raise SIGBUS. So: memory, not a
// disk; no huge-page file, whose holes may find no page; and nobody can make it shorter any more. And without cost:
// the file has all its memory. (An engine may punch holes later, and make this process pay for what it had paid for
// itself; the machine's memory in use does not grow by it.)
absl::Status CheckFile(size_t i, const AllocationHandle& handle) {
  if (handle.kind != HandleKind::kHostFd || handle.fd < 0) return Refuse(i, "not a descriptor of host memory");
  struct stat file {};
  struct statfs where {};
  if (fstat(handle.fd, &file) != 0 || fstatfs(handle.fd, &where) != 0) {
    return Refuse(i, absl::StrCat("descriptor ", handle.fd, ": ", std::strerror(errno)));
  }
  if (!S_ISREG(file.st_mode) || where.f_type != TMPFS_MAGIC) {
    return Refuse(i, "not a file in memory: make it with memfd_create()");
  }
  const int seals = fcntl(handle.fd, F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return Refuse(i, "not sealed against shrinking: memfd_create(MFD_ALLOW_SEALING), then F_SEAL_SHRINK");
  }
  if (handle.bytes == 0 || handle.bytes > static_cast<uint64_t>(file.st_size)) {
    return Refuse(i, absl::StrCat(handle.bytes, " bytes of a file of ", file.st_size));
  }
  // Touching a hole, for reading too, takes memory, on the account of whoever touches it: this process.
  if (const uint64_t allocated = static_cast<uint64_t>(file.st_blocks) * 512;
      allocated < static_cast<uint64_t>(file.st_size)) {
    return Refuse(i, absl::StrCat("of a file of ", file.st_size, " bytes only ", allocated,
                                  " have memory: call posix_fallocate() first"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<HostRegion>> HostRegion::Open(RegionLayout layout,
                                                             std::span<const AllocationHandle> allocations) {
  std::vector<uint64_t> sizes;
  for (size_t i = 0; i < allocations.size(); ++i) {
    RETURN_IF_ERROR(CheckFile(i, allocations[i]));
    sizes.push_back(allocations[i].bytes);  // no more than it has; what was checked cannot get less
  }
  RETURN_IF_ERROR(layout.Validate(sizes));
  std::vector<Mapping> mappings;
  std::vector<std::byte*> bases;
  for (size_t i = 0; i < allocations.size(); ++i) {
    void* base = mmap(nullptr, sizes[i], PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, allocations[i].fd, 0);
    if (base == MAP_FAILED) {
      const int error = errno;
      for (const Mapping& mapping : mappings) munmap(mapping.base, mapping.bytes);
      return Refuse(i, absl::StrCat("cannot be mapped for reading and writing: ", std::strerror(error)));
    }
    madvise(base, sizes[i], MADV_DONTDUMP);  // an engine's memory is not ours to put into a core file
    mappings.push_back({base, sizes[i]});
    bases.push_back(static_cast<std::byte*>(base));
  }
  std::shared_ptr<HostRegion> region =
      absl::WrapUnique(new HostRegion(std::move(layout), std::move(bases), std::move(mappings)));
  return region;
}

absl::StatusOr<std::shared_ptr<HostRegion>> HostRegion::Wrap(RegionLayout layout,
                                                             std::span<const std::span<std::byte>> allocations) {
  std::vector<uint64_t> sizes;
  std::vector<std::byte*> bases;
  for (const std::span<std::byte> allocation : allocations) {
    sizes.push_back(allocation.size());
    bases.push_back(allocation.data());
  }
  RETURN_IF_ERROR(layout.Validate(sizes));
  std::shared_ptr<HostRegion> region = absl::WrapUnique(new HostRegion(std::move(layout), std::move(bases), {}));
  return region;
}

HostRegion::HostRegion(RegionLayout layout, std::vector<std::byte*> bases, std::vector<Mapping> mappings)
    : Region(std::move(layout), std::move(bases), /*is_device=*/false, /*n_events=*/0),
      mappings_(std::move(mappings)) {}

HostRegion::~HostRegion() {
  for (const Mapping& mapping : mappings_) munmap(mapping.base, mapping.bytes);
}

}  // namespace terrace::gpu
