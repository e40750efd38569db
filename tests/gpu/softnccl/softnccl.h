// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// softnccl's state. README.md says what it is.
#pragma once

#include <nccl.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

extern "C" {
// Faults from now on (README.md), nullptr or "": none.
void softnccl_fault(const char* faults);
void* softcuda_translate(unsigned long long address, size_t bytes);
}

namespace softnccl {

// Whether a fault is on, and its number.
bool HasFault(const std::string& name, long* number = nullptr);
// Waits until the fault is taken away or *until is set.
void HangWhile(const std::string& fault, const std::atomic<bool>* until);

struct Comm {
  ~Comm();
  int rank = 0;
  std::string address;  // of the listening socket
  std::atomic<int> socket{-1};
  std::atomic<int> async{ncclInProgress};
  std::atomic<int> busy_polls{0};  // ncclCommGetAsyncError says "in progress" so often
  std::atomic<bool> aborted{false};
  std::atomic<long> groups{0}, received{0};
};
// Connects the pair; sets async. On the init thread.
void Connect(const std::shared_ptr<Comm>& comm);

struct Operation {
  bool receive;
  void* data;
  size_t bytes;
};
// One group, moved when its turn in the stream comes. Returns when all of it has moved or the communicator was
// aborted: like NCCL's kernels it does not return for an error.
void Transfer(Comm& comm, const std::vector<Operation>& operations);

}  // namespace softnccl
