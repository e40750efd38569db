// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/region.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace terrace::client {
namespace {

using ull = unsigned long long;  // for printf
constexpr size_t kProgressBytes = wire::kRegionSlots * sizeof(wire::RegionProgress);

Result CheckShared(const terrace_shared_memory& memory, uint32_t i) {
  struct stat info;
  if (memory.base == nullptr || memory.bytes == 0) {
    return Fail(TERRACE_INVALID_ARGUMENT, "memory[%u]: base is NULL or bytes is 0", i);
  }
  if (fstat(memory.fd, &info) != 0) {
    return Fail(TERRACE_INVALID_ARGUMENT, "memory[%u].fd %d: %s", i, memory.fd,
                strerrordesc_np(errno));
  }
  if (static_cast<uint64_t>(info.st_size) < memory.bytes) {
    return Fail(TERRACE_INVALID_ARGUMENT, "memory[%u].bytes is %llu, its file has %llu", i,
                ull{memory.bytes}, static_cast<ull>(info.st_size));
  }
  const int seals = fcntl(memory.fd, F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return Fail(TERRACE_INVALID_ARGUMENT,
                "memory[%u].fd is not sealed against shrinking: make it with "
                "memfd_create(MFD_ALLOW_SEALING) "
                "and fcntl(F_ADD_SEALS, F_SEAL_SHRINK)",
                i);
  }
  return {};
}

// Memory that nobody has touched yet is taken here, by the process whose it is; the daemon opens no
// sparse file. Where it cannot be had the daemon says why it does not copy.
void TakeMemory(const terrace_shared_memory& memory) {
  while (fallocate(memory.fd, 0, 0, static_cast<off_t>(memory.bytes)) != 0 && errno == EINTR) {
  }
}

}  // namespace

Result OpenRegion::Map(int progress_fd, uint64_t epoch, uint64_t connection, uint32_t id,
                       std::shared_ptr<OpenRegion>* out) {
  struct stat info;
  // A file shorter than its mapping would kill this process with SIGBUS.
  if (fstat(progress_fd, &info) != 0 || static_cast<uint64_t>(info.st_size) < kProgressBytes) {
    return Fail(TERRACE_INTERNAL, "the daemon's progress memory of a region is too short");
  }
  void* memory = mmap(nullptr, kProgressBytes, PROT_READ, MAP_SHARED, progress_fd, 0);
  if (memory == MAP_FAILED) {
    return Fail(TERRACE_RESOURCE_EXHAUSTED, "cannot map a region's progress: %s",
                strerrordesc_np(errno));
  }
  (void)madvise(memory, kProgressBytes, MADV_DONTFORK);
  std::shared_ptr<OpenRegion> opened(new OpenRegion);
  opened->epoch_ = epoch;
  opened->connection_ = connection;
  opened->id_ = id;
  opened->progress_ = static_cast<const wire::RegionProgress*>(memory);
  for (uint32_t slot = wire::kRegionSlots; slot > 0; --slot)
    opened->free_slots_.push_back(slot - 1);
  *out = std::move(opened);
  return {};
}

OpenRegion::~OpenRegion() { munmap(const_cast<wire::RegionProgress*>(progress_), kProgressBytes); }

uint32_t OpenRegion::Progress(uint32_t slot, uint32_t request_id) const {
  const uint64_t value = __atomic_load_n(&progress_[slot].value, __ATOMIC_ACQUIRE);
  return value >> 32 == request_id ? static_cast<uint32_t>(value) : 0;
}

bool OpenRegion::TakeSlot(uint32_t* slot) {
  if (free_slots_.empty()) return false;
  *slot = free_slots_.back();
  free_slots_.pop_back();
  return true;
}

OwnedFd::~OwnedFd() {
  if (fd_ >= 0) close(fd_);
}

// REQUIRES: the planes were checked by Pages::Create.
Result Region::FromSharedMemory(const terrace_shared_memory* memory, uint32_t n_memory,
                                const terrace_plane* planes, uint32_t n_planes, uint64_t n_blocks,
                                std::shared_ptr<Region>* out) {
  if (memory == nullptr) return Fail(TERRACE_INVALID_ARGUMENT, "memory is NULL");
  if (n_memory == 0 || n_memory > wire::kMaxRegionFds) {
    return Fail(TERRACE_INVALID_ARGUMENT, "n_memory is %u, must be 1 to %u", n_memory,
                wire::kMaxRegionFds);
  }
  if (n_planes > wire::kMaxRegionPlanes) {
    return Fail(TERRACE_INVALID_ARGUMENT, "n_planes is %u, at most %u", n_planes,
                wire::kMaxRegionPlanes);
  }
  Source source;
  source.n_pages = n_blocks;
  for (uint32_t i = 0; i < n_memory; ++i) {
    if (Result checked = CheckShared(memory[i], i); !checked.ok()) return checked;
    TakeMemory(memory[i]);
  }
  for (uint32_t p = 0; p < n_planes; ++p) {
    const auto base = reinterpret_cast<uintptr_t>(planes[p].base);
    const uint64_t extent = planes[p].stride * (n_blocks - 1) + planes[p].bytes;
    uint32_t i = 0;
    for (; i < n_memory; ++i) {
      const auto start = reinterpret_cast<uintptr_t>(memory[i].base);
      if (base >= start && base - start <= memory[i].bytes &&
          extent <= memory[i].bytes - (base - start))
        break;
    }
    if (i == n_memory) {
      return Fail(TERRACE_INVALID_ARGUMENT,
                  "planes[%u] (%p, %llu bytes in all) lies in none of the files", p, planes[p].base,
                  ull{extent});
    }
    // With one page nobody has looked at the stride yet.
    source.planes.push_back({i, 0, base - reinterpret_cast<uintptr_t>(memory[i].base),
                             std::max(planes[p].stride, planes[p].bytes), planes[p].bytes});
  }
  for (uint32_t i = 0; i < n_memory; ++i) {
    Allocation allocation;
    allocation.said.bytes = memory[i].bytes;
    allocation.fd = OwnedFd(fcntl(memory[i].fd, F_DUPFD_CLOEXEC, 0));
    if (allocation.fd.get() < 0) {
      return Fail(TERRACE_RESOURCE_EXHAUSTED, "no descriptor left; raise the limit (ulimit -n)");
    }
    source.allocations.push_back(std::move(allocation));
  }
  *out = std::make_shared<Region>(std::move(source));
  return {};
}

std::shared_ptr<OpenRegion> Region::opened() const {
  std::lock_guard lock(mu_);
  return opened_;
}

std::string Region::why() const {
  std::lock_guard lock(mu_);
  return why_;
}

void Region::SetOpened(std::shared_ptr<OpenRegion> opened) {
  std::lock_guard lock(mu_);
  opened_ = std::move(opened);
  why_.clear();
  attempted_ = true;
  changed_.notify_all();
}

void Region::SetClosed(std::string why) {
  std::lock_guard lock(mu_);
  opened_.reset();
  why_ = std::move(why);
  attempted_ = true;
  changed_.notify_all();
}

void Region::WaitFirstAttempt(Deadline deadline) {
  std::unique_lock lock(mu_);
  changed_.wait_until(lock, deadline.AsTimePoint(), [this] { return attempted_; });
}

}  // namespace terrace::client
