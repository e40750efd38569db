// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/host_memory_dir.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <set>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kvstore/base/block_copy.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/frame_pool.h"

namespace terrace::tiering {
namespace {

constexpr uint32_t kMagic = 0x4d485254;  // "TRHM"
constexpr uint32_t kVersion = 1;         // of the directory; another one's content is dropped
constexpr off_t kMaxTableBytes = 64 << 20;  // of 4 TiB
constexpr int kOpen = O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK;

// The file `owner` holds it twice, written one after the other and in place: the count survives an end in the
// middle of writing, and needs no new memory where the file system is full.
struct Owner {
  uint32_t magic = kMagic, version = kVersion;
  uint64_t opened = 0;
  char run_dir[4096] = {};
  char huge_path[4096] = {};  // empty: none
  uint64_t checksum = 0;

  uint64_t Check() const { return Checksum64(this, offsetof(Owner, checksum), kMagic); }
};
constexpr uint64_t kMaxOpened = (1u << 24) - 4;

std::string ErrnoText() { return std::strerror(errno); }

std::string FileOf(uint32_t id, const char* part) { return absl::StrFormat("%08x.%s", id, part); }

// The names in a directory, the descriptor of which stays the caller's.
std::vector<std::string> NamesIn(int fd) {
  std::vector<std::string> names;
  const int again = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* dir = again < 0 ? nullptr : fdopendir(again);
  if (dir == nullptr) {
    if (again >= 0) close(again);
    return names;
  }
  while (const dirent* entry = readdir(dir)) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  closedir(dir);
  return names;
}

// The younger of both copies, or of the one that is whole; its count is then one higher: the other one might
// have been the younger.
std::optional<Owner> LoadOwner(int dir_fd) {
  const int fd = openat(dir_fd, "owner", O_RDONLY | kOpen);
  if (fd < 0) return std::nullopt;
  std::optional<Owner> youngest;
  int damaged = 0;
  for (int i = 0; i < 2; ++i) {
    Owner owner;
    const ssize_t n = pread(fd, &owner, sizeof(owner), static_cast<off_t>(sizeof(owner)) * i);
    if (n != sizeof(owner) || owner.magic != kMagic || owner.checksum != owner.Check() ||
        owner.run_dir[sizeof(owner.run_dir) - 1] != '\0' || owner.huge_path[sizeof(owner.huge_path) - 1] != '\0') {
      ++damaged;
    } else if (!youngest.has_value() || owner.opened > youngest->opened) {
      youngest = owner;
    }
  }
  close(fd);
  if (youngest.has_value()) youngest->opened += static_cast<uint64_t>(damaged);
  return youngest;
}

// A locked descriptor, or why not. AlreadyExists: somebody else has it.
absl::StatusOr<int> Lock(int dir_fd, const std::string& path) {
  const int fd = openat(dir_fd, "lock", O_RDWR | O_CREAT | kOpen, 0600);
  if (fd < 0) return absl::FailedPreconditionError(absl::StrCat(path, "/lock cannot be opened: ", ErrnoText()));
  struct stat info {};
  absl::Status status;
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    char pid[32] = {};
    const bool is_known = pread(fd, pid, sizeof(pid) - 1, 0) > 0;
    status = absl::AlreadyExistsError(absl::StrCat("the host tier's memory in ", path, " is held by another terraced",
                                                   is_known ? absl::StrCat(", pid ", std::atoi(pid)) : "",
                                                   "; daemons that share a tmpfs (containers with one /dev/shm) need "
                                                   "a run_dir or a host.memory_dir each, or host.memory_dir: \"\" "
                                                   "(memory ends with the process)"));
  } else if (fstat(fd, &info) != 0 || info.st_nlink != 1) {
    status = absl::AlreadyExistsError(absl::StrCat(path, " is being removed by another terraced; start again"));
  }
  if (status.ok()) {
    // Of one length: written over the last one in place, where there may be no memory for more.
    const std::string pid = absl::StrFormat("%-10d", getpid());
    if (pwrite(fd, pid.data(), pid.size(), 0) == static_cast<ssize_t>(pid.size())) return fd;
    status = absl::ResourceExhaustedError(absl::StrCat(path, "/lock cannot be written: ", ErrnoText()));
  }
  close(fd);
  return status;
}

// A descriptor of the directory, which is made if need be, or why it is refused. The caller closes it.
absl::StatusOr<int> OpenDirectory(const std::string& path, decltype(statfs::f_type) wanted_type) {
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return absl::FailedPreconditionError(absl::StrCat(
        path, " cannot be made: ", ErrnoText(),
        "; host.memory_dir must be a tmpfs in which this user may write, or empty (memory ends with the process)"));
  }
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | kOpen);
  struct stat info {};
  struct statfs file_system {};
  std::string wrong;
  if (fd < 0 || fstat(fd, &info) != 0 || fstatfs(fd, &file_system) != 0) {
    wrong = absl::StrCat("cannot be opened: ", ErrnoText(), "; it must be a directory of this user, not a link");
  } else if (info.st_uid != geteuid()) {
    wrong = absl::StrCat("is refused: it belongs to user ", info.st_uid, ", this process runs as ", geteuid());
  } else if (file_system.f_type != wanted_type) {
    wrong = "does not lie in memory; host.memory_dir must be on a tmpfs such as /dev/shm, or empty";
  } else if (fchmod(fd, 0700) != 0) {
    wrong = ErrnoText();
  }
  if (wrong.empty()) return fd;
  if (fd >= 0) close(fd);
  return absl::FailedPreconditionError(absl::StrCat(path, " ", wrong));
}

bool IsOnHugetlbfs(const std::string& path) {
  struct statfs file_system {};
  return statfs(std::filesystem::path(path).parent_path().c_str(), &file_system) == 0 &&
         file_system.f_type == HUGETLBFS_MAGIC;
}

void RemoveFilesIn(int fd) {
  for (const std::string& name : NamesIn(fd)) unlinkat(fd, name.c_str(), 0);
}

std::string Absolute(const std::string& path) {
  std::error_code error;
  const auto absolute = std::filesystem::absolute(path, error);
  return (error ? std::filesystem::path(path) : absolute).lexically_normal().string();
}

}  // namespace

std::string HostMemoryDir::PathFor(const std::string& memory_dir, const std::string& run_dir) {
  const std::string absolute = Absolute(run_dir);
  return absl::StrFormat("%s/terrace-%d-%016x", memory_dir, geteuid(),
                         Checksum64(absolute.data(), absolute.size(), 0));
}

absl::StatusOr<std::unique_ptr<HostMemoryDir>> HostMemoryDir::Open(const std::string& path,
                                                                   const std::string& run_dir,
                                                                   const std::string& tmpfs) {
  const bool is_huge = IsOnHugetlbfs(path);
  auto dir = absl::WrapUnique(new HostMemoryDir(
      is_huge ? absl::StrCat(tmpfs, "/", std::filesystem::path(path).filename().string()) : path));
  ASSIGN_OR_RETURN(dir->fd_, OpenDirectory(dir->path_, TMPFS_MAGIC));
  ASSIGN_OR_RETURN(dir->lock_fd_, Lock(dir->fd_, dir->path_));
  if (is_huge) {
    dir->huge_path_ = path;
    ASSIGN_OR_RETURN(dir->huge_fd_, OpenDirectory(path, HUGETLBFS_MAGIC));
  }
  RETURN_IF_ERROR(dir->ReadOwner(run_dir));
  dir->RemoveAbandoned();
  return dir;
}

HostMemoryDir::~HostMemoryDir() {
  for (const int fd : {huge_fd_, lock_fd_, fd_}) {
    if (fd >= 0) close(fd);
  }
}

absl::Status HostMemoryDir::ReadOwner(const std::string& run_dir) {
  const std::string absolute = Absolute(run_dir);
  Owner next;
  if (absolute.size() >= sizeof(next.run_dir) || huge_path_.size() >= sizeof(next.huge_path)) {
    return absl::InvalidArgumentError("run_dir or host.memory_dir is too long");
  }
  const std::optional<Owner> last = LoadOwner(fd_);
  const bool is_usable = last.has_value() && last->version == kVersion && last->opened < kMaxOpened;
  if (!is_usable) Clear();
  opened_ = is_usable ? last->opened + 1 : 1;
  next.opened = opened_;
  std::memcpy(next.run_dir, absolute.data(), absolute.size());
  std::memcpy(next.huge_path, huge_path_.data(), huge_path_.size());
  next.checksum = next.Check();
  const int fd = openat(fd_, "owner", O_WRONLY | O_CREAT | kOpen, 0600);
  bool written = fd >= 0;
  for (int i = 0; i < 2 && written; ++i) {
    written = pwrite(fd, &next, sizeof(next), static_cast<off_t>(sizeof(next)) * i) == sizeof(next);
  }
  const std::string why = ErrnoText();
  if (fd >= 0) close(fd);
  if (written) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(path_, "/owner cannot be written: ", why,
                                                   "; make room in host.memory_dir, or leave it empty"));
}

void HostMemoryDir::Clear() {
  bool removed = false;
  for (const std::string& name : NamesIn(fd_)) {
    if (name != "lock" && unlinkat(fd_, name.c_str(), 0) == 0) removed = true;
  }
  if (huge_fd_ >= 0) RemoveFilesIn(huge_fd_);
  if (removed) {
    Log(LogLevel::kWarning, "host_memory_dropped",
        {{"path", path_}, {"why", "its owner file is missing, damaged or of another version"}});
  }
}

void HostMemoryDir::RemoveAbandoned() {
  const std::filesystem::path own(path_);
  const std::string prefix = absl::StrFormat("terrace-%d-", geteuid());
  const int parent = open(own.parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (parent < 0) return;
  for (const std::string& name : NamesIn(parent)) {
    if (!absl::StartsWith(name, prefix) || name == own.filename()) continue;
    const int fd = openat(parent, name.c_str(), O_RDONLY | O_DIRECTORY | kOpen);
    if (fd < 0) continue;
    struct stat info {};
    const bool is_ours = fstat(fd, &info) == 0 && info.st_uid == geteuid();
    const std::optional<Owner> owner = is_ours ? LoadOwner(fd) : std::nullopt;
    struct stat run_dir {};
    if (owner.has_value() && lstat(owner->run_dir, &run_dir) != 0 && errno == ENOENT) {
      if (const absl::StatusOr<int> lock = Lock(fd, name); lock.ok()) {
        RemoveFilesIn(fd);
        const int huge = owner->huge_path[0] == '\0' ? -1 : open(owner->huge_path, O_RDONLY | O_DIRECTORY | kOpen);
        if (huge >= 0 && std::filesystem::path(owner->huge_path).filename() == name) {
          RemoveFilesIn(huge);
          rmdir(owner->huge_path);
        }
        if (huge >= 0) close(huge);
        unlinkat(parent, name.c_str(), AT_REMOVEDIR);
        close(*lock);
        Log(LogLevel::kInfo, "abandoned_memory_removed", {{"path", name}, {"run_dir", owner->run_dir}});
      }
    }
    close(fd);
  }
  close(parent);
}

absl::StatusOr<std::unique_ptr<SharedSegment>> HostMemoryDir::Make(uint32_t id, uint64_t bytes) {
  const auto extents = static_cast<uint32_t>(bytes / kv::kExtentBytes);
  auto segment = std::make_unique<SharedSegment>();
  segment->id = id;
  const auto make = [&]() -> absl::Status {
    if (huge_fd_ >= 0) {  // on huge pages, as far as there are free ones
      auto huge = SharedMemory::CreateFile(huge_fd_, FileOf(id, "payload"), bytes);
      if (huge.ok()) segment->payload = *std::move(huge);
    }
    if (segment->payload == nullptr) {
      ASSIGN_OR_RETURN(segment->payload, SharedMemory::CreateFile(fd_, FileOf(id, "payload"), bytes));
    }
    ASSIGN_OR_RETURN(segment->headers,
                     SharedMemory::CreateFile(fd_, FileOf(id, "headers"), extents * kv::kHeaderBytesPerExtent));
    // Last: without a table the others are nobody's.
    const uint64_t table_bytes = SharedSegmentTable::FileBytes(extents);
    ASSIGN_OR_RETURN(auto table, SharedMemory::CreateFile(fd_, FileOf(id, "table"), table_bytes));
    RETURN_IF_ERROR(table->Reserve(0, table_bytes));
    segment->table = SharedSegmentTable::Create(std::move(table), id, extents);
    return absl::OkStatus();
  };
  const absl::Status made = make();
  if (made.ok()) return segment;
  Remove(id);
  return made;
}

std::vector<std::unique_ptr<SharedSegment>> HostMemoryDir::FindSegments() {
  std::set<uint32_t> ids;
  for (const int fd : {fd_, huge_fd_}) {
    for (const std::string& name : fd < 0 ? std::vector<std::string>() : NamesIn(fd)) {
      uint32_t id;
      if (name.size() < 10 || name[8] != '.' || !absl::SimpleHexAtoi(name.substr(0, 8), &id)) continue;
      ids.insert(id);
    }
  }
  std::vector<std::unique_ptr<SharedSegment>> segments;
  for (const uint32_t id : ids) {
    auto segment = std::make_unique<SharedSegment>();
    segment->id = id;
    const auto open_all = [&]() -> absl::Status {
      struct stat info {};
      if (fstatat(fd_, FileOf(id, "table").c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) {
        return absl::DataLossError("it has no table");
      }
      if (info.st_size > kMaxTableBytes) return absl::DataLossError("its table has no such size");
      ASSIGN_OR_RETURN(auto table, SharedMemory::OpenFile(fd_, FileOf(id, "table"),
                                                          static_cast<uint64_t>(info.st_size)));
      // Read into pages that exist: else a look at a hole of a full file system would be a signal.
      RETURN_IF_ERROR(table->Reserve(0, table->bytes()));
      ASSIGN_OR_RETURN(segment->table, SharedSegmentTable::Open(std::move(table), id));
      const uint64_t extents = segment->table->extents();
      const std::string payload = FileOf(id, "payload");
      const bool is_huge = huge_fd_ >= 0 && faccessat(huge_fd_, payload.c_str(), F_OK, 0) == 0;
      ASSIGN_OR_RETURN(segment->payload,
                       SharedMemory::OpenFile(is_huge ? huge_fd_ : fd_, payload, extents * kv::kExtentBytes));
      ASSIGN_OR_RETURN(segment->headers,
                       SharedMemory::OpenFile(fd_, FileOf(id, "headers"), extents * kv::kHeaderBytesPerExtent));
      return absl::OkStatus();
    };
    if (const absl::Status opened = open_all(); !opened.ok()) {
      Log(LogLevel::kWarning, "segment_dropped", {{"segment", id}, {"why", opened.message()}});
      Remove(id);
      continue;
    }
    segments.push_back(std::move(segment));
  }
  return segments;
}

void HostMemoryDir::Remove(uint32_t id) {
  // The table first: what is left of a segment after a crash here is nobody's.
  for (const char* part : {"table", "payload", "headers"}) unlinkat(fd_, FileOf(id, part).c_str(), 0);
  if (huge_fd_ >= 0) unlinkat(huge_fd_, FileOf(id, "payload").c_str(), 0);
}

}  // namespace terrace::tiering
