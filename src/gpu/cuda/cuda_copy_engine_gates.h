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

  // Makes what the probe needs: of a GPU that hangs nothing can be had.
  static absl::StatusOr<std::unique_ptr<CudaCopyGates>> Make(CudaDevice& device);
  ~CudaCopyGates();  // as CudaCopyLane's
  CudaCopyGates(const CudaCopyGates&) = delete;

  // nullptr: the event is done, nothing to wait for. ResourceExhausted: all gates are taken, try later.
  absl::StatusOr<Gate*> Wait(CUevent event);
  // True: passed, and free for the next one.
  bool Poll(Gate* gate);
  void GiveUp(Gate* gate) { gate->is_given_up = true; }

  // An engine's event that does not come may be the engine's fault or the GPU's: a little work tells.
  void BeginProbe(int64_t now_ns);
  bool is_probing() const { return probe_since_ns_ >= 0; }
  // True: the GPU has not done it within deadline_ns.
  bool ProbeHangs(int64_t now_ns, int64_t deadline_ns);

 private:
  explicit CudaCopyGates(CudaDevice& device) : device_(device) {}
  Gate* FindFree();

  CudaDevice& device_;
  std::vector<std::unique_ptr<Gate>> gates_;
  CUstream probe_stream_ = nullptr;
  CUdeviceptr probe_memory_ = 0;
  int64_t probe_since_ns_ = -1;
};

}  // namespace terrace::gpu
