// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// tier_sim FIRST COUNT [OPS]: runs so many seeds of TierSim from FIRST on. Exit 1 and the seed when one
// fails; `tier_sim SEED 1` runs that one again and tells what it does.
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "kvstore/base/log.h"
#include "sim/tier_sim.h"

int main(int argc, char** argv) {
  using terrace::testing::TierSim;
  using terrace::testing::TierSimReport;
  if (argc < 3) {
    std::fprintf(stderr, "usage: tier_sim FIRST_SEED COUNT [OPERATIONS_PER_SEED]\n");
    return 2;
  }
  const uint64_t first = std::strtoull(argv[1], nullptr, 10);
  const uint64_t count = std::strtoull(argv[2], nullptr, 10);
  const int ops = argc > 3 ? std::atoi(argv[3]) : 200;
  if (count > 1) terrace::SetLogLevel(terrace::LogLevel::kError);
  TierSimReport total;
  const auto started = std::chrono::steady_clock::now();
  for (uint64_t seed = first; seed < first + count; ++seed) {
    const TierSimReport report = TierSim(seed, ops, count == 1).Run();
    total.Add(report);
    if (!report.failure.empty()) {
      std::printf("FAILED %s\nagain: tier_sim %llu 1 %d\n", report.failure.c_str(),
                  static_cast<unsigned long long>(seed), ops);
      return 1;
    }
  }
  const auto n = [](uint64_t value) { return static_cast<unsigned long long>(value); };
  std::printf(
      "%llu seeds of %d operations in %.1f s: %llu stores, %llu reads checked, %llu loads from disk, %llu faults, "
      "%llu clean restarts, %llu kills, %llu power losses, %llu flushes; blocks on healthy disks before and after "
      "restarts: %llu, %llu; wrong bytes: 0\n",
      n(count), ops, std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count(),
      n(total.stores), n(total.reads_checked), n(total.pending_loads), n(total.faults_fired),
      n(total.clean_restarts), n(total.kills), n(total.power_losses), n(total.flushes), n(total.disk_blocks_before),
      n(total.disk_blocks_after));
  // A simulator in which nothing happens proves nothing.
  const bool did_something = count < 50 || (total.reads_checked > count && total.pending_loads > count &&
                                            total.faults_fired > count && total.disk_blocks_after > count);
  if (!did_something) std::printf("FAILED: hardly anything was stored, loaded or broken\n");
  return did_something ? 0 : 1;
}
