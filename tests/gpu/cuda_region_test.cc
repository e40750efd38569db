// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Regions of another process's GPU memory. Runs on softcuda and, where TERRACE_TEST_DRIVER names one, on the real
// driver (without the injected faults).
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "gpu/cuda/cuda_device.h"
#include "gpu/exporter.h"
#include "gpu/softcuda/control.h"

namespace terrace::gpu {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kMiB = 1 << 20;
// Read when the driver is started, once a process.
const int kTwoDevices = setenv("SOFTCUDA_DEVICES", "2", 1);

struct NamedLayout {
  std::string name;
  RegionLayout layout;
  uint64_t bytes;  // that it needs
};

// Pages of 16 tokens, two layers, four heads of 64 bytes each token.
std::vector<NamedLayout> Layouts() {
  constexpr uint64_t kHead = 64, kTokens = 16, kHeads = 4, kPages = 8, kPiece = kTokens * kHeads * kHead;
  std::vector<NamedLayout> layouts;
  {
    NamedLayout one{"K and V of each layer apart", {{}, kPages}, 4 * kPages * kPiece};
    for (uint64_t i = 0; i < 4; ++i) one.layout.planes.push_back({0, i * kPages * kPiece, kPiece, kPiece});
    layouts.push_back(one);
  }
  {
    NamedLayout one{"K and V packed", {{}, kPages}, 4 * kPages * kPiece};
    for (uint64_t i = 0; i < 2; ++i) one.layout.planes.push_back({0, i * 2 * kPages * kPiece, 2 * kPiece, 2 * kPiece});
    layouts.push_back(one);
  }
  {
    NamedLayout one{"heads first", {{}, kPages}, kHeads * kPages * kTokens * kHead};
    for (uint64_t i = 0; i < kHeads; ++i) {
      one.layout.planes.push_back({0, i * kPages * kTokens * kHead, kTokens * kHead, kTokens * kHead});
    }
    layouts.push_back(one);
  }
  layouts.push_back({"blocks across layers", {{{0, 0, 4 * kPiece, 4 * kPiece}}, kPages}, 4 * kPages * kPiece});
  layouts.push_back(
      {"planes between each other", {{{0, 0, 2048, 1000}, {0, 1024, 2048, 1024}}, kPages}, kPages * 2048});
  layouts.push_back({"MLA", {{{0, 0, 576 * kTokens, 576 * kTokens}}, kPages}, kPages * 576 * kTokens});
  layouts.push_back({"odd bytes", {{{0, 13, 1001, 777}}, kPages}, 13 + (kPages - 1) * 1001 + 777});
  return layouts;
}

RegionLayout OnePlane(uint64_t bytes, uint64_t n_pages) { return {{{0, 0, bytes, bytes}}, n_pages}; }

class CudaRegionTest : public ::testing::Test {
 protected:
  static constexpr const char* kAlive[] = {"live_ipc",          "live_vmm",    "live_mappings",
                                           "live_reservations", "live_events", "live_bytes"};
  void SetUp() override {
    ASSERT_EQ(kTwoDevices, 0);
    if (!OnRealDriver()) soft_.emplace();
    std::string why;
    driver_ = Driver::Load(TestDriver(), &why);
    if (driver_ == nullptr && OnRealDriver()) GTEST_SKIP() << why;
    ASSERT_NE(driver_, nullptr) << why;
    auto device = CudaDevice::Open(driver_, 0);
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *device;
    exporter_ = std::make_unique<ExporterProcess>(TestDriver());
  }
  void TearDown() override {
    if (!soft_.has_value()) return;
    soft_->Reset();
    if (device_ == nullptr || device_->fenced()) return;  // nothing is given back of a fenced one
    for (const char* what : kAlive) EXPECT_EQ(soft_->Counter(what), 0u) << what;
  }
  absl::StatusOr<std::shared_ptr<CudaRegion>> Open(RegionLayout layout, std::vector<AllocationHandle> allocations,
                                                   std::vector<EventHandle> events = {}) {
    return CudaRegion::Open(device_, std::move(layout), allocations, events);
  }
  void ExpectRefused(const absl::Status& status, const char* text) {
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
    EXPECT_TRUE(device_->health().ok()) << device_->health();
  }
  std::vector<std::byte> Read(const std::byte* source, size_t bytes) {
    const ScopedContext current(*driver_, device_->context());
    std::vector<std::byte> read(bytes);
    EXPECT_EQ(driver_->cuMemcpyAsync(reinterpret_cast<CUdeviceptr>(read.data()), reinterpret_cast<CUdeviceptr>(source),
                                     bytes, nullptr),
              CUDA_SUCCESS);
    EXPECT_EQ(driver_->cuStreamSynchronize(nullptr), CUDA_SUCCESS);
    return read;
  }
  void Fill(std::byte* target, uint8_t value, size_t bytes) {
    const ScopedContext current(*driver_, device_->context());
    EXPECT_EQ(driver_->cuMemsetD8Async(reinterpret_cast<CUdeviceptr>(target), value, bytes, nullptr), CUDA_SUCCESS);
    EXPECT_EQ(driver_->cuStreamSynchronize(nullptr), CUDA_SUCCESS);
  }
  static std::vector<std::byte> Bytes(size_t n, int value) {
    return std::vector<std::byte>(n, static_cast<std::byte>(value));
  }

  std::optional<Softcuda> soft_;  // never on the real driver: both libraries have one name for the loader
  std::shared_ptr<const Driver> driver_;
  std::shared_ptr<CudaDevice> device_;
  std::unique_ptr<ExporterProcess> exporter_;
};

TEST_F(CudaRegionTest, ReachesAnotherProcessesMemory) {
  const auto region = Open(OnePlane(kMiB, 4), {exporter_->Allocate(4 * kMiB, 0x11)});
  ASSERT_TRUE(region.ok()) << region.status();
  EXPECT_TRUE((*region)->is_device());
  EXPECT_EQ((*region)->page_bytes(), kMiB);
  EXPECT_EQ(Read((*region)->Piece(0, 3), kMiB), Bytes(kMiB, 0x11));
  Fill((*region)->Piece(0, 2), 0x22, kMiB);
  EXPECT_EQ(exporter_->Ask({.op = ExporterRequest::kRead, .offset = 2 * kMiB}).handle[63], std::byte{0x22});
  EXPECT_EQ(exporter_->Ask({.op = ExporterRequest::kRead, .offset = 3 * kMiB}).handle[0], std::byte{0x11});
}

TEST_F(CudaRegionTest, ReachesMemoryByDescriptor) {
  const AllocationHandle handle = exporter_->AllocateVmm(4 * kMiB, 0x33);
  ASSERT_GE(handle.fd, 0);
  {
    const auto region = Open(OnePlane(kMiB, 4), {handle});
    ASSERT_TRUE(region.ok()) << region.status();
    EXPECT_EQ(fcntl(handle.fd, F_GETFD), FD_CLOEXEC);  // still the caller's
    EXPECT_EQ(Read((*region)->Piece(0, 3), kMiB), Bytes(kMiB, 0x33));
    Fill((*region)->Piece(0, 1), 0x44, kMiB);
    EXPECT_EQ(exporter_->Ask({.op = ExporterRequest::kRead, .offset = kMiB}).handle[0], std::byte{0x44});
    // Twice is no matter.
    const auto again = Open(OnePlane(2 * kMiB, 2), {handle});
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(Read((*again)->Piece(0, 0) + kMiB, 64), Bytes(64, 0x44));
  }
  close(handle.fd);
}

// As expandable segments are: many allocations behind one range of addresses.
TEST_F(CudaRegionTest, PiecesThatContinueEachOtherAreOneAllocation) {
  std::vector<AllocationHandle> handles = {
      exporter_->AllocateVmm(2 * kMiB, 0x11), exporter_->AllocateVmm(4 * kMiB, 0x22),
      exporter_->AllocateVmm(2 * kMiB, 0x33), exporter_->AllocateVmm(2 * kMiB, 0x44)};
  handles[1].continues = handles[2].continues = true;
  const RegionLayout layout{{{0, kMiB / 2, kMiB, kMiB}, {3, 0, kMiB / 8, kMiB / 8}}, 7};
  {
    const auto region = Open(layout, handles);
    ASSERT_TRUE(region.ok()) << region.status();
    // Page 1 begins in the first piece and ends in the second.
    const auto across = Read((*region)->Piece(0, 1), kMiB);
    EXPECT_EQ(across[kMiB / 2 - 1], std::byte{0x11});
    EXPECT_EQ(across[kMiB / 2], std::byte{0x22});
    EXPECT_EQ(Read((*region)->Piece(0, 6), kMiB).back(), std::byte{0x33});
    EXPECT_EQ(Read((*region)->Piece(1, 6), 64), Bytes(64, 0x44));
    const auto again = Open(layout, handles);
    EXPECT_TRUE(again.ok()) << again.status();
  }
  RegionLayout behind = layout;
  behind.n_pages = 8;
  EXPECT_THAT(Open(behind, handles).status().message(), HasSubstr("plane 0"));
  RegionLayout inside = layout;
  inside.planes[0].allocation = 1;
  EXPECT_THAT(Open(inside, handles).status().message(), HasSubstr("plane 0"));
  handles[0].continues = true;
  EXPECT_THAT(Open(layout, handles).status().message(), HasSubstr("allocation 0: nothing is there"));
  handles[0].continues = false;
  handles[1].bytes = 8 * kMiB;  // more than it is
  EXPECT_THAT(Open(layout, handles).status().message(), HasSubstr("allocation 1"));
  for (const AllocationHandle& handle : handles) close(handle.fd);
}

TEST_F(CudaRegionTest, TakesEveryLayout) {
  for (const NamedLayout& one : Layouts()) {
    const auto region = Open(one.layout, {exporter_->Allocate(one.bytes, 0x55)});
    ASSERT_TRUE(region.ok()) << one.name << region.status();
    for (uint32_t plane = 0; plane < one.layout.planes.size(); ++plane) {
      const uint64_t bytes = one.layout.planes[plane].bytes;
      EXPECT_EQ(Read((*region)->Piece(plane, one.layout.n_pages - 1), bytes), Bytes(bytes, 0x55)) << one.name;
    }
  }
}

TEST_F(CudaRegionTest, RefusesBrokenLayouts) {
  constexpr uint64_t kBytes = 2 * kMiB;  // the least that a GPU maps
  const AllocationHandle handle = exporter_->Allocate(kBytes);
  const struct {
    const char* text;
    RegionLayout layout;
  } kBroken[] = {{"0 planes", {{}, 1}},
                 {"0 pages", {{{0, 0, 64, 64}}, 0}},
                 {"pages; 1 to", {{{0, 0, 64, 64}}, RegionLayout::kMaxPages + 1}},
                 {"allocation 1 of 1", {{{1, 0, 64, 64}}, 1}},
                 {"pieces of 0 bytes", {{{0, 0, 64, 0}}, 1}},
                 {"pieces of 65 bytes every 64", {{{0, 0, 64, 65}}, 2}},
                 {"do not lie inside", {{{0, 1, kBytes / 4, kBytes / 4}}, 4}},
                 {"do not lie inside", {{{0, kBytes, 64, 64}}, 1}},
                 {"do not lie inside", {{{0, ~uint64_t{0} - 10, 64, 64}}, 1}},
                 {"do not lie inside", {{{0, 0, ~uint64_t{0} / 2, 64}}, 8}},
                 {"plane 1", {{{0, 0, 64, 64}, {0, 0, 64, kBytes}}, 1}}};
  for (const auto& one : kBroken) ExpectRefused(Open(one.layout, {handle}).status(), one.text);
}

TEST_F(CudaRegionTest, RefusesAllocationsThatAreNotWhatIsSaid) {
  AllocationHandle handle = exporter_->Allocate(4 * kMiB);
  handle.bytes = 5 * kMiB;
  ExpectRefused(Open(OnePlane(kMiB, 5), {handle}).status(), "allocation 0: it has 4194304 bytes, not 5242880");
  handle.bytes = 0;
  ExpectRefused(Open(OnePlane(kMiB, 4), {handle}).status(), "0 bytes on a GPU of");
  handle.bytes = ~uint64_t{0};
  ExpectRefused(Open(OnePlane(kMiB, 4), {handle}).status(), "bytes on a GPU of");
  handle = exporter_->AllocateVmm(4 * kMiB);
  handle.bytes = 6 * kMiB;
  ExpectRefused(Open(OnePlane(kMiB, 6), {handle}).status(), "smaller than 6291456 bytes");
  handle.bytes = 4 * kMiB - 1;
  ExpectRefused(Open(OnePlane(kMiB, 3), {handle}).status(), "multiples of 2097152");
  close(handle.fd);
}

TEST_F(CudaRegionTest, RefusesHandlesThatAreNone) {
  AllocationHandle handle{.kind = HandleKind::kCudaIpc, .bytes = kMiB};
  ExpectRefused(Open(OnePlane(kMiB, 1), {handle}).status(), "cuIpcOpenMemHandle");
  handle.ipc.fill(std::byte{0xff});
  ExpectRefused(Open(OnePlane(kMiB, 1), {handle}).status(), "cuIpcOpenMemHandle");
  const AllocationHandle good = exporter_->Allocate(kMiB);
  handle = good;
  for (size_t i = 8; i < 24; ++i) handle.ipc[i] ^= std::byte{0x40};
  ExpectRefused(Open(OnePlane(kMiB, 1), {good, handle}).status(), "allocation 1: cuIpcOpenMemHandle");
  handle = {.kind = HandleKind::kCudaVmm, .bytes = 2 * kMiB};
  ExpectRefused(Open(OnePlane(kMiB, 1), {handle}).status(), "cuMemImportFromShareableHandle");
  handle.fd = memfd_create("no-gpu-memory", MFD_CLOEXEC);
  ASSERT_EQ(ftruncate(handle.fd, 2 * kMiB), 0);
  ExpectRefused(Open(OnePlane(kMiB, 1), {handle}).status(), "cuMemImportFromShareableHandle");
  handle.kind = HandleKind::kHostFd;
  ExpectRefused(Open(OnePlane(kMiB, 1), {handle}).status(), "host memory");
  close(handle.fd);
  ExpectRefused(Open(OnePlane(kMiB, 1), {}).status(), "0 allocations");
  ExpectRefused(Open(OnePlane(kMiB, 1), {good}, {EventHandle{}}).status(), "event 0: cuIpcOpenEventHandle");
  ExpectRefused(Open(OnePlane(kMiB, 1), {good}, std::vector<EventHandle>(65)).status(), "65 events");
}

TEST_F(CudaRegionTest, RefusesItsOwnProcessesMemory) {
  const ScopedContext current(*driver_, device_->context());
  CUdeviceptr memory = 0;
  ASSERT_EQ(driver_->cuMemAlloc(&memory, kMiB), CUDA_SUCCESS);
  CUipcMemHandle wire;
  ASSERT_EQ(driver_->cuIpcGetMemHandle(&wire, memory), CUDA_SUCCESS);
  AllocationHandle handle{.kind = HandleKind::kCudaIpc, .bytes = kMiB};
  std::memcpy(handle.ipc.data(), &wire, sizeof(wire));
  ExpectRefused(Open(OnePlane(kMiB, 1), {handle}).status(), "another one than terraced");
  EXPECT_EQ(driver_->cuMemFree(memory), CUDA_SUCCESS);
}

TEST_F(CudaRegionTest, RefusesAnotherDevicesMemory) {
  int count = 0;
  ASSERT_EQ(driver_->cuDeviceGetCount(&count), CUDA_SUCCESS);
  if (count < 2) GTEST_SKIP() << "one GPU";
  ExpectRefused(Open(OnePlane(kMiB, 1), {exporter_->Allocate(2 * kMiB, 0, 1)}).status(),
                "memory of GPU 1, the region's is GPU 0");
  const AllocationHandle handle = exporter_->AllocateVmm(2 * kMiB, 0, 1);
  ExpectRefused(Open(OnePlane(kMiB, 1), {handle}).status(), "memory of GPU 1, the region's is GPU 0");
  close(handle.fd);
}

TEST_F(CudaRegionTest, RegionsShareAnAllocation) {
  if (OnRealDriver()) GTEST_SKIP() << "faults and counters of softcuda";
  const AllocationHandle handle = exporter_->Allocate(4 * kMiB, 0x66);
  auto first = Open(OnePlane(kMiB, 4), {handle});
  auto second = Open({{{1, 0, kMiB, kMiB}, {0, kMiB, kMiB, kMiB}}, 2}, {handle, handle});
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ((*first)->Piece(0, 1), (*second)->Piece(1, 0));
  if (!OnRealDriver()) {
    EXPECT_EQ(soft_->Counter("cuIpcOpenMemHandle"), 1u);
  }
  *first = nullptr;
  EXPECT_EQ(Read((*second)->Piece(0, 1), kMiB), Bytes(kMiB, 0x66));
  *second = nullptr;
  auto third = Open(OnePlane(kMiB, 4), {handle});
  ASSERT_TRUE(third.ok()) << third.status();
  EXPECT_EQ(Read((*third)->Piece(0, 3), kMiB), Bytes(kMiB, 0x66));
}

TEST_F(CudaRegionTest, ThreadsOpenAndCloseTheSameAllocation) {
  const AllocationHandle handle = exporter_->Allocate(2 * kMiB, 0x77);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 50; ++n) {
        const auto region = Open(OnePlane(kMiB, 2), {handle, handle});
        ASSERT_TRUE(region.ok()) << region.status();
        if (n % 10 == 0) {
          EXPECT_EQ(Read((*region)->Piece(0, 1), 4096), Bytes(4096, 0x77));
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(CudaRegionTest, OutlivesTheExporter) {
  const AllocationHandle ipc = exporter_->Allocate(2 * kMiB, 0x12), vmm = exporter_->AllocateVmm(2 * kMiB, 0x34);
  const AllocationHandle unopened = exporter_->Allocate(kMiB);
  const EventHandle event = exporter_->NewEvent(), unopened_event = exporter_->NewEvent();
  const auto region = Open({{{0, 0, kMiB, kMiB}, {1, 0, kMiB, kMiB}}, 2}, {ipc, vmm}, {event});
  ASSERT_TRUE(region.ok()) << region.status();
  exporter_->Kill();
  EXPECT_EQ(Read((*region)->Piece(0, 1), kMiB), Bytes(kMiB, 0x12));
  EXPECT_EQ(Read((*region)->Piece(1, 1), kMiB), Bytes(kMiB, 0x34));
  EXPECT_EQ(driver_->cuEventQuery((*region)->event(0)), CUDA_SUCCESS);
  ExpectRefused(Open(OnePlane(kMiB, 1), {unopened}).status(), "cuIpcOpenMemHandle");
  ExpectRefused(Open(OnePlane(kMiB, 1), {ipc}, {unopened_event}).status(), "cuIpcOpenEventHandle");
  close(vmm.fd);
}

TEST_F(CudaRegionTest, EventsFollowTheExportersStream) {
  const AllocationHandle memory = exporter_->Allocate(2 * kMiB, 1);
  const auto region = Open(OnePlane(kMiB, 2), {memory}, {exporter_->NewEvent(), exporter_->NewEvent()});
  ASSERT_TRUE(region.ok()) << region.status();
  ASSERT_EQ((*region)->event_count(), 2u);
  EXPECT_EQ(driver_->cuEventQuery((*region)->event(1)), CUDA_SUCCESS);  // never recorded
  if (!OnRealDriver()) exporter_->Ask({.op = ExporterRequest::kHang, .value = 1});
  exporter_->Ask({.op = ExporterRequest::kFill, .bytes = 2 * kMiB, .value = 2});
  exporter_->Ask({.op = ExporterRequest::kRecord, .index = 1});
  if (!OnRealDriver()) {
    EXPECT_EQ(driver_->cuEventQuery((*region)->event(1)), CUDA_ERROR_NOT_READY);
  }
  const ScopedContext current(*driver_, device_->context());
  CUstream stream = nullptr;
  ASSERT_EQ(driver_->cuStreamCreateWithPriority(&stream, CU_STREAM_NON_BLOCKING, 0), CUDA_SUCCESS);
  std::vector<std::byte> read(2 * kMiB);
  ASSERT_EQ(driver_->cuMemHostRegister(read.data(), read.size(), CU_MEMHOSTREGISTER_PORTABLE), CUDA_SUCCESS);
  ASSERT_EQ(driver_->cuStreamWaitEvent(stream, (*region)->event(1), 0), CUDA_SUCCESS);
  ASSERT_EQ(driver_->cuMemcpyAsync(reinterpret_cast<CUdeviceptr>(read.data()),
                                   reinterpret_cast<CUdeviceptr>((*region)->Piece(0, 0)), read.size(), stream),
            CUDA_SUCCESS);
  if (!OnRealDriver()) {
    EXPECT_EQ(driver_->cuStreamQuery(stream), CUDA_ERROR_NOT_READY);
    exporter_->Ask({.op = ExporterRequest::kHang, .value = 0});
  }
  EXPECT_EQ(driver_->cuStreamSynchronize(stream), CUDA_SUCCESS);
  EXPECT_EQ(read, Bytes(2 * kMiB, 2));
  EXPECT_EQ(driver_->cuMemHostUnregister(read.data()), CUDA_SUCCESS);
  EXPECT_EQ(driver_->cuStreamDestroy(stream), CUDA_SUCCESS);
}

TEST_F(CudaRegionTest, OpensNothingByHalves) {
  if (OnRealDriver()) GTEST_SKIP() << "faults are softcuda's";
  const AllocationHandle ipc = exporter_->Allocate(2 * kMiB), vmm = exporter_->AllocateVmm(2 * kMiB);
  const EventHandle event = exporter_->NewEvent();
  const RegionLayout layout{{{0, 0, kMiB, kMiB}, {1, 0, kMiB, kMiB}}, 2};
  for (const char* function :
       {"cuIpcOpenMemHandle", "cuPointerGetAttribute", "cuMemGetAddressRange", "cuMemImportFromShareableHandle",
        "cuMemGetAllocationPropertiesFromHandle", "cuMemGetAllocationGranularity", "cuMemAddressReserve", "cuMemMap",
        "cuMemSetAccess", "cuIpcOpenEventHandle"}) {
    soft_->Fail(function, CUDA_ERROR_OUT_OF_MEMORY);
    const auto region = Open(layout, {ipc, vmm}, {event});
    EXPECT_TRUE(absl::IsResourceExhausted(region.status())) << function << region.status();
    EXPECT_THAT(std::string(region.status().message()), HasSubstr(function));
    for (const char* what : kAlive) EXPECT_EQ(soft_->Counter(what), 0u) << function << " " << what;
  }
  EXPECT_TRUE(Open(layout, {ipc, vmm}, {event}).ok());
  close(vmm.fd);
}

// What an engine hands over must not put a GPU out of service.
TEST_F(CudaRegionTest, AStrangeAnswerToAForeignHandleIsTheCallersFault) {
  if (OnRealDriver()) GTEST_SKIP() << "faults are softcuda's";
  const AllocationHandle ipc = exporter_->Allocate(2 * kMiB);
  soft_->Fail("cuIpcOpenMemHandle", CUDA_ERROR_UNKNOWN);
  ExpectRefused(Open(OnePlane(kMiB, 2), {ipc}).status(), "CUDA_ERROR_UNKNOWN");
  EXPECT_TRUE(Open(OnePlane(kMiB, 2), {ipc}).ok());
  soft_->BreakDevice(0, CUDA_ERROR_ECC_UNCORRECTABLE);
  EXPECT_TRUE(absl::IsUnavailable(Open(OnePlane(kMiB, 2), {ipc}).status()));
  EXPECT_TRUE(device_->fenced());
  soft_->BreakDevice(0, 0);
  EXPECT_EQ(Open(OnePlane(kMiB, 2), {ipc}).status(), device_->health());  // for good
}

TEST_F(CudaRegionTest, WrapsItsOwnMemory) {
  const ScopedContext current(*driver_, device_->context());
  CUdeviceptr memory = 0;
  ASSERT_EQ(driver_->cuMemAlloc(&memory, kMiB), CUDA_SUCCESS);
  const std::pair<CUdeviceptr, uint64_t> allocation(memory, kMiB);
  EXPECT_TRUE(absl::IsInvalidArgument(CudaRegion::Wrap(device_, OnePlane(kMiB, 2), {&allocation, 1}, {}).status()));
  {
    const auto region = CudaRegion::Wrap(device_, OnePlane(kMiB / 2, 2), {&allocation, 1}, {});
    ASSERT_TRUE(region.ok()) << region.status();
    EXPECT_EQ((*region)->Piece(0, 1), reinterpret_cast<std::byte*>(memory) + kMiB / 2);
  }
  EXPECT_EQ(driver_->cuMemFree(memory), CUDA_SUCCESS);  // it stayed ours
}

}  // namespace
}  // namespace terrace::gpu
