// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/replay/belady.h"

#include <queue>
#include <tuple>
#include <vector>

namespace terrace::tiering {
namespace {

ReplayResult Begin(const char* name, const Trace& trace, uint64_t capacity_blocks) {
  ReplayResult result;
  result.policy = result.decided_by = name;
  result.capacity_blocks = capacity_blocks;
  result.requests = trace.requests.size();
  result.references = trace.references.size();
  result.input_tokens = trace.input_tokens;
  return result;
}

}  // namespace

ReplayResult ReplayInfinite(const Trace& trace, const ReplayBlocks& blocks) {
  ReplayResult result = Begin("infinite", trace, 0);
  uint32_t known = 0;  // numbers are given in the order of first use
  for (const Trace::Request& request : trace.requests) {
    uint32_t n = 0;
    for (const uint32_t block : trace.BlocksOf(request)) {
      if (block < known) {
        ++n;
      } else {
        known = block + 1;
        ++result.stores;
      }
    }
    result.CountHits(n, 0, request.input_tokens, blocks.tokens);
  }
  result.operations = result.references + result.stores;
  return result;
}

ReplayResult ReplayBelady(const Trace& trace, const ReplayBlocks& blocks, uint64_t capacity_blocks) {
  ReplayResult result = Begin("belady", trace, capacity_blocks);
  const std::vector<uint32_t> next = NextUses(trace);
  std::vector<uint32_t> next_of(trace.distinct_blocks, kNever);  // of what is here, else kNever
  using Use = std::tuple<uint32_t, uint32_t, uint32_t>;          // next use, depth, block
  std::priority_queue<Use> farthest;                             // entries that are out of date are stepped over
  uint64_t here = 0;
  for (const Trace::Request& request : trace.requests) {
    const std::span<const uint32_t> chain = trace.BlocksOf(request);
    uint32_t n = 0;
    while (n < chain.size() && next_of[chain[n]] != kNever) ++n;
    result.CountHits(n, 0, request.input_tokens, blocks.tokens);
    for (uint32_t depth = 0; depth < chain.size(); ++depth) {
      uint32_t& use = next_of[chain[depth]];
      const bool was_here = use != kNever;
      use = next[request.first + depth];
      here += static_cast<uint64_t>(use != kNever) - static_cast<uint64_t>(was_here);
      if (use != kNever) {
        result.stores += !was_here;
        farthest.emplace(use, depth, chain[depth]);
      } else {
        result.evictions += was_here;
      }
    }
    while (here > capacity_blocks) {
      const auto [use, depth, block] = farthest.top();
      farthest.pop();
      if (next_of[block] != use) continue;
      next_of[block] = kNever;
      --here;
      ++result.evictions;
    }
  }
  result.operations = result.references + result.stores;
  return result;
}

}  // namespace terrace::tiering
