// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/host_block_copier.h"

#include "contract/block_copier_contract.h"

namespace terrace::gpu {
namespace {

struct OneThread {
  static std::unique_ptr<BlockCopier> Make(uint32_t queue_depth) {
    return std::make_unique<HostBlockCopier>(1, queue_depth);
  }
};
struct ThreeThreads {
  static std::unique_ptr<BlockCopier> Make(uint32_t queue_depth) {
    return std::make_unique<HostBlockCopier>(3, queue_depth);
  }
};

using Engines = ::testing::Types<OneThread, ThreeThreads>;
INSTANTIATE_TYPED_TEST_SUITE_P(Host, BlockCopierContract, Engines);

}  // namespace
}  // namespace terrace::gpu
