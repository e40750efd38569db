// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// BenchTier: an NvmeTier by itself, fed with numbered blocks whose bytes can be checked.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu/host_block_copier.h"
#include "kvstore/base/memory_budget.h"
#include "kvstore/base/metrics.h"
#include "kvstore/base/mutex.h"
#include "tiering/nvme/nvme_tier.h"

namespace terrace::bench {

// Owner: a case. Threads: one calls; call-backs come on the tier's. Failure: an error says which block and why.
class BenchTier {
 public:
  // Makes directory/nvme.data; ready when it returns.
  static absl::StatusOr<std::unique_ptr<BenchTier>> Open(const std::string& directory, uint64_t file_bytes,
                                                         uint64_t block_bytes);
  // Blocks appended from now on are those of the key space that CacheClient::OpenKeySpace(name) opens in a
  // daemon: it finds them when it is started on the file.
  void UseKeySpaceOf(const std::string& name);
  // The key of block i is MakeKeys(i, 1), its payload that of the key.
  void UseOwnPayloads() { has_own_payloads_ = true; }
  // The tier goes first: what is under way uses everything else.
  ~BenchTier() { tier_.reset(); }

  // Computes the checksums of blocks [first, first + n), so that Append has them.
  void Prepare(uint64_t first, uint64_t n);
  // All of them, until each is on disk.
  absl::Status Append(uint64_t first, uint64_t n);
  // Reads them one by one and compares every byte.
  absl::Status CheckAll(uint64_t first, uint64_t n);
  // n reads of random blocks of [0, blocks), depth at a time.
  absl::Status ReadRandom(uint64_t seed, uint64_t blocks, uint64_t n, uint32_t depth);

  tiering::NvmeTier::Stats stats() const { return tier_->GetStats(); }
  uint64_t io_memory_bytes() const { return options_.io_memory_bytes; }

 private:
  static constexpr uint64_t kSources = 16;  // payloads, shared by the blocks

  explicit BenchTier(uint64_t block_bytes);
  tiering::NvmeBlock Block(uint64_t number) const;
  std::span<std::byte> Source(uint64_t number);
  std::span<std::byte> Target(uint32_t place);
  // Waits until fewer than n are under way; the error of those that ended, if any.
  absl::Status WaitBelow(uint32_t n);
  void Begin();
  void End(const absl::Status& status);
  void Read(uint64_t number, uint32_t place, bool compares);

  const uint64_t block_bytes_;
  std::array<uint8_t, 32> digest_;
  bool has_own_payloads_ = false;
  tiering::NvmeOptions options_;
  MemoryBudget budget_{8ull << 30};
  MetricRegistry metrics_;
  gpu::HostBlockCopier copies_{1, 4096};
  std::vector<std::byte> sources_, targets_;
  std::vector<std::vector<uint64_t>> checksums_;
  uint64_t first_prepared_ = 0;
  Mutex mu_;
  CondVar changed_;
  uint32_t under_way_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  std::vector<uint32_t> free_places_ ABSL_GUARDED_BY(mu_);  // of targets_
  std::unique_ptr<tiering::NvmeTier> tier_;
};

}  // namespace terrace::bench
