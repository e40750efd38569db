// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// ReplayResult: what came of a replay.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

namespace terrace::tiering {

// How long and how large a block of the trace is.
struct ReplayBlocks {
  uint32_t tokens = 512;
  uint64_t bytes = 0;  // 0: not of interest
};

// Plain value. A request hits the leading run of its blocks that is here, in whatever tier.
struct ReplayResult {
  std::string policy;      // as asked for; "infinite", "belady"
  std::string decided_by;  // policy in charge at the end: another one after a fall-back
  uint64_t capacity_blocks = 0, nvme_blocks = 0;

  uint64_t requests = 0, references = 0, input_tokens = 0;
  uint64_t host_hits = 0, nvme_hits = 0;  // blocks
  uint64_t host_hit_tokens = 0, nvme_hit_tokens = 0;
  uint64_t stores = 0;          // computed and stored
  uint64_t refused_stores = 0;  // computed; no room that might be taken
  uint64_t evictions = 0;       // out of host memory
  uint64_t nvme_writes = 0;     // blocks, reinsertions included
  uint64_t nvme_reinsertions = 0;
  uint64_t nvme_blocks_at_end = 0;
  uint64_t nvme_reachable_at_end = 0;  // those of them that are found without host memory
  uint64_t ghost_hits = 0, fallbacks = 0;
  int64_t eviction_age_p50_ns = 0, eviction_age_p90_ns = 0;  // since the last use; 0: nothing was evicted
  uint64_t operations = 0;  // lookups and stores of one block

  uint64_t hits() const { return host_hits + nvme_hits; }
  double block_hit_rate() const { return Ratio(hits(), references); }
  double token_hit_rate() const { return Ratio(host_hit_tokens + nvme_hit_tokens, input_tokens); }
  double nvme_writes_per_100_hits() const { return 100 * Ratio(nvme_writes, hits()); }

  // Counts one request's leading hits: host_n blocks in host memory, then nvme_n on NVMe.
  void CountHits(uint32_t host_n, uint32_t nvme_n, uint64_t tokens, uint32_t block_tokens) {
    const uint64_t host = std::min<uint64_t>(uint64_t{host_n} * block_tokens, tokens);
    host_hits += host_n;
    nvme_hits += nvme_n;
    host_hit_tokens += host;
    nvme_hit_tokens += std::min<uint64_t>(uint64_t{nvme_n} * block_tokens, tokens - host);
  }

 private:
  static double Ratio(uint64_t part, uint64_t whole) {
    return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
  }
};

}  // namespace terrace::tiering
