// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// NcclLibrary: NCCL (https://docs.nvidia.com/deeplearning/nccl/), found with dlopen() at run time as the driver is,
// so that one binary runs on machines without it.
//
// The only header that includes <nccl.h>; it is included by .cc files of src/gpu/nccl only.
#pragma once

#include <nccl.h>

#include <memory>
#include <string>

#define TERRACE_NCCL_FUNCTIONS(F)                                                                         \
  F(ncclGetVersion) F(ncclGetErrorString) F(ncclGetUniqueId) F(ncclCommInitRankConfig) F(ncclCommAbort)   \
  F(ncclCommGetAsyncError) F(ncclSend) F(ncclRecv) F(ncclGroupStart) F(ncclGroupEnd)

namespace terrace::gpu {

// Constant once loaded. Threads: any; calls on one communicator come from one thread.
struct NcclLibrary {
  static constexpr int kMinVersion = 21800;  // 2.18: non-blocking communicators whose abort is dependable

#define TERRACE_NCCL_MEMBER(name) decltype(&::name) name = nullptr;
  TERRACE_NCCL_FUNCTIONS(TERRACE_NCCL_MEMBER)
#undef TERRACE_NCCL_MEMBER
  int version = 0;  // 22809 is 2.28.9

  // Opens the library (never closed again). null: *why says what is missing and what to do.
  static std::shared_ptr<const NcclLibrary> Load(const std::string& library, std::string* why);

  // "remote process exited or there was a network error".
  std::string Explain(ncclResult_t result) const { return ncclGetErrorString(result); }
};

}  // namespace terrace::gpu
