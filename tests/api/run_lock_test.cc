// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/server/run_lock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace terrace::api {
namespace {

using testing::HasSubstr;

class RunLockTest : public testing::Test {
 protected:
  RunLockTest() {
    std::string pattern = testing::TempDir() + "terrace_run_XXXXXX";
    dir_ = mkdtemp(pattern.data());
  }
  ~RunLockTest() override { std::filesystem::remove_all(dir_); }
  static void ExpectRefused(const std::string& run_dir, absl::StatusCode code, const std::string& text) {
    const auto lock = RunLock::Acquire(run_dir);
    ASSERT_FALSE(lock.ok());
    EXPECT_EQ(lock.status().code(), code);
    EXPECT_THAT(std::string(lock.status().message()), HasSubstr(text));
  }
  std::string dir_;
};

TEST_F(RunLockTest, MakesTheDirectoryAndHoldsIt) {
  const std::string run_dir = dir_ + "/run";
  auto lock = RunLock::Acquire(run_dir);
  ASSERT_TRUE(lock.ok()) << lock.status();
  struct stat info {};
  ASSERT_EQ(stat(run_dir.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0750u);
  ExpectRefused(run_dir, absl::StatusCode::kAlreadyExists, absl::StrCat("pid ", getpid()));
  lock->reset();
  EXPECT_TRUE(RunLock::Acquire(run_dir).ok()) << "a lock that was given up is free";
}

TEST_F(RunLockTest, ALeftOverLockFileIsNoHolder) {
  std::ofstream(dir_ + "/terraced.lock") << "1\n";
  EXPECT_TRUE(RunLock::Acquire(dir_).ok());
}

TEST_F(RunLockTest, TrapsAreRefused) {
  ExpectRefused(dir_ + "/a/b", absl::StatusCode::kFailedPrecondition, "cannot be made");
  std::ofstream(dir_ + "/file") << "x";
  ExpectRefused(dir_ + "/file", absl::StatusCode::kFailedPrecondition, "must be a directory");
  std::filesystem::create_directory(dir_ + "/real");
  std::filesystem::create_directory_symlink(dir_ + "/real", dir_ + "/link");
  ExpectRefused(dir_ + "/link", absl::StatusCode::kFailedPrecondition, "not a symlink");
  std::filesystem::create_symlink(dir_ + "/file", dir_ + "/real/terraced.lock");
  ExpectRefused(dir_ + "/real", absl::StatusCode::kFailedPrecondition, "symlink");
  std::filesystem::remove(dir_ + "/real/terraced.lock");
  std::filesystem::create_hard_link(dir_ + "/file", dir_ + "/real/terraced.lock");
  ExpectRefused(dir_ + "/real", absl::StatusCode::kFailedPrecondition, "no plain file");
  std::filesystem::remove(dir_ + "/real/terraced.lock");
  ASSERT_EQ(mkfifo((dir_ + "/real/terraced.lock").c_str(), 0600), 0);
  ExpectRefused(dir_ + "/real", absl::StatusCode::kFailedPrecondition, "no plain file");
  std::ifstream file(dir_ + "/file");
  std::string text;
  file >> text;
  EXPECT_EQ(text, "x") << "nothing was written through a link";
}

TEST_F(RunLockTest, ADirectoryOpenToEveryoneIsRefused) {
  const std::string open_dir = dir_ + "/open";
  std::filesystem::create_directory(open_dir);
  ASSERT_EQ(chmod(open_dir.c_str(), 0777), 0);
  ExpectRefused(open_dir, absl::StatusCode::kFailedPrecondition, "chmod o-w");
}

TEST_F(RunLockTest, AnotherUsersDirectoryIsRefused) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can give a directory away";
  const std::string foreign = dir_ + "/foreign";
  std::filesystem::create_directory(foreign);
  ASSERT_EQ(chown(foreign.c_str(), 12345, 12345), 0);
  ExpectRefused(foreign, absl::StatusCode::kFailedPrecondition, "belongs to user 12345");
}

}  // namespace
}  // namespace terrace::api
