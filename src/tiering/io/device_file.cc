// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/io/device_file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"

namespace terrace::tiering {
namespace {

// What a killed daemon still has in flight keeps its descriptor, and with it the lock, for a moment.
constexpr int kDeadHolderTries = 200;
constexpr long kDeadHolderPauseNs = 5'000'000;

constexpr char kNotOurs[] =
    "holds something that is not Terrace's; to let it be used, remove it or overwrite its first MiB with zeros";

absl::Status Failed(const std::string& path, const char* what, int error) {
  const std::string text = absl::StrCat(path, ": ", what, ": ", std::strerror(error));
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) return absl::ResourceExhaustedError(text);
  return absl::UnavailableError(text);
}

// The process that holds an flock on this inode; 0: none, or not to be seen from here.
pid_t LockHolder(const struct stat& file) {
  std::ifstream locks("/proc/locks");
  char wanted[64];
  std::snprintf(wanted, sizeof(wanted), "%02x:%02x:%lu", major(file.st_dev), minor(file.st_dev),
                static_cast<unsigned long>(file.st_ino));
  std::string number, kind, mode, access, pid, inode, rest;
  while (locks >> number >> kind >> mode >> access >> pid >> inode && std::getline(locks, rest)) {
    if (kind == "FLOCK" && inode == wanted) return static_cast<pid_t>(std::atol(pid.c_str()));
  }
  return 0;
}

bool IsAlive(pid_t process) { return process > 0 && (kill(process, 0) == 0 || errno == EPERM); }

// Tries until take() no longer says that somebody else holds it, a living holder is found, or a dead one
// should be gone. One daemon a file.
absl::Status Claim(const std::string& path, const char* unseen, const std::function<bool()>& take) {
  pid_t holder = 0;
  for (int i = 0; i < kDeadHolderTries; ++i) {
    if (take()) return absl::OkStatus();
    struct stat info {};
    holder = stat(path.c_str(), &info) == 0 ? LockHolder(info) : 0;
    if (IsAlive(holder)) break;
    const timespec pause = {0, kDeadHolderPauseNs};
    clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, nullptr);
  }
  return absl::FailedPreconditionError(absl::StrCat(path, " is in use by ",
                                                    holder > 0 ? absl::StrCat("process ", holder) : unseen,
                                                    "; each daemon needs a file of its own"));
}

absl::Status Lock(int fd, const std::string& path) {
  int error = 0;
  RETURN_IF_ERROR(Claim(path, "a process that cannot be seen from here", [&] {
    error = flock(fd, LOCK_EX | LOCK_NB) == 0 ? 0 : errno;
    return error != EWOULDBLOCK && error != EINTR;
  }));
  return error == 0 ? absl::OkStatus() : Failed(path, "lock", error);
}

// Opens without following a link, but for the names that udev gives to devices.
absl::StatusOr<int> OpenPath(const std::string& path, bool* is_new) {
  constexpr int kFlags = O_RDWR | O_CLOEXEC | O_NOFOLLOW;
  struct stat info {};
  const bool is_udev_name = absl::StartsWith(path, "/dev/") && stat(path.c_str(), &info) == 0 && S_ISBLK(info.st_mode);
  if (!is_udev_name && lstat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(
        path, " is ", S_ISDIR(info.st_mode) ? "a directory" : S_ISLNK(info.st_mode) ? "a symbolic link" : "no file",
        "; name a regular file or a block device"));
  }
  *is_new = false;
  if (S_ISBLK(info.st_mode)) {  // O_EXCL claims it, from mounts too
    int fd = -1, error = 0;
    RETURN_IF_ERROR(Claim(path, "a mounted file system or another process", [&] {
      fd = open(path.c_str(), O_RDWR | O_CLOEXEC | O_EXCL);
      error = errno;
      return fd >= 0 || error != EBUSY;
    }));
    return fd >= 0 ? absl::StatusOr<int>(fd) : Failed(path, "open", error);
  }
  int fd = open(path.c_str(), kFlags);
  if (fd < 0 && errno == ENOENT) {
    fd = open(path.c_str(), kFlags | O_CREAT | O_EXCL, 0600);
    *is_new = fd >= 0;
  }
  if (fd >= 0) return fd;
  if (errno == ELOOP) return absl::FailedPreconditionError(absl::StrCat(path, " is a symbolic link"));
  return Failed(path, "open", errno);
}

// As large as asked for, every byte of it reserved: a full file system must not show at a write.
absl::Status Reserve(int fd, const std::string& path, uint64_t bytes) {
  struct stat before {};
  if (fstat(fd, &before) != 0) return Failed(path, "stat", errno);
  const auto size = static_cast<off_t>(bytes);
  // Asked first: an attempt that fails would fill the file system under everybody else for a moment.
  struct statvfs space {};
  const uint64_t has = static_cast<uint64_t>(before.st_blocks) * 512;
  if (fstatvfs(fd, &space) == 0 && bytes > has && bytes - has > space.f_bavail * space.f_frsize) {
    return absl::ResourceExhaustedError(absl::StrCat(path, ": ", bytes, " bytes asked for, the file system has ",
                                                     space.f_bavail * space.f_frsize, " to give"));
  }
  if (before.st_size > size && ftruncate(fd, size) != 0) return Failed(path, "truncate", errno);
  int result;
  do {
    result = fallocate(fd, 0, 0, size);
  } while (result != 0 && errno == EINTR);
  if (result == 0) return absl::OkStatus();
  const int error = errno;
  if (before.st_size < size && ftruncate(fd, before.st_size) != 0) {
    Log(LogLevel::kWarning, "device_file_left_large", {{"path", path}, {"error", std::strerror(errno)}});
  }
  if (error == EOPNOTSUPP) {
    return absl::FailedPreconditionError(absl::StrCat(
        path, ": this file system reserves no space (no fallocate); use ext4, xfs, btrfs or a block device"));
  }
  return Failed(path, absl::StrCat("reserving ", bytes, " bytes").c_str(), error);
}

// Reads what decides whose file this is. Short where the file is.
absl::StatusOr<std::vector<std::byte>> ReadHead(int fd, const std::string& path) {
  constexpr size_t kHeadBytes = 1 << 20;
  std::vector<std::byte> head(kHeadBytes);
  size_t has = 0;
  while (has < kHeadBytes) {
    const ssize_t n = pread(fd, head.data() + has, kHeadBytes - has, static_cast<off_t>(has));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Failed(path, "read", errno);
    if (n == 0) break;
    has += static_cast<size_t>(n);
  }
  head.resize(has);
  return head;
}

absl::Status PrepareFile(int fd, const BlockDeviceOptions& options, const struct stat& info, bool is_new) {
  const std::string& path = options.path;
  if (options.bytes == 0) return absl::InvalidArgumentError(absl::StrCat(path, ": a file needs a size"));
  if (info.st_uid != geteuid() && geteuid() != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " belongs to user ", info.st_uid, ", not to this daemon's (", geteuid(), ")"));
  }
  if (options.is_ours && info.st_size > 0) {
    ASSIGN_OR_RETURN(const std::vector<std::byte> head, ReadHead(fd, path));
    if (!options.is_ours(head)) {
      return absl::FailedPreconditionError(absl::StrCat(path, ": ", kNotOurs));
    }
  }
  // What engines computed is as private as the prompts it came from.
  if ((info.st_mode & 0777) != 0600 && fchmod(fd, 0600) != 0) return Failed(path, "chmod", errno);
  RETURN_IF_ERROR(Reserve(fd, path, options.bytes));
  if (!is_new) return absl::OkStatus();
  if (fsync(fd) != 0) return Failed(path, "fsync", errno);
  const size_t slash = path.rfind('/');
  const std::string directory = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const int directory_fd = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory_fd < 0) return Failed(directory, "open", errno);
  const int synced = fsync(directory_fd);
  const int error = errno;
  close(directory_fd);
  return synced == 0 ? absl::OkStatus() : Failed(directory, "fsync", error);
}

absl::StatusOr<uint64_t> DiskBytes(int fd, const BlockDeviceOptions& options) {
  uint64_t bytes = 0;
  if (ioctl(fd, BLKGETSIZE64, &bytes) != 0) return Failed(options.path, "size", errno);
  if (options.bytes > bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat(options.path, " has ", bytes, " bytes, ", options.bytes, " are asked for"));
  }
  return options.bytes == 0 ? bytes / kIoAlign * kIoAlign : options.bytes;
}

// Whether reads past the page cache work here: some file systems say so only at the first of them.
bool TrySetDirect(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_DIRECT) != 0) return false;
  const std::unique_ptr<void, decltype(&std::free)> page(std::aligned_alloc(kIoAlign, kIoAlign), &std::free);
  if (pread(fd, page.get(), kIoAlign, 0) >= 0 || errno != EINVAL) return true;
  fcntl(fd, F_SETFL, flags);
  return false;
}

}  // namespace

DeviceFile& DeviceFile::operator=(DeviceFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(bytes_, other.bytes_);
  std::swap(is_direct_, other.is_direct_);
  std::swap(is_new_, other.is_new_);
  std::swap(path_, other.path_);
  return *this;
}

DeviceFile::~DeviceFile() {
  if (fd_ < 0) return;
  flock(fd_, LOCK_UN);  // a ring may keep the file itself open for a moment longer
  close(fd_);
}

bool DeviceFile::IsInPlace() const {
  struct stat open_file {}, named {};
  if (fstat(fd_, &open_file) != 0) return true;  // nothing is known
  if (stat(path_.c_str(), &named) != 0) return errno != ENOENT && errno != ENOTDIR;
  if (S_ISBLK(open_file.st_mode)) return open_file.st_rdev == named.st_rdev;
  return open_file.st_dev == named.st_dev && open_file.st_ino == named.st_ino;
}

bool DeviceFile::RemoveIfNew() const {
  // Under our lock: nobody else has taken it up.
  return is_new_ && IsInPlace() && unlink(path_.c_str()) == 0;
}

absl::StatusOr<DeviceFile> DeviceFile::Open(const BlockDeviceOptions& options) {
  if (options.bytes % kIoAlign != 0) {
    return absl::InvalidArgumentError(absl::StrCat(options.path, ": size is no multiple of ", kIoAlign));
  }
  DeviceFile file;
  file.path_ = options.path;
  ASSIGN_OR_RETURN(file.fd_, OpenPath(options.path, &file.is_new_));
  RETURN_IF_ERROR(Lock(file.fd_, options.path));
  struct stat info {};
  if (fstat(file.fd_, &info) != 0) return Failed(options.path, "stat", errno);
  if (S_ISBLK(info.st_mode)) {
    ASSIGN_OR_RETURN(file.bytes_, DiskBytes(file.fd_, options));
  } else if (S_ISREG(info.st_mode)) {
    if (const absl::Status status = PrepareFile(file.fd_, options, info, file.is_new_); !status.ok()) {
      file.RemoveIfNew();
      return status;
    }
    file.bytes_ = options.bytes;
  } else {
    return absl::FailedPreconditionError(absl::StrCat(options.path, " is neither a file nor a block device"));
  }
  if (options.direct) {
    file.is_direct_ = TrySetDirect(file.fd_);
    static std::atomic<bool> was_said{false};
    if (!file.is_direct_ && !was_said.exchange(true)) {
      Log(LogLevel::kWarning, "nvme_not_direct",
          {{"path", options.path},
           {"fix", "this file system has no O_DIRECT: the page cache stands between; use ext4 or xfs"}});
    }
  }
  return file;
}

}  // namespace terrace::tiering
