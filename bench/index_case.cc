// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// index_bytes: what the daemon's tables cost per block, by the resident memory of a process that has
// nothing else.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <optional>
#include <utility>

#include "cases.h"
#include "kvstore/base/check.h"
#include "kvstore/base/memory_budget.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/chain_links.h"
#include "kvstore/frame_pool.h"
#include "kvstore/prefix_index.h"
#include "machine.h"
#include "payload.h"
#include "process.h"
#include "tiering/policy/eviction_policy.h"

namespace terrace::bench {
namespace {

constexpr uint64_t kKeys = 10'000'000;
constexpr uint64_t kFrames = 1'000'000;
constexpr uint64_t kChain = 1000;  // blocks a prompt

kv::BlockKey KeyOf(uint64_t i) {
  kv::BlockKey key;
  for (size_t word = 0; word < 4; ++word) {
    const uint64_t value = Mix(Mix(i) + word);
    std::memcpy(key.bytes.data() + word * 8, &value, 8);
  }
  return key;
}

}  // namespace

int IndexWorkerMain(uint64_t keys) {
  const double before = ResidentAnonymousBytes();
  kv::PrefixIndex index(keys, Mix(7));
  kv::ChainLinks links(index.capacity());
  auto policy = tiering::MakeEvictionPolicy("terrace", index.capacity(), keys);
  TERRACE_CHECK(policy.ok());
  kv::BlockId parent = kv::kNoBlock;
  uint64_t full = 0;
  for (uint64_t i = 0; i < keys; ++i) {
    if (i % kChain == 0) parent = kv::kNoBlock;
    kv::BlockId block = kv::kNoBlock;
    const auto inserted = index.Insert(0, KeyOf(i), static_cast<kv::FrameId>(i), &block);
    if (inserted == kv::PrefixIndex::Inserted::kFull) {  // a shard is full before the others
      ++full;
      continue;
    }
    TERRACE_CHECK(inserted == kv::PrefixIndex::Inserted::kYes);
    links.Add(block, parent);
    (*policy)->OnInsert(block, {.parent = parent, .fingerprint = i}, static_cast<int64_t>(i));
    parent = block;
  }
  const double tables = ResidentAnonymousBytes() - before;
  for (uint64_t i = 0; i < keys; i += 997) {  // the index that was weighed is one that answers
    const auto found = index.Find(0, KeyOf(i));
    TERRACE_CHECK(found.has_value() ? found->frame == i : full > 0);
  }
  TERRACE_CHECK(!index.Find(0, KeyOf(keys)).has_value());

  // What the pool of frames keeps besides, for blocks of 64 KiB: the smallest that engines use.
  MemoryBudget budget(1ull << 40);
  constexpr uint64_t kBlockBytes = 64 << 10;
  constexpr uint32_t kExtents = 1024;  // a segment
  const kv::SlabShape shape = kv::ShapeFor(kBlockBytes);
  const uint64_t per_segment = kExtents / shape.extents * shape.frames;
  const uint64_t segments = kFrames / per_segment + 1;
  const double before_frames = ResidentAnonymousBytes();
  kv::FramePool pool(static_cast<uint32_t>(kFrames / shape.frames + segments), 0, &budget);
  for (uint32_t segment = 1; segment <= segments; ++segment) pool.AddSegment(segment, 0, kExtents);
  for (uint64_t i = 0; i < kFrames; ++i) {
    bool no_metadata = false;
    const std::optional<kv::FrameId> frame = pool.Allocate(0, kBlockBytes, &no_metadata);
    TERRACE_CHECK(frame.has_value());
    pool.MakeReady(*frame, pool.NextGeneration());
  }
  const double frames = ResidentAnonymousBytes() - before_frames;
  std::printf("%.0f %.3f %.3f\n", static_cast<double>(index.size()), tables / static_cast<double>(index.size()),
              frames / static_cast<double>(kFrames));
  return 0;
}

absl::Status RunIndexBytes(const CaseContext& context) {
  const auto keys = static_cast<uint64_t>(static_cast<double>(kKeys) * std::min(1.0, context.options.scale));
  const OthersMeter meter({});
  ASSIGN_OR_RETURN(ChildProcess worker, ChildProcess::StartSelf({"child-index", std::to_string(keys)}));
  ASSIGN_OR_RETURN(const std::string line, worker.ReadLine(300));
  double blocks = 0, tables = 0, frames = 0;
  if (std::sscanf(line.c_str(), "%lf %lf %lf", &blocks, &tables, &frames) != 3) return absl::InternalError(line);
  Measurement m{.name = "index_bytes",
                .what = "index, chain links and eviction order, resident bytes per block after inserting 10 M keys",
                .unit = "B"};
  m.values = {tables};
  m.lower_is_better = true;
  m.target = 128;
  m.aim = 64;
  m.target_is_absolute = true;
  m.more = {{"blocks", blocks}, {"frame_table_bytes", frames}};
  context.report->Add(m, meter.Cores());
  return absl::OkStatus();
}

}  // namespace terrace::bench
