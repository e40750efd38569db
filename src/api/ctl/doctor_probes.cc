// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/ctl/doctor_probes.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "api/ctl/table.h"

namespace terrace::ctl {
namespace {

constexpr int kPythonLimitMs = 10'000;

std::string ErrnoText() { return std::strerror(errno); }

// A value of /proc/meminfo, 0 when absent.
uint64_t MemInfo(const std::string& name) {
  std::ifstream file("/proc/meminfo");
  std::string word;
  uint64_t value = 0;
  while (file >> word) {
    if (word == name && file >> value) return value;
    file.ignore(1024, '\n');
  }
  return 0;
}

std::string GroupName(gid_t gid) {
  const group* entry = getgrgid(gid);
  return entry == nullptr ? absl::StrCat(gid) : entry->gr_name;
}

// Standard output of a command, "" when it fails or takes too long.
std::string OutputOf(const std::string& program, const std::string& script) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return "";
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  std::string arguments[] = {program, "-c", script};
  char* argv[] = {arguments[0].data(), arguments[1].data(), arguments[2].data(), nullptr};
  pid_t child = 0;
  const int failed = posix_spawnp(&child, program.c_str(), &actions, nullptr, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  std::string output;
  if (failed == 0) {
    pollfd readable = {ends[0], POLLIN, 0};
    char text[256];
    ssize_t n = 0;
    while (output.size() < 4096 && poll(&readable, 1, kPythonLimitMs) > 0 &&
           (n = read(ends[0], text, sizeof(text))) > 0) {
      output.append(text, static_cast<size_t>(n));
    }
    if (n != 0 || output.empty()) kill(child, SIGKILL);  // still running, or nothing to wait for
    int status = 0;
    waitpid(child, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) output.clear();
  }
  close(ends[0]);
  const absl::string_view stripped = absl::StripAsciiWhitespace(output);
  return {stripped.data(), stripped.size()};
}

}  // namespace

Finding ProbeSealedMemory() {
  Finding finding{"sealed memory", Finding::kProblem, "", "run a Linux kernel of at least 5.1"};
  const int fd = memfd_create("terrace-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) {
    finding.text = absl::StrCat("memfd_create: ", ErrnoText());
    finding.fix = "allow memfd_create in the container's seccomp profile";
    return finding;
  }
  if (ftruncate(fd, 4096) != 0 ||
      fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE) != 0) {
    finding.text = absl::StrCat("shared memory cannot be sealed: ", ErrnoText());
  } else {
    finding = {"sealed memory", Finding::kOk, "memfd with seals works", ""};
  }
  close(fd);
  return finding;
}

Finding ProbeHugePages() {
  const uint64_t total = MemInfo("HugePages_Total:"), free_pages = MemInfo("HugePages_Free:");
  const uint64_t page_bytes = MemInfo("Hugepagesize:") * 1024;
  if (total == 0) {
    return {"hugepages", Finding::kNote, "none reserved; payloads take ordinary pages",
            absl::StrCat("sysctl vm.nr_hugepages=N, N = host.budget / ", HumanBytes(page_bytes))};
  }
  return {"hugepages", Finding::kOk,
          absl::StrCat(free_pages, " of ", total, " free, ", HumanBytes(free_pages * page_bytes)), ""};
}

Finding ProbeTransparentHugePages() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  std::string text;
  std::getline(file, text);
  if (text.empty()) {
    return {"shmem huge pages", Finding::kNote, "this kernel has no transparent huge pages for shared memory", ""};
  }
  const size_t open = text.find('['), close = text.find(']');
  const std::string chosen = close == std::string::npos ? text : text.substr(open + 1, close - open - 1);
  if (chosen == "never" || chosen == "deny") {
    return {"shmem huge pages", Finding::kNote, absl::StrCat("shmem_enabled is ", chosen),
            "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled"};
  }
  return {"shmem huge pages", Finding::kOk, absl::StrCat("shmem_enabled is ", chosen), ""};
}

Finding ProbeLockedMemory() {
  rlimit limit{};
  getrlimit(RLIMIT_MEMLOCK, &limit);
  if (limit.rlim_max == RLIM_INFINITY) return {"memlock", Finding::kOk, "unlimited", ""};
  return {"memlock", Finding::kNote,
          absl::StrCat("at most ", HumanBytes(limit.rlim_max), " can be locked; an NVMe tier's buffers and a GPU's "
                       "copies want more"),
          "LimitMEMLOCK=infinity in the unit, or `* hard memlock unlimited` in /etc/security/limits.d"};
}

Finding ProbeDescriptors() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  const std::string text = absl::StrCat("at most ", limit.rlim_max);
  if (limit.rlim_max >= 16384) return {"descriptors", Finding::kOk, text, ""};
  return {"descriptors", Finding::kNote, text, "LimitNOFILE=65536 in the unit, or ulimit -Hn"};
}

Finding ProbeIoUring() {
  char params[120] = {};  // struct io_uring_params, all zero
  const long fd = syscall(SYS_io_uring_setup, 1, params);
  if (fd >= 0) {
    close(static_cast<int>(fd));
    return {"io_uring", Finding::kOk, "available", ""};
  }
  Finding finding{"io_uring", Finding::kNote,
                  absl::StrCat("not available (", ErrnoText(), "); an NVMe tier then works with threads, slower"),
                  "allow io_uring_setup in the container's seccomp profile"};
  std::ifstream file("/proc/sys/kernel/io_uring_disabled");
  int disabled = 0;
  if (file >> disabled && disabled > 0) finding.fix = "sysctl kernel.io_uring_disabled=0";
  return finding;
}

Finding ProbeSocket(const std::string& name, const std::string& path, int type) {
  Finding finding{name, Finding::kProblem, "", ""};
  struct stat info {};
  sockaddr_un address{};
  if (path.size() >= sizeof(address.sun_path)) {
    finding.text = absl::StrCat(path, ": longer than a socket's path may be");
    finding.fix = "use a shorter run_dir";
    return finding;
  }
  if (stat(path.c_str(), &info) != 0) {
    finding.text = absl::StrCat(path, ": ", ErrnoText());
    finding.fix = errno == EACCES ? "usermod -aG terrace YOUR_USER (the group of run_dir), then log in anew"
                                  : "systemctl start terraced, or give its socket with --socket";
    return finding;
  }
  if (!S_ISSOCK(info.st_mode)) {
    finding.text = absl::StrCat(path, " is not a socket");
    finding.fix = "give the right --socket; or look who put it there, remove it and restart terraced";
    return finding;
  }
  if (access(path.c_str(), W_OK) != 0) {
    finding.text = absl::StrCat(path, ": ", ErrnoText());
    finding.fix = info.st_gid == 0 ? "run terraced in a group of its own, as the packaged unit does"
                                   : absl::StrCat("usermod -aG ", GroupName(info.st_gid),
                                                  " YOUR_USER, then log in anew");
    return finding;
  }
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size());
  const int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  const bool is_connected = connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  const int error = errno;
  if (is_connected) {
    finding = {name, Finding::kOk, absl::StrCat(path, " answers"), ""};
  } else {
    finding.text = absl::StrCat(path, ": ", std::strerror(error));
    finding.fix = error == EPROTOTYPE ? "give the right --socket: this is one of another kind"
                  : error == EAGAIN   ? "terraced hangs or is stopped: see its log"
                                      : "systemctl restart terraced (the socket is a dead daemon's)";
  }
  close(fd);
  return finding;
}

Finding ProbePlugin(const std::string& python, const std::string& expected) {
  const std::string version =
      OutputOf(python, "import importlib.metadata as m; print(m.version('terrace-vllm'))");
  if (version.empty()) {
    return {"vLLM plugin", Finding::kNote, absl::StrCat("terrace-vllm is not installed for ", python),
            absl::StrCat(python, " -m pip install plugins/vllm; or name the engine's Python with --python")};
  }
  if (version != expected) {
    return {"vLLM plugin", Finding::kProblem,
            absl::StrCat("terrace-vllm ", Printable(version), ", but terracectl ", expected),
            absl::StrCat(python, " -m pip install --upgrade plugins/vllm")};
  }
  return {"vLLM plugin", Finding::kOk, absl::StrCat("terrace-vllm ", version), ""};
}

}  // namespace terrace::ctl
