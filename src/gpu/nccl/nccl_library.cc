// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/nccl/nccl_library.h"

#include <dlfcn.h>

namespace terrace::gpu {
namespace {

std::string VersionText(int version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

}  // namespace

std::shared_ptr<const NcclLibrary> NcclLibrary::Load(const std::string& library, std::string* why) {
  // Never closed: it has threads of its own.
  void* const handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* const error = dlerror();
    *why = "no NCCL: " + std::string(error == nullptr ? library : error) + "; install libnccl2 or give its path";
    return nullptr;
  }
  auto nccl = std::make_shared<NcclLibrary>();
  const char* missing = nullptr;
#define TERRACE_NCCL_FIND(name)                                                     \
  nccl->name = reinterpret_cast<decltype(nccl->name)>(dlsym(handle, #name));        \
  if (nccl->name == nullptr && missing == nullptr) missing = #name;
  TERRACE_NCCL_FUNCTIONS(TERRACE_NCCL_FIND)
#undef TERRACE_NCCL_FIND
  if (missing != nullptr) {
    *why = library + " has no " + missing + ": NCCL " + VersionText(kMinVersion) + " or later is needed";
    return nullptr;
  }
  const ncclResult_t result = nccl->ncclGetVersion(&nccl->version);
  if (result != ncclSuccess) {
    *why = "ncclGetVersion: " + nccl->Explain(result);
    return nullptr;
  }
  if (nccl->version < kMinVersion) {
    *why = library + " is NCCL " + VersionText(nccl->version) + "; " + VersionText(kMinVersion) + " or later is needed";
    return nullptr;
  }
  return nccl;
}

}  // namespace terrace::gpu
