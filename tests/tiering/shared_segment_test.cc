// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What a client can do with a descriptor it was given: read, and nothing else.
#include "tiering/shared_segment.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>

namespace terrace::tiering {
namespace {

constexpr uint64_t kBytes = 4 << 20;

std::unique_ptr<SharedMemory> Make(SharedMemory::Clients clients) {
  auto memory = SharedMemory::Create("terrace-test", kBytes, clients, false);
  EXPECT_TRUE(memory.ok()) << memory.status();
  return *std::move(memory);
}

// Tries everything that changes the file, through this descriptor.
void ExpectReadOnly(int fd) {
  EXPECT_EQ(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
  char byte = 1;
  EXPECT_EQ(pwrite(fd, &byte, 1, 0), -1);
  EXPECT_EQ(ftruncate(fd, 0), -1);
  EXPECT_EQ(ftruncate(fd, kBytes * 2), -1);
  EXPECT_EQ(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
  EXPECT_EQ(fallocate(fd, FALLOC_FL_ZERO_RANGE, 0, 4096), -1);
  EXPECT_EQ(fallocate(fd, 0, kBytes, 4096), -1);
  void* map = mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, fd, 0);
  ASSERT_NE(map, MAP_FAILED);
  EXPECT_EQ(static_cast<char*>(map)[100], 'x');
  EXPECT_EQ(mprotect(map, kBytes, PROT_READ | PROT_WRITE), -1) << "a read-only mapping stays one";
  EXPECT_EQ(madvise(map, 4096, MADV_REMOVE), -1);
  munmap(map, kBytes);
  EXPECT_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1) << "the seals are sealed";
}

TEST(SharedMemoryTest, AClientMayOnlyRead) {
  const auto memory = Make(SharedMemory::Clients::kMayOnlyRead);
  memory->data()[100] = std::byte{'x'};
  ExpectReadOnly(memory->fd());
  // Opened anew, as a client with our user id can.
  const std::string path = "/proc/self/fd/" + std::to_string(memory->fd());
  const int again = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (again >= 0) {
    ExpectReadOnly(again);
    close(again);
  }
  EXPECT_LT(open(path.c_str(), O_RDWR | O_TRUNC | O_CLOEXEC), 0);
  EXPECT_EQ(memory->data()[100], std::byte{'x'});
  memory->data()[100] = std::byte{'y'};  // the owner's own mapping stays writable
}

TEST(SharedMemoryTest, StagingMayBeWrittenButNotResized) {
  const auto memory = Make(SharedMemory::Clients::kMayWrite);
  void* map = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory->fd(), 0);
  ASSERT_NE(map, MAP_FAILED);
  static_cast<char*>(map)[kBytes - 1] = 'z';
  EXPECT_EQ(memory->data()[kBytes - 1], std::byte{'z'});
  munmap(map, kBytes);
  // Shrunk memory would kill the reader with a signal.
  EXPECT_EQ(ftruncate(memory->fd(), 0), -1);
  EXPECT_EQ(ftruncate(memory->fd(), kBytes * 2), -1);
  EXPECT_EQ(fcntl(memory->fd(), F_ADD_SEALS, F_SEAL_WRITE), -1);
}

TEST(SharedMemoryTest, StartsZeroAndIsNotInherited) {
  const auto memory = Make(SharedMemory::Clients::kMayOnlyRead);
  EXPECT_EQ(memory->bytes(), kBytes);
  for (uint64_t i = 0; i < kBytes; i += 4096) ASSERT_EQ(memory->data()[i], std::byte{0});
  EXPECT_NE(fcntl(memory->fd(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST(SharedMemoryTest, PopulateGivesPages) {
  const auto memory = Make(SharedMemory::Clients::kMayOnlyRead);
  struct stat before {}, after {};
  ASSERT_EQ(fstat(memory->fd(), &before), 0);
  EXPECT_EQ(before.st_blocks, 0);
  memory->Populate(0, kBytes);
  ASSERT_EQ(fstat(memory->fd(), &after), 0);
  EXPECT_EQ(static_cast<uint64_t>(after.st_blocks) * 512, kBytes);
}

TEST(SharedMemoryTest, HugePagesOrACleanNo) {
  const auto odd = SharedMemory::Create("terrace-test", 3 << 20, SharedMemory::Clients::kMayOnlyRead, true);
  EXPECT_TRUE(absl::IsUnavailable(odd.status()));
  const auto huge = SharedMemory::Create("terrace-test", 4 << 20, SharedMemory::Clients::kMayOnlyRead, true);
  if (huge.ok()) {
    (*huge)->data()[0] = std::byte{1};
  } else {
    EXPECT_TRUE(absl::IsUnavailable(huge.status())) << huge.status();
  }
}

}  // namespace
}  // namespace terrace::tiering
