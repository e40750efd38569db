// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/host_region.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/memfd.h>

#include <array>
#include <cstdio>
#include <fstream>

#include "host_copy_rig.h"

namespace terrace::gpu {
namespace {

using ::testing::HasSubstr;

RegionLayout Layout(uint64_t n_pages, std::vector<Plane> planes) {
  RegionLayout layout;
  layout.n_pages = n_pages;
  layout.planes = std::move(planes);
  return layout;
}

std::string WhyRefused(const RegionLayout& layout, std::vector<AllocationHandle> handles) {
  const auto region = HostRegion::Open(layout, handles);
  EXPECT_TRUE(absl::IsInvalidArgument(region.status())) << region.status();
  return std::string(region.status().message());
}

int OpenDescriptors() {
  int n = 0;
  for (int fd = 0; fd < 1024; ++fd) n += fcntl(fd, F_GETFD) >= 0 ? 1 : 0;
  return n;
}
// Mappings of files with that name in this process.
int Mappings(const std::string& name) {
  std::ifstream maps("/proc/self/maps");
  int n = 0;
  for (std::string line; std::getline(maps, line);) n += line.find(name) != std::string::npos ? 1 : 0;
  return n;
}

TEST(HostRegion, SharesTheEnginesBytes) {
  const SealedMemory k(100'000), v(50'000);
  const auto region =
      HostRegion::Open(Layout(10, {{0, 4096, 8000, 8000}, {1, 0, 4000, 3000}}), std::array{k.handle(), v.handle()});
  ASSERT_TRUE(region.ok()) << region.status();
  EXPECT_EQ((*region)->page_bytes(), 11'000u);
  EXPECT_FALSE((*region)->is_device());
  EXPECT_EQ((*region)->event_count(), 0u);
  k.data()[4096 + 3 * 8000 + 5] = std::byte{77};
  EXPECT_EQ((*region)->Piece(0, 3)[5], std::byte{77});
  (*region)->Piece(1, 9)[2999] = std::byte{78};
  EXPECT_EQ(v.data()[9 * 4000 + 2999], std::byte{78});
}

TEST(HostRegion, OutlivesTheEnginesDescriptorAndMapping) {
  auto memory = std::make_unique<SealedMemory>(4096);
  memory->data()[1] = std::byte{5};
  const auto region = HostRegion::Open(Layout(1, {{0, 0, 4096, 4096}}), std::array{memory->handle()});
  ASSERT_TRUE(region.ok());
  memory.reset();
  EXPECT_EQ((*region)->Piece(0, 0)[1], std::byte{5});
}

TEST(HostRegion, GivesBackWhatItTook) {
  const SealedMemory memory(1 << 20);
  const int descriptors = OpenDescriptors(), mappings = Mappings("memfd:engine");
  {
    const auto region =
        HostRegion::Open(Layout(1, {{0, 0, 4096, 4096}}), std::array{memory.handle(), memory.handle()});
    ASSERT_TRUE(region.ok());
    EXPECT_GT(Mappings("memfd:engine"), mappings);
    EXPECT_EQ(OpenDescriptors(), descriptors);
  }
  EXPECT_EQ(Mappings("memfd:engine"), mappings);
  // The second cannot be mapped: the first is given back.
  const SealedMemory sealed(4096);
  const int read_only = open(("/proc/self/fd/" + std::to_string(sealed.fd())).c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(read_only, 0);
  AllocationHandle second = sealed.handle();
  second.fd = read_only;
  EXPECT_THAT(WhyRefused(Layout(1, {{0, 0, 4096, 4096}}), {memory.handle(), second}),
              HasSubstr("allocation 1: cannot be mapped"));
  close(read_only);
  EXPECT_EQ(Mappings("memfd:engine"), mappings + 1) << "only the test's own";
}

TEST(HostRegion, WhatCouldShrinkIsRefused) {
  const RegionLayout layout = Layout(1, {{0, 0, 4096, 4096}});
  const SealedMemory unsealed(4096, 0), growing(4096, F_SEAL_GROW);
  EXPECT_THAT(WhyRefused(layout, {unsealed.handle()}), HasSubstr("F_SEAL_SHRINK"));
  EXPECT_THAT(WhyRefused(layout, {growing.handle()}), HasSubstr("F_SEAL_SHRINK"));
}

// The daemon would pay for what it reads there.
TEST(HostRegion, ASparseFileIsRefused) {
  constexpr uint64_t kBytes = 64 << 20;
  const RegionLayout layout = Layout(4, {{0, 0, 4096, 4096}});
  const SealedMemory memory(kBytes);
  EXPECT_TRUE(HostRegion::Open(layout, std::array{memory.handle()}).ok());
  const auto allocated = [&] {
    struct stat file {};
    EXPECT_EQ(fstat(memory.handle().fd, &file), 0);
    return static_cast<uint64_t>(file.st_blocks) * 512;
  };
  for (const uint64_t hole : {uint64_t{0}, kBytes / 2, kBytes - 4096}) {
    ASSERT_EQ(fallocate(memory.handle().fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(hole), 4096),
              0);
    EXPECT_THAT(WhyRefused(layout, {memory.handle()}), HasSubstr("posix_fallocate"));
    EXPECT_EQ(allocated(), kBytes - 4096) << "looking at it must not fill it";
    memory.data()[hole] = std::byte{1};
    EXPECT_TRUE(HostRegion::Open(layout, std::array{memory.handle()}).ok());
  }
}

TEST(HostRegion, OtherThingsThanMemoryAreRefused) {
  const RegionLayout layout = Layout(1, {{0, 0, 4096, 4096}});
  AllocationHandle handle{.kind = HandleKind::kHostFd, .fd = -1, .bytes = 4096};
  EXPECT_THAT(WhyRefused(layout, {handle}), HasSubstr("not a descriptor"));
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe(ends.data()), 0);
  handle.fd = ends[0];
  EXPECT_THAT(WhyRefused(layout, {handle}), HasSubstr("not a file in memory"));
  close(ends[0]);
  close(ends[1]);
  EXPECT_THAT(WhyRefused(layout, {handle}), HasSubstr("descriptor")) << "closed";
  const SealedMemory memory(4096);
  for (const HandleKind kind : {HandleKind::kCudaIpc, HandleKind::kCudaVmm}) {
    handle = memory.handle();
    handle.kind = kind;
    EXPECT_THAT(WhyRefused(layout, {handle}), HasSubstr("not a descriptor of host memory"));
  }
  const int on_disk = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  handle = {.kind = HandleKind::kHostFd, .fd = on_disk, .bytes = 4096};
  EXPECT_THAT(WhyRefused(layout, {handle}), HasSubstr("not a file in memory"));
  close(on_disk);
}

TEST(HostRegion, TheRealSizeCounts) {
  const SealedMemory memory(10'000);
  AllocationHandle handle = memory.handle();
  handle.bytes = 10'001;
  EXPECT_THAT(WhyRefused(Layout(1, {{0, 0, 4096, 4096}}), {handle}), HasSubstr("10001 bytes of a file of 10000"));
  handle.bytes = 0;
  EXPECT_THAT(WhyRefused(Layout(1, {{0, 0, 4096, 4096}}), {handle}), HasSubstr("0 bytes"));
  handle.bytes = 10'000;
  EXPECT_TRUE(HostRegion::Open(Layout(2, {{0, 0, 5000, 5000}}), std::array{handle}).ok());
  EXPECT_THAT(WhyRefused(Layout(2, {{0, 1, 5000, 5000}}), {handle}), HasSubstr("plane 0"));
  handle.bytes = 9'999;  // what the engine does not offer is not taken
  EXPECT_THAT(WhyRefused(Layout(2, {{0, 0, 5000, 5000}}), {handle}), HasSubstr("plane 0"));
}

TEST(HostRegion, WrapChecksAndLeavesTheMemoryAlone) {
  std::vector<std::byte> memory(10'000);
  const std::span<std::byte> allocation(memory);
  {
    const auto region = HostRegion::Wrap(Layout(2, {{0, 0, 5000, 5000}}), {&allocation, 1});
    ASSERT_TRUE(region.ok());
    EXPECT_EQ((*region)->Piece(0, 1), memory.data() + 5000);
  }
  memory[9999] = std::byte{1};
  EXPECT_TRUE(absl::IsInvalidArgument(HostRegion::Wrap(Layout(3, {{0, 0, 5000, 5000}}), {&allocation, 1}).status()));
}

}  // namespace
}  // namespace terrace::gpu
