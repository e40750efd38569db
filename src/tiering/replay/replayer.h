// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Replayer: a trace through the product's index, chain links and policies in virtual time, with the calls
// in the order in which the catalogue makes them. No bytes are moved; equal options give equal results.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/chain_links.h"
#include "kvstore/prefix_index.h"
#include "tiering/policy/admission_policy.h"
#include "tiering/policy/eviction_policy.h"
#include "tiering/replay/hints.h"
#include "tiering/replay/nvme_ring.h"
#include "tiering/replay/replay_result.h"
#include "tiering/replay/trace.h"

namespace terrace::tiering {

struct ReplayOptions {
  std::string policy = "terrace";
  uint64_t capacity_blocks = 0;  // of host memory
  uint64_t nvme_blocks = 0;      // 0: no NVMe tier
  std::string admission = "adaptive";
  uint64_t write_bytes_per_day = 0;  // of the NVMe tier; 0: no limit
  HintOptions hints;
  ReplayBlocks blocks;
};

// One run. Owner: who makes it. Threads: one. The trace must outlive it.
// Failure: InvalidArgument for a policy that there is not; a capacity of 0.
class Replayer {
 public:
  static absl::StatusOr<std::unique_ptr<Replayer>> Create(const Trace& trace, const ReplayOptions& options);
  // REQUIRES: called once.
  ReplayResult Run();
  // Of the policies, for who wants to know more than the result says.
  const EvictionPolicy& eviction() const { return *eviction_; }
  const AdmissionPolicy* admission() const { return admission_.get(); }  // nullptr without NVMe

 private:
  Replayer(const Trace& trace, const ReplayOptions& options, std::unique_ptr<EvictionPolicy> eviction,
           std::unique_ptr<AdmissionPolicy> admission);
  void RunRequest(uint32_t number);
  // Stores block number `i` of the chain under `parent`; kNoBlock if there is no room for it.
  kv::BlockId Store(uint32_t request, uint64_t reference, kv::BlockId parent);
  bool MakeRoom(kv::BlockId parent);
  void Demote(kv::BlockId victim, uint32_t number);
  AdmissionPolicy::Candidate CandidateOf(kv::BlockId block, uint32_t depth) const;
  void CountReachable();

  const Trace& trace_;
  const ReplayOptions options_;
  const HintSource hints_;
  const std::unique_ptr<EvictionPolicy> eviction_;
  const std::unique_ptr<AdmissionPolicy> admission_;
  kv::PrefixIndex index_;
  kv::ChainLinks links_;
  NvmeRing nvme_;
  std::vector<kv::BlockKey> keys_;       // by the trace's numbers
  std::vector<uint64_t> fingerprints_;   // the same
  std::vector<int64_t> used_ns_;         // last use, the same
  std::vector<uint32_t> number_of_;      // by BlockId
  std::vector<kv::BlockKey> chain_keys_;
  std::vector<kv::PrefixIndex::Found> found_;
  std::vector<uint32_t> parent_of_;        // by the trace's numbers: block before it; empty without NVMe
  std::vector<AdmissionPolicy::Candidate> before_;
  std::vector<uint32_t> before_numbers_;
  std::vector<RetentionHint> last_hints_;  // by the trace's numbers; empty without NVMe
  std::vector<int64_t> eviction_ages_ns_;
  int64_t now_ns_ = 0;
  uint64_t n_here_ = 0;  // in host memory
  ReplayResult result_;
};

// Create and Run in one.
absl::StatusOr<ReplayResult> Replay(const Trace& trace, const ReplayOptions& options);

}  // namespace terrace::tiering
