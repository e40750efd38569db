// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/host_copy_engine.h"

#include "contract/copy_engine_contract.h"

namespace terrace::gpu {
namespace {

struct OneThread {
  static std::unique_ptr<CopyEngine> Make(uint32_t queue_depth) {
    return std::make_unique<HostCopyEngine>(1, queue_depth);
  }
};
struct ThreeThreads {
  static std::unique_ptr<CopyEngine> Make(uint32_t queue_depth) {
    return std::make_unique<HostCopyEngine>(3, queue_depth);
  }
};

using Engines = ::testing::Types<OneThread, ThreeThreads>;
INSTANTIATE_TYPED_TEST_SUITE_P(Host, CopyEngineContract, Engines);

}  // namespace
}  // namespace terrace::gpu
