// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "kvstore/chain_links.h"

#include <gtest/gtest.h>

namespace terrace::kv {
namespace {

TEST(ChainLinksTest, CountsChildrenOfAFork) {
  ChainLinks links(100);
  links.Add(0, kNoBlock);
  EXPECT_EQ(links.Parent(0), kNoBlock);
  EXPECT_FALSE(links.HasChildren(0));
  links.Add(1, 0);
  links.Add(2, 0);
  EXPECT_EQ(links.Parent(1), 0u) << "block 0 is a block like any other";
  EXPECT_TRUE(links.HasChildren(0));
  EXPECT_EQ(links.Remove(1), 0u);
  EXPECT_TRUE(links.HasChildren(0));
  EXPECT_EQ(links.Remove(2), 0u);
  EXPECT_FALSE(links.HasChildren(0));
  EXPECT_EQ(links.Remove(0), kNoBlock);
}

TEST(ChainLinksTest, ANumberComesAgainWithoutItsPast) {
  ChainLinks links(10);
  links.Add(3, kNoBlock);
  links.Add(4, 3);
  links.Remove(4);
  links.Add(4, kNoBlock);
  EXPECT_EQ(links.Parent(4), kNoBlock);
  EXPECT_FALSE(links.HasChildren(3));
}

TEST(ChainLinksTest, AParentIsNotRemovedBeforeItsChild) {
  ChainLinks links(10);
  links.Add(3, kNoBlock);
  links.Add(4, 3);
  EXPECT_DEATH(links.Remove(3), "check_failed");
}

}  // namespace
}  // namespace terrace::kv
