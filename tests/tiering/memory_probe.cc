// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// A process that does one thing with a TierStack and says what the kernel thinks of its memory; run by
// memory_budget_test. Prints `name value` lines.
//
//   memory_probe fill BUDGET_BYTES PREFAULT BLOCK_BYTES[:BLOCK_BYTES...]   one size after the other
//   memory_probe ready BUDGET_BYTES                                        time to the first block
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include "testing/test_stack.h"

namespace {

using terrace::Reason;
using terrace::testing::KeyOf;
using terrace::testing::TestStack;

uint64_t StatusKib(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(field + ":", 0) == 0) return std::strtoull(line.c_str() + field.size() + 1, nullptr, 10);
  }
  return 0;
}
uint64_t ResidentBytes() { return (StatusKib("RssAnon") + StatusKib("RssShmem")) * 1024; }

terrace::tiering::TierStackOptions Options(uint64_t budget, bool prefault) {
  terrace::tiering::TierStackOptions options;
  options.budget_bytes = budget;
  // Less than the daemon's default: no gRPC here, and what is not charged should show.
  options.process_bytes = 16 << 20;
  options.prefault = prefault;
  options.huge_pages = false;
  return options;
}

int Fill(uint64_t budget, bool prefault, const char* sizes) {
  const uint64_t before = ResidentBytes();
  TestStack stack(Options(budget, prefault));
  auto session = stack->OpenSession(0);
  uint64_t most = 0, payload = 0, charged_most = 0;
  for (const char* at = sizes; *at != 0;) {
    char* end = nullptr;
    const uint64_t bytes = std::strtoull(at, &end, 10);
    at = *end == ':' ? end + 1 : end;
    const auto& space = TestStack::Open(session.get(), bytes);
    std::vector<std::byte> block;
    // Half as much again as fits, so that it is full of this size and evicting.
    for (uint64_t i = 0; i < budget / bytes * 3 / 2; ++i) {
      TestStack::Put(session.get(), TestStack::Request(space, KeyOf(i), std::nullopt, &block));
      if (i % 1024 == 0) {
        most = std::max(most, ResidentBytes());
        charged_most = std::max(charged_most, stack->Stats().budget_used_bytes);
      }
    }
    most = std::max(most, ResidentBytes());
    charged_most = std::max(charged_most, stack->Stats().budget_used_bytes);
    payload = space.blocks_resident.load() * bytes;
  }
  std::printf("before %llu\nmost %llu\ncharged %llu\npayload %llu\n", static_cast<unsigned long long>(before),
              static_cast<unsigned long long>(most), static_cast<unsigned long long>(charged_most),
              static_cast<unsigned long long>(payload));
  return 0;
}

int Ready(uint64_t budget) {
  const auto start = std::chrono::steady_clock::now();
  TestStack stack(Options(budget, true));
  auto session = stack->OpenSession(0);
  const auto& space = TestStack::Open(session.get(), 2 << 20);
  const bool stored = TestStack::Store(session.get(), space, KeyOf(1)) == Reason::kNone;
  const bool served = stack.Serves(session.get(), space, KeyOf(1));
  const auto taken = std::chrono::steady_clock::now() - start;
  std::printf("served %d\nmilliseconds %lld\n", stored && served,
              static_cast<long long>(std::chrono::duration_cast<std::chrono::milliseconds>(taken).count()));
  std::printf("prefaulted %llu\n", static_cast<unsigned long long>(stack->Stats().prefaulted_bytes));
  std::fflush(stdout);
  _exit(0);  // at once: the memory of the whole arena must not really be taken
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "fill" && argc == 5) return Fill(std::strtoull(argv[2], nullptr, 10), argv[3][0] == '1', argv[4]);
  if (what == "ready" && argc == 3) return Ready(std::strtoull(argv[2], nullptr, 10));
  std::fprintf(stderr, "usage: see the top of memory_probe.cc\n");
  return 2;
}
