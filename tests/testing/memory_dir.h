// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// TempMemoryDir: a directory of a test's own on a file system in memory. Those of tests that ended before
// they could clean up are removed by the next test that makes one.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <string>

namespace terrace::testing {

// Owner: the test. Failure: no /dev/shm fails the test.
class TempMemoryDir {
 public:
  TempMemoryDir() {
    RemoveLeftovers();
    static int count = 0;
    path_ = std::string(kPrefix) + std::to_string(getpid()) + "-" + std::to_string(++count);
    std::error_code error;
    EXPECT_TRUE(std::filesystem::create_directory(path_, error)) << path_ << ": " << error.message();
  }
  ~TempMemoryDir() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TempMemoryDir(const TempMemoryDir&) = delete;

  const std::string& path() const { return path_; }

 private:
  static constexpr const char* kPrefix = "/dev/shm/terrace-test-";
  static void RemoveLeftovers() {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator("/dev/shm", error)) {
      const std::string name = entry.path().string();
      if (name.rfind(kPrefix, 0) != 0) continue;
      const pid_t pid = std::atoi(name.c_str() + std::string(kPrefix).size());
      if (pid > 0 && kill(pid, 0) != 0 && errno == ESRCH) std::filesystem::remove_all(entry.path(), error);
    }
  }
  std::string path_;
};

}  // namespace terrace::testing
