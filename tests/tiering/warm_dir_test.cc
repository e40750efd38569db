// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The directory itself: who may have it, what is left behind, what happens when it is full, and what a
// client can do with a descriptor of a file in it.
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <sys/wait.h>

#include <chrono>
#include <sstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "testing/warm_fixture.h"

namespace terrace::testing {
namespace {

using kv::BlockHeader;
using kv::FrameId;
using tiering::HostMemoryDir;
using tiering::SharedMemory;

class WarmDirTest : public WarmTest {
 protected:
  static void ExpectReadOnly(int fd, uint64_t bytes) {
    EXPECT_EQ(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
    char byte = 1;
    EXPECT_EQ(pwrite(fd, &byte, 1, 0), -1);
    EXPECT_EQ(ftruncate(fd, 0), -1);
    EXPECT_EQ(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
    void* map = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
    ASSERT_NE(map, MAP_FAILED);
    EXPECT_EQ(mprotect(map, bytes, PROT_READ | PROT_WRITE), -1) << "a read-only mapping stays one";
    EXPECT_EQ(madvise(map, 4096, MADV_REMOVE), -1);
    munmap(map, bytes);
  }
};

TEST_F(WarmDirTest, AClientMayOnlyRead) {
  for (const bool is_adopted : {false, true}) {
    SCOPED_TRACE(is_adopted);
    Start();
    const auto blocks = Adopt();
    const FrameId frame = is_adopted ? blocks.at(0).frame : Store(Space(65536), 1);
    const auto fds = tier_->FindSegment(tier_->pool().PlaceOf(frame).segment_id, 0);
    ASSERT_TRUE(fds.has_value());
    EXPECT_NE(fcntl(fds->payload, F_GETFD) & FD_CLOEXEC, 0);
    ExpectReadOnly(fds->payload, fds->payload_bytes);
    ExpectReadOnly(fds->headers, fds->header_bytes);
    struct stat info {};
    ASSERT_EQ(fstat(fds->payload, &info), 0);
    EXPECT_EQ(info.st_mode & 07777, 0400u);
    // Another user, who opens anew what was passed on. Only root can become one.
    if (geteuid() == 0) {
      const std::string again = absl::StrCat("/proc/self/fd/", fds->payload);
      const pid_t child = fork();
      if (child == 0) {
        const bool is_other = setresuid(65534, 65534, 65534) == 0;
        const bool is_opened = open(again.c_str(), O_RDWR | O_CLOEXEC) >= 0;
        const bool is_moded = fchmod(fds->payload, 0666) == 0;
        _exit(is_other && !is_opened && !is_moded ? 0 : 1);
      }
      int status = 0;
      ASSERT_EQ(waitpid(child, &status, 0), child);
      EXPECT_EQ(status, 0) << "another user could write";
    }
    EXPECT_TRUE(Holds(frame, Space(65536), KeyOf(1)));
    close(fds->payload);
    close(fds->headers);
  }
}

// A client of the last process that still has everything mapped, with the refs it got there.
TEST_F(WarmDirTest, AnOldMappingNeverShowsAnotherBlockForAnOldRef) {
  Start();
  const auto& before = Space(65536);
  struct Old {
    kv::FramePool::Place place;
    const BlockHeader* header;
    const std::byte* payload;
  };
  std::map<uint64_t, Old> refs;
  std::map<uint32_t, std::pair<std::byte*, std::byte*>> maps;
  const auto digest = before.digest;
  for (const auto& [number, frame] : Fill(before, 0, 900)) {
    const auto place = tier_->pool().PlaceOf(frame);
    if (!maps.contains(place.segment_id)) {
      const auto fds = tier_->FindSegment(place.segment_id, 0);
      ASSERT_TRUE(fds.has_value());
      maps[place.segment_id] = {
          static_cast<std::byte*>(mmap(nullptr, fds->payload_bytes, PROT_READ, MAP_SHARED, fds->payload, 0)),
          static_cast<std::byte*>(mmap(nullptr, fds->header_bytes, PROT_READ, MAP_SHARED, fds->headers, 0))};
      close(fds->payload);
      close(fds->headers);
    }
    const auto& [payload, headers] = maps[place.segment_id];
    refs[number] = {place, reinterpret_cast<const BlockHeader*>(headers + place.header_offset * kv::kHeaderUnit),
                    payload + place.payload_offset};
  }
  ASSERT_EQ(refs.size(), 900u);
  const auto read = [&](uint64_t number) {
    const Old& old = refs.at(number);
    return kv::CheckHeader(old.header, digest.data(), KeyOf(number).bytes.data(), old.place.generation, 65536);
  };
  Start();
  const auto blocks = Adopt();
  ASSERT_EQ(blocks.size(), 900u);
  for (const auto& [number, old] : refs) {
    ASSERT_EQ(read(number), kv::HeaderVerdict::kOk) << "the same memory, the same blocks";
    ASSERT_TRUE(IsPayloadOf(KeyOf(number), {old.payload, 65536}));
  }
  // All is used again: half of it by the same keys, half by other sizes.
  for (const Block& block : blocks) tier_->Retire(block.frame);
  ASSERT_EQ(Fill(Space(65536), 0, 450).size(), 450u);
  ASSERT_GT(Fill(Space(40'000), 5000, 5000).size(), 500u);
  for (const auto& [number, old] : refs) ASSERT_EQ(read(number), kv::HeaderVerdict::kStale) << number;
  for (const auto& [id, pair] : maps) {
    munmap(pair.first, 16 << 20);
    munmap(pair.second, 1 << 20);
  }
}

TEST_F(WarmDirTest, TheDirectoryIsOfThisUserAndInMemory) {
  Start();
  struct stat info {};
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0700u);
  End();
  const std::string link = root_.path() + "/link";
  std::filesystem::create_directory_symlink(path_, link);
  EXPECT_TRUE(absl::IsFailedPrecondition(HostMemoryDir::Open(link, run_dir_).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(HostMemoryDir::Open(root_.path() + "/no/where", run_dir_).status()));
  const auto not_in_memory = HostMemoryDir::Open("/proc/self/task", run_dir_);
  ASSERT_TRUE(absl::IsFailedPrecondition(not_in_memory.status()));
  EXPECT_NE(not_in_memory.status().message().find("host.memory_dir"), absl::string_view::npos)
      << not_in_memory.status();
  if (geteuid() == 0) {
    ASSERT_EQ(chown(path_.c_str(), 65534, 65534), 0);
    EXPECT_TRUE(absl::IsFailedPrecondition(HostMemoryDir::Open(path_, run_dir_).status()));
    ASSERT_EQ(chown(path_.c_str(), 0, 0), 0);
  }
}

TEST_F(WarmDirTest, WhatDaemonsWithoutARunDirectoryLeftIsRemoved) {
  const auto leave = [this](const std::string& run_dir) {
    const std::string path = HostMemoryDir::PathFor(root_.path(), run_dir);
    auto dir = HostMemoryDir::Open(path, run_dir);
    EXPECT_TRUE(dir.ok()) << dir.status();
    EXPECT_TRUE((*dir)->Make(1, 2 << 20).ok());
    return path;
  };
  const std::string kept_run_dir = root_.path() + "/run-kept", held_run_dir = root_.path() + "/run-held";
  for (const auto& run_dir : {kept_run_dir, held_run_dir}) std::filesystem::create_directory(run_dir);
  const std::string kept = leave(kept_run_dir);
  const std::string held = leave(held_run_dir);
  const auto holder = HostMemoryDir::Open(held, held_run_dir);
  std::filesystem::remove(held_run_dir);
  const std::string gone = leave(root_.path() + "/run-gone");
  const std::string foreign = root_.path() + absl::StrCat("/terrace-", geteuid(), "-notes");
  std::filesystem::create_directory(foreign);
  Start();
  EXPECT_FALSE(std::filesystem::exists(gone));
  EXPECT_TRUE(std::filesystem::exists(kept)) << "its run directory is there";
  EXPECT_TRUE(std::filesystem::exists(held)) << "somebody runs on it";
  EXPECT_TRUE(std::filesystem::exists(foreign)) << "nobody knows whose it is";
}

TEST_F(WarmDirTest, SparePagesAreKeptToo) {
  options_.prefault = true;
  Start();
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (tier_->prefaulted_bytes() < (64 << 20) && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
  ASSERT_EQ(tier_->prefaulted_bytes(), 64u << 20);
  ASSERT_EQ(Fill(Space(1 << 20), 0, 20).size(), 20u);
  const uint64_t charged = budget_->used();
  Start();
  EXPECT_EQ(CheckAll(Adopt(), 0, 20), 20u);
  EXPECT_EQ(tier_->prefaulted_bytes(), 64u << 20) << "at once";
  EXPECT_EQ(budget_->used(), charged);
  EXPECT_EQ(Fill(Space(1 << 20), 100, 100).size(), 44u);
}

TEST_F(WarmDirTest, SegmentsThatAreGivenUpTakeTheirFilesAlong) {
  options_.arena_bytes = 32 << 20;
  Start();
  const auto frames = Fill(Space(1 << 20), 0, 100);
  ASSERT_EQ(frames.size(), 32u);
  for (const auto& [number, frame] : frames) tier_->Retire(frame);
  ASSERT_TRUE(tier_->GiveUpEmptySegment(1));
  EXPECT_EQ(Files(".payload").size(), 1u);
  EXPECT_EQ(Files(".headers").size(), 1u);
  EXPECT_EQ(Files(".table").size(), 1u);
  EXPECT_NE(Store(Space(1 << 20, 1), 200), kv::kNoFrame);
  Start();
  EXPECT_EQ(CheckAll(Adopt(), 200, 1), 1u);
}

// A child does the work and ends in the middle of it, as a killed daemon does.
TEST_F(WarmDirTest, ACrashInAdoptionLosesNothing) {
  Start();
  ASSERT_EQ(Fill(Space(65536), 0, 700).size(), 700u);
  End();
  Random random(7);
  for (int round = 0; round < 12; ++round) {
    SCOPED_TRACE(round);
    const uint64_t until = random.Below(700);
    const pid_t child = fork();
    if (child == 0) {
      Start();
      uint64_t n = 0;
      while (tier_->AdoptStep([&](const Block&) {
        if (n++ == until) _exit(9);
        return true;
      })) {
      }
      _exit(1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_EQ(WEXITSTATUS(status), 9);
  }
  Start();
  EXPECT_EQ(CheckAll(Adopt(), 0, 700), 700u);
}

class FullFileSystemTest : public WarmDirTest {
 protected:
  void SetUp() override {
    mount_ = root_.path() + "/small";
    std::filesystem::create_directory(mount_);
    // Of this process alone: the mount ends with it, however it ends.
    is_mounted_ = unshare(CLONE_NEWNS) == 0 && mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
                  mount("none", mount_.c_str(), Kind(), 0, MountOptions()) == 0;
    path_ = HostMemoryDir::PathFor(mount_, run_dir_);
  }
  void TearDown() override {
    End();
    if (is_mounted_) umount2(mount_.c_str(), MNT_DETACH);
  }
  virtual const char* Kind() const { return "tmpfs"; }
  virtual const char* MountOptions() const { return "size=12m"; }
  std::string mount_;
  bool is_mounted_ = false;
};

TEST_F(FullFileSystemTest, StoresAreRefusedAndWhatIsThereIsServed) {
  if (!is_mounted_) GTEST_SKIP() << "only root can mount a small tmpfs";
  for (int round = 0; round < 4; ++round) {
    options_.prefault = round % 2 == 1;
    options_.huge_pages = round >= 2;  // another way to reserve
    SCOPED_TRACE(round);
    Start();
    auto blocks = Adopt();
    for (const Block& block : blocks) tier_->Retire(block.frame);
    const auto& space = Space(200'000);
    const auto frames = Fill(space, 0, 1000);
    // Of 12 MiB a file each goes for tables and headers.
    EXPECT_GE(frames.size(), 40u);
    EXPECT_LT(frames.size(), 62u);
    for (const auto& [number, frame] : frames) ASSERT_TRUE(Holds(frame, space, KeyOf(number)));
    struct statvfs file_system {};
    ASSERT_EQ(statvfs(mount_.c_str(), &file_system), 0);
    EXPECT_GT(file_system.f_bavail, 0u) << "what did not suffice was not given back";
    // One in, one out: what is freed can be used again, and nothing else is asked for.
    tier_->Retire(frames.begin()->second);
    EXPECT_NE(Store(space, 2000), kv::kNoFrame);
    EXPECT_EQ(Store(space, 2001), kv::kNoFrame);
    Start();
    EXPECT_EQ(Adopt().size(), frames.size());
  }
}

// Several threads cut slabs of the last memory at once: who fails must not take back what another one has.
TEST_F(FullFileSystemTest, ManyThreadsAtTheLastPages) {
  if (!is_mounted_) GTEST_SKIP() << "only root can mount a small tmpfs";
  for (int round = 0; round < 6; ++round) {
    SCOPED_TRACE(round);
    options_.huge_pages = round % 2 == 1;
    Start();
    while (tier_->AdoptStep([](const Block&) { return false; })) {
    }
    while (tier_->GiveUpEmptySegment(0)) {
    }
    const auto& space = Space(70'000);
    std::vector<std::map<uint64_t, FrameId>> stored(4);
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < stored.size(); ++t) {
      threads.emplace_back([&, t] {
        for (uint64_t n = 0; n < 100; ++n) {
          if (const FrameId frame = Store(space, t * 1000 + n); frame != kv::kNoFrame) stored[t][t * 1000 + n] = frame;
        }
      });
    }
    for (auto& thread : threads) thread.join();
    size_t n = 0;
    for (const auto& frames : stored) {
      n += frames.size();
      for (const auto& [number, frame] : frames) ASSERT_TRUE(Holds(frame, space, KeyOf(number)));
    }
    EXPECT_GE(n, 100u);
    EXPECT_LT(n, 180u) << "12 MiB hold no more";
    Start();
    EXPECT_EQ(Adopt().size(), n);
  }
}

class HugePagesTest : public FullFileSystemTest {
 protected:
  const char* MountOptions() const override { return "size=200m,huge=advise"; }
};

TEST_F(HugePagesTest, PayloadsHaveThemWhereTheMountGivesThemOnAdvice) {
  if (!is_mounted_) GTEST_SKIP() << "only root can mount a tmpfs with huge pages, where the kernel has them";
  options_.huge_pages = true;
  Start();
  ASSERT_EQ(Fill(Space(1 << 20), 0, 32).size(), 32u);
  const auto kilobytes = [](const std::string& wanted) {
    uint64_t sum = 0, value;
    std::ifstream smaps("/proc/self/smaps");
    for (std::string name, line; std::getline(smaps, line);) {
      std::istringstream fields(line);
      if (fields >> name >> value && name == wanted) sum += value;
    }
    return sum;
  };
  if (kilobytes("ShmemPmdMapped:") == 0) GTEST_SKIP() << "the machine has no huge page left to give";
  EXPECT_GE(kilobytes("ShmemPmdMapped:"), 16u << 10);
  // Headers are used here and there.
  uint64_t header_blocks = 0;
  for (const auto& file : Files(".headers")) {
    struct stat info {};
    ASSERT_EQ(stat(file.c_str(), &info), 0);
    header_blocks += static_cast<uint64_t>(info.st_blocks);
  }
  EXPECT_LE(header_blocks * 512, 32u * 4096);
}

// A hugetlbfs: payloads as far as there are huge pages, the rest on the tmpfs.
class HugetlbfsTest : public FullFileSystemTest {
 protected:
  const char* Kind() const override { return "hugetlbfs"; }
  const char* MountOptions() const override { return "pagesize=2M"; }
  void SetUp() override {
    FullFileSystemTest::SetUp();
    huge_path_ = path_;
    small_path_ = root_.path() + "/" + std::filesystem::path(path_).filename().string();
  }
  static uint64_t FreeHugePages() {
    std::ifstream meminfo("/proc/meminfo");
    uint64_t value = 0;
    for (std::string name, line; std::getline(meminfo, line);) {
      std::istringstream fields(line);
      if (fields >> name >> value && name == "HugePages_Free:") return value;
    }
    return 0;
  }
  uint64_t PayloadFilesIn(const std::string& folder) {
    path_ = folder;
    const uint64_t n = Files(".payload").size();
    path_ = huge_path_;
    return n;
  }
  std::string huge_path_, small_path_;
};

TEST_F(HugetlbfsTest, PayloadsAreThereAsFarAsPagesReach) {
  if (!is_mounted_) GTEST_SKIP() << "only root can mount a hugetlbfs, where the kernel has one";
  const uint64_t segments = std::min<uint64_t>(FreeHugePages() / 8, 4);  // of 16 MiB
  for (int process = 0; process < 3; ++process) {
    SCOPED_TRACE(process);
    Start();
    EXPECT_EQ(CheckAll(Adopt(), 0, 64), process == 0 ? 0u : 64u);
    if (process == 0) ASSERT_EQ(Fill(Space(1 << 20), 0, 100).size(), 64u);
    EXPECT_EQ(PayloadFilesIn(huge_path_), segments);
    EXPECT_EQ(PayloadFilesIn(small_path_), 4 - segments);
    EXPECT_EQ(std::filesystem::exists(huge_path_ + "/lock"), false);
  }
  // Flushed and emptied, the files go where they lie.
  Start();
  while (tier_->AdoptStep([](const Block&) { return false; })) {
  }
  while (tier_->GiveUpEmptySegment(0)) {
  }
  EXPECT_EQ(PayloadFilesIn(huge_path_) + PayloadFilesIn(small_path_), 0u);
  // Abandoned: another daemon removes both directories.
  End();
  const std::string other_run_dir = root_.path() + "/other";
  std::filesystem::create_directory(other_run_dir);
  ASSERT_TRUE(HostMemoryDir::Open(HostMemoryDir::PathFor(mount_, other_run_dir), other_run_dir, root_.path()).ok());
  EXPECT_FALSE(std::filesystem::exists(huge_path_));
  EXPECT_FALSE(std::filesystem::exists(small_path_));
}

}  // namespace
}  // namespace terrace::testing
