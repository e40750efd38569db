// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// HostPinner: pins the host tier's segments for the GPUs' copies, in the background: it takes about a tenth of a
// second a GiB, and until it is done copies go through the copy engines' own staging.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <set>
#include <thread>
#include <utility>

#include "gpu/gpus.h"
#include "kvstore/base/mutex.h"
#include "tiering/host_tier.h"

namespace terrace::tiering {

// Owner: TierStack; told by the HostTier what is mapped. Threads: any, and one of its own. Limits: as many ranges as
// there are segments. Failure: memory that cannot be pinned stays as it is, which is only slower, which Gpus says once.
class HostPinner final : public SegmentObserver {
 public:
  explicit HostPinner(gpu::Gpus* gpus);  // must live until Stop
  ~HostPinner() override { Stop(); }
  HostPinner(const HostPinner&) = delete;

  // Unpins everything; nothing is pinned from then on.
  void Stop();
  // On the NUMA nodes of the GPUs, if the kernel lets us choose.
  void OnMapped(std::byte* base, uint64_t bytes) override;
  // Is pinned soon. Its pages are there already, or are spoken for.
  void OnInUse(std::byte* base, uint64_t bytes) override;
  // Waits if it is just being pinned.
  void OnUnmapping(std::byte* base) override;
  uint64_t pinned_bytes() const;

 private:
  using Range = std::pair<std::byte*, uint64_t>;
  void Run();

  gpu::Gpus* const gpus_;
  uint64_t numa_nodes_ = 0;  // a bit each
  mutable Mutex mu_;
  CondVar changed_;
  std::deque<Range> queue_ ABSL_GUARDED_BY(mu_);
  std::set<Range> pinned_ ABSL_GUARDED_BY(mu_);
  std::byte* working_on_ ABSL_GUARDED_BY(mu_) = nullptr;
  uint64_t pinned_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool closing_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace terrace::tiering
