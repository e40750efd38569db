// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// HostBlockCopier: BlockCopier over processor threads. Product code for machines without a GPU.
#pragma once

#include <deque>
#include <thread>
#include <vector>

#include "gpu/block_copier.h"
#include "kvstore/base/mutex.h"

namespace terrace::gpu {

// Owner: TierStack. Threads: its own; with none of them Submit copies at once, on the caller's (simulation).
// Limits: queue_depth jobs waiting. The destructor drains.
class HostBlockCopier final : public BlockCopier {
 public:
  HostBlockCopier(uint32_t threads, uint32_t queue_depth);
  ~HostBlockCopier() override;

  absl::Status Submit(CopyJob& job) override;
  void Drain() override;

 private:
  static void Copy(CopyJob& job);
  void Run();

  const size_t queue_depth_;
  Mutex mu_;
  CondVar work_, idle_;
  std::deque<CopyJob> queue_ ABSL_GUARDED_BY(mu_);
  uint32_t running_ ABSL_GUARDED_BY(mu_) = 0;
  bool closing_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace terrace::gpu
