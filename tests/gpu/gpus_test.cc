// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/gpus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <vector>

#include "gpu/cuda/cuda_device.h"
#include "gpu/softcuda/control.h"

namespace terrace::gpu {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Read when the driver is started, once a process.
const int kTwoDevices = setenv("SOFTCUDA_DEVICES", "2", 1);
const int kMemory = setenv("SOFTCUDA_MEMORY_MB", "4096", 1);  // out of service, devices keep some each time

class GpusTest : public ::testing::Test {
 protected:
  static constexpr const char* kAlive[] = {"live_allocations", "live_bytes",  "live_streams", "live_events",
                                           "live_registered",  "live_modules", "live_contexts"};
  void SetUp() override {
    ASSERT_EQ(kTwoDevices + kMemory, 0);
    for (const char* what : kAlive) before_[what] = soft_.Counter(what);
  }
  // For what is still in service. Of a GPU that is not, nothing is given back.
  void ExpectNothingLeft() {
    for (const char* what : kAlive) EXPECT_EQ(soft_.Counter(what), before_[what]) << what;
  }
  // What hangs is waited for so long; what does not must be done by then on a busy machine, too.
  std::unique_ptr<Gpus> Open(int64_t deadline_ns = 60'000'000'000) {
    GpuOptions options;
    options.driver = SOFTCUDA_LIBRARY;
    options.staging_bytes = 8 << 20;
    options.batch_deadline_ns = deadline_ns;
    return Gpus::Open(options);
  }
  std::vector<std::byte> Read(const DeviceMemory& memory, uint64_t offset, size_t bytes) {
    std::string why;
    const auto driver = Driver::Load(SOFTCUDA_LIBRARY, &why);
    const auto device = CudaDevice::Open(driver, 0);
    const ScopedContext current(*driver, (*device)->context());
    std::vector<std::byte> read(bytes);
    EXPECT_EQ(driver->cuMemcpyAsync(reinterpret_cast<CUdeviceptr>(read.data()),
                                    reinterpret_cast<CUdeviceptr>(memory.data()) + offset, bytes, nullptr),
              CUDA_SUCCESS);
    EXPECT_EQ(driver->cuStreamSynchronize(nullptr), CUDA_SUCCESS);
    return read;
  }
  std::shared_ptr<CudaDevice> OpenDevice(int ordinal) {
    std::string why;
    auto device = CudaDevice::Open(Driver::Load(SOFTCUDA_LIBRARY, &why), ordinal);
    EXPECT_TRUE(device.ok()) << device.status();
    return *device;
  }

  Softcuda soft_;
  std::map<std::string, uint64_t> before_;
};

TEST_F(GpusTest, FindsDevices) {
  {
    const auto gpus = Open();
    ASSERT_EQ(gpus->devices().size(), 2u);
    EXPECT_EQ(gpus->why_none(), "");
    EXPECT_EQ(gpus->driver_version(), "13.0");
    const GpuInfo& second = gpus->devices()[1];
    EXPECT_EQ(second.name, "softcuda");
    EXPECT_EQ(second.pci_bus, "fffe:02:00.0");
    EXPECT_EQ(second.numa_node, -1);
    EXPECT_EQ(second.total_bytes, 4096ull << 20);
    EXPECT_EQ(second.compute_major, 9);
    ASSERT_TRUE(gpus->Find(second.uuid).ok());
    EXPECT_EQ(*gpus->Find(second.uuid), 1u);
    EXPECT_TRUE(gpus->Health(1).ok());
    EXPECT_NE(gpus->engine(0), nullptr);
    EXPECT_NE(gpus->engine(0), gpus->engine(1));

    DeviceUuid other{};
    other[0] = std::byte{0xab};
    const absl::Status missing = gpus->Find(other).status();
    EXPECT_TRUE(absl::IsNotFound(missing));
    EXPECT_THAT(std::string(missing.message()),
                AllOf(HasSubstr("GPU-ab000000-0000-0000-0000-000000000000"),
                      HasSubstr("GPU-736f6674-6375-6461-0000-000000000001 (softcuda)"),
                      HasSubstr("CUDA_VISIBLE_DEVICES")));
    EXPECT_TRUE(absl::IsNotFound(gpus->Health(2)));
    EXPECT_EQ(gpus->engine(2), nullptr);
  }
  ExpectNothingLeft();
}

TEST_F(GpusTest, LeavesOutADeviceThatDoesNotOpen) {
  {
    soft_.Fail("cuDevicePrimaryCtxRetain", CUDA_ERROR_DEVICE_UNAVAILABLE);
    const auto gpus = Open();
    ASSERT_EQ(gpus->devices().size(), 1u);
    EXPECT_EQ(gpus->devices()[0].pci_bus, "fffe:02:00.0");
    EXPECT_TRUE(gpus->Health(0).ok());
  }
  ExpectNothingLeft();
  soft_.Fail("cuDevicePrimaryCtxRetain", CUDA_ERROR_DEVICE_UNAVAILABLE, 0, 2);
  EXPECT_THAT(Open()->why_none(), HasSubstr("nvidia-smi -c DEFAULT"));
  soft_.Fail("cuDevicePrimaryCtxRetain", CUDA_ERROR_OUT_OF_MEMORY, 0, 2);
  const auto gpus = Open();
  EXPECT_TRUE(gpus->devices().empty());
  EXPECT_THAT(gpus->why_none(), HasSubstr("cuDevicePrimaryCtxRetain: CUDA_ERROR_OUT_OF_MEMORY"));
}

TEST_F(GpusTest, EachStepOfOpeningMayFail) {
  for (const char* function : {"cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetUuid",
                               "cuDeviceGetAttribute", "cuDeviceTotalMem", "cuDeviceGetPCIBusId"}) {
    soft_.Fail(function, CUDA_ERROR_INVALID_VALUE, 0, -1);
    {
      const auto gpus = Open();
      EXPECT_TRUE(gpus->devices().empty()) << function;
      EXPECT_THAT(gpus->why_none(), HasSubstr(function));
    }
    soft_.Reset();
    ExpectNothingLeft();
  }
}

TEST_F(GpusTest, PinsHostMemory) {
  std::vector<std::byte> memory(1 << 20);
  {
    const auto gpus = Open();
    const uint64_t pinned = soft_.Counter("live_registered");
    EXPECT_TRUE(gpus->PinHost(memory.data(), 65536).ok());
    EXPECT_EQ(soft_.Counter("live_registered"), pinned + 1);
    EXPECT_TRUE(absl::IsInvalidArgument(gpus->PinHost(memory.data() + 4096, 65536)));
    gpus->UnpinHost(memory.data() + 4096);  // could not be pinned
    EXPECT_EQ(soft_.Counter("live_registered"), pinned + 1);
    gpus->UnpinHost(memory.data());
    gpus->UnpinHost(memory.data());
    EXPECT_EQ(soft_.Counter("live_registered"), pinned);
    soft_.Fail("cuMemHostRegister", CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_TRUE(absl::IsResourceExhausted(gpus->PinHost(memory.data(), 65536)));
    EXPECT_TRUE(gpus->Health(0).ok());
    EXPECT_TRUE(gpus->PinHost(memory.data(), 65536).ok());
    EXPECT_TRUE(gpus->PinHost(memory.data() + 65536, 65536).ok());
    soft_.Reset();
  }
  EXPECT_EQ(soft_.Counter("cuMemHostUnregister"), 2u);  // what was still pinned
  ExpectNothingLeft();
}

TEST_F(GpusTest, PinsWithTheNextDeviceWhenTheFirstIsOutOfService) {
  // Of a device that is out of service nothing is given back: the memory stays registered.
  static auto& kept = *new std::vector<std::vector<std::byte>>();
  std::vector<std::byte>& memory = kept.emplace_back(1 << 20);
  const auto gpus = Open();
  soft_.BreakDevice(0, CUDA_ERROR_ECC_UNCORRECTABLE);
  EXPECT_TRUE(absl::IsUnavailable(gpus->PinHost(memory.data(), 65536)));
  EXPECT_FALSE(gpus->Health(0).ok());
  EXPECT_TRUE(gpus->PinHost(memory.data(), 65536).ok());
  EXPECT_TRUE(gpus->Health(1).ok());
  soft_.BreakDevice(1, CUDA_ERROR_LAUNCH_FAILED);
  EXPECT_TRUE(absl::IsUnavailable(gpus->PinHost(memory.data() + 65536, 65536)));
  EXPECT_TRUE(absl::IsUnavailable(gpus->PinHost(memory.data() + 65536, 65536)));
}

TEST_F(GpusTest, GivesZeroedMemory) {
  {
    const auto gpus = Open();
    const auto memory = gpus->Allocate(0, 3 << 20);
    ASSERT_TRUE(memory.ok()) << memory.status();
    EXPECT_EQ((*memory)->bytes(), 3u << 20);
    EXPECT_EQ(Read(**memory, 0, 3 << 20), std::vector<std::byte>(3 << 20));
    EXPECT_TRUE(absl::IsInvalidArgument((*memory)->Zero(1, 3 << 20)));
    EXPECT_TRUE(absl::IsInvalidArgument((*memory)->Zero(~uint64_t{0}, 2)));
    EXPECT_TRUE((*memory)->Zero(3 << 20, 0).ok());
    EXPECT_TRUE(absl::IsInvalidArgument(gpus->Allocate(0, 0).status()));
    EXPECT_TRUE(absl::IsResourceExhausted(gpus->Allocate(0, 1ull << 40).status()));
    EXPECT_TRUE(absl::IsNotFound(gpus->Allocate(2, 4096).status()));

    RegionLayout layout{.planes = {{.stride = 1 << 20, .bytes = 1 << 20}}, .n_pages = 3};
    const auto region = gpus->WrapMemory(**memory, layout);
    ASSERT_TRUE(region.ok()) << region.status();
    EXPECT_EQ((*region)->Piece(0, 2), (*memory)->data() + (2 << 20));
    layout.n_pages = 4;
    EXPECT_TRUE(absl::IsInvalidArgument(gpus->WrapMemory(**memory, layout).status()));
  }
  ExpectNothingLeft();
}

TEST_F(GpusTest, AllocatesNothingByHalves) {
  const auto gpus = Open();
  for (const char* function : {"cuMemAlloc", "cuStreamCreateWithPriority", "cuMemsetD8Async"}) {
    const uint64_t bytes = soft_.Counter("live_bytes"), streams = soft_.Counter("live_streams");
    soft_.Fail(function, CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_TRUE(absl::IsResourceExhausted(gpus->Allocate(0, 4096).status())) << function;
    EXPECT_EQ(soft_.Counter("live_bytes"), bytes) << function;
    EXPECT_EQ(soft_.Counter("live_streams"), streams) << function;
  }
  EXPECT_TRUE(gpus->Health(0).ok());
}

TEST_F(GpusTest, ZeroesBetweenTenants) {
  const auto gpus = Open();
  auto memory = gpus->Allocate(0, 64 << 10);
  ASSERT_TRUE(memory.ok());
  {
    const auto device = OpenDevice(0);
    const ScopedContext current(device->driver(), device->context());
    const auto base = reinterpret_cast<CUdeviceptr>((*memory)->data());
    ASSERT_EQ(device->driver().cuMemsetD8Async(base, 0x5a, 64 << 10, nullptr), CUDA_SUCCESS);
    ASSERT_EQ(device->driver().cuStreamSynchronize(nullptr), CUDA_SUCCESS);
  }
  ASSERT_TRUE((*memory)->Zero(4096, 8192).ok());
  const auto read = Read(**memory, 0, 64 << 10);
  for (size_t i = 0; i < read.size(); ++i) {
    ASSERT_EQ(read[i], i >= 4096 && i < 4096 + 8192 ? std::byte{0} : std::byte{0x5a}) << i;
  }
}

TEST_F(GpusTest, AHangingDeviceIsFencedAndTheOtherServes) {
  const auto gpus = Open(2'000'000'000);
  auto memory = gpus->Allocate(0, 4096);
  ASSERT_TRUE(memory.ok());
  soft_.Hang(true);
  EXPECT_TRUE(absl::IsUnavailable((*memory)->Zero(0, 4096)));
  soft_.Hang(false);
  const absl::Status health = gpus->Health(0);
  EXPECT_TRUE(absl::IsUnavailable(health));
  EXPECT_THAT(std::string(health.message()), AllOf(HasSubstr("softcuda at fffe:01:00.0"), HasSubstr("hangs"),
                                                   HasSubstr("nvidia-smi --gpu-reset -i fffe:01:00.0"),
                                                   HasSubstr("restart terraced")));
  EXPECT_TRUE(absl::IsUnavailable(gpus->Allocate(0, 4096).status()));
  EXPECT_TRUE(absl::IsUnavailable(gpus->OpenRegion(0, {}, {}, {}).status()));
  EXPECT_TRUE(absl::IsUnavailable((*memory)->Zero(0, 4096)));
  EXPECT_TRUE(gpus->Allocate(1, 4096).ok());
  EXPECT_TRUE(gpus->Health(1).ok());
}

TEST_F(GpusTest, AStickyErrorIsForGoodAndTheFirstReasonStands) {
  const auto gpus = Open();
  soft_.BreakDevice(0, CUDA_ERROR_ECC_UNCORRECTABLE);
  EXPECT_TRUE(absl::IsUnavailable(gpus->Allocate(0, 4096).status()));
  soft_.BreakDevice(0, 0);
  soft_.BreakDevice(0, CUDA_ERROR_LAUNCH_FAILED);
  EXPECT_TRUE(absl::IsUnavailable(gpus->Allocate(0, 4096).status()));
  EXPECT_THAT(std::string(gpus->Health(0).message()), HasSubstr("CUDA_ERROR_ECC_UNCORRECTABLE"));
  EXPECT_TRUE(gpus->Allocate(1, 4096).ok());
}

TEST_F(GpusTest, ErrorsHaveClasses) {
  const struct {
    CUresult result;
    absl::StatusCode code;
  } kClasses[] = {{CUDA_ERROR_OUT_OF_MEMORY, absl::StatusCode::kResourceExhausted},
                  {CUDA_ERROR_INVALID_VALUE, absl::StatusCode::kInvalidArgument},
                  {CUDA_ERROR_INVALID_HANDLE, absl::StatusCode::kInvalidArgument},
                  {CUDA_ERROR_MAP_FAILED, absl::StatusCode::kInvalidArgument},
                  {CUDA_ERROR_NOT_READY, absl::StatusCode::kDeadlineExceeded},
                  {CUDA_ERROR_NOT_SUPPORTED, absl::StatusCode::kFailedPrecondition},
                  {CUDA_ERROR_NO_BINARY_FOR_GPU, absl::StatusCode::kFailedPrecondition},
                  {CUDA_ERROR_INVALID_CONTEXT, absl::StatusCode::kInternal}};
  const auto device = OpenDevice(0);
  EXPECT_TRUE(device->Check(CUDA_SUCCESS, "cuX").ok());
  for (const auto& one : kClasses) {
    const absl::Status status = device->Check(one.result, "cuX");
    EXPECT_EQ(status.code(), one.code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("cuX: CUDA_ERROR_"));
    EXPECT_FALSE(device->fenced()) << status;
    EXPECT_TRUE(device->health().ok());
  }
  for (const CUresult sticky : {CUDA_ERROR_ILLEGAL_ADDRESS, CUDA_ERROR_ECC_UNCORRECTABLE, CUDA_ERROR_UNKNOWN}) {
    const auto other = OpenDevice(1);
    EXPECT_TRUE(absl::IsUnavailable(other->Check(sticky, "cuX")));
    EXPECT_TRUE(other->fenced());
    const absl::Status health = other->health();
    EXPECT_THAT(std::string(health.message()), HasSubstr(other->driver().Explain(sticky)));
    other->Fence(absl::InternalError("a later reason"));
    EXPECT_EQ(other->health(), health);
  }
}

}  // namespace
}  // namespace terrace::gpu
