// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// GPU pages that the library copies itself, through its own stream: on softcuda, or on a real
// driver where TERRACE_TEST_DRIVER says so. The daemon is in this process and opens no region.
#include <cuda.h>

#include "api/client_fixture.h"
#include "gpu/cuda/driver.h"
#include "gpu/softcuda/control.h"

namespace terrace::api {
namespace {

using gpu::Driver;

class DevicePagesTest : public ClientTest {
 protected:
  static constexpr uint64_t kPlaneBytes = 50'000, kStride = 50'048, kPages = 64;
  static constexpr uint32_t kPlanes = 4;  // kBlockBytes in all
  static constexpr uint64_t kPlaneExtent = kStride * kPages;

  void SetUp() override {
    if (!gpu::OnRealDriver()) soft_ = std::make_unique<gpu::Softcuda>();
    std::string why;
    // libterrace asks for libcuda.so.1: the one that is loaded already.
    driver_ = Driver::Load(gpu::TestDriver(), &why);
    if (driver_ == nullptr) GTEST_SKIP() << why;
    ASSERT_EQ(driver_->cuDevicePrimaryCtxRetain(&context_, 0), CUDA_SUCCESS);
    ASSERT_EQ(driver_->cuCtxPushCurrent(context_), CUDA_SUCCESS);
    ASSERT_EQ(driver_->cuStreamCreateWithPriority(&stream_, CU_STREAM_NON_BLOCKING, 0),
              CUDA_SUCCESS);
    ASSERT_EQ(driver_->cuMemAlloc(&memory_, kPlanes * kPlaneExtent), CUDA_SUCCESS);
    for (uint64_t p = 0; p < kPlanes; ++p) {
      planes_.push_back(
          {reinterpret_cast<void*>(memory_ + p * kPlaneExtent), kStride, kPlaneBytes});
    }
    Clear();
    StartDaemon(1, 512ull << 20, [](tiering::TierStackOptions* options) { options->gpu = false; });
  }
  void TearDown() override {
    if (driver_ == nullptr) return;
    if (soft_ != nullptr) soft_->Reset();
    while (!clients_.empty()) Close(clients_.back());
    EXPECT_EQ(driver_->cuMemFree(memory_), CUDA_SUCCESS);
    EXPECT_EQ(driver_->cuStreamDestroy(stream_), CUDA_SUCCESS);
    if (soft_ != nullptr) {
      EXPECT_EQ(soft_->Counter("live_registered"), expected_left_);
      EXPECT_EQ(soft_->Counter("live_allocations"), 0u);
    }
    CUcontext popped;
    driver_->cuCtxPopCurrent(&popped);
    driver_->cuDevicePrimaryCtxRelease(0);
  }
  void Sync() { ASSERT_EQ(driver_->cuStreamSynchronize(stream_), CUDA_SUCCESS); }
  void Clear() {
    ASSERT_EQ(driver_->cuMemsetD8Async(memory_, 0x5a, kPlanes * kPlaneExtent, stream_),
              CUDA_SUCCESS);
    Sync();
  }
  // Enqueued on the engine's stream only: whoever copies must wait for it. The payloads are kept.
  void Fill(uint64_t page, const std::vector<std::byte>& payload) {
    kept_.push_back(payload);
    for (uint64_t p = 0; p < kPlanes; ++p) {
      ASSERT_EQ(driver_->cuMemcpyAsync(
                    memory_ + p * kPlaneExtent + page * kStride,
                    reinterpret_cast<CUdeviceptr>(kept_.back().data() + p * kPlaneBytes),
                    kPlaneBytes, stream_),
                CUDA_SUCCESS);
    }
  }
  std::vector<std::byte> Everything() {
    std::vector<std::byte> all(kPlanes * kPlaneExtent);
    EXPECT_EQ(driver_->cuMemcpyAsync(reinterpret_cast<CUdeviceptr>(all.data()), memory_, all.size(),
                                     stream_),
              CUDA_SUCCESS);
    EXPECT_EQ(driver_->cuStreamSynchronize(stream_), CUDA_SUCCESS);
    return all;
  }
  static std::vector<std::byte> PageOf(const std::vector<std::byte>& all, uint64_t page) {
    std::vector<std::byte> payload;
    for (uint64_t p = 0; p < kPlanes; ++p) {
      const auto piece = all.begin() + static_cast<ptrdiff_t>(p * kPlaneExtent + page * kStride);
      payload.insert(payload.end(), piece, piece + kPlaneBytes);
    }
    return payload;
  }
  terrace_device_pages Wanted(uint32_t flags = TERRACE_PAGES_NO_EXPORT) {
    terrace_device_pages wanted{};
    wanted.struct_bytes = sizeof(wanted);
    wanted.planes = planes_.data();
    wanted.n_planes = kPlanes;
    wanted.flags = flags;
    wanted.n_blocks = kPages;
    wanted.stream = stream_;
    return wanted;
  }
  terrace_pages* Register(terrace_client* client, uint32_t flags = TERRACE_PAGES_NO_EXPORT) {
    const terrace_device_pages wanted = Wanted(flags);
    terrace_pages* pages = nullptr;
    EXPECT_EQ(terrace_device_pages_register(client, &wanted, &pages), TERRACE_OK)
        << terrace_error_text();
    return pages;
  }
  static std::vector<uint64_t> Ids(uint64_t first, uint32_t n) {
    std::vector<uint64_t> ids;
    for (uint32_t i = 0; i < n; ++i) ids.push_back((first + i * 5) % kPages);
    return ids;
  }
  terrace_op* StartStore(terrace_client* client, terrace_keyspace* keyspace, terrace_pages* pages,
                         const std::vector<uint8_t>& keys, const std::vector<uint64_t>& ids,
                         terrace_status expected = TERRACE_OK) {
    terrace_op* op = nullptr;
    EXPECT_EQ(terrace_store(client, keyspace, nullptr, keys.data(),
                            static_cast<uint32_t>(ids.size()), 0, nullptr, pages, ids.data(), &op),
              expected)
        << terrace_error_text();
    return op;
  }
  terrace_op* StartLoad(terrace_client* client, terrace_keyspace* keyspace, terrace_pages* pages,
                        const std::vector<uint8_t>& keys, const std::vector<uint64_t>& ids) {
    const Found found = Lookup(client, keyspace, keys);
    terrace_op* op = nullptr;
    EXPECT_EQ(terrace_load(client, keyspace, found.refs.data(), keys.data(),
                           static_cast<uint32_t>(ids.size()), pages, ids.data(), &op),
              TERRACE_OK)
        << terrace_error_text();
    return op;
  }

  std::unique_ptr<gpu::Softcuda> soft_;
  std::shared_ptr<const Driver> driver_;
  CUcontext context_ = nullptr;
  CUstream stream_ = nullptr;
  CUdeviceptr memory_ = 0;
  std::vector<terrace_plane> planes_;
  std::vector<std::vector<std::byte>> kept_;
  uint64_t expected_left_ = 0;
};

TEST_F(DevicePagesTest, StoresWhatTheStreamHasComputedAndLoadsItBack) {
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  terrace_pages* pages = Register(client);
  const char* why = nullptr;
  EXPECT_EQ(terrace_pages_copier(pages, &why), TERRACE_COPIER_LIBRARY_STREAM);
  EXPECT_STREQ(why, "TERRACE_PAGES_NO_EXPORT was asked for");
  const uint32_t n = 60;  // more than fit into the buffers at once
  const std::vector<uint8_t> keys = ChainKeys(1, n);
  const std::vector<uint64_t> ids = Ids(3, n);
  kept_.reserve(n);
  for (uint32_t i = 0; i < n; ++i) Fill(ids[i], PayloadOf(&keys[i * 32], kBlockBytes));
  const std::vector<uint8_t> stored = Reasons(StartStore(client, keyspace, pages, keys, ids));
  EXPECT_EQ(stored, std::vector<uint8_t>(n, TERRACE_REASON_NONE));
  // What the daemon has is what ordinary memory gets, too.
  const Found found = Lookup(client, keyspace, keys);
  ASSERT_EQ(found.n_prefix, n);
  std::vector<std::vector<std::byte>> payloads;
  EXPECT_EQ(Load(client, keyspace, found.refs, keys, &payloads),
            std::vector<uint8_t>(n, TERRACE_REASON_NONE));
  for (uint32_t i = 0; i < n; ++i)
    ASSERT_EQ(payloads[i], PayloadOf(&keys[i * 32], kBlockBytes)) << i;
  // Back into other pages; the rest of the memory is untouched.
  Clear();
  const std::vector<uint64_t> targets = Ids(11, n);
  terrace_op* load = StartLoad(client, keyspace, pages, keys, targets);
  EXPECT_EQ(terrace_op_wait_planes(load, kPlanes, kLongUs), TERRACE_OK);
  EXPECT_EQ(Reasons(load), std::vector<uint8_t>(n, TERRACE_REASON_NONE));
  std::vector<std::byte> all = Everything();
  for (uint32_t i = 0; i < n; ++i)
    ASSERT_EQ(PageOf(all, targets[i]), PayloadOf(&keys[i * 32], kBlockBytes)) << i;
  for (const uint64_t page : targets) {
    for (uint64_t p = 0; p < kPlanes; ++p) {
      std::fill_n(all.begin() + static_cast<ptrdiff_t>(p * kPlaneExtent + page * kStride),
                  kPlaneBytes, std::byte{0x5a});
    }
  }
  EXPECT_TRUE(
      std::all_of(all.begin(), all.end(), [](std::byte b) { return b == std::byte{0x5a}; }));
  terrace_client_stats stats{};
  stats.struct_bytes = sizeof(stats);
  terrace_get_stats(client, &stats);
  EXPECT_EQ(stats.store_blocks, n);
  EXPECT_EQ(stats.load_blocks, 2 * n);
  terrace_pages_free(pages);
  terrace_keyspace_free(keyspace);
}

TEST_F(DevicePagesTest, WaitsForTheEnginesStreamAndNobodyWaitsForIt) {
  if (soft_ == nullptr) GTEST_SKIP() << "only softcuda can hold a stream";
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  terrace_pages* pages = Register(client);
  const std::vector<uint8_t> keys = ChainKeys(2, 2);
  soft_->Hang(true);
  ASSERT_EQ(driver_->cuMemsetD8Async(memory_, 0x77, kPlanes * kPlaneExtent, stream_), CUDA_SUCCESS);
  terrace_op* op = StartStore(client, keyspace, pages, keys, {0, 1});  // returns at once
  EXPECT_EQ(terrace_op_wait_sources(op, 20'000), TERRACE_DEADLINE_EXCEEDED);
  // Ordinary operations go on.
  EXPECT_EQ(Store(client, keyspace, ChainKeys(3, 2)), std::vector<uint8_t>(2, TERRACE_REASON_NONE));
  EXPECT_EQ(terrace_op_done(op), 0);
  soft_->Hang(false);
  EXPECT_EQ(terrace_op_wait_sources(op, kLongUs), TERRACE_OK);
  EXPECT_EQ(Reasons(op), std::vector<uint8_t>(2, TERRACE_REASON_NONE));
  std::vector<std::vector<std::byte>> payloads;
  Load(client, keyspace, Lookup(client, keyspace, keys).refs, keys, &payloads);
  EXPECT_EQ(payloads[1], std::vector<std::byte>(kBlockBytes, std::byte{0x77}));
  terrace_pages_free(pages);
  terrace_keyspace_free(keyspace);
}

// The stream is busy for long when the operations are called: a copy that did not wait would be seen.
TEST_F(DevicePagesTest, AStoreSeesWhatTheStreamWillComputeAndALoadOverwritesNothingItStillReads) {
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  terrace_pages* pages = Register(client);
  CUdeviceptr elsewhere = 0;
  ASSERT_EQ(driver_->cuMemAlloc(&elsewhere, kPlaneBytes), CUDA_SUCCESS);
  const auto keep_busy = [&](unsigned char last) {
    for (int i = 0; i < 60; ++i) {
      const auto value = static_cast<unsigned char>(i == 59 ? last : 0x11);
      ASSERT_EQ(driver_->cuMemsetD8Async(memory_, value, kPlanes * kPlaneExtent, stream_),
                CUDA_SUCCESS);
    }
  };
  const std::vector<uint8_t> keys = ChainKeys(20, 1);
  keep_busy(0x77);
  EXPECT_EQ(Reasons(StartStore(client, keyspace, pages, keys, {3})),
            std::vector<uint8_t>{TERRACE_REASON_NONE});
  keep_busy(0x33);
  ASSERT_EQ(driver_->cuMemcpyAsync(elsewhere, memory_ + 3 * kStride, kPlaneBytes, stream_),
            CUDA_SUCCESS);
  EXPECT_EQ(Reasons(StartLoad(client, keyspace, pages, keys, {3})),
            std::vector<uint8_t>{TERRACE_REASON_NONE});
  EXPECT_EQ(PageOf(Everything(), 3), std::vector<std::byte>(kBlockBytes, std::byte{0x77}));
  std::vector<std::byte> read(kPlaneBytes);
  ASSERT_EQ(driver_->cuMemcpyAsync(reinterpret_cast<CUdeviceptr>(read.data()), elsewhere,
                                   read.size(), stream_),
            CUDA_SUCCESS);
  Sync();
  EXPECT_EQ(read, std::vector<std::byte>(kPlaneBytes, std::byte{0x33}));
  EXPECT_EQ(driver_->cuMemFree(elsewhere), CUDA_SUCCESS);
  terrace_pages_free(pages);
  terrace_keyspace_free(keyspace);
}

TEST_F(DevicePagesTest, AMissingBlockAndADuplicateHaveTheirReasons) {
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  terrace_pages* pages = Register(client);
  const std::vector<uint8_t> keys = ChainKeys(4, 3);
  Store(client, keyspace, {keys.begin(), keys.begin() + 64});
  const std::vector<uint64_t> ids = {7, 8, 9};
  terrace_op* load = StartLoad(client, keyspace, pages, keys, ids);
  EXPECT_EQ(terrace_op_wait_planes(load, 1, kLongUs), TERRACE_DATA_LOSS);
  EXPECT_EQ(terrace_op_planes_done(load), 0u);
  EXPECT_EQ(Reasons(load),
            (std::vector<uint8_t>{TERRACE_REASON_NONE, TERRACE_REASON_NONE, TERRACE_REASON_STALE}));
  const std::vector<std::byte> all = Everything();
  EXPECT_EQ(PageOf(all, 8), PayloadOf(&keys[32], kBlockBytes));
  EXPECT_EQ(PageOf(all, 9), std::vector<std::byte>(kBlockBytes, std::byte{0x5a}));
  const std::vector<uint8_t> stored = Reasons(StartStore(client, keyspace, pages, keys, ids));
  EXPECT_EQ(stored, (std::vector<uint8_t>{TERRACE_REASON_DUPLICATE, TERRACE_REASON_DUPLICATE,
                                          TERRACE_REASON_NONE}));
  terrace_pages_free(pages);
  terrace_keyspace_free(keyspace);
}

TEST_F(DevicePagesTest, ErrorsOfTheGpuAreReasonsAndAStickyOneIsReportedFromThenOn) {
  if (soft_ == nullptr) GTEST_SKIP() << "only softcuda can be made to fail";
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  terrace_pages* pages = Register(client);
  const std::vector<uint8_t> keys = ChainKeys(5, 2);
  const std::vector<uint64_t> ids = {1, 2};
  soft_->Fail("cuMemcpyAsync", CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(Reasons(StartStore(client, keyspace, pages, keys, ids)),
            std::vector<uint8_t>(2, TERRACE_REASON_UNAVAILABLE));
  // Once only: the next one works, and so does one without pinned memory.
  EXPECT_EQ(Reasons(StartStore(client, keyspace, pages, keys, ids)),
            std::vector<uint8_t>(2, TERRACE_REASON_NONE));
  soft_->Fail("cuMemcpyAsync", CUDA_ERROR_INVALID_VALUE, /*after_calls=*/5);
  EXPECT_EQ(Reasons(StartLoad(client, keyspace, pages, keys, ids)),
            std::vector<uint8_t>(2, TERRACE_REASON_UNAVAILABLE));
  soft_->Fail("cuEventRecord", CUDA_ERROR_ILLEGAL_ADDRESS);
  EXPECT_EQ(StartStore(client, keyspace, pages, keys, ids, TERRACE_UNAVAILABLE), nullptr);
  EXPECT_NE(std::string(terrace_error_text()).find("CUDA_ERROR_ILLEGAL_ADDRESS"),
            std::string::npos);
  const uint64_t calls = soft_->Counter("cuEventRecord");
  EXPECT_EQ(StartStore(client, keyspace, pages, keys, ids, TERRACE_UNAVAILABLE), nullptr);
  EXPECT_NE(std::string(terrace_error_text()).find("restart the engine"), std::string::npos);
  EXPECT_EQ(soft_->Counter("cuEventRecord"), calls);  // not tried again
  expected_left_ = 1;                                 // nothing is given back to a broken context
  terrace_pages_free(pages);
  terrace_keyspace_free(keyspace);
}

TEST_F(DevicePagesTest, WithoutPinnedMemoryItIsOnlySlower) {
  if (soft_ == nullptr) GTEST_SKIP() << "only softcuda can be made to fail";
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  terrace_pages* pages = Register(client);
  soft_->Fail("cuMemHostRegister", CUDA_ERROR_OUT_OF_MEMORY);
  const std::vector<uint8_t> keys = ChainKeys(6, 2);
  kept_.reserve(2);
  for (uint32_t i = 0; i < 2; ++i) Fill(i, PayloadOf(&keys[i * 32], kBlockBytes));
  EXPECT_EQ(Reasons(StartStore(client, keyspace, pages, keys, {0, 1})),
            std::vector<uint8_t>(2, TERRACE_REASON_NONE));
  EXPECT_EQ(Reasons(StartLoad(client, keyspace, pages, keys, {2, 3})),
            std::vector<uint8_t>(2, TERRACE_REASON_NONE));
  EXPECT_EQ(PageOf(Everything(), 3), PayloadOf(&keys[32], kBlockBytes));
  terrace_pages_free(pages);
  terrace_keyspace_free(keyspace);
}

TEST_F(DevicePagesTest, FreeingAnOperationOrClosingWaitsForTheGpu) {
  if (soft_ == nullptr) GTEST_SKIP() << "only softcuda can hold a stream";
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  terrace_pages* pages = Register(client);
  const std::vector<uint8_t> keys = ChainKeys(7, 1);
  terrace_op* ready = StartStore(client, keyspace, pages, keys, {0});
  Reasons(ready);
  soft_->Hang(true);
  const uint64_t copies = soft_->Counter("cuMemcpyAsync");
  terrace_op* load = StartLoad(client, keyspace, pages, keys, {1});
  ASSERT_TRUE(Eventually([&] { return soft_->Counter("cuMemcpyAsync") == copies + kPlanes; }));
  std::atomic<bool> freed{false};
  std::thread freeing([&] {
    terrace_op_free(load);
    freed = true;
  });
  EXPECT_EQ(Store(client, keyspace, ChainKeys(8, 2)), std::vector<uint8_t>(2, TERRACE_REASON_NONE));
  EXPECT_FALSE(freed);  // the GPU still writes to page 1
  soft_->Hang(false);
  freeing.join();
  terrace_op* last = StartStore(client, keyspace, pages, ChainKeys(9, 1), {2});
  Close(client);
  EXPECT_EQ(terrace_op_done(last), 1);
  terrace_op_free(last);
  terrace_pages_free(pages);
  terrace_keyspace_free(keyspace);
}

TEST_F(DevicePagesTest, TheCallersContextIsNotChangedAndNotNeededLater) {
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  terrace_pages* pages = Register(client);
  CUcontext current = nullptr;
  EXPECT_EQ(driver_->cuCtxGetCurrent(&current), CUDA_SUCCESS);
  EXPECT_EQ(current, context_);
  const std::vector<uint8_t> keys = ChainKeys(10, 1);
  std::thread([&] {  // no context of its own
    Reasons(StartStore(client, keyspace, pages, keys, {2}));
    CUcontext none = context_;
    EXPECT_EQ(driver_->cuCtxGetCurrent(&none), CUDA_SUCCESS);
    EXPECT_EQ(none, nullptr);
  })
      .join();
  EXPECT_EQ(Lookup(client, keyspace, keys).n_prefix, 1u);
  terrace_pages_free(pages);
  terrace_keyspace_free(keyspace);
}

TEST_F(DevicePagesTest, RefusesWhatIsNotGpuMemoryOfTheContext) {
  terrace_client* client = Connect();
  terrace_device_pages wanted = Wanted();
  terrace_pages* pages = nullptr;
  const auto refused = [&](terrace_status expected) {
    EXPECT_EQ(terrace_device_pages_register(client, &wanted, &pages), expected);
    return std::string(terrace_error_text());
  };
  wanted.flags = 2;
  EXPECT_NE(refused(TERRACE_INVALID_ARGUMENT).find("flags"), std::string::npos);
  wanted = Wanted();
  std::vector<std::byte> host(kPlaneExtent);
  std::vector<terrace_plane> planes = planes_;
  planes[2].base = host.data();
  wanted.planes = planes.data();
  EXPECT_NE(refused(TERRACE_INVALID_ARGUMENT).find("planes[2]"), std::string::npos);
  wanted = Wanted();
  wanted.n_blocks = kPages + 1;
  EXPECT_NE(refused(TERRACE_INVALID_ARGUMENT).find("planes[3] ends"), std::string::npos);
  CUcontext popped;
  ASSERT_EQ(driver_->cuCtxPopCurrent(&popped), CUDA_SUCCESS);
  wanted = Wanted();
  EXPECT_NE(refused(TERRACE_FAILED_PRECONDITION).find("context"), std::string::npos);
  ASSERT_EQ(driver_->cuCtxPushCurrent(context_), CUDA_SUCCESS);
}

TEST_F(DevicePagesTest, MemoryThatCannotBeExportedIsCopiedHere) {
  if (soft_ == nullptr) GTEST_SKIP() << "only softcuda can be made to fail";
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  soft_->Fail("cuIpcGetMemHandle", CUDA_ERROR_NOT_SUPPORTED);
  terrace_pages* pages = Register(client, 0);
  const char* why = nullptr;
  EXPECT_EQ(terrace_pages_copier(pages, &why), TERRACE_COPIER_LIBRARY_STREAM);
  EXPECT_NE(std::string(why).find("CUDA IPC handle: CUDA_ERROR_NOT_SUPPORTED"), std::string::npos);
  terrace_pages_free(pages);
  // Exported, but this daemon has no GPU.
  pages = Register(client, 0);
  EXPECT_EQ(terrace_pages_copier(pages, &why), TERRACE_COPIER_LIBRARY_STREAM) << why;
  EXPECT_STRNE(why, "");
  const std::vector<uint8_t> keys = ChainKeys(11, 1);
  EXPECT_EQ(Reasons(StartStore(client, keyspace, pages, keys, {2})),
            std::vector<uint8_t>(1, TERRACE_REASON_NONE));
  terrace_pages_free(pages);
  terrace_keyspace_free(keyspace);
}

}  // namespace
}  // namespace terrace::api
