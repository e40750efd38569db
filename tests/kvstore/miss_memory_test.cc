// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "kvstore/miss_memory.h"

#include <gtest/gtest.h>

#include "testing/payload.h"

namespace terrace::kv {
namespace {

using testing::KeyOf;

TEST(MissMemoryTest, RemembersTheLatestReason) {
  MissMemory memory(4096, 1);
  EXPECT_EQ(memory.Recall(1, KeyOf(1)), Reason::kCold);
  for (const Reason reason : {Reason::kEvicted, Reason::kCorrupt, Reason::kFlushed}) {
    memory.Remember(1, KeyOf(1), reason);
    EXPECT_EQ(memory.Recall(1, KeyOf(1)), reason);
  }
  EXPECT_EQ(memory.Recall(2, KeyOf(1)), Reason::kCold) << "another key space";
  EXPECT_EQ(memory.Recall(1, KeyOf(2)), Reason::kCold);
  EXPECT_DEATH(memory.Remember(1, KeyOf(1), Reason::kBudget), "check_failed");
}

TEST(MissMemoryTest, OldEntriesAreOverwrittenNeverConfused) {
  MissMemory memory(64, 1);
  for (uint64_t i = 0; i < 10000; ++i) memory.Remember(1, KeyOf(i), Reason::kEvicted);
  int remembered = 0;
  for (uint64_t i = 0; i < 10000; ++i) remembered += memory.Recall(1, KeyOf(i)) == Reason::kEvicted;
  EXPECT_GT(remembered, 0);
  EXPECT_LE(remembered, 64);
  for (uint64_t i = 10000; i < 20000; ++i) EXPECT_EQ(memory.Recall(1, KeyOf(i)), Reason::kCold);
}

}  // namespace
}  // namespace terrace::kv
