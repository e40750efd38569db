// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What every CopyEngine owes its caller. An implementation brings a CopyRig for each way to set it up, and says
//   using Rigs = ::testing::Types<MyRig, ...>;
//   TERRACE_COPY_ENGINE_CONTRACT(MyEngine, Rigs);
#pragma once

#include "contract/copy_engine_copies.h"
#include "contract/copy_engine_queue.h"
#include "contract/copy_engine_random.h"

#define TERRACE_COPY_ENGINE_CONTRACT(Prefix, Rigs)                \
  INSTANTIATE_TYPED_TEST_SUITE_P(Prefix, CopyEngineCopies, Rigs); \
  INSTANTIATE_TYPED_TEST_SUITE_P(Prefix, CopyEngineQueue, Rigs);  \
  INSTANTIATE_TYPED_TEST_SUITE_P(Prefix, CopyEngineRandom, Rigs)
