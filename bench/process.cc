// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/check.h"
#include "stopwatch.h"

namespace terrace::bench {
namespace {

void CloseIfOpen(int* fd) {
  if (*fd >= 0) close(*fd);
  *fd = -1;
}

}  // namespace

TemporaryDirectory::TemporaryDirectory(const std::string& where) {
  const char* root = where.empty() ? std::getenv("TMPDIR") : where.c_str();
  std::string name = absl::StrCat(root == nullptr ? "/tmp" : root, "/terrace-bench-XXXXXX");
  TERRACE_CHECK(mkdtemp(name.data()) != nullptr);
  path_ = name;
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

absl::StatusOr<ChildProcess> ChildProcess::Start(const Options& options) {
  int to_child[2] = {-1, -1}, from_child[2] = {-1, -1};
  if (options.pipes && (pipe2(to_child, O_CLOEXEC) != 0 || pipe2(from_child, O_CLOEXEC) != 0)) {
    return absl::ResourceExhaustedError(absl::StrCat("pipe: ", std::strerror(errno)));
  }
  std::vector<char*> arguments;
  for (const std::string& a : options.arguments) arguments.push_back(const_cast<char*>(a.c_str()));
  arguments.push_back(nullptr);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return absl::ResourceExhaustedError(absl::StrCat("fork: ", std::strerror(errno)));
  if (pid == 0) {  // only calls that are safe after fork
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(126);
    if (!options.log_path.empty()) {
      const int log = open(options.log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
      if (log >= 0) dup2(log, 2);
    }
    if (options.pipes) {
      dup2(to_child[0], 0);
      dup2(from_child[1], 1);
    } else {
      const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
      if (null >= 0) dup2(null, 0);
      dup2(2, 1);
    }
    execvp(arguments[0], arguments.data());
    _exit(127);
  }
  CloseIfOpen(&to_child[0]);
  CloseIfOpen(&from_child[1]);
  return ChildProcess(options.arguments[0], pid, to_child[1], from_child[0]);
}

absl::StatusOr<ChildProcess> ChildProcess::StartSelf(std::vector<std::string> arguments) {
  Options options;
  options.arguments = std::move(arguments);
  options.arguments.insert(options.arguments.begin(), SelfPath());
  return Start(options);
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : name_(std::move(other.name_)),
      pid_(std::exchange(other.pid_, -1)),
      in_(std::exchange(other.in_, -1)),
      out_(std::exchange(other.out_, -1)),
      exit_(other.exit_),
      unread_(std::move(other.unread_)) {}

bool ChildProcess::running() { return pid_ >= 0 && !Wait(0).ok(); }

absl::Status ChildProcess::Write(const std::string& text) {
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = write(in_, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return absl::UnavailableError(absl::StrCat(name_, " does not read: ", std::strerror(errno)));
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

void ChildProcess::CloseInput() { CloseIfOpen(&in_); }

absl::StatusOr<std::string> ChildProcess::ReadLine(double timeout_s) {
  const double deadline = Seconds() + timeout_s;
  for (;;) {
    if (const size_t end = unread_.find('\n'); end != std::string::npos) {
      std::string line = unread_.substr(0, end);
      unread_.erase(0, end + 1);
      return line;
    }
    const double left = deadline - Seconds();
    pollfd event{out_, POLLIN, 0};
    if (left <= 0 || poll(&event, 1, static_cast<int>(left * 1000) + 1) == 0) {
      return absl::DeadlineExceededError(absl::StrCat(name_, " said nothing for ", timeout_s, " s"));
    }
    char buffer[4096];
    const ssize_t n = read(out_, buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return absl::UnavailableError(absl::StrCat(name_, " ended"));
    unread_.append(buffer, static_cast<size_t>(n));
  }
}

absl::StatusOr<int> ChildProcess::Wait(double timeout_s) {
  const double deadline = Seconds() + timeout_s;
  while (exit_ < 0) {
    int status = 0;
    const pid_t ended = waitpid(pid_, &status, WNOHANG);
    if (ended == pid_) {
      exit_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    } else if (Seconds() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat(name_, " still runs"));
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }
  return exit_;
}

void ChildProcess::Stop() {
  CloseIfOpen(&in_);
  if (pid_ >= 0 && exit_ < 0) {
    kill(pid_, SIGTERM);
    if (!Wait(5).ok()) {
      kill(pid_, SIGKILL);
      Wait(5).status().IgnoreError();  // nothing more can be done
    }
  }
  CloseIfOpen(&out_);
  pid_ = -1;
}

std::string SelfPath() { return std::filesystem::read_symlink("/proc/self/exe").string(); }

std::string BesideSelf(const std::string& name) {
  return (std::filesystem::path(SelfPath()).parent_path() / name).string();
}

}  // namespace terrace::bench
