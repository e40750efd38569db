// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/server/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/memory/memory.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kvstore/base/status_macros.h"

namespace terrace::api {
namespace {

std::string ErrnoText() { return std::strerror(errno); }

// A descriptor of the directory, checked. The caller closes it.
absl::StatusOr<int> OpenRunDir(const std::string& run_dir) {
  if (mkdir(run_dir.c_str(), 0750) != 0 && errno != EEXIST) {
    return absl::FailedPreconditionError(
        absl::StrCat("run_dir ", run_dir, " cannot be made: ", ErrnoText(), "; make it and give it to this user (",
                     geteuid(), "), or set run_dir"));
  }
  const int fd = open(run_dir.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("run_dir ", run_dir, " cannot be opened: ", ErrnoText(),
                     "; it must be a directory of this user, not a symlink"));
  }
  struct stat info {};
  std::string wrong;
  if (fstat(fd, &info) != 0) {
    wrong = ErrnoText();
  } else if (info.st_uid != geteuid()) {
    wrong = absl::StrCat("it belongs to user ", info.st_uid, ", this process runs as ", geteuid(),
                         "; chown it, or set run_dir");
  } else if ((info.st_mode & S_IWOTH) != 0 && (info.st_mode & S_ISVTX) == 0) {
    wrong = absl::StrFormat("everyone may replace files in it (mode %04o); chmod o-w it", info.st_mode & 07777);
  }
  if (wrong.empty()) return fd;
  close(fd);
  return absl::FailedPreconditionError(absl::StrCat("run_dir ", run_dir, " is refused: ", wrong));
}

// What a holder wrote, "" when it has not yet.
std::string ReadHolder(int fd) {
  char text[32] = {};
  const ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
  const absl::string_view pid = absl::StripAsciiWhitespace(absl::string_view(text, n > 0 ? static_cast<size_t>(n) : 0));
  return {pid.data(), pid.size()};
}

}  // namespace

absl::StatusOr<std::unique_ptr<RunLock>> RunLock::Acquire(const std::string& run_dir) {
  ASSIGN_OR_RETURN(const int dir, OpenRunDir(run_dir));
  const int fd = openat(dir, "terraced.lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0640);
  const int open_errno = errno;
  close(dir);
  const std::string path = absl::StrCat(run_dir, "/terraced.lock");
  if (fd < 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " cannot be opened: ", std::strerror(open_errno),
                     open_errno == ELOOP ? "; somebody put a symlink there: look who, then remove it"
                                         : "; this user must be able to write in run_dir"));
  }
  auto lock = absl::WrapUnique(new RunLock(fd));
  struct stat info {};
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_uid != geteuid() || info.st_nlink != 1) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " is no plain file of this user; look who made it, then remove it"));
  }
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) {
      return absl::FailedPreconditionError(absl::StrCat(path, " cannot be locked: ", ErrnoText()));
    }
    const std::string holder = ReadHolder(fd);
    return absl::AlreadyExistsError(absl::StrCat("run_dir ", run_dir, " is held by another terraced",
                                                 holder.empty() ? "" : absl::StrCat(", pid ", holder),
                                                 "; stop it, or give this one another run_dir"));
  }
  const std::string pid = absl::StrCat(getpid(), "\n");
  if (ftruncate(fd, 0) != 0 || pwrite(fd, pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    return absl::FailedPreconditionError(absl::StrCat(path, " cannot be written: ", ErrnoText(),
                                                      "; make room, or set run_dir"));
  }
  return lock;
}

RunLock::~RunLock() { close(fd_); }

}  // namespace terrace::api
