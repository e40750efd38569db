// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// RegionFixture: a TierStack, a session and an engine's region in shared memory; stores and loads that wait for
// their answer.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <optional>
#include <vector>

#include "testing/region_memory.h"
#include "testing/test_stack.h"

namespace terrace::testing {

// The end of one operation, awaited. Threads: the test waits, any thread ends it.
class Outcome {
 public:
  void Set(std::span<const Reason> reasons) {
    MutexLock lock(&mu_);
    EXPECT_FALSE(is_set_) << "ended twice";
    is_set_ = true;
    reasons_.assign(reasons.begin(), reasons.end());
    changed_.SignalAll();
  }
  bool is_set() {
    MutexLock lock(&mu_);
    return is_set_;
  }
  std::vector<Reason> Wait() {
    MutexLock lock(&mu_);
    while (!is_set_) {
      if (!changed_.WaitFor(&mu_, std::chrono::seconds(30)) && !is_set_) {
        ADD_FAILURE() << "never ended";
        return {};
      }
    }
    return reasons_;
  }

 private:
  Mutex mu_;
  CondVar changed_;
  bool is_set_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<Reason> reasons_ ABSL_GUARDED_BY(mu_);
};

// Pages first, first + 1 ...
inline std::vector<uint64_t> PagesFrom(uint64_t first, size_t n) {
  std::vector<uint64_t> pages(n);
  std::iota(pages.begin(), pages.end(), first);
  return pages;
}

inline tiering::RegionStoreRequest StoreRequestOf(std::shared_ptr<gpu::Region> region, const kv::KeySpace& space,
                                                  std::vector<kv::BlockKey> keys, uint64_t first_page) {
  tiering::RegionStoreRequest request;
  request.region = std::move(region);
  request.key_space = &space;
  request.pages = PagesFrom(first_page, keys.size());
  request.keys = std::move(keys);
  return request;
}

inline tiering::RegionLoadRequest LoadRequestOf(std::shared_ptr<gpu::Region> region, const kv::KeySpace& space,
                                                std::vector<kv::BlockKey> keys, uint64_t first_page) {
  tiering::RegionLoadRequest request;
  request.region = std::move(region);
  request.key_space = &space;
  request.pages = PagesFrom(first_page, keys.size());
  request.keys = std::move(keys);
  return request;
}

inline std::vector<Reason> Store(tiering::Session* session, tiering::RegionStoreRequest request) {
  auto outcome = std::make_shared<Outcome>();
  request.done = [outcome](std::span<const Reason> reasons) { outcome->Set(reasons); };
  const absl::Status begun = session->StoreRegion(std::move(request));
  EXPECT_TRUE(begun.ok()) << begun;
  return begun.ok() ? outcome->Wait() : std::vector<Reason>();
}

inline std::vector<Reason> Load(tiering::Session* session, tiering::RegionLoadRequest request) {
  auto outcome = std::make_shared<Outcome>();
  request.done = [outcome](std::span<const Reason> reasons) { outcome->Set(reasons); };
  const absl::Status begun = session->LoadRegion(std::move(request));
  EXPECT_TRUE(begun.ok()) << begun;
  return begun.ok() ? outcome->Wait() : std::vector<Reason>();
}

}  // namespace terrace::testing
