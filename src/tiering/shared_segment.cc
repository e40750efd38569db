// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/shared_segment.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
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
constexpr mode_t kReadOnly = 0400;  // also for us: who opens it anew, through /proc or not, may only read
constexpr int kOpen = O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK;

absl::Status Failed(const char* what, uint64_t bytes) {
  return absl::ResourceExhaustedError(absl::StrCat(what, " of ", bytes, " bytes of shared memory failed: ",
                                                   std::strerror(errno),
                                                   "; see `terracectl doctor`"));
}

int Allocate(int fd, int mode, uint64_t offset, uint64_t bytes) {
  int result;
  do {
    result = fallocate(fd, mode, static_cast<off_t>(offset), static_cast<off_t>(bytes));
  } while (result != 0 && errno == EINTR);
  return result;
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
  return absl::WrapUnique(new SharedMemory(fd, fd, static_cast<std::byte*>(data), bytes, false));
}

absl::StatusOr<std::unique_ptr<SharedMemory>> SharedMemory::CreateFile(int dir_fd, const std::string& name,
                                                                       uint64_t bytes) {
  const int fd = openat(dir_fd, name.c_str(), O_RDWR | O_CREAT | O_EXCL | kOpen, kReadOnly);
  if (fd < 0 && errno == EEXIST) return absl::AlreadyExistsError(name);
  if (fd < 0) return Failed("making a file", bytes);
  absl::Status status;
  if (fchmod(fd, kReadOnly) != 0 || ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
    status = Failed("setting the size", bytes);
    close(fd);
  } else {
    auto made = MapFile(dir_fd, name, fd, bytes);
    if (made.ok()) return made;
    status = made.status();
  }
  unlinkat(dir_fd, name.c_str(), 0);
  return status;
}

absl::StatusOr<std::unique_ptr<SharedMemory>> SharedMemory::OpenFile(int dir_fd, const std::string& name,
                                                                     uint64_t bytes) {
  struct stat info {};
  if (fstatat(dir_fd, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) {
    return absl::DataLossError(absl::StrCat(name, ": ", std::strerror(errno)));
  }
  if (!S_ISREG(info.st_mode) || info.st_uid != geteuid() || info.st_nlink != 1 ||
      static_cast<uint64_t>(info.st_size) != bytes) {
    return absl::DataLossError(absl::StrCat(name, " is no file of ours of ", bytes, " bytes"));
  }
  // The owner may change the mode of what even the owner may not write.
  fchmodat(dir_fd, name.c_str(), kReadOnly | S_IWUSR, 0);
  const int fd = openat(dir_fd, name.c_str(), O_RDWR | kOpen);
  if (fd < 0 || fchmod(fd, kReadOnly) != 0) {
    const absl::Status status = absl::DataLossError(absl::StrCat(name, " cannot be opened: ", std::strerror(errno)));
    if (fd >= 0) close(fd);
    return status;
  }
  return MapFile(dir_fd, name, fd, bytes);
}

// Takes the descriptor over.
absl::StatusOr<std::unique_ptr<SharedMemory>> SharedMemory::MapFile(int dir_fd, const std::string& name, int fd,
                                                                    uint64_t bytes) {
  const int client_fd = openat(dir_fd, name.c_str(), O_RDONLY | kOpen);
  void* data = client_fd < 0 ? MAP_FAILED : mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) {
    const absl::Status status = Failed("mapping", bytes);
    close(fd);
    if (client_fd >= 0) close(client_fd);
    return status;
  }
  return absl::WrapUnique(new SharedMemory(fd, client_fd, static_cast<std::byte*>(data), bytes, true));
}

SharedMemory::~SharedMemory() {
  munmap(data_, bytes_);
  close(fd_);
  if (client_fd_ != fd_) close(client_fd_);
}

void SharedMemory::PreferHugePages() {
  prefers_huge_ = true;
  madvise(data_, bytes_, MADV_HUGEPAGE);
}

void SharedMemory::Populate(uint64_t offset, uint64_t bytes) {
  if (madvise(data_ + offset, bytes, MADV_POPULATE_WRITE) == 0) return;
  // Kernels before 5.14: read a byte of each page. The first write then costs a fault after all, but
  // the kernel has its page.
  for (uint64_t at = offset; at < offset + bytes; at += 4096) {
    *static_cast<volatile std::byte*>(data_ + at);
  }
}

absl::Status SharedMemory::Reserve(uint64_t offset, uint64_t bytes) {
  // Advice belongs to the mapping: fallocate would not see it and take small pages. A page that cannot be
  // had is an error here, not a signal.
  if (is_file_ && prefers_huge_ && madvise(data_ + offset, bytes, MADV_POPULATE_WRITE) == 0) return absl::OkStatus();
  if (!is_file_ || Allocate(fd_, FALLOC_FL_KEEP_SIZE, offset, bytes) == 0) return absl::OkStatus();
  const std::string why = std::strerror(errno);
  Punch(offset, bytes);  // others use the file system, too: what could be had of it is given back
  return absl::ResourceExhaustedError(absl::StrCat("reserving ", bytes, " bytes: ", why));
}

bool SharedMemory::IsReserved() const {
  struct stat info {};
  return !is_file_ || (fstat(fd_, &info) == 0 && static_cast<uint64_t>(info.st_blocks) * 512 >= bytes_);
}

void SharedMemory::Punch(uint64_t offset, uint64_t bytes) {
  Allocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes);
}

bool SharedMemory::Read(uint64_t offset, std::byte* target, uint64_t bytes) const {
  while (bytes > 0) {
    const ssize_t n = pread(fd_, target, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    offset += static_cast<uint64_t>(n);
    target += n;
    bytes -= static_cast<uint64_t>(n);
  }
  return true;
}

}  // namespace terrace::tiering
