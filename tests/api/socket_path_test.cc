// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Who may take a socket's path: never over a file, a link, or a living process.
#include "api/door/socket_path.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

namespace terrace::api {
namespace {

class SocketPathTest : public ::testing::Test {
 protected:
  SocketPathTest() {
    std::string name = std::filesystem::temp_directory_path() / "terrace_socket_XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    path_ = folder_ / "a.sock";
  }
  ~SocketPathTest() override { std::filesystem::remove_all(folder_); }

  static bool IsAnswered(const std::string& path) {
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    const bool answered =
        connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
    close(fd);
    return answered;
  }

  std::filesystem::path folder_;
  std::string path_;
};

TEST_F(SocketPathTest, ListensWithTheModeAndCleansUp) {
  {
    const auto listener = UnixListener::Listen(path_, 0640, SOCK_STREAM);
    ASSERT_TRUE(listener.ok()) << listener.status();
    EXPECT_TRUE(IsAnswered(path_));
    struct stat info {};
    ASSERT_EQ(stat(path_.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0640u);
  }
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(SocketPathTest, TakesOverADeadSocket) {
  const int dead = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path_.data(), path_.size());
  ASSERT_EQ(bind(dead, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  close(dead);
  EXPECT_TRUE(std::filesystem::exists(path_));
  EXPECT_TRUE(UnixListener::Listen(path_, 0660, SOCK_STREAM).ok());
}

TEST_F(SocketPathTest, RefusesALivingSocket) {
  const auto first = UnixListener::Listen(path_, 0660, SOCK_STREAM);
  ASSERT_TRUE(first.ok());
  EXPECT_TRUE(absl::IsUnavailable(UnixListener::Listen(path_, 0660, SOCK_STREAM).status()));
  // Also when it is of another kind than ours.
  EXPECT_FALSE(UnixListener::Listen(path_, 0660, SOCK_SEQPACKET).ok());
  EXPECT_TRUE(IsAnswered(path_));
}

TEST_F(SocketPathTest, RefusesFilesAndLinksAndLeavesThemAlone) {
  std::ofstream(path_) << "mine";
  EXPECT_TRUE(absl::IsFailedPrecondition(UnixListener::Listen(path_, 0660, SOCK_STREAM).status()));
  EXPECT_EQ(std::filesystem::file_size(path_), 4u);
  const std::string link = folder_ / "link.sock";
  std::filesystem::create_symlink(path_, link);
  EXPECT_TRUE(absl::IsFailedPrecondition(UnixListener::Listen(link, 0660, SOCK_STREAM).status()));
  const std::string dangling = folder_ / "dangling.sock";
  std::filesystem::create_symlink(folder_ / "elsewhere.sock", dangling);
  EXPECT_TRUE(
      absl::IsFailedPrecondition(UnixListener::Listen(dangling, 0660, SOCK_STREAM).status()));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "elsewhere.sock"));
}

TEST_F(SocketPathTest, RefusesAStrangersSocket) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to make a socket of another user";
  const int dead = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path_.data(), path_.size());
  ASSERT_EQ(bind(dead, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  close(dead);
  ASSERT_EQ(chown(path_.c_str(), 12345, 12345), 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(UnixListener::Listen(path_, 0660, SOCK_STREAM).status()));
  EXPECT_TRUE(std::filesystem::exists(path_));
}

TEST_F(SocketPathTest, LeavesItsSuccessorsSocketAlone) {
  auto first = UnixListener::Listen(path_, 0660, SOCK_STREAM);
  ASSERT_TRUE(first.ok());
  std::filesystem::remove(path_);
  const auto second = UnixListener::Listen(path_, 0660, SOCK_STREAM);
  ASSERT_TRUE(second.ok());
  *first = UnixListener();
  EXPECT_TRUE(IsAnswered(path_));
}

TEST_F(SocketPathTest, RefusesPathsThatDoNotFit) {
  EXPECT_TRUE(absl::IsInvalidArgument(UnixListener::Listen("", 0660, SOCK_STREAM).status()));
  const std::string fits = folder_ / std::string(107 - folder_.string().size() - 1, 'x');
  EXPECT_TRUE(UnixListener::Listen(fits, 0660, SOCK_STREAM).ok());
  EXPECT_TRUE(
      absl::IsInvalidArgument(UnixListener::Listen(fits + "x", 0660, SOCK_STREAM).status()));
  EXPECT_FALSE(UnixListener::Listen(folder_ / "no/such/folder.sock", 0660, SOCK_STREAM).ok());
}

}  // namespace
}  // namespace terrace::api
