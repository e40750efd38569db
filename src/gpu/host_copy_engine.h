// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// HostCopyEngine: CopyEngine over processor threads, for engines whose KV cache is host memory.
#pragma once

#include <cstdint>
#include <memory>

#include "gpu/copy_engine.h"

namespace terrace::gpu {

// Owner: TierStack. Threads: its own; with none of them Submit copies at once, on the caller's (simulation).
// Limits: queue_depth batches waiting in each direction. Stores wait for as long as there are loads.
// Failure: bytes that differ from their checksums make a page not intact; there is no other.
class HostCopyEngine final : public CopyEngine {
 public:
  HostCopyEngine(uint32_t threads, uint32_t queue_depth);
  ~HostCopyEngine() override;

  absl::Status Submit(CopyBatch& batch) override;
  void Drain() override;
  CopyEngineStats Stats() const override;

 private:
  class Impl;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace terrace::gpu
