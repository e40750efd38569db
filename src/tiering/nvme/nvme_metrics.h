// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The NVMe tier's metrics (docs/metrics.md), made once at start.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kvstore/base/metrics.h"
#include "kvstore/base/mutex.h"
#include "tiering/io/block_device.h"
#include "tiering/nvme/nvme_tier.h"

namespace terrace::tiering {

// Of one device. Owner: NvmeMetrics. Threads: any.
struct NvmeDeviceMetrics {
  Counter* errors[3];  // by IoOp
  Histogram* duration[3];
  Counter* written_bytes;
  Gauge* budget_bytes;
  std::atomic<uint64_t> read_total{0}, written_total{0};  // bytes of the device, since the start

  void Observe(IoOp op, int error, uint64_t bytes, int64_t ns);
};

enum class NvmeBad : uint8_t { kChecksum, kIdentity, kTorn, kStale };
const char* NvmeBadName(NvmeBad bad);

// Of the tier. Owner: NvmeTier. Threads: any.
class NvmeMetrics {
 public:
  NvmeMetrics(MetricRegistry* metrics, const std::vector<BlockDeviceOptions>& devices);

  NvmeDeviceMetrics* device(size_t i) { return devices_[i].get(); }
  void Count(NvmeBad bad) { integrity_[static_cast<size_t>(bad)]->Add(); }
  // The tier is as well as the best of its devices.
  void SetState(size_t device, TierState state);
  TierState state() const;

  Counter *in_bytes, *out_bytes;  // from host memory, to host memory
  Counter* scrub_bytes;
  Gauge* scrub_last_completed;  // Unix time; 0: not yet

 private:
  Counter* integrity_[4];
  Gauge* states_[4];
  std::vector<std::unique_ptr<NvmeDeviceMetrics>> devices_;
  mutable Mutex mu_;
  std::vector<TierState> device_states_ ABSL_GUARDED_BY(mu_);
};

}  // namespace terrace::tiering
