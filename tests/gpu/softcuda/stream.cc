// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// softcuda: streams, modules and launches.
#include <thread>

#include "gpu/softcuda/state.h"

namespace softcuda {
namespace {

void WaitFinished(CUstream_st& stream, uint64_t n) {
  std::unique_lock lock(stream.mu);
  stream.changed.wait(lock, [&] { return stream.finished >= n; });
}

void Run(const std::shared_ptr<CUstream_st>& stream) {
  const int device = stream->context->device;
  while (true) {
    CUstream_st::Operation operation;
    {
      std::unique_lock lock(stream->mu);
      stream->changed.wait(lock, [&] { return !stream->queue.empty() || stream->closing; });
      if (stream->queue.empty()) return;
      operation = std::move(stream->queue.front());
      stream->queue.pop_front();
    }
    for (const auto& [other, n] : operation.after) WaitFinished(*other, n);
    WaitWhileHanging(device);
    if (DeviceError(device) == CUDA_SUCCESS && !stream->discarded.load()) {
      const CUresult result = operation.run();
      // The context's memory goes after its streams are discarded, so a late look at this is enough.
      if (result != CUDA_SUCCESS && !stream->discarded.load()) BreakDevice(device, result);
      ReleasePins();
    }
    operation = {};  // what it holds goes before anyone is told
    const std::lock_guard lock(stream->mu);
    ++stream->finished;
    stream->changed.notify_all();
  }
}

}  // namespace

std::shared_ptr<CUstream_st> NewStream(CUcontext context, unsigned flags) {
  auto stream = std::make_shared<CUstream_st>();
  stream->context = context;
  stream->flags = flags;
  // Detached: nobody may wait for a stream that hangs. It ends when the stream is closed and empty.
  std::thread([stream] { Run(stream); }).detach();
  return stream;
}

void Close(CUstream_st& stream) {
  const std::lock_guard lock(stream.mu);
  stream.closing = true;
  stream.changed.notify_all();
}

void CloseStreams(CUcontext context) {
  State& s = Get();
  for (auto i = s.streams.begin(); i != s.streams.end();) {
    if (i->second->context == context) {
      i->second->discarded.store(true);
      Close(*i->second);
      i = s.streams.erase(i);
    } else {
      ++i;
    }
  }
  if (context->default_stream != nullptr) {
    context->default_stream->discarded.store(true);
    Close(*context->default_stream);
  }
  context->default_stream.reset();
  for (auto i = s.modules.begin(); i != s.modules.end();) {
    const bool is_its = (*i)->context == context;
    if (is_its) delete *i;
    i = is_its ? s.modules.erase(i) : std::next(i);
  }
}

CUresult FindStream(CUstream handle, std::shared_ptr<CUstream_st>* stream) {
  CUcontext context;
  if (const CUresult e = Current(&context); e != CUDA_SUCCESS) return e;
  State& s = Get();
  const std::lock_guard lock(s.mu);
  if (handle == nullptr || handle == CU_STREAM_LEGACY) {
    *stream = context->default_stream;
    return *stream == nullptr ? CUDA_ERROR_CONTEXT_IS_DESTROYED : CUDA_SUCCESS;
  }
  const auto found = s.streams.find(handle);
  if (found == s.streams.end() || found->second->context != context) return CUDA_ERROR_INVALID_HANDLE;
  *stream = found->second;
  return CUDA_SUCCESS;
}

CUresult Enqueue(const std::shared_ptr<CUstream_st>& stream, std::function<CUresult()> run, bool wait) {
  uint64_t number;
  {
    State& s = Get();
    // Under this lock so that "before" is the same for all streams.
    const std::lock_guard lock(s.mu);
    CUstream_st::Operation operation{std::move(run), {}};
    const auto behind = [&](const std::shared_ptr<CUstream_st>& other) {
      const std::lock_guard other_lock(other->mu);
      if (other->finished < other->enqueued) operation.after.emplace_back(other, other->enqueued);
    };
    if (stream == stream->context->default_stream) {
      for (const auto& [handle, other] : s.streams) {
        if (other->context == stream->context && (other->flags & CU_STREAM_NON_BLOCKING) == 0) behind(other);
      }
    } else if ((stream->flags & CU_STREAM_NON_BLOCKING) == 0 && stream->context->default_stream != nullptr) {
      behind(stream->context->default_stream);
    }
    const std::lock_guard stream_lock(stream->mu);
    if (stream->closing) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    number = ++stream->enqueued;
    stream->queue.push_back(std::move(operation));
    stream->changed.notify_all();
  }
  if (!wait) return CUDA_SUCCESS;
  WaitFinished(*stream, number);
  return DeviceError(stream->context->device);
}

}  // namespace softcuda

using softcuda::Current;
using softcuda::FindStream;
using softcuda::Get;
using softcuda::State;

CUresult cuStreamCreateWithPriority(CUstream* handle, unsigned int flags, int) {
  SOFTCUDA_ENTER(cuStreamCreateWithPriority);
  if (handle == nullptr || (flags & ~static_cast<unsigned>(CU_STREAM_NON_BLOCKING)) != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  CUcontext context;
  if (const CUresult e = Current(&context); e != CUDA_SUCCESS) return e;
  auto stream = softcuda::NewStream(context, flags);
  State& s = Get();
  const std::lock_guard lock(s.mu);
  *handle = stream.get();
  s.streams[*handle] = std::move(stream);
  return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream* handle, unsigned int flags) {
  SOFTCUDA_ENTER(cuStreamCreate);
  return cuStreamCreateWithPriority(handle, flags, 0);
}

// Returns at once; what was enqueued is still executed.
CUresult cuStreamDestroy(CUstream handle) {
  SOFTCUDA_ENTER(cuStreamDestroy);
  std::shared_ptr<CUstream_st> stream;
  if (handle == nullptr || handle == CU_STREAM_LEGACY) return CUDA_ERROR_INVALID_HANDLE;
  const CUresult found = FindStream(handle, &stream);
  if (stream == nullptr) {  // of a broken device, it can still be destroyed
    const std::lock_guard lock(Get().mu);
    const auto broken = Get().streams.find(handle);
    if (found == CUDA_ERROR_INVALID_HANDLE || broken == Get().streams.end()) return found;
    stream = broken->second;
  }
  softcuda::Close(*stream);
  const std::lock_guard lock(Get().mu);
  Get().streams.erase(handle);
  return found;
}

CUresult cuStreamQuery(CUstream handle) {
  SOFTCUDA_ENTER(cuStreamQuery);
  std::shared_ptr<CUstream_st> stream;
  if (const CUresult e = FindStream(handle, &stream); e != CUDA_SUCCESS) return e;
  const std::lock_guard lock(stream->mu);
  return stream->finished == stream->enqueued ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult cuStreamSynchronize(CUstream handle) {
  SOFTCUDA_ENTER(cuStreamSynchronize);
  std::shared_ptr<CUstream_st> stream;
  if (const CUresult e = FindStream(handle, &stream); e != CUDA_SUCCESS) return e;
  uint64_t n;
  {
    const std::lock_guard lock(stream->mu);
    n = stream->enqueued;
  }
  softcuda::WaitFinished(*stream, n);
  return softcuda::DeviceError(stream->context->device);
}

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  SOFTCUDA_ENTER(cuModuleLoadData);
  if (module == nullptr || image == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUcontext context;
  if (const CUresult e = Current(&context); e != CUDA_SUCCESS) return e;
  const std::lock_guard lock(Get().mu);
  *module = new CUmod_st{context};
  Get().modules.insert(*module);
  return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) {
  SOFTCUDA_ENTER(cuModuleUnload);
  CUcontext context;
  if (Current(&context) == CUDA_ERROR_INVALID_CONTEXT) return CUDA_ERROR_INVALID_CONTEXT;
  const std::lock_guard lock(Get().mu);
  if (Get().modules.erase(module) == 0) return CUDA_ERROR_INVALID_HANDLE;
  delete module;
  return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  SOFTCUDA_ENTER(cuModuleGetFunction);
  if (function == nullptr || name == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUcontext context;
  if (const CUresult e = Current(&context); e != CUDA_SUCCESS) return e;
  State& s = Get();
  const std::lock_guard lock(s.mu);
  if (s.modules.count(module) == 0) return CUDA_ERROR_INVALID_HANDLE;
  for (const softcuda::Kernel& kernel : softcuda::Kernels()) {
    if (std::string(kernel.name) != name) continue;
    CUfunc_st& made = s.functions[&kernel];
    made.kernel = &kernel;
    *function = &made;
    return CUDA_SUCCESS;
  }
  return CUDA_ERROR_NOT_FOUND;
}

CUresult cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                        unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared_bytes,
                        CUstream handle, void** args, void** extra) {
  SOFTCUDA_ENTER(cuLaunchKernel);
  std::shared_ptr<CUstream_st> stream;
  if (const CUresult e = FindStream(handle, &stream); e != CUDA_SUCCESS) return e;
  const softcuda::Kernel* kernel = nullptr;
  {
    const std::lock_guard lock(Get().mu);
    for (const auto& [known, made] : Get().functions) {
      if (&made == function) kernel = known;
    }
  }
  if (kernel == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  const softcuda::Dim3 grid{grid_x, grid_y, grid_z}, block{block_x, block_y, block_z};
  const uint64_t threads = uint64_t{block_x} * block_y * block_z;
  if (grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_x > 0x7fffffff || grid_y > 65535 || grid_z > 65535 ||
      threads == 0 || threads > 1024 || block_z > 64 || extra != nullptr ||
      (args == nullptr && !kernel->arg_bytes.empty())) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (shared_bytes > 48u << 10) return CUDA_ERROR_INVALID_VALUE;
  std::vector<std::vector<std::byte>> copies;
  for (size_t i = 0; i < kernel->arg_bytes.size(); ++i) {
    const auto* const value = static_cast<const std::byte*>(args[i]);
    copies.emplace_back(value, value + kernel->arg_bytes[i]);
  }
  return softcuda::Enqueue(stream, [=]() mutable {
    std::vector<void*> pointers;
    for (auto& copy : copies) pointers.push_back(copy.data());
    const CUresult result = kernel->run(grid, block, shared_bytes, pointers.data());
    softcuda::CountKernel();
    return result;
  });
}
