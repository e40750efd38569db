// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The doctor's probes of the places that an NVMe tier and a host tier that outlives its daemon need.
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "api/ctl/doctor_probes.h"
#include "api/ctl/table.h"

namespace terrace::ctl {
namespace {

constexpr size_t kPage = 4096;
constexpr char kBetterFileSystem[] = "put the data file on ext4, xfs or btrfs, or name a block device";

// A file that nobody sees and that is gone with its descriptor.
int OpenHiddenFile(const std::string& directory) {
  const int fd = open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR)) return fd;
  std::string name = directory + "/.terrace-doctor.XXXXXX";
  const int named = mkostemp(name.data(), O_CLOEXEC);
  if (named >= 0) unlink(name.c_str());
  return named;
}

// errno of a page written and read past the page cache; 0: it works.
int TryDirect(int fd) {
  const std::unique_ptr<void, decltype(&std::free)> page(std::aligned_alloc(kPage, kPage), &std::free);
  std::memset(page.get(), 0, kPage);
  if (fcntl(fd, F_SETFL, O_RDWR | O_DIRECT) != 0) return errno;
  if (pwrite(fd, page.get(), kPage, 0) < 0 || pread(fd, page.get(), kPage, 0) < 0) return errno;
  return 0;
}

Finding ProbeDisk(const std::string& path) {
  const std::string check = absl::StrCat("nvme ", path);
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC | O_EXCL);
  if (fd < 0) {
    return {check, Finding::kProblem, std::strerror(errno),
            errno == EBUSY ? "unmount it, or end the daemon that has it"
                           : "give terraced's user the right to write it"};
  }
  uint64_t bytes = 0;
  const bool is_known = ioctl(fd, BLKGETSIZE64, &bytes) == 0;
  close(fd);
  if (!is_known) return {check, Finding::kProblem, "its size cannot be read", "look for the disk in dmesg"};
  return {check, Finding::kOk, absl::StrCat("block device of ", HumanBytes(bytes), ", free to be taken"), ""};
}

Finding ProbeDirectory(const std::string& path) {
  Finding finding{absl::StrCat("nvme ", path), Finding::kProblem, "", ""};
  const int fd = OpenHiddenFile(path);
  if (fd < 0) {
    finding.text = absl::StrCat("no file can be made there: ", std::strerror(errno));
    finding.fix = absl::StrCat("install -d -o terrace -g terrace -m 0700 ", path);
    return finding;
  }
  struct statvfs space {};
  const bool has_space = fstatvfs(fd, &space) == 0;
  const uint64_t free_bytes = has_space ? space.f_bavail * space.f_frsize : 0;
  const int reserved = fallocate(fd, 0, 0, kPage) == 0 ? 0 : errno;
  const int direct = reserved == 0 ? TryDirect(fd) : 0;
  close(fd);
  if (reserved == ENOSPC || reserved == EDQUOT) {
    finding.text = "no space is left";
    finding.fix = absl::StrCat("make room: df -h ", path);
  } else if (reserved != 0) {
    finding.text = absl::StrCat("space cannot be reserved: ", std::strerror(reserved));
    finding.fix = kBetterFileSystem;
  } else if (direct != 0) {
    finding.level = Finding::kNote;
    finding.text = absl::StrCat("no O_DIRECT (", std::strerror(direct), "): the page cache stands between, ",
                                HumanBytes(free_bytes), " free");
    finding.fix = kBetterFileSystem;
  } else {
    finding.level = Finding::kOk;
    finding.text = absl::StrCat("O_DIRECT works, ", HumanBytes(free_bytes), " free");
  }
  return finding;
}

}  // namespace

Finding ProbeNvmePlace(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) == 0 && S_ISBLK(info.st_mode)) return ProbeDisk(path);
  if (stat(path.c_str(), &info) == 0 && !S_ISDIR(info.st_mode)) {
    const size_t slash = path.rfind('/');
    return ProbeDirectory(slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash));
  }
  return ProbeDirectory(path);
}

Finding ProbeSharedMemory(const std::string& path) {
  Finding finding{"shared memory", Finding::kNote, "",
                  "mount -o remount,size=N /dev/shm (docker: --shm-size), N at least host.budget; or leave "
                  "host.memory_dir out"};
  struct statvfs space {};
  if (statvfs(path.c_str(), &space) != 0) {
    finding.text = absl::StrCat(path, ": ", std::strerror(errno), "; the host tier cannot outlive its daemon there");
    return finding;
  }
  const uint64_t total = space.f_blocks * space.f_frsize, free_bytes = space.f_bavail * space.f_frsize;
  finding.text = absl::StrCat(path, " has ", HumanBytes(total), ", ", HumanBytes(free_bytes), " free");
  const uint64_t memory = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  if (total < memory / 4) {
    finding.text += "; little for a host tier that outlives its daemon";
    return finding;
  }
  return {finding.check, Finding::kOk, finding.text, ""};
}

}  // namespace terrace::ctl
