// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What Gpus says and does on a machine without GPUs, and in a build without the CUDA toolkit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "gpu/gpus.h"

namespace terrace::gpu {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

TEST(NoGpusTest, ServesWithoutADriver) {
  GpuOptions options;
  options.driver = "libcuda-of-no-machine.so.1";
  const auto gpus = Gpus::Open(options);
  EXPECT_TRUE(gpus->devices().empty());
  EXPECT_THAT(gpus->why_none(), AnyOf(HasSubstr("no NVIDIA driver"), HasSubstr("built without GPU support")));
  EXPECT_EQ(gpus->driver_version(), "");
  EXPECT_EQ(gpus->engine(0), nullptr);
  EXPECT_TRUE(absl::IsNotFound(gpus->Health(0)));
  EXPECT_TRUE(absl::IsNotFound(gpus->Find(DeviceUuid{}).status()));
  EXPECT_THAT(std::string(gpus->Find(DeviceUuid{}).status().message()), HasSubstr(gpus->why_none()));
  EXPECT_TRUE(absl::IsNotFound(gpus->Allocate(0, 4096).status()));
  EXPECT_TRUE(absl::IsNotFound(gpus->OpenRegion(0, {}, {}, {}).status()));
  std::vector<std::byte> memory(4096);
  EXPECT_TRUE(gpus->PinHost(memory.data(), memory.size()).ok());  // nothing will copy from it
  gpus->UnpinHost(memory.data());
}

}  // namespace
}  // namespace terrace::gpu
