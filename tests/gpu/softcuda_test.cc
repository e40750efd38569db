// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// softcuda keeps what its README promises: other tests build on it.
#include "gpu/softcuda/softcuda.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "gpu/cuda/driver.h"
#include "gpu/exporter.h"
#include "gpu/softcuda/control.h"

namespace terrace::gpu {
namespace {

class SoftcudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    driver_ = Driver::Load(SOFTCUDA_LIBRARY, &why);
    ASSERT_NE(driver_, nullptr) << why;
    ASSERT_EQ(driver_->cuDevicePrimaryCtxRetain(&context_, 0), CUDA_SUCCESS);
    ASSERT_EQ(driver_->cuCtxPushCurrent(context_), CUDA_SUCCESS);
  }
  void TearDown() override {
    soft_.Reset();
    CUcontext popped;
    EXPECT_EQ(driver_->cuCtxPopCurrent(&popped), CUDA_SUCCESS);
    EXPECT_EQ(driver_->cuDevicePrimaryCtxRelease(0), CUDA_SUCCESS);
    EXPECT_EQ(soft_.Counter("live_bytes"), 0u);
    EXPECT_EQ(soft_.Counter("live_events"), 0u);
    EXPECT_EQ(soft_.Counter("live_streams"), 0u);
  }
  CUdeviceptr Alloc(size_t bytes) {
    CUdeviceptr memory = 0;
    EXPECT_EQ(driver_->cuMemAlloc(&memory, bytes), CUDA_SUCCESS);
    return memory;
  }
  CUstream NewStream(unsigned flags = CU_STREAM_NON_BLOCKING) {
    CUstream stream = nullptr;
    EXPECT_EQ(driver_->cuStreamCreateWithPriority(&stream, flags, 0), CUDA_SUCCESS);
    return stream;
  }
  std::vector<std::byte> Pattern(size_t bytes, int seed) {
    std::vector<std::byte> made(bytes);
    for (size_t i = 0; i < bytes; ++i) made[i] = static_cast<std::byte>(i * 7 + static_cast<size_t>(seed));
    return made;
  }
  static CUdeviceptr Host(const void* pointer) { return reinterpret_cast<CUdeviceptr>(pointer); }

  Softcuda soft_;
  std::shared_ptr<const Driver> driver_;
  CUcontext context_ = nullptr;
};

TEST_F(SoftcudaTest, CopiesInAllDirections) {
  const CUdeviceptr a = Alloc(4 << 20), b = Alloc(4 << 20);
  const auto source = Pattern(1 << 20, 3);
  std::vector<std::byte> target(1 << 20);
  const CUstream stream = NewStream();
  EXPECT_EQ(driver_->cuMemcpyAsync(a + 13, Host(source.data()), source.size(), stream), CUDA_SUCCESS);
  EXPECT_EQ(driver_->cuMemcpyAsync(b + 5, a + 13, source.size(), stream), CUDA_SUCCESS);
  EXPECT_EQ(driver_->cuMemcpyAsync(Host(target.data()), b + 5, source.size(), stream), CUDA_SUCCESS);
  EXPECT_EQ(driver_->cuStreamSynchronize(stream), CUDA_SUCCESS);
  EXPECT_EQ(source, target);
  EXPECT_EQ(soft_.Counter("copies"), 3u);
  EXPECT_EQ(driver_->cuMemFree(a), CUDA_SUCCESS);
  EXPECT_EQ(driver_->cuMemFree(b), CUDA_SUCCESS);
}

TEST_F(SoftcudaTest, RefusesWrongArguments) {
  const CUdeviceptr a = Alloc(4096);
  const CUstream stream = NewStream();
  std::vector<std::byte> host(8192);
  EXPECT_EQ(driver_->cuMemcpyAsync(a + 1, Host(host.data()), 4096, stream), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(driver_->cuMemFree(a + 1), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(driver_->cuMemFree(a), CUDA_SUCCESS);
  EXPECT_EQ(driver_->cuMemFree(a), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(driver_->cuMemcpyAsync(a, Host(host.data()), 16, stream), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(driver_->cuStreamDestroy(stream), CUDA_SUCCESS);
  EXPECT_EQ(driver_->cuStreamQuery(stream), CUDA_ERROR_INVALID_HANDLE);
  CUcontext popped;
  ASSERT_EQ(driver_->cuCtxPopCurrent(&popped), CUDA_SUCCESS);
  CUdeviceptr none;
  EXPECT_EQ(driver_->cuMemAlloc(&none, 16), CUDA_ERROR_INVALID_CONTEXT);
  ASSERT_EQ(driver_->cuCtxPushCurrent(context_), CUDA_SUCCESS);
  EXPECT_EQ(driver_->cuMemAlloc(&none, 1ull << 40), CUDA_ERROR_OUT_OF_MEMORY);
}

TEST_F(SoftcudaTest, HostCannotTouchDeviceMemory) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";  // in a fresh process: there are threads
  const CUdeviceptr a = Alloc(4096);
  EXPECT_DEATH(
      {
        signal(SIGSEGV, SIG_DFL);
        *reinterpret_cast<volatile char*>(a) = 1;
      },
      "");
  EXPECT_EQ(driver_->cuMemFree(a), CUDA_SUCCESS);
}

TEST_F(SoftcudaTest, MemoryFreedUnderACopyBreaksTheDevice) {
  const CUdeviceptr a = Alloc(4096), b = Alloc(4096);
  const CUstream stream = NewStream();
  soft_.Hang(true);
  ASSERT_EQ(driver_->cuMemcpyAsync(a, b, 4096, stream), CUDA_SUCCESS);
  ASSERT_EQ(driver_->cuMemFree(b), CUDA_SUCCESS);
  soft_.Hang(false);
  EXPECT_EQ(driver_->cuStreamSynchronize(stream), CUDA_ERROR_ILLEGAL_ADDRESS);
  EXPECT_EQ(driver_->cuStreamQuery(stream), CUDA_ERROR_ILLEGAL_ADDRESS);
}

TEST_F(SoftcudaTest, EventsOrderStreams) {
  const CUdeviceptr a = Alloc(1 << 20);
  std::vector<std::byte> source = Pattern(1 << 20, 1), target(1 << 20);
  ASSERT_EQ(driver_->cuMemHostRegister(source.data(), source.size(), 0), CUDA_SUCCESS);
  ASSERT_EQ(driver_->cuMemHostRegister(target.data(), target.size(), 0), CUDA_SUCCESS);
  EXPECT_EQ(driver_->cuMemHostRegister(target.data() + 100, 8, 0), CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
  const CUstream first = NewStream(), second = NewStream();
  CUevent written, start, end;
  ASSERT_EQ(driver_->cuEventCreate(&written, CU_EVENT_DISABLE_TIMING), CUDA_SUCCESS);
  ASSERT_EQ(driver_->cuEventCreate(&start, 0), CUDA_SUCCESS);
  ASSERT_EQ(driver_->cuEventCreate(&end, 0), CUDA_SUCCESS);
  EXPECT_EQ(driver_->cuEventQuery(written), CUDA_SUCCESS);  // never recorded
  soft_.Hang(true);
  ASSERT_EQ(driver_->cuEventRecord(start, first), CUDA_SUCCESS);
  ASSERT_EQ(driver_->cuMemcpyAsync(a, Host(source.data()), source.size(), first), CUDA_SUCCESS);
  ASSERT_EQ(driver_->cuEventRecord(written, first), CUDA_SUCCESS);
  ASSERT_EQ(driver_->cuStreamWaitEvent(second, written, 0), CUDA_SUCCESS);
  ASSERT_EQ(driver_->cuMemcpyAsync(Host(target.data()), a, target.size(), second), CUDA_SUCCESS);
  ASSERT_EQ(driver_->cuEventRecord(end, second), CUDA_SUCCESS);
  EXPECT_EQ(driver_->cuEventQuery(written), CUDA_ERROR_NOT_READY);
  float milliseconds = -1;
  EXPECT_EQ(driver_->cuEventElapsedTime(&milliseconds, start, end), CUDA_ERROR_NOT_READY);
  soft_.Hang(false);
  EXPECT_EQ(driver_->cuEventSynchronize(end), CUDA_SUCCESS);
  EXPECT_EQ(source, target);
  EXPECT_EQ(driver_->cuEventElapsedTime(&milliseconds, start, end), CUDA_SUCCESS);
  EXPECT_GE(milliseconds, 0);
  EXPECT_EQ(driver_->cuEventElapsedTime(&milliseconds, written, end), CUDA_ERROR_INVALID_HANDLE);
  EXPECT_EQ(driver_->cuMemHostUnregister(source.data()), CUDA_SUCCESS);
  EXPECT_EQ(driver_->cuMemHostUnregister(target.data()), CUDA_SUCCESS);
  EXPECT_EQ(driver_->cuMemHostUnregister(target.data()), CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
}

TEST_F(SoftcudaTest, TheDefaultStreamWaitsForBlockingStreams) {
  const CUdeviceptr a = Alloc(4096);
  const CUstream blocking = NewStream(CU_STREAM_DEFAULT);
  std::vector<std::byte> target(4096);
  ASSERT_EQ(driver_->cuMemHostRegister(target.data(), target.size(), 0), CUDA_SUCCESS);
  for (int i = 0; i < 100; ++i) {
    const auto value = static_cast<unsigned char>(i);
    ASSERT_EQ(driver_->cuMemsetD8Async(a, value, 4096, blocking), CUDA_SUCCESS);
    ASSERT_EQ(driver_->cuMemcpyAsync(Host(target.data()), a, 4096, nullptr), CUDA_SUCCESS);
    ASSERT_EQ(driver_->cuMemsetD8Async(a, 255, 4096, blocking), CUDA_SUCCESS);
    ASSERT_EQ(driver_->cuStreamSynchronize(nullptr), CUDA_SUCCESS);
    ASSERT_EQ(target[4095], static_cast<std::byte>(value));
  }
  EXPECT_EQ(driver_->cuMemHostUnregister(target.data()), CUDA_SUCCESS);
}

TEST_F(SoftcudaTest, WorkEndsWithItsContext) {
  CUcontext again = nullptr;
  for (int i = 0; i < 50; ++i) {
    const CUdeviceptr a = Alloc(4096);
    for (int n = 0; n < 10; ++n) {  // each its own bytes: nothing orders these streams
      ASSERT_EQ(driver_->cuMemsetD8Async(a + 256 * n, 1, 256, NewStream()), CUDA_SUCCESS);
    }
    ASSERT_EQ(driver_->cuDevicePrimaryCtxRelease(0), CUDA_SUCCESS);
    size_t bytes = 0;
    EXPECT_EQ(driver_->cuMemGetInfo(&bytes, nullptr), CUDA_ERROR_CONTEXT_IS_DESTROYED);
    ASSERT_EQ(driver_->cuDevicePrimaryCtxRetain(&again, 0), CUDA_SUCCESS);
    EXPECT_EQ(driver_->cuMemFree(a), CUDA_ERROR_INVALID_VALUE);  // gone with the context
  }
}

TEST_F(SoftcudaTest, CopiesRowsAndBatches) {
  const CUdeviceptr a = Alloc(64 << 10);
  const CUstream stream = NewStream();
  const auto source = Pattern(4096, 9);
  CUDA_MEMCPY2D rows{};
  rows.srcMemoryType = CU_MEMORYTYPE_HOST;
  rows.srcHost = source.data();
  rows.srcPitch = 256;
  rows.dstMemoryType = CU_MEMORYTYPE_DEVICE;
  rows.dstDevice = a;
  rows.dstPitch = 1000;
  rows.WidthInBytes = 256;
  rows.Height = 16;
  ASSERT_EQ(driver_->cuMemcpy2DAsync(&rows, stream), CUDA_SUCCESS);
  std::vector<std::byte> target(4096);
  std::vector<CUdeviceptr> targets, sources;
  std::vector<size_t> sizes(16, 256);
  for (size_t i = 0; i < 16; ++i) {
    targets.push_back(Host(target.data() + 256 * i));
    sources.push_back(a + 1000 * i);
  }
  CUmemcpyAttributes attributes{};
  attributes.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
  size_t start = 0;
  ASSERT_NE(driver_->cuMemcpyBatchAsync, nullptr);
  const auto copy = [&](CUstream on) {
    return driver_->cuMemcpyBatchAsync(targets.data(), sources.data(), sizes.data(), 16, &attributes, &start, 1, on);
  };
  ASSERT_EQ(copy(stream), CUDA_SUCCESS);
  EXPECT_EQ(driver_->cuStreamSynchronize(stream), CUDA_SUCCESS);
  EXPECT_EQ(source, target);
  EXPECT_EQ(copy(nullptr), CUDA_ERROR_INVALID_VALUE);
  rows.dstPitch = 255;
  EXPECT_EQ(driver_->cuMemcpy2DAsync(&rows, stream), CUDA_ERROR_INVALID_VALUE);
}

TEST_F(SoftcudaTest, MapsVirtualMemory) {
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location = {CU_MEM_LOCATION_TYPE_DEVICE, 0};
  properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  size_t granularity = 0;
  ASSERT_EQ(driver_->cuMemGetAllocationGranularity(&granularity, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
            CUDA_SUCCESS);
  CUmemGenericAllocationHandle first, second;
  EXPECT_EQ(driver_->cuMemCreate(&first, granularity + 1, &properties, 0), CUDA_ERROR_INVALID_VALUE);
  ASSERT_EQ(driver_->cuMemCreate(&first, granularity, &properties, 0), CUDA_SUCCESS);
  ASSERT_EQ(driver_->cuMemCreate(&second, granularity, &properties, 0), CUDA_SUCCESS);
  CUdeviceptr area;
  ASSERT_EQ(driver_->cuMemAddressReserve(&area, 4 * granularity, 0, 0, 0), CUDA_SUCCESS);
  ASSERT_EQ(driver_->cuMemMap(area + granularity, granularity, 0, first, 0), CUDA_SUCCESS);
  ASSERT_EQ(driver_->cuMemMap(area + 2 * granularity, granularity, 0, second, 0), CUDA_SUCCESS);
  EXPECT_EQ(driver_->cuMemMap(area + granularity, granularity, 0, second, 0), CUDA_ERROR_INVALID_VALUE);
  const auto source = Pattern(8192, 4);
  const CUdeviceptr across = area + 2 * granularity - 4096;  // over both mappings
  EXPECT_EQ(driver_->cuMemcpyAsync(across, Host(source.data()), 8192, nullptr), CUDA_ERROR_INVALID_VALUE);
  const CUmemAccessDesc access{{CU_MEM_LOCATION_TYPE_DEVICE, 0}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  ASSERT_EQ(driver_->cuMemSetAccess(area + granularity, 2 * granularity, &access, 1), CUDA_SUCCESS);
  EXPECT_EQ(driver_->cuMemcpyAsync(across, Host(source.data()), 8192, nullptr), CUDA_SUCCESS);

  // The same memory again, by its descriptor.
  CUmemGenericAllocationHandle retained, imported;
  ASSERT_EQ(driver_->cuMemRetainAllocationHandle(&retained, reinterpret_cast<void*>(area + granularity)), CUDA_SUCCESS);
  EXPECT_EQ(retained, first);
  int fd = -1;
  ASSERT_EQ(driver_->cuMemExportToShareableHandle(&fd, first, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
            CUDA_SUCCESS);
  ASSERT_EQ(driver_->cuMemImportFromShareableHandle(&imported, reinterpret_cast<void*>(static_cast<intptr_t>(fd)),
                                                    CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
            CUDA_SUCCESS);
  close(fd);
  ASSERT_EQ(driver_->cuMemMap(area, granularity, 0, imported, 0), CUDA_SUCCESS);
  ASSERT_EQ(driver_->cuMemSetAccess(area, granularity, &access, 1), CUDA_SUCCESS);
  std::vector<std::byte> target(4096);
  ASSERT_EQ(driver_->cuMemcpyAsync(Host(target.data()), area + granularity - 4096, 4096, nullptr), CUDA_SUCCESS);
  EXPECT_EQ(std::memcmp(target.data(), source.data(), 4096), 0);

  EXPECT_EQ(driver_->cuMemAddressFree(area, 4 * granularity), CUDA_ERROR_INVALID_VALUE);  // still mapped
  EXPECT_EQ(driver_->cuMemUnmap(area, 3 * granularity), CUDA_SUCCESS);
  EXPECT_EQ(driver_->cuMemAddressFree(area, 4 * granularity), CUDA_SUCCESS);
  for (const auto handle : {first, first, second, imported}) EXPECT_EQ(driver_->cuMemRelease(handle), CUDA_SUCCESS);
  EXPECT_EQ(driver_->cuMemRelease(first), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(soft_.Counter("live_vmm") + soft_.Counter("live_mappings") + soft_.Counter("live_reservations"), 0u);
}

TEST_F(SoftcudaTest, AnswersWhatItIsTold) {
  CUdeviceptr a = 0;
  soft_.Fail("cuMemAlloc", CUDA_ERROR_OUT_OF_MEMORY, 1, 2);
  EXPECT_EQ(driver_->cuMemAlloc(&a, 16), CUDA_SUCCESS);
  EXPECT_EQ(driver_->cuMemAlloc(&a, 16), CUDA_ERROR_OUT_OF_MEMORY);
  EXPECT_EQ(driver_->cuMemAlloc(&a, 16), CUDA_ERROR_OUT_OF_MEMORY);
  EXPECT_EQ(driver_->cuMemAlloc(&a, 16), CUDA_SUCCESS);
  EXPECT_EQ(soft_.Counter("cuMemAlloc"), 4u);

  std::vector<std::byte> zeros(64), target(64);
  soft_.FlipBit(2);
  EXPECT_EQ(driver_->cuMemcpyAsync(a, Host(zeros.data()), 16, nullptr), CUDA_SUCCESS);
  EXPECT_EQ(driver_->cuMemcpyAsync(Host(target.data()), a, 16, nullptr), CUDA_SUCCESS);
  EXPECT_NE(zeros, target);
  EXPECT_EQ(driver_->cuMemcpyAsync(Host(target.data()), a, 16, nullptr), CUDA_SUCCESS);
  EXPECT_EQ(zeros, target);

  soft_.BreakDevice(0, CUDA_ERROR_ECC_UNCORRECTABLE);
  EXPECT_EQ(driver_->cuMemAlloc(&a, 16), CUDA_ERROR_ECC_UNCORRECTABLE);
  EXPECT_EQ(driver_->cuStreamSynchronize(nullptr), CUDA_ERROR_ECC_UNCORRECTABLE);
}

TEST_F(SoftcudaTest, AnotherProcessIsToldByItsEnvironment) {
  ExporterProcess told(SOFTCUDA_LIBRARY, {"SOFTCUDA_FAIL=cuMemAlloc=2@1x2,cuEventCreate=400", "SOFTCUDA_MEMORY_MB=4"});
  const ExporterRequest allocate{.op = ExporterRequest::kAllocate, .bytes = 1 << 20};
  told.Ask(allocate);
  told.Ask(allocate, nullptr, CUDA_ERROR_OUT_OF_MEMORY);
  told.Ask(allocate, nullptr, CUDA_ERROR_OUT_OF_MEMORY);
  told.Ask(allocate);
  told.Ask({.op = ExporterRequest::kAllocate, .bytes = 3 << 20}, nullptr, CUDA_ERROR_OUT_OF_MEMORY);
  told.Ask({.op = ExporterRequest::kEvent}, nullptr, CUDA_ERROR_INVALID_HANDLE);
}

TEST_F(SoftcudaTest, AChildOfForkCanDoNothing) {
  const pid_t child = fork();
  if (child == 0) {
    size_t free_bytes = 0;
    _exit(driver_->cuMemGetInfo(&free_bytes, nullptr) == CUDA_ERROR_NOT_INITIALIZED &&
                  driver_->cuInit(0) == CUDA_ERROR_NOT_INITIALIZED
              ? 0
              : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace terrace::gpu
