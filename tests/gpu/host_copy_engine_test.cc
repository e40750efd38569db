// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/host_copy_engine.h"

#include "contract/copy_engine_contract.h"
#include "host_copy_rig.h"

namespace terrace::gpu {
namespace {

using OneThread = HostCopyRig<1>;
using ThreeThreads = HostCopyRig<3>;
using Rigs = ::testing::Types<OneThread, ThreeThreads>;
TERRACE_COPY_ENGINE_CONTRACT(Host, Rigs);

// Without threads a batch has ended when Submit returns.
TEST(HostCopyEngine, WithoutThreadsItCopiesAtOnce) {
  HostCopyRig<0> rig;
  const auto engine = rig.MakeEngine(4);
  const NamedLayout named = layouts::All().front();
  ModelledMemory memory(rig, named.allocation_bytes);
  const auto region = memory.memory().MakeRegion(named.layout);
  const std::vector<uint64_t> pages = {4, 2, 9};
  Frames frames(rig, pages.size(), region->page_bytes());
  std::vector<std::vector<std::byte>> payloads;
  CopyBatch batch = MakeLoad(region, pages, frames, 1, 2, &payloads);
  Outcome outcome;
  uint32_t told = 0;
  batch.planes_done = [&](uint32_t n) { told = n; };
  batch.done = outcome.Taker();
  ASSERT_TRUE(engine->Submit(batch).ok());
  EXPECT_EQ(outcome.times(), 1);
  EXPECT_EQ(outcome.intact_count(), pages.size());
  EXPECT_EQ(told, named.layout.planes.size());
  for (size_t i = 0; i < pages.size(); ++i) memory.SetModelPage(named.layout, pages[i], payloads[i]);
  EXPECT_TRUE(memory.IsAsModelled());
}

// A batch of a few large pages is work for all threads: one is held up in the first planes' call-back, and the rest
// of the batch is copied meanwhile.
TEST(HostCopyEngine, ThreadsShareABatch) {
  HostCopyRig<2> rig;
  const auto engine = rig.MakeEngine(4);
  const NamedLayout named =
      layouts::Make("large", {.n_allocations = 8, .stride = 1 << 20, .bytes = 1 << 20, .n_pages = 1});
  ModelledMemory memory(rig, named.allocation_bytes);
  const auto region = memory.memory().MakeRegion(named.layout);
  const std::vector<uint64_t> pages = {0};
  Frames frames(rig, 1, region->page_bytes());
  std::vector<std::vector<std::byte>> payloads;
  CopyBatch batch = MakeLoad(region, pages, frames, 1, 2, &payloads);
  memory.SetModelPage(named.layout, 0, payloads[0]);
  const auto last_arrived = [&] {
    std::byte last{};
    memory.memory().Read(7, (1 << 20) - 1, {&last, 1});
    return last == payloads[0].back();
  };
  bool arrived = false;
  batch.planes_done = [&, first = true](uint32_t) mutable {
    if (!std::exchange(first, false)) return;
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (!(arrived = last_arrived()) && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));  // poll
    }
  };
  Outcome outcome;
  TERRACE_RUN_BATCH(engine, batch, outcome);
  EXPECT_TRUE(arrived);
  EXPECT_TRUE(memory.IsAsModelled());
}

}  // namespace
}  // namespace terrace::gpu
