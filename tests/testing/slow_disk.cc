// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "testing/slow_disk.h"

#include <chrono>
#include <thread>

#include "kvstore/base/clock.h"
#include "testing/fault_device.h"
#include "testing/memory_device.h"

namespace terrace::testing {

struct SlowDisk::Impl {
  MemoryDisks disks{Clock::Real()};
  std::shared_ptr<FaultScript> faults = std::make_shared<FaultScript>(1);
};

SlowDisk::SlowDisk() : impl_(std::make_unique<Impl>()) {}
SlowDisk::~SlowDisk() = default;

void SlowDisk::PutUnder(tiering::TierStackOptions* options, uint64_t host_bytes) {
  options->nvme.devices = {{.path = "/disk", .bytes = 256 << 20}};
  options->nvme.io_memory_bytes = 8 << 20;
  options->process_bytes = 1 << 20;
  options->budget_bytes = options->process_bytes + host_bytes / 97 * 100 + (16 << 20);
  options->eviction_policy = "lru";
  options->admission_policy = "all";
  options->device_factory = FaultyFactory(impl_->disks.Factory(), impl_->faults, Clock::Real());
}

void SlowDisk::DelayReads(int64_t delay_ns, uint64_t skip) {
  impl_->faults->Add({.kind = FaultKind::kDelay, .op = tiering::IoOp::kRead, .skip = skip, .delay_ns = delay_ns});
}

void SlowDisk::FailReads(uint64_t skip) {
  impl_->faults->Add({.kind = FaultKind::kError, .op = tiering::IoOp::kRead, .skip = skip});
}

void SlowDisk::HangReads(uint64_t skip) {
  impl_->faults->Add({.kind = FaultKind::kHang, .op = tiering::IoOp::kRead, .skip = skip});
}

uint64_t SlowDisk::Fired() const { return impl_->faults->Fired(); }

void SlowDisk::Release() {
  impl_->faults->AllOff();
  impl_->faults->ReleaseHung();
}

bool WaitForRoom(tiering::TierStack* stack) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  for (;;) {
    const tiering::TierUsage host = stack->Stats().tiers[0];
    if (host.used_bytes <= host.capacity_bytes / 100 * 97) return true;
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // poll
  }
}

}  // namespace terrace::testing
