// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/door/socket_path.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"

namespace terrace::api {
namespace {

constexpr int kBacklog = 256;

sockaddr_un AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

absl::Status SystemError(absl::string_view what, const std::string& path, int error) {
  const std::string text = absl::StrCat(what, " ", path, ": ", std::strerror(error));
  if (error == EACCES || error == EPERM) return absl::PermissionDeniedError(text);
  return absl::FailedPreconditionError(text);
}

// Makes room at path, or says why that must not be.
absl::Status RemoveStale(const std::string& path, int type) {
  struct stat info {};
  if (lstat(path.c_str(), &info) != 0) {
    return errno == ENOENT ? absl::OkStatus() : SystemError("cannot look at", path, errno);
  }
  if (!S_ISSOCK(info.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " exists and is ", S_ISLNK(info.st_mode) ? "a symlink" : "not a socket",
                     "; it is left alone: remove it or configure another path"));
  }
  if (info.st_uid != geteuid()) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " is a socket of user id ", info.st_uid,
                     "; it is left alone: remove it or configure another path"));
  }
  const int probe = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (probe < 0) return SystemError("cannot make a socket for", path, errno);
  const sockaddr_un address = AddressOf(path);
  const int rc = connect(probe, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  const int error = errno;
  close(probe);
  if (rc != 0 && error == ECONNREFUSED) {  // nobody listens: left behind by a dead process
    if (unlink(path.c_str()) != 0 && errno != ENOENT)
      return SystemError("cannot remove", path, errno);
    return absl::OkStatus();
  }
  return absl::UnavailableError(
      absl::StrCat("another process listens on ", path, "; stop it or configure another path"));
}

}  // namespace

absl::StatusOr<UnixListener> UnixListener::Listen(const std::string& path, uint32_t mode,
                                                  int type) {
  if (path.empty() || path.size() >= sizeof(sockaddr_un{}.sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("socket path must have 1 to 107 bytes, has ", path.size(), ": ", path));
  }
  RETURN_IF_ERROR(RemoveStale(path, type));
  UnixListener listener;
  listener.fd_ = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (listener.fd_ < 0) return SystemError("cannot make a socket for", path, errno);
  const sockaddr_un address = AddressOf(path);
  if (bind(listener.fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    const int error = errno;
    const absl::Status status = SystemError("cannot make the socket", path, error);
    if (error != ENOENT && error != EACCES) return status;
    return absl::Status(status.code(), absl::StrCat(status.message(), "; make its directory, for this user to write "
                                                    "to, or configure another path"));
  }
  listener.path_ = path;
  struct stat info {};
  if (lstat(path.c_str(), &info) != 0) return SystemError("cannot look at", path, errno);
  listener.device_ = info.st_dev;
  listener.inode_ = info.st_ino;
  // Before listen(): until then every connect is refused, so no one slips in under the wrong mode.
  if (chmod(path.c_str(), mode) != 0) return SystemError("cannot set the mode of", path, errno);
  if (listen(listener.fd_, kBacklog) != 0) return SystemError("cannot listen on", path, errno);
  return listener;
}

UnixListener::UnixListener(UnixListener&& other) noexcept { *this = std::move(other); }

UnixListener& UnixListener::operator=(UnixListener&& other) noexcept {
  if (this != &other) {
    Reset();
    fd_ = std::exchange(other.fd_, -1);
    path_ = std::exchange(other.path_, {});
    device_ = other.device_;
    inode_ = other.inode_;
  }
  return *this;
}

UnixListener::~UnixListener() { Reset(); }

void UnixListener::Reset() {
  if (!path_.empty()) {
    struct stat info {};
    if (lstat(path_.c_str(), &info) == 0 && info.st_dev == device_ && info.st_ino == inode_) {
      unlink(path_.c_str());
    }
    path_.clear();
  }
  if (fd_ >= 0) close(std::exchange(fd_, -1));
}

}  // namespace terrace::api
