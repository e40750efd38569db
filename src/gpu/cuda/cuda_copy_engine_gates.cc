// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/cuda_copy_engine_gates.h"

#include "kvstore/base/status_macros.h"

namespace terrace::gpu {

constexpr size_t kProbeBytes = 256;

absl::StatusOr<std::unique_ptr<CudaCopyGates>> CudaCopyGates::Make(CudaDevice& device) {
  std::unique_ptr<CudaCopyGates> gates(new CudaCopyGates(device));
  const Driver& driver = device.driver();
  RETURN_IF_ERROR(device.Check(driver.cuStreamCreateWithPriority(&gates->probe_stream_, CU_STREAM_NON_BLOCKING, 0),
                               "cuStreamCreateWithPriority"));
  // Without it nobody is told of a GPU that hangs before an engine's event.
  if (driver.cuMemAlloc(&gates->probe_memory_, kProbeBytes) != CUDA_SUCCESS) gates->probe_memory_ = 0;
  return gates;
}

void CudaCopyGates::BeginProbe(int64_t now_ns) {
  if (is_probing() || probe_memory_ == 0) return;
  const CUresult result = device_.driver().cuMemsetD8Async(probe_memory_, 0, kProbeBytes, probe_stream_);
  if (device_.Check(result, "cuMemsetD8Async").ok()) probe_since_ns_ = now_ns;
}

bool CudaCopyGates::ProbeHangs(int64_t now_ns, int64_t deadline_ns) {
  if (!is_probing()) return false;
  const CUresult result = device_.driver().cuStreamQuery(probe_stream_);
  if (result == CUDA_ERROR_NOT_READY) return now_ns - probe_since_ns_ > deadline_ns;
  (void)device_.Check(result, "cuStreamQuery");
  probe_since_ns_ = -1;
  return false;
}

CudaCopyGates::~CudaCopyGates() {
  if (device_.fenced()) return;
  // A probe under way: the GPU may hang, and freeing would wait for it.
  if (probe_memory_ != 0 && !is_probing()) device_.driver().cuMemFree(probe_memory_);
  if (probe_stream_ != nullptr) device_.driver().cuStreamDestroy(probe_stream_);
  // A stream that still waits for an engine is released by the driver when the event comes.
  for (const auto& gate : gates_) device_.driver().cuStreamDestroy(gate->stream);
}

CudaCopyGates::Gate* CudaCopyGates::FindFree() {
  for (const auto& gate : gates_) {
    if (gate->is_given_up && device_.driver().cuStreamQuery(gate->stream) == CUDA_SUCCESS) {
      gate->is_given_up = gate->is_taken = false;
    }
    if (!gate->is_taken) return gate.get();
  }
  return nullptr;
}

absl::StatusOr<CudaCopyGates::Gate*> CudaCopyGates::Wait(CUevent event) {
  const Driver& driver = device_.driver();
  const CUresult result = driver.cuEventQuery(event);
  if (result == CUDA_SUCCESS) return nullptr;
  if (result != CUDA_ERROR_NOT_READY) return device_.Check(result, "cuEventQuery");
  Gate* gate = FindFree();
  if (gate == nullptr) {
    if (gates_.size() == kMaxGates) return absl::ResourceExhaustedError("too many batches wait for engines' events");
    CUstream stream = nullptr;
    RETURN_IF_ERROR(device_.Check(driver.cuStreamCreateWithPriority(&stream, CU_STREAM_NON_BLOCKING, 0),
                                  "cuStreamCreateWithPriority"));
    gates_.push_back(std::make_unique<Gate>());
    gate = gates_.back().get();
    gate->stream = stream;
  }
  RETURN_IF_ERROR(device_.Check(driver.cuStreamWaitEvent(gate->stream, event, CU_EVENT_WAIT_DEFAULT),
                                "cuStreamWaitEvent"));
  gate->is_taken = true;
  return gate;
}

bool CudaCopyGates::Poll(Gate* gate) {
  const CUresult result = device_.driver().cuStreamQuery(gate->stream);
  // An error that leaves the GPU usable says nothing of the event.
  if (result != CUDA_SUCCESS) {
    if (result != CUDA_ERROR_NOT_READY) (void)device_.Check(result, "cuStreamQuery");
    return false;
  }
  gate->is_taken = false;
  return true;
}

}  // namespace terrace::gpu
