// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/shared_segment.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace terrace::tiering {
namespace {

constexpr uint64_t kHugePage = 2 << 20;

absl::Status Failed(const char* what, uint64_t bytes) {
  return absl::ResourceExhaustedError(absl::StrCat(what, " of ", bytes, " bytes of shared memory failed: ",
                                                   std::strerror(errno),
                                                   "; see `terracectl doctor`"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<SharedMemory>> SharedMemory::Create(const char* name, uint64_t bytes,
                                                                   Clients clients, bool huge) {
  if (huge && bytes % kHugePage != 0) return absl::UnavailableError("not a multiple of a huge page");
  const int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | (huge ? MFD_HUGETLB : 0));
  if (fd < 0) return Failed("memfd_create", bytes);
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
    const absl::Status status = Failed("ftruncate", bytes);
    close(fd);
    return status;
  }
  // Without MAP_NORESERVE a hugetlb mapping reserves its pages here or fails here: never a SIGBUS later.
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) {
    const absl::Status status = Failed("mmap", bytes);
    close(fd);
    return huge ? absl::UnavailableError(status.message()) : status;
  }
  // FUTURE_WRITE leaves our own mapping writable and forbids every later one, even through
  // /proc/self/fd of a client with our user id.
  int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  if (clients == Clients::kMayOnlyRead) seals |= F_SEAL_FUTURE_WRITE;
  if (fcntl(fd, F_ADD_SEALS, seals) != 0) {
    const absl::Status status = Failed("sealing", bytes);
    munmap(data, bytes);
    close(fd);
    return status;
  }
  return absl::WrapUnique(new SharedMemory(fd, static_cast<std::byte*>(data), bytes));
}

SharedMemory::~SharedMemory() {
  munmap(data_, bytes_);
  close(fd_);
}

void SharedMemory::PreferHugePages() { madvise(data_, bytes_, MADV_HUGEPAGE); }

void SharedMemory::Populate(uint64_t offset, uint64_t bytes) {
  if (madvise(data_ + offset, bytes, MADV_POPULATE_WRITE) == 0) return;
  // Kernels before 5.14: read a byte of each page. The first write then costs a fault after all, but
  // the kernel has its page.
  for (uint64_t at = offset; at < offset + bytes; at += 4096) {
    *static_cast<volatile std::byte*>(data_ + at);
  }
}

}  // namespace terrace::tiering
