// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Opening a data file: what is made, what is refused and in which words, who holds the lock, and what
// happens on a machine without io_uring, without locked memory, without space.
#include <errno.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "tiering/io/block_device.h"
#include "tiering/io/device_file.h"

namespace terrace::tiering {
namespace {

using ::testing::HasSubstr;
using Backend = BlockDeviceOptions::Backend;
constexpr uint64_t kBytes = 1 << 20;

class IoOpenTest : public ::testing::Test {
 protected:
  IoOpenTest() {
    std::string name = ::testing::TempDir() + "/io_open.XXXXXX";
    directory_ = mkdtemp(name.data());
    options_.path = directory_ + "/data";
    options_.bytes = kBytes;
    options_.depth = 8;
  }
  ~IoOpenTest() override { std::filesystem::remove_all(directory_); }

  absl::Status StatusOfOpening() { return OpenBlockDevice(options_).status(); }
  struct stat Stat() {
    struct stat info {};
    EXPECT_EQ(stat(options_.path.c_str(), &info), 0);
    return info;
  }

  std::string directory_;
  BlockDeviceOptions options_;
};

// Writes and reads a page; 0 or the errno of what failed.
int WriteAndRead(BlockDevice* device) {
  auto* page = static_cast<std::byte*>(std::aligned_alloc(kIoAlign, 2 * kIoAlign));
  int error = 0;
  std::memset(page, 0x21, kIoAlign);
  for (const IoOp op : {IoOp::kWrite, IoOp::kRead}) {
    device->Submit({op, 0, {page + (op == IoOp::kRead ? kIoAlign : 0), kIoAlign}, 1});
    IoResult result;
    for (int i = 0; i < 20 && device->Poll({&result, 1}, 1'000'000'000) == 0;) ++i;
    if (error == 0) error = result.tag == 1 ? result.error : ETIMEDOUT;
  }
  if (error == 0 && std::memcmp(page, page + kIoAlign, kIoAlign) != 0) error = EBADMSG;
  std::free(page);
  return error;
}

TEST_F(IoOpenTest, ANewFileIsPrivateAndAllItsSpaceIsReserved) {
  ASSERT_TRUE(OpenBlockDevice(options_).ok());
  EXPECT_EQ(Stat().st_mode & 0777, 0600u);
  EXPECT_EQ(Stat().st_size, static_cast<off_t>(kBytes));
  EXPECT_GE(Stat().st_blocks * 512, static_cast<off_t>(kBytes));
}

TEST_F(IoOpenTest, AnOldSparseReadableFileIsMadeTheSame) {
  const int fd = open(options_.path.c_str(), O_RDWR | O_CREAT, 0644);
  ASSERT_EQ(ftruncate(fd, 3 * kBytes), 0);
  ASSERT_EQ(pwrite(fd, "kept", 4, 100), 4);
  close(fd);
  ASSERT_TRUE(OpenBlockDevice(options_).ok());
  EXPECT_EQ(Stat().st_mode & 0777, 0600u);
  EXPECT_EQ(Stat().st_size, static_cast<off_t>(kBytes));
  EXPECT_GE(Stat().st_blocks * 512, static_cast<off_t>(kBytes));
  char text[4] = {};
  const int again = open(options_.path.c_str(), O_RDONLY);
  EXPECT_EQ(pread(again, text, 4, 100), 4);
  close(again);
  EXPECT_EQ(std::string(text, 4), "kept");
}

TEST_F(IoOpenTest, RefusesWhatIsNoFileOfOurs) {
  const std::string victim = directory_ + "/victim";
  const int fd = open(victim.c_str(), O_RDWR | O_CREAT, 0600);
  ASSERT_EQ(write(fd, "precious", 8), 8);
  close(fd);
  ASSERT_EQ(symlink(victim.c_str(), options_.path.c_str()), 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(StatusOfOpening())) << StatusOfOpening();
  EXPECT_THAT(std::string(StatusOfOpening().message()), HasSubstr("symbolic link"));
  EXPECT_EQ(std::filesystem::file_size(victim), 8u);

  options_.path = directory_ + "/dir";
  ASSERT_EQ(mkdir(options_.path.c_str(), 0700), 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(StatusOfOpening())) << StatusOfOpening();
  EXPECT_THAT(std::string(StatusOfOpening().message()), HasSubstr("directory"));

  options_.path = directory_ + "/pipe";
  ASSERT_EQ(mkfifo(options_.path.c_str(), 0600), 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(StatusOfOpening())) << StatusOfOpening();
  options_.path = "/dev/null";
  EXPECT_TRUE(absl::IsFailedPrecondition(StatusOfOpening())) << StatusOfOpening();
}

TEST_F(IoOpenTest, RefusesSizesAndDepthsThatCannotBe) {
  options_.bytes = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(StatusOfOpening())) << StatusOfOpening();
  options_.bytes = 5000;
  EXPECT_TRUE(absl::IsInvalidArgument(StatusOfOpening())) << StatusOfOpening();
  options_.bytes = kBytes;
  options_.depth = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(StatusOfOpening())) << StatusOfOpening();
  EXPECT_FALSE(std::filesystem::exists(options_.path)) << "a refused file is not left behind";
}

TEST_F(IoOpenTest, WhatCannotBeOpenedNowIsUnavailable) {
  options_.path = directory_ + "/missing/data";
  EXPECT_TRUE(absl::IsUnavailable(StatusOfOpening())) << StatusOfOpening();
  EXPECT_THAT(std::string(StatusOfOpening().message()), HasSubstr("missing/data"));
  options_.path = "/proc/version";  // no one may write there
  EXPECT_FALSE(StatusOfOpening().ok());
}

TEST_F(IoOpenTest, WithoutSpaceNothingIsTakenAndNothingIsLeft) {
  struct statvfs space {};
  ASSERT_EQ(statvfs(directory_.c_str(), &space), 0);
  options_.bytes = (space.f_bavail * space.f_frsize + (4ull << 30)) / kIoAlign * kIoAlign;
  EXPECT_TRUE(absl::IsResourceExhausted(StatusOfOpening())) << StatusOfOpening();
  EXPECT_FALSE(std::filesystem::exists(options_.path));
  options_.bytes = 1ull << 60;
  EXPECT_TRUE(absl::IsResourceExhausted(StatusOfOpening())) << StatusOfOpening();

  // A file that is there keeps its size.
  options_.bytes = kBytes;
  ASSERT_TRUE(StatusOfOpening().ok());
  options_.bytes = 1ull << 60;
  EXPECT_TRUE(absl::IsResourceExhausted(StatusOfOpening())) << StatusOfOpening();
  EXPECT_EQ(Stat().st_size, static_cast<off_t>(kBytes));
}

TEST_F(IoOpenTest, TheLockNamesItsHolderAndEndsWithIt) {
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    const absl::StatusOr<DeviceFile> file = DeviceFile::Open(options_);
    const char answer = file.ok() ? '1' : '0';
    if (write(ready[1], &answer, 1) != 1) _exit(1);
    pause();
    _exit(0);
  }
  char answer = 0;
  ASSERT_EQ(read(ready[0], &answer, 1), 1);
  ASSERT_EQ(answer, '1');
  EXPECT_TRUE(absl::IsFailedPrecondition(StatusOfOpening())) << StatusOfOpening();
  EXPECT_THAT(std::string(StatusOfOpening().message()), HasSubstr(absl::StrCat("process ", child)));
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  close(ready[0]);
  close(ready[1]);
  EXPECT_TRUE(StatusOfOpening().ok()) << StatusOfOpening();
}

TEST_F(IoOpenTest, AKilledOwnersRequestsDoNotKeepTheNextOneOut) {
  for (int round = 0; round < 5; ++round) {
    int ready[2];
    ASSERT_EQ(pipe(ready), 0);
    const pid_t child = fork();
    if (child == 0) {
      options_.backend = Backend::kIoUring;
      absl::StatusOr<std::unique_ptr<BlockDevice>> device = OpenBlockDevice(options_);
      auto* memory = static_cast<std::byte*>(std::aligned_alloc(kIoAlign, kBytes));
      std::memset(memory, 1, kBytes);
      if (device.ok()) {
        (*device)->RegisterBuffers({memory, kBytes});
        for (uint64_t i = 0; i < 8; ++i) (*device)->Submit({IoOp::kWrite, 0, {memory, kBytes}, i});
        (*device)->Poll({}, 0);
      }
      const char answer = device.ok() ? '1' : '0';
      if (write(ready[1], &answer, 1) != 1) _exit(1);
      while (true) pause();
    }
    char answer = 0;
    ASSERT_EQ(read(ready[0], &answer, 1), 1);
    EXPECT_EQ(answer, '1');
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    EXPECT_TRUE(StatusOfOpening().ok()) << StatusOfOpening();
    close(ready[0]);
    close(ready[1]);
  }
}

TEST_F(IoOpenTest, AFileThatIsCutUnderUsEndsInIoErrors) {
  for (const Backend backend : {Backend::kIoUring, Backend::kPosix}) {
    options_.backend = backend;
    auto device = OpenBlockDevice(options_);
    ASSERT_TRUE(device.ok()) << device.status();
    EXPECT_EQ(WriteAndRead(device->get()), 0);
    ASSERT_EQ(truncate(options_.path.c_str(), 0), 0);
    auto* page = static_cast<std::byte*>(std::aligned_alloc(kIoAlign, kIoAlign));
    (*device)->Submit({IoOp::kRead, 0, {page, kIoAlign}, 1});
    IoResult result;
    for (int i = 0; i < 20 && (*device)->Poll({&result, 1}, 1'000'000'000) == 0;) ++i;
    EXPECT_EQ(result.error, EIO);
    std::free(page);
  }
}

// ---- Machines that refuse something: each in a process of its own ----

// From now on io_uring_setup fails with error in this process, as in a container with a seccomp profile.
void RefuseIoUring(int error) {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<unsigned>(error)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  sock_fprog program = {sizeof(code) / sizeof(code[0]), code};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
    _exit(90);
  }
}

void OpenWithoutIoUring(BlockDeviceOptions options, int error) {
  RefuseIoUring(error);
  options.backend = Backend::kIoUring;
  const absl::Status refused = OpenBlockDevice(options).status();
  if (!absl::IsUnavailable(refused)) _exit(91);
  options.backend = Backend::kAuto;
  for (int i = 0; i < 2; ++i) {
    auto device = OpenBlockDevice(options);
    if (!device.ok() || (*device)->backend() != "posix") _exit(92);
    if (WriteAndRead(device->get()) != 0) _exit(93);
  }
  _exit(0);
}

class IoOpenDeathTest : public IoOpenTest {
 protected:
  IoOpenDeathTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(IoOpenDeathTest, WithoutIoUringItGoesOnWithThreadsAndSaysSoOnce) {
  EXPECT_EXIT(OpenWithoutIoUring(options_, EPERM), ::testing::ExitedWithCode(0),
              "io_uring_refused.*io_uring_disabled=0");
  EXPECT_EXIT(OpenWithoutIoUring(options_, ENOSYS), ::testing::ExitedWithCode(0), "io_uring_refused.*Linux 5.11");
}

void UseWithLockedMemory(BlockDeviceOptions options, uint64_t bytes) {
  const rlimit limit = {bytes, bytes};
  if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0) _exit(90);
  // Root may lock what it likes; the directory goes with us.
  constexpr uid_t kNobody = 65534;
  const std::string directory = options.path.substr(0, options.path.rfind('/'));
  if (geteuid() == 0) {
    if (chown(directory.c_str(), kNobody, kNobody) != 0) _exit(91);
    if (setgid(kNobody) != 0 || setuid(kNobody) != 0) _exit(91);
  }
  auto device = OpenBlockDevice(options);
  if (!device.ok()) _exit(92);
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(kIoAlign, kBytes));
  (*device)->RegisterBuffers({memory, kBytes});
  if (WriteAndRead(device->get()) != 0) _exit(93);
  _exit(0);
}

TEST_F(IoOpenDeathTest, WithoutLockedMemoryItGoesOnAndSaysWhatToDo) {
  // Enough for a ring, not for the buffers.
  EXPECT_EXIT(UseWithLockedMemory(options_, kBytes / 2), ::testing::ExitedWithCode(0),
              "nvme_buffers_not_registered.*LimitMEMLOCK=infinity");
  // Some kernels count the ring, too, and refuse it: then there are threads.
  EXPECT_EXIT(UseWithLockedMemory(options_, 0), ::testing::ExitedWithCode(0), "LimitMEMLOCK=infinity");
}

}  // namespace
}  // namespace terrace::tiering
