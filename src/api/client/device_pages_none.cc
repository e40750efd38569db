// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Of a library built without CUDA: no pages are made, so nothing else of the class can be called.
#include "api/client/device_pages.h"

namespace terrace::client {
namespace {

Result NoCuda() {
  return Fail(
      TERRACE_FAILED_PRECONDITION,
      "this libterrace was built without CUDA: install one that was built where the toolkit is");
}

}  // namespace

Result DevicePages::Create(const terrace_device_pages&, std::shared_ptr<DevicePages>*,
                           std::shared_ptr<Region>*, std::string*) {
  return NoCuda();
}
DevicePages::~DevicePages() = default;
void DevicePages::Close() {}
Result DevicePages::Record(uint32_t*) { return NoCuda(); }
Result DevicePages::TakeMark(CUevent_st**) { return NoCuda(); }
void DevicePages::GiveBackMark(CUevent_st*) {}
Result DevicePages::Prepare(uint64_t, uint32_t*) { return NoCuda(); }
DevicePages::Buffer* DevicePages::TakeBuffer(uint32_t) { return nullptr; }
Result DevicePages::Begin(CUevent_st*) { return NoCuda(); }
Result DevicePages::Copy(Way, std::span<const Piece>, std::byte*) { return NoCuda(); }
Result DevicePages::End(Buffer*) { return NoCuda(); }
Result DevicePages::Poll(Buffer*, bool*) { return NoCuda(); }

}  // namespace terrace::client
