// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What every BlockDevice owes its caller: io_uring, POSIX, both over the page cache, the disk in memory
// in real and virtual time, and the fault decorator without faults.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "testing/fake_clock.h"
#include "testing/fault_device.h"
#include "testing/memory_device.h"
#include "tiering/io/block_device.h"

namespace terrace::tiering {
namespace {

using testing::FakeClock;
using testing::KeyOf;
using testing::PayloadOf;

constexpr uint64_t kBytes = 16 << 20;
constexpr int64_t kLimitNs = 20'000'000'000;
using Backend = BlockDeviceOptions::Backend;

// Memory as devices want it.
class AlignedBuffer {
 public:
  explicit AlignedBuffer(size_t bytes)
      : bytes_(bytes), data_(static_cast<std::byte*>(std::aligned_alloc(kIoAlign, bytes))) {
    std::memset(data_, 0xEE, bytes);
  }
  ~AlignedBuffer() { std::free(data_); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  std::span<std::byte> span() { return {data_, bytes_}; }
  std::span<std::byte> part(size_t at, size_t n) { return span().subspan(at, n); }

 private:
  const size_t bytes_;
  std::byte* const data_;
};

// What a device under test stands on.
struct Ground {
  std::string directory;
  FakeClock fake_clock;
  testing::MemoryDisks real_disks{Clock::Real()}, fake_disks{&fake_clock, {.jitter_ns = 300'000}};
  bool is_fake = false;
  std::string backend;  // as it should call itself
};
struct Kind {
  const char* name;
  std::function<BlockDeviceFactory(Ground*)> make;
};

BlockDeviceFactory OnFile(Ground* ground, Backend backend, bool direct, const char* name) {
  ground->backend = name;
  return [ground, backend, direct](BlockDeviceOptions options) {
    options.path = ground->directory + "/" + options.path;
    options.backend = backend;
    options.direct = direct;
    return OpenBlockDevice(options);
  };
}
BlockDeviceFactory InMemory(Ground* ground, bool is_fake) {
  ground->backend = "memory";
  ground->is_fake = is_fake;
  return is_fake ? ground->fake_disks.Factory() : ground->real_disks.Factory();
}
BlockDeviceFactory WithFaults(BlockDeviceFactory inner, const Clock* clock) {
  auto script = std::make_shared<testing::FaultScript>(1);
  script->Add({.kind = testing::FaultKind::kError, .probability = 0});
  return testing::FaultyFactory(std::move(inner), std::move(script), clock);
}

const Kind kKinds[] = {
    {"IoUring", [](Ground* g) { return OnFile(g, Backend::kIoUring, true, "io_uring"); }},
    {"Posix", [](Ground* g) { return OnFile(g, Backend::kPosix, true, "posix"); }},
    {"IoUringBuffered", [](Ground* g) { return OnFile(g, Backend::kIoUring, false, "io_uring, buffered"); }},
    {"PosixBuffered", [](Ground* g) { return OnFile(g, Backend::kPosix, false, "posix, buffered"); }},
    {"Memory", [](Ground* g) { return InMemory(g, false); }},
    {"MemoryVirtualTime", [](Ground* g) { return InMemory(g, true); }},
    {"FaultsOverIoUring",
     [](Ground* g) { return WithFaults(OnFile(g, Backend::kIoUring, true, "io_uring"), Clock::Real()); }},
    {"FaultsOverVirtualTime", [](Ground* g) { return WithFaults(InMemory(g, true), &g->fake_clock); }},
};

class BlockDeviceContract : public ::testing::TestWithParam<Kind> {
 protected:
  BlockDeviceContract() {
    std::string name = ::testing::TempDir() + "/block_device.XXXXXX";
    ground_.directory = mkdtemp(name.data());
    factory_ = GetParam().make(&ground_);
  }
  ~BlockDeviceContract() override { std::filesystem::remove_all(ground_.directory); }

  std::unique_ptr<BlockDevice> Open(uint32_t depth = 64, uint64_t bytes = kBytes) {
    BlockDeviceOptions options;
    options.path = "data";
    options.bytes = bytes;
    options.depth = depth;
    absl::StatusOr<std::unique_ptr<BlockDevice>> device = factory_(options);
    EXPECT_TRUE(device.ok()) << device.status();
    return device.ok() ? std::move(*device) : nullptr;
  }
  // The next n results by tag; fails when they take too long.
  std::map<uint64_t, int> Take(BlockDevice* device, size_t n) {
    std::map<uint64_t, int> errors;
    const int64_t deadline_ns = Clock::Real()->NowNs() + kLimitNs;
    while (errors.size() < n && Clock::Real()->NowNs() < deadline_ns) {
      IoResult results[7];
      const std::span<IoResult> wanted(results, std::min<size_t>(7, n - errors.size()));
      const size_t got = device->Poll(wanted, 100'000'000);
      for (size_t i = 0; i < got; ++i) {
        EXPECT_TRUE(errors.emplace(results[i].tag, results[i].error).second) << "twice: " << results[i].tag;
      }
      if (ground_.is_fake) ground_.fake_clock.AdvanceNs(50'000);
    }
    EXPECT_EQ(errors.size(), n) << "some requests did not end";
    return errors;
  }
  // One request, to its end.
  int Do(BlockDevice* device, IoOp op, uint64_t offset, std::span<std::byte> buffer) {
    EXPECT_TRUE(device->Submit({op, offset, buffer, 77}));
    return Take(device, 1)[77];
  }

  Ground ground_;
  BlockDeviceFactory factory_;
};

TEST_P(BlockDeviceContract, SaysWhatItIs) {
  auto device = Open(13);
  EXPECT_EQ(device->bytes(), kBytes);
  EXPECT_EQ(device->depth(), 13u);
  EXPECT_EQ(device->backend(), ground_.backend);
}

TEST_P(BlockDeviceContract, ReadsWhatWasWritten) {
  for (const bool is_registered : {false, true}) {
    auto device = Open();
    AlignedBuffer memory(8 << 20), other(4 << 20);
    if (is_registered) device->RegisterBuffers(memory.span());
    uint64_t number = 0, offset = 0;
    for (const size_t bytes : {4096ul, 65536ul, (2ul << 20) + 4096, 4096ul * 3}) {
      const std::vector<std::byte> data = PayloadOf(KeyOf(++number), bytes);
      for (AlignedBuffer* from : {&memory, &other}) {
        const std::span<std::byte> source = from->part(4096, bytes), target = memory.part(4 << 20, bytes);
        std::memcpy(source.data(), data.data(), bytes);
        ASSERT_EQ(Do(device.get(), IoOp::kWrite, offset, source), 0);
        std::memset(target.data(), 0, bytes);
        ASSERT_EQ(Do(device.get(), IoOp::kRead, offset, target), 0);
        EXPECT_EQ(std::memcmp(target.data(), data.data(), bytes), 0);
        offset = (offset + bytes) % (8 << 20);
      }
    }
  }
}

TEST_P(BlockDeviceContract, ContentOutlivesTheDevice) {
  const std::vector<std::byte> data = PayloadOf(KeyOf(5), 128 << 10);
  AlignedBuffer buffer(128 << 10);
  {
    auto device = Open();
    std::memcpy(buffer.span().data(), data.data(), data.size());
    ASSERT_EQ(Do(device.get(), IoOp::kWrite, kBytes - data.size(), buffer.span()), 0);
    ASSERT_EQ(Do(device.get(), IoOp::kSync, 0, {}), 0);
    absl::StatusOr<std::unique_ptr<BlockDevice>> second = factory_({.path = "data", .bytes = kBytes});
    EXPECT_TRUE(absl::IsFailedPrecondition(second.status())) << "two owners: " << second.status();
  }
  auto device = Open();
  std::memset(buffer.span().data(), 0, data.size());
  ASSERT_EQ(Do(device.get(), IoOp::kRead, kBytes - data.size(), buffer.span()), 0);
  EXPECT_EQ(std::memcmp(buffer.span().data(), data.data(), data.size()), 0);
}

TEST_P(BlockDeviceContract, AnotherSizeKeepsWhatLiesInBoth) {
  AlignedBuffer buffer(4096);
  const auto fill = [&](int value) { std::memset(buffer.span().data(), value, 4096); };
  {
    auto device = Open();
    fill(1);
    ASSERT_EQ(Do(device.get(), IoOp::kWrite, 4096, buffer.span()), 0);
    fill(2);
    ASSERT_EQ(Do(device.get(), IoOp::kWrite, kBytes - 4096, buffer.span()), 0);
  }
  EXPECT_EQ(Open(64, kBytes / 2)->bytes(), kBytes / 2);
  auto device = Open(64, 2 * kBytes);
  ASSERT_EQ(Do(device.get(), IoOp::kRead, 4096, buffer.span()), 0);
  EXPECT_EQ(buffer.span()[100], std::byte{1});
  fill(9);
  ASSERT_EQ(Do(device.get(), IoOp::kRead, kBytes - 4096, buffer.span()), 0);
  EXPECT_EQ(buffer.span()[100], std::byte{0}) << "what was cut off is gone";
  ASSERT_EQ(Do(device.get(), IoOp::kRead, 2 * kBytes - 4096, buffer.span()), 0);
}

TEST_P(BlockDeviceContract, NoMoreThanDepthInFlight) {
  for (const uint32_t depth : {1u, 5u, 64u}) {
    auto device = Open(depth);
    AlignedBuffer buffer(depth * 4096);
    for (int round = 0; round < 3; ++round) {
      for (uint32_t i = 0; i < depth; ++i) {
        ASSERT_TRUE(device->Submit({IoOp::kRead, i * 4096ull, buffer.part(i * 4096, 4096), i}));
      }
      EXPECT_FALSE(device->Submit({IoOp::kRead, 0, buffer.part(0, 4096), 999}));
      for (const auto& [tag, error] : Take(device.get(), depth)) {
        EXPECT_LT(tag, depth);
        EXPECT_EQ(error, 0);
      }
    }
  }
}

TEST_P(BlockDeviceContract, ManyInFlightEachEndsOnceWithItsOwnData) {
  constexpr uint32_t kDepth = 48, kBlocks = 400;
  constexpr size_t kBlock = 32 << 10;
  auto device = Open(kDepth);
  AlignedBuffer memory(kDepth * kBlock);
  device->RegisterBuffers(memory.span());
  testing::Random random(7);
  for (const IoOp op : {IoOp::kWrite, IoOp::kRead}) {
    std::vector<uint32_t> free_parts, order;
    for (uint32_t i = 0; i < kDepth; ++i) free_parts.push_back(i);
    for (uint32_t i = 0; i < kBlocks; ++i) order.push_back(i);
    for (size_t i = kBlocks; i > 1; --i) std::swap(order[i - 1], order[random.Below(i)]);
    uint32_t n_done = 0;
    while (n_done < kBlocks) {
      while (!free_parts.empty() && !order.empty()) {
        const uint32_t part = free_parts.back(), block = order.back();
        const std::span<std::byte> buffer = memory.part(part * kBlock, kBlock);
        if (op == IoOp::kWrite) testing::FillPayload(KeyOf(block), 0, buffer);
        else std::memset(buffer.data(), 0xAA, buffer.size());
        ASSERT_TRUE(device->Submit({op, block * kBlock, buffer, (uint64_t{block} << 32) | part}));
        free_parts.pop_back();
        order.pop_back();
      }
      for (const auto& [tag, error] : Take(device.get(), 1 + random.Below(kDepth - free_parts.size()))) {
        ASSERT_EQ(error, 0);
        const auto part = static_cast<uint32_t>(tag);
        if (op == IoOp::kRead) {
          ASSERT_TRUE(testing::IsPayloadOf(KeyOf(tag >> 32), memory.part(part * kBlock, kBlock)));
        }
        free_parts.push_back(part);
        ++n_done;
      }
      if (::testing::Test::HasFailure()) return;
    }
  }
}

TEST_P(BlockDeviceContract, TheEndOfTheFileIsAnIoError) {
  auto device = Open();
  AlignedBuffer buffer(16384);
  EXPECT_EQ(Do(device.get(), IoOp::kRead, kBytes, buffer.part(0, 4096)), EIO);
  EXPECT_EQ(Do(device.get(), IoOp::kRead, kBytes - 4096, buffer.part(0, 8192)), EIO);
  EXPECT_EQ(Do(device.get(), IoOp::kRead, kBytes + (1ull << 40), buffer.part(0, 4096)), EIO);
  EXPECT_EQ(Do(device.get(), IoOp::kRead, kBytes - 4096, buffer.part(0, 4096)), 0) << "and it goes on";
}

TEST_P(BlockDeviceContract, SyncEndsAndCountsAsInFlight) {
  auto device = Open(2);
  AlignedBuffer buffer(4096);
  ASSERT_TRUE(device->Submit({IoOp::kWrite, 0, buffer.span(), 1}));
  ASSERT_TRUE(device->Submit({IoOp::kSync, 0, {}, 2}));
  EXPECT_FALSE(device->Submit({IoOp::kSync, 0, {}, 3}));
  const std::map<uint64_t, int> expected = {{1, 0}, {2, 0}};
  EXPECT_EQ(Take(device.get(), 2), expected);
}

TEST_P(BlockDeviceContract, PollWithoutWaitingComesBackWithNothing) {
  auto device = Open();
  IoResult results[4];
  EXPECT_EQ(device->Poll(results, 0), 0u);
  EXPECT_EQ(device->Poll({}, 0), 0u);
  const int64_t start_ns = Clock::Real()->NowNs();
  while (!ground_.is_fake && Clock::Real()->NowNs() - start_ns < 20'000'000) {
    ASSERT_EQ(device->Poll(results, 5'000'000), 0u);
  }
}

TEST_P(BlockDeviceContract, APollThatWaitsIsWoken) {
  auto device = Open();
  std::atomic<int> rounds{0};
  std::atomic<bool> stop{false};
  std::thread waker([&] {
    while (!stop.load()) {
      device->Wake();
      std::this_thread::yield();
    }
  });
  const int64_t start_ns = Clock::Real()->NowNs();
  IoResult results[4];
  for (; rounds < 50; ++rounds) {
    ASSERT_EQ(device->Poll(results, kLimitNs), 0u);
    ASSERT_LT(Clock::Real()->NowNs() - start_ns, kLimitNs) << "after " << rounds;
  }
  stop.store(true);
  waker.join();
  device->Wake();  // before the Poll: that one does not wait
  device->Wake();
  ASSERT_EQ(device->Poll(results, kLimitNs), 0u);
  EXPECT_LT(Clock::Real()->NowNs() - start_ns, kLimitNs);
  AlignedBuffer buffer(4096);
  EXPECT_EQ(Do(device.get(), IoOp::kRead, 0, buffer.span()), 0);
}

TEST_P(BlockDeviceContract, NothingTouchesABufferAfterTheDevice) {
  for (int round = 0; round < 10; ++round) {
    auto device = Open();
    AlignedBuffer buffer(32 << 17);
    if (round % 2 == 1) device->RegisterBuffers(buffer.span());
    for (uint64_t i = 0; i < 32; ++i) {
      const IoOp op = i % 5 == 4 ? IoOp::kSync : i % 5 == 3 ? IoOp::kWrite : IoOp::kRead;
      const std::span<std::byte> part = buffer.part(i << 17, 1 << 17);
      ASSERT_TRUE(device->Submit({op, i << 17, op == IoOp::kSync ? std::span<std::byte>() : part, i}));
    }
    IoResult results[1];
    if (round % 3 != 0) device->Poll(results, 0);
    device->Wake();
    device.reset();
    std::memset(buffer.span().data(), 0x5C, buffer.span().size());
    auto second = Open();  // the lock is free, and some time passes
    AlignedBuffer other(4096);
    EXPECT_EQ(Do(second.get(), IoOp::kRead, 0, other.span()), 0);
    for (const std::byte b : buffer.span()) ASSERT_EQ(b, std::byte{0x5C});
  }
}

INSTANTIATE_TEST_SUITE_P(All, BlockDeviceContract, ::testing::ValuesIn(kKinds),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace terrace::tiering
