// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// CudaCopyGates: batches that wait for an engine's events.
//
// Each waits on a stream of its own (cuStreamWaitEvent), not on those that copy: an engine that is slow, or hangs, or
// was stopped in mid-kernel holds up its own batches only, and such a batch can still be given up, because nothing of
// it was begun. The event is taken as it stands now: what the engine records later does not matter.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu/cuda/cuda_device.h"

namespace terrace::gpu {

// Owner: CudaCopyEngine, whose thread alone uses it with the context current. Limits: kMaxGates streams, made when they
// are needed first.
class CudaCopyGates {
 public:
  static constexpr size_t kMaxGates = 32;
  struct Gate {
    CUstream stream = nullptr;
    bool is_taken = false;
    bool is_given_up = false;  // its event may still come
  };

  explicit CudaCopyGates(CudaDevice& device) : device_(device) {}
  ~CudaCopyGates();  // as CudaCopyLane's
  CudaCopyGates(const CudaCopyGates&) = delete;

  // nullptr: the event is done, nothing to wait for. ResourceExhausted: all gates are taken, try later.
  absl::StatusOr<Gate*> Wait(CUevent event);
  // True: passed, and free for the next one.
  bool Poll(Gate* gate);
  void GiveUp(Gate* gate) { gate->is_given_up = true; }

 private:
  Gate* FindFree();

  CudaDevice& device_;
  std::vector<std::unique_ptr<Gate>> gates_;
};

}  // namespace terrace::gpu
