// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// softnccl: NCCL's functions, and faults.
#include "gpu/softnccl/softnccl.h"

#include <cuda.h>
#include <sys/random.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>
#include <utility>

using softnccl::Comm;
using softnccl::HasFault;

namespace softnccl {
namespace {

struct State {
  std::mutex mu;
  std::map<std::string, long> faults;
  std::map<ncclComm_t, std::shared_ptr<Comm>> comms;
};
State& Get() {
  static State& state = *[] {  // never destroyed: streams' threads may outlive main
    auto* const made = new State;
    if (const char* const faults = std::getenv("SOFTNCCL_FAULT")) {
      std::istringstream words(faults);
      for (std::string word; words >> word;) {
        const size_t equals = word.find('=');
        made->faults[word.substr(0, equals)] = equals == std::string::npos ? 0 : std::atol(word.c_str() + equals + 1);
      }
    }
    return made;
  }();
  return state;
}

std::shared_ptr<Comm> Find(ncclComm_t handle) {
  State& s = Get();
  const std::lock_guard lock(s.mu);
  const auto found = s.comms.find(handle);
  return found == s.comms.end() ? nullptr : found->second;
}

// What a thread has put into the group that it is in.
struct Group {
  int depth = 0;
  std::shared_ptr<Comm> comm;
  cudaStream_t stream = nullptr;
  std::vector<Operation> operations;
};
thread_local Group group;

struct Posted {
  std::shared_ptr<Comm> comm;
  std::vector<Operation> operations;
};
// What is posted stands here until it is run: on a device that breaks it never is. Never destroyed.
struct Posts {
  std::mutex mu;
  std::map<void*, std::unique_ptr<Posted>> all;
};
Posts& AllPosts() {
  static auto* const posts = new Posts;
  return *posts;
}
std::unique_ptr<Posted> TakePosted(void* data) {
  Posts& posts = AllPosts();
  const std::lock_guard lock(posts.mu);
  auto node = posts.all.extract(data);
  return node.empty() ? nullptr : std::move(node.mapped());
}
void CUDA_CB RunPosted(void* data) {
  const std::unique_ptr<Posted> posted = TakePosted(data);
  Transfer(*posted->comm, posted->operations);
}

ncclResult_t Add(bool receive, void* data, size_t bytes, ncclDataType_t type, int peer, ncclComm_t handle,
                 cudaStream_t stream) {
  const std::shared_ptr<Comm> comm = Find(handle);
  if (comm == nullptr || type != ncclInt8 || peer != 1 - comm->rank) return ncclInvalidArgument;
  // Still connecting, the last group is still being posted, or broken: nobody has asked until it was over.
  if (comm->async != ncclSuccess || comm->busy_polls > 0) return ncclInvalidUsage;
  if (group.depth == 0 || (group.comm != nullptr && (group.comm != comm || group.stream != stream))) {
    return ncclInvalidUsage;  // NCCL allows more; the product does not use it
  }
  group.comm = comm;
  group.stream = stream;
  group.operations.push_back({receive, data, bytes});
  return ncclSuccess;
}

}  // namespace

bool HasFault(const std::string& name, long* number) {
  State& s = Get();
  const std::lock_guard lock(s.mu);
  const auto found = s.faults.find(name);
  if (found == s.faults.end()) return false;
  if (number != nullptr) *number = found->second;
  return true;
}

void HangWhile(const std::string& fault, const std::atomic<bool>* until) {
  while (HasFault(fault) && (until == nullptr || !*until)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // poll
  }
}

}  // namespace softnccl

void softnccl_fault(const char* faults) {
  softnccl::State& s = softnccl::Get();
  const std::lock_guard lock(s.mu);
  s.faults.clear();
  std::istringstream words(faults == nullptr ? "" : faults);
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    s.faults[word.substr(0, equals)] = equals == std::string::npos ? 0 : std::atol(word.c_str() + equals + 1);
  }
}

ncclResult_t ncclGetVersion(int* version) {
  long number = NCCL_VERSION_CODE;
  HasFault("version", &number);
  *version = static_cast<int>(number);
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess: return "no error";
    case ncclUnhandledCudaError: return "unhandled cuda error";
    case ncclSystemError: return "unhandled system error";
    case ncclInvalidArgument: return "invalid argument";
    case ncclInvalidUsage: return "invalid usage";
    case ncclRemoteError: return "remote process exited or there was a network error";
    default: return "unknown result code";
  }
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  *id = {};
  unsigned char random[16];
  if (getrandom(random, sizeof(random), 0) != static_cast<ssize_t>(sizeof(random))) return ncclSystemError;
  std::string text = "softnccl-";
  for (const unsigned char byte : random) text += "0123456789abcdef"[byte >> 4], text += "0123456789abcdef"[byte & 15];
  std::memcpy(id->internal, text.data(), text.size());
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* handle, int n_ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  ncclConfig_t expected = NCCL_CONFIG_INITIALIZER;
  if (handle == nullptr || n_ranks != 2 || rank < 0 || rank > 1 || config == nullptr) return ncclInvalidArgument;
  if (config->size != expected.size || config->magic != expected.magic) return ncclInvalidArgument;
  if (config->blocking != 0) return ncclInvalidUsage;  // the product must not wait in here
  CUcontext context = nullptr;
  if (cuCtxGetCurrent(&context) != CUDA_SUCCESS || context == nullptr) return ncclUnhandledCudaError;
  auto comm = std::make_shared<Comm>();
  comm->rank = rank;
  const auto& [text] = id;
  comm->address = text;
  *handle = reinterpret_cast<ncclComm_t>(comm.get());
  std::thread([comm] { softnccl::Connect(comm); }).detach();  // ends with the connection or with ncclCommAbort
  softnccl::State& s = softnccl::Get();
  const std::lock_guard lock(s.mu);
  s.comms[*handle] = std::move(comm);
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t* state) {
  const std::shared_ptr<Comm> comm = softnccl::Find(handle);
  if (comm == nullptr) return ncclInvalidArgument;
  *state = static_cast<ncclResult_t>(comm->async.load());
  if (*state == ncclSuccess && comm->busy_polls > 0) {
    --comm->busy_polls;
    *state = ncclInProgress;
  }
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t handle) {
  softnccl::HangWhile("abort_hangs", nullptr);
  const std::shared_ptr<Comm> comm = softnccl::Find(handle);
  if (comm == nullptr) return ncclInvalidArgument;
  comm->aborted = true;
  softnccl::State& s = softnccl::Get();
  const std::lock_guard lock(s.mu);
  s.comms.erase(handle);
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  ++softnccl::group.depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  softnccl::Group& group = softnccl::group;
  if (group.depth == 0) return ncclInvalidUsage;
  if (--group.depth > 0 || group.comm == nullptr) return ncclSuccess;
  softnccl::HangWhile("group_hangs", nullptr);
  auto posted = std::make_unique<softnccl::Posted>();
  posted->comm = std::exchange(group.comm, nullptr);
  posted->operations = std::exchange(group.operations, {});
  posted->comm->busy_polls = 3;
  softnccl::Posted* const data = posted.get();
  {
    softnccl::Posts& posts = softnccl::AllPosts();
    const std::lock_guard lock(posts.mu);
    posts.all[data] = std::move(posted);
  }
  if (cuLaunchHostFunc(reinterpret_cast<CUstream>(group.stream), softnccl::RunPosted, data) != CUDA_SUCCESS) {
    softnccl::TakePosted(data);
    return ncclUnhandledCudaError;
  }
  return ncclInProgress;
}

ncclResult_t ncclSend(const void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return softnccl::Add(false, const_cast<void*>(data), count, type, peer, comm, stream);
}

ncclResult_t ncclRecv(void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
  return softnccl::Add(true, data, count, type, peer, comm, stream);
}
