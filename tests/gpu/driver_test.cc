// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/driver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gpu/softcuda/control.h"

namespace terrace::gpu {
namespace {

using ::testing::HasSubstr;

struct Environment {
  Environment(const char* variable, const char* value) : variable_(variable) { setenv(variable, value, 1); }
  ~Environment() { unsetenv(variable_); }
  const char* variable_;
};

TEST(DriverTest, FindsEverything) {
  Softcuda soft;
  std::string why;
  const auto driver = Driver::Load(SOFTCUDA_LIBRARY, &why);
  ASSERT_NE(driver, nullptr) << why;
  EXPECT_EQ(why, "");
  EXPECT_EQ(driver->version, CUDA_VERSION);
  EXPECT_NE(driver->cuMemcpyBatchAsync, nullptr);
}

TEST(DriverTest, SaysThatThereIsNone) {
  std::string why;
  EXPECT_EQ(Driver::Load("libcuda-of-no-machine.so.1", &why), nullptr);
  EXPECT_THAT(why, HasSubstr("no NVIDIA driver"));
  EXPECT_THAT(why, HasSubstr("libcuda-of-no-machine.so.1"));
}

TEST(DriverTest, SaysWhatIsMissing) {
  std::string why;
  EXPECT_EQ(Driver::Load("libm.so.6", &why), nullptr);  // a library, but no driver
  EXPECT_THAT(why, HasSubstr("libm.so.6 has no cuInit"));
  EXPECT_THAT(why, HasSubstr("525"));
}

TEST(DriverTest, RefusesAnOldInterface) {
  Softcuda soft;
  const Environment version("SOFTCUDA_VERSION", "11080");
  std::string why;
  EXPECT_EQ(Driver::Load(SOFTCUDA_LIBRARY, &why), nullptr);
  EXPECT_THAT(why, HasSubstr("CUDA 11.8; 12.0 or later is needed"));
}

TEST(DriverTest, GoesWithoutBatchesBefore13) {
  Softcuda soft;
  const Environment version("SOFTCUDA_VERSION", "12090");
  std::string why;
  const auto driver = Driver::Load(SOFTCUDA_LIBRARY, &why);
  ASSERT_NE(driver, nullptr) << why;
  EXPECT_EQ(driver->cuMemcpyBatchAsync, nullptr);
  // A driver of 12.8 has another function of that name: not even asked for.
  EXPECT_EQ(soft.Counter("cuGetProcAddress"), 0u);
}

TEST(DriverTest, GoesWithoutBatchesThatCannotBeFound) {
  Softcuda soft;
  soft.Fail("cuGetProcAddress", CUDA_ERROR_NOT_FOUND);
  std::string why;
  const auto driver = Driver::Load(SOFTCUDA_LIBRARY, &why);
  ASSERT_NE(driver, nullptr) << why;
  EXPECT_EQ(driver->cuMemcpyBatchAsync, nullptr);
}

TEST(DriverTest, SaysWhyTheDriverDoesNotStart) {
  Softcuda soft;
  std::string why;
  soft.Fail("cuInit", CUDA_ERROR_NO_DEVICE);
  EXPECT_EQ(Driver::Load(SOFTCUDA_LIBRARY, &why), nullptr);
  EXPECT_THAT(why, HasSubstr("CUDA_ERROR_NO_DEVICE"));
  EXPECT_THAT(why, HasSubstr("CUDA_VISIBLE_DEVICES"));
  soft.Fail("cuInit", CUDA_ERROR_SYSTEM_DRIVER_MISMATCH);
  EXPECT_EQ(Driver::Load(SOFTCUDA_LIBRARY, &why), nullptr);
  EXPECT_THAT(why, HasSubstr("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"));
  EXPECT_THAT(why, HasSubstr("nvidia-smi"));
}

TEST(DriverTest, ExplainsErrors) {
  Softcuda soft;
  std::string why;
  const auto driver = Driver::Load(SOFTCUDA_LIBRARY, &why);
  ASSERT_NE(driver, nullptr) << why;
  EXPECT_EQ(driver->Explain(CUDA_ERROR_OUT_OF_MEMORY), "CUDA_ERROR_OUT_OF_MEMORY: out of memory");
  EXPECT_EQ(driver->Explain(static_cast<CUresult>(888)), "CUDA error 888");
}

TEST(DriverTest, KnowsWhatIsOver) {
  for (const CUresult over : {CUDA_ERROR_ECC_UNCORRECTABLE, CUDA_ERROR_ILLEGAL_ADDRESS, CUDA_ERROR_LAUNCH_FAILED,
                              CUDA_ERROR_UNKNOWN, CUDA_ERROR_NVLINK_UNCORRECTABLE, CUDA_ERROR_CONTEXT_IS_DESTROYED}) {
    EXPECT_TRUE(Driver::IsSticky(over)) << over;
  }
  for (const CUresult passing : {CUDA_SUCCESS, CUDA_ERROR_OUT_OF_MEMORY, CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_NOT_READY,
                                 CUDA_ERROR_INVALID_HANDLE, CUDA_ERROR_NOT_FOUND, CUDA_ERROR_INVALID_CONTEXT}) {
    EXPECT_FALSE(Driver::IsSticky(passing)) << passing;
  }
}

}  // namespace
}  // namespace terrace::gpu
