// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The other end of exporter.h. Usage: gpu_exporter DRIVER, with a socket as descriptor 3. Ends when that closes.
#include <cstdio>
#include <cstdlib>
#include <map>

#include <dlfcn.h>

#include "gpu/cuda/driver.h"
#include "gpu/exporter.h"

namespace terrace::gpu {
namespace {

// Owner: main. One thread. An error is answered, not mended.
class Exporter {
 public:
  explicit Exporter(const char* library) : library_(library) {
    std::string why;
    driver_ = Driver::Load(library, &why);
    if (driver_ == nullptr) {
      std::fprintf(stderr, "gpu_exporter: %s\n", why.c_str());
      std::exit(1);
    }
  }

  ExporterReply Serve(const ExporterRequest& request, int* fd) {
    ExporterReply reply;
    CUresult result = Enter(request.device);
    if (result == CUDA_SUCCESS) result = Do(request, &reply, fd);
    if (result != CUDA_SUCCESS) std::fprintf(stderr, "gpu_exporter: %s\n", driver_->Explain(result).c_str());
    reply.result = result;
    return reply;
  }

 private:
  CUresult Enter(int device) {
    if (contexts_.count(device) == 0) {
      CUcontext context = nullptr;
      if (const CUresult e = driver_->cuDevicePrimaryCtxRetain(&context, device); e != CUDA_SUCCESS) return e;
      contexts_[device] = context;
    }
    return driver_->cuCtxPushCurrent(contexts_[device]);
  }

  CUresult Do(const ExporterRequest& request, ExporterReply* reply, int* fd) {
    switch (request.op) {
      case ExporterRequest::kAllocate: {
        CUdeviceptr base = 0;
        if (const CUresult e = driver_->cuMemAlloc(&base, request.bytes); e != CUDA_SUCCESS) return e;
        memory_.push_back(base);
        CUipcMemHandle handle;
        if (const CUresult e = driver_->cuIpcGetMemHandle(&handle, base); e != CUDA_SUCCESS) return e;
        std::memcpy(reply->handle, &handle, sizeof(handle));
        return Fill(base, request.value, request.bytes, true);
      }
      case ExporterRequest::kVmm:
        return AllocateVmm(request, fd);
      case ExporterRequest::kEvent: {
        CUevent event = nullptr;
        CUipcEventHandle handle;
        if (const CUresult e = driver_->cuEventCreate(&event, CU_EVENT_INTERPROCESS | CU_EVENT_DISABLE_TIMING);
            e != CUDA_SUCCESS) {
          return e;
        }
        events_.push_back(event);
        const CUresult result = driver_->cuIpcGetEventHandle(&handle, event);
        std::memcpy(reply->handle, &handle, sizeof(handle));
        return result;
      }
      case ExporterRequest::kFill:
        return Fill(memory_.at(request.index) + request.offset, request.value, request.bytes, false);
      case ExporterRequest::kRecord:
        return driver_->cuEventRecord(events_.at(request.index), nullptr);
      case ExporterRequest::kHang: {
        void* const library = dlopen(library_.c_str(), RTLD_NOW | RTLD_LOCAL);
        reinterpret_cast<void (*)(int)>(dlsym(library, "softcuda_hang"))(request.value);
        return CUDA_SUCCESS;
      }
      case ExporterRequest::kRead: {
        const CUdeviceptr source = memory_.at(request.index) + request.offset;
        const CUresult result = driver_->cuMemcpyAsync(reinterpret_cast<CUdeviceptr>(reply->handle), source,
                                                       sizeof(reply->handle), nullptr);
        return result == CUDA_SUCCESS ? driver_->cuStreamSynchronize(nullptr) : result;
      }
      case ExporterRequest::kFree:
        return driver_->cuMemFree(memory_.at(request.index));
    }
    return CUDA_ERROR_INVALID_VALUE;
  }

  CUresult AllocateVmm(const ExporterRequest& request, int* fd) {
    CUmemAllocationProp properties{};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    properties.location.id = request.device;
    properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    CUmemGenericAllocationHandle handle = 0;
    CUdeviceptr base = 0;
    CUmemAccessDesc access{};
    access.location = properties.location;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    CUresult result = driver_->cuMemCreate(&handle, request.bytes, &properties, 0);
    if (result == CUDA_SUCCESS) result = driver_->cuMemAddressReserve(&base, request.bytes, 0, 0, 0);
    if (result == CUDA_SUCCESS) result = driver_->cuMemMap(base, request.bytes, 0, handle, 0);
    if (result == CUDA_SUCCESS) result = driver_->cuMemSetAccess(base, request.bytes, &access, 1);
    if (result == CUDA_SUCCESS) result = Fill(base, request.value, request.bytes, true);
    if (result == CUDA_SUCCESS) {
      result = driver_->cuMemExportToShareableHandle(fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
    }
    memory_.push_back(base);
    return result;
  }

  CUresult Fill(CUdeviceptr target, uint8_t value, size_t bytes, bool wait) {
    const CUresult result = driver_->cuMemsetD8Async(target, value, bytes, nullptr);
    return result == CUDA_SUCCESS && wait ? driver_->cuStreamSynchronize(nullptr) : result;
  }

  const std::string library_;
  std::shared_ptr<const Driver> driver_;
  std::map<int, CUcontext> contexts_;
  std::vector<CUdeviceptr> memory_;
  std::vector<CUevent> events_;
};

bool Answer(const ExporterReply& reply, int fd) {
  iovec data{const_cast<ExporterReply*>(&reply), sizeof(reply)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof(int));
  }
  return sendmsg(3, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(sizeof(reply));
}

}  // namespace
}  // namespace terrace::gpu

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: gpu_exporter DRIVER\n");
    return 2;
  }
  terrace::gpu::Exporter exporter(argv[1]);
  terrace::gpu::ExporterRequest request;
  while (recv(3, &request, sizeof(request), 0) == static_cast<ssize_t>(sizeof(request))) {
    int fd = -1;
    const terrace::gpu::ExporterReply reply = exporter.Serve(request, &fd);
    const bool answered = terrace::gpu::Answer(reply, fd);
    if (fd >= 0) close(fd);
    if (!answered) break;
  }
  _exit(0);
}
