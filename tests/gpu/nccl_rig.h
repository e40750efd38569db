// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What both ranks of the NCCL link's tests do: nccl_link_test is rank 0, nccl_peer rank 1. Bytes derive from batch
// and frame, so each side knows what it must get.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gpu/cuda/driver.h"
#include "gpu/nccl_link.h"

namespace terrace::gpu {

enum class LinkMemory { kHost, kPinned, kDevice };

struct LinkPlan {
  int rank = 0;
  LinkMemory memory = LinkMemory::kHost;
  uint64_t batches = 1, frames = 8;
  bool both_ways = true;  // else rank 1 sends all
  int64_t deadline_ns = 30'000'000'000;  // of each batch, from its submission
};

// Frames in one of the three kinds of memory. Owner: the test. Threads: one. The memory of a batch must stay until its
// done was called.
class LinkRig {
 public:
  LinkRig(const std::string& driver, const LinkPlan& plan);
  ~LinkRig();
  LinkRig(const LinkRig&) = delete;

  // Lengths that the plan's frames have, in turn.
  static uint64_t Length(uint64_t frame);
  bool Receives(uint64_t frame) const {
    return plan_.both_ways ? (frame % 2 == 0) == (plan_.rank == 0) : plan_.rank == 0;
  }

  struct Made {
    LinkBatch batch;  // without done
    std::vector<std::byte*> memory;
  };
  // A batch of the plan, its frames' memory filled with what is sent (or rubbish, where it is received).
  Made MakeBatch(uint64_t number);
  // What one frame must hold.
  static std::vector<std::byte> Payload(uint64_t number, uint64_t frame);
  // What is wrong with the batch, or nothing.
  std::string Check(uint64_t number, const LinkBatch& batch);
  void Free(const std::vector<std::byte*>& memory);

  // All batches of the plan, `at_once` at a time: how the first that went wrong did.
  absl::Status RunAll(NcclLink& link, uint64_t at_once);

 private:
  std::byte* Allocate(uint64_t bytes);
  void Copy(void* target, const void* source, uint64_t bytes);
  const LinkPlan plan_;
  std::shared_ptr<const Driver> driver_;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
  CUstream stream_ = nullptr;
};

}  // namespace terrace::gpu
