// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// host.budget against the kernel's own figure. A process of its own (memory_probe) is filled with blocks;
// what it holds is RssAnon + RssShmem of /proc/self/status: everything that is not a mapped file. All of it
// counts, the program's data and the probe's buffers included: process_bytes (here 16 MiB) is there for them.
#include <gtest/gtest.h>

#include <cstdio>
#include <map>
#include <string>

namespace {

constexpr uint64_t kBudget = 512ull << 20;

std::map<std::string, double> Probe(const std::string& arguments) {
  std::map<std::string, double> values;
  FILE* output = popen((std::string(TERRACE_MEMORY_PROBE) + " " + arguments).c_str(), "r");
  if (output == nullptr) return values;
  char name[64];
  double value = 0;
  while (std::fscanf(output, "%63s %lf", name, &value) == 2) values[name] = value;
  EXPECT_EQ(pclose(output), 0);
  return values;
}

struct Fill {
  const char* name;
  const char* sizes;
  bool prefault;
  double least_payload;  // share of the budget that must be payload
};

class MemoryBudgetFillTest : public ::testing::TestWithParam<Fill> {};

TEST_P(MemoryBudgetFillTest, HoldsToTwoPercent) {
  auto values = Probe("fill " + std::to_string(kBudget) + (GetParam().prefault ? " 1 " : " 0 ") + GetParam().sizes);
  ASSERT_GT(values["most"], 0);
  RecordProperty("resident_mib", std::to_string(values["most"] / (1 << 20)));
  EXPECT_LE(values["charged"], static_cast<double>(kBudget));
  EXPECT_LE(values["most"], 1.02 * static_cast<double>(kBudget)) << "grew beyond its budget";
  EXPECT_GE(values["payload"], GetParam().least_payload * static_cast<double>(kBudget)) << "wastes its budget";
}

INSTANTIATE_TEST_SUITE_P(
    Sizes, MemoryBudgetFillTest,
    // 4 KiB blocks pay 7 % for header and tables.
    ::testing::Values(Fill{"Blocks64K", "65536", false, 0.85}, Fill{"Blocks2M", "2097152", false, 0.85},
                      Fill{"Blocks4K", "4096", false, 0.78}, Fill{"Blocks64KPrefaulted", "65536", true, 0.85},
                      Fill{"SmallAfterLargeAndBack", "2097152:4096:65536:2097152", false, 0.75}),
    [](const auto& info) { return info.param.name; });

TEST(MemoryReadyTest, AnArenaOf16GibServesInUnderASecond) {
  std::map<std::string, double> values;
  for (int attempt = 0; attempt < 5; ++attempt) {  // a busy machine may make one an exception
    values = Probe("ready " + std::to_string((16ull << 30) + (512ull << 20)));
    EXPECT_EQ(values["served"], 1);
    if (values["milliseconds"] < 1000) break;
  }
  EXPECT_LT(values["milliseconds"], 1000);
  EXPECT_LT(values["prefaulted"], static_cast<double>(8ull << 30)) << "the page faults are for the background";
}

}  // namespace
