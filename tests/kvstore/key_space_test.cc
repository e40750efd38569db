// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "kvstore/key_space.h"

#include <gtest/gtest.h>

#include <set>
#include <thread>

namespace terrace::kv {
namespace {

KeySpaceIdentity Identity() {
  KeySpaceIdentity identity;
  identity.model = "m";
  identity.model_fingerprint = "f";
  identity.kv_dtype = "bf16";
  identity.layout = "l";
  identity.parallel = "tp1";
  identity.hash = "sha256";
  identity.group = "0";
  identity.extra = "x";
  identity.block_bytes = 4096;
  identity.tokens_per_block = 16;
  return identity;
}

TEST(KeySpaceTableTest, EqualIdentitiesShare) {
  KeySpaceTable table(100);
  const auto first = table.Open(0, "default", Identity());
  const auto again = table.Open(0, "default", Identity());
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(*first, *again);
  EXPECT_NE((*first)->id, 0u);
  EXPECT_EQ(table.Find(0, (*first)->id), *first);
}

TEST(KeySpaceTableTest, EveryFieldTellsKeySpacesApart) {
  KeySpaceTable table(100);
  std::set<const KeySpace*> spaces = {*table.Open(0, "default", Identity())};
  std::set<std::array<uint8_t, 32>> digests = {(*spaces.begin())->digest};
  const auto add = [&](KeySpaceIdentity identity) {
    const auto opened = table.Open(0, "default", identity);
    ASSERT_TRUE(opened.ok());
    EXPECT_TRUE(spaces.insert(*opened).second);
    EXPECT_TRUE(digests.insert((*opened)->digest).second);
  };
  for (std::string KeySpaceIdentity::*field :
       {&KeySpaceIdentity::model, &KeySpaceIdentity::model_fingerprint, &KeySpaceIdentity::kv_dtype,
        &KeySpaceIdentity::layout, &KeySpaceIdentity::parallel, &KeySpaceIdentity::hash,
        &KeySpaceIdentity::group, &KeySpaceIdentity::extra}) {
    KeySpaceIdentity other = Identity();
    other.*field += "'";
    add(other);
    other.*field = "";
    add(other);
  }
  KeySpaceIdentity other = Identity();
  other.block_bytes += 1;
  add(other);
  other = Identity();
  other.tokens_per_block += 1;
  add(other);
  // The border between two fields counts.
  other = Identity();
  other.model = "mf";
  other.model_fingerprint = "";
  add(other);
  other.model = std::string("m\0f", 3);
  add(other);
}

TEST(KeySpaceTableTest, TenantsAreApart) {
  KeySpaceTable table(100);
  const KeySpace* a = *table.Open(0, "a", Identity());
  const KeySpace* b = *table.Open(1, "b", Identity());
  EXPECT_NE(a, b);
  EXPECT_NE(a->digest, b->digest);
  EXPECT_EQ(table.Find(1, a->id), nullptr);
  EXPECT_EQ(table.Find(0, b->id), nullptr);
  EXPECT_EQ(table.Find(0, 0), nullptr);
  EXPECT_EQ(table.Find(0, 3), nullptr);
  EXPECT_EQ(table.Find(0, ~0u), nullptr);
}

TEST(KeySpaceTableTest, LimitsAreRefusals) {
  KeySpaceTable table(2);
  KeySpaceIdentity identity = Identity();
  identity.block_bytes = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(table.Open(0, "d", identity).status()));
  identity.block_bytes = (1ull << 30) + 1;
  EXPECT_TRUE(absl::IsInvalidArgument(table.Open(0, "d", identity).status()));
  identity.block_bytes = ~0ull;
  EXPECT_TRUE(absl::IsInvalidArgument(table.Open(0, "d", identity).status()));
  identity = Identity();
  identity.layout = std::string(1025, 'x');
  EXPECT_TRUE(absl::IsInvalidArgument(table.Open(0, "d", identity).status()));
  identity.layout = std::string(1024, 'x');
  EXPECT_TRUE(table.Open(0, "d", identity).ok());
  EXPECT_TRUE(table.Open(0, "d", Identity()).ok());
  identity.layout = "third";
  EXPECT_TRUE(absl::IsResourceExhausted(table.Open(0, "d", identity).status()));
  EXPECT_TRUE(table.Open(0, "d", Identity()).ok()) << "what is open stays";
}

TEST(KeySpaceTableTest, SaysWhatTheNearestKeySpaceHasElse) {
  KeySpaceTable table(100);
  const KeySpace* mine = *table.Open(0, "d", Identity());
  EXPECT_EQ(table.WhyEmpty(*mine), Reason::kKeySpaceEmpty);
  const auto full = [&](KeySpaceIdentity identity, TenantId tenant = 0) {
    (*table.Open(tenant, tenant == 0 ? "d" : "e", identity))->blocks_stored.store(1);
  };
  full(Identity(), 1);
  EXPECT_EQ(table.WhyEmpty(*mine), Reason::kKeySpaceEmpty) << "another tenant's blocks explain nothing";
  KeySpaceIdentity other = Identity();
  other.model_fingerprint = "other weights";
  full(other);
  EXPECT_EQ(table.WhyEmpty(*mine), Reason::kModelDiffers);
  other = Identity();
  other.kv_dtype = "fp8";
  full(other);
  EXPECT_EQ(table.WhyEmpty(*mine), Reason::kLayoutDiffers);
  other = Identity();
  other.hash = "other seed";
  full(other);
  EXPECT_EQ(table.WhyEmpty(*mine), Reason::kHashDiffers);
}

TEST(KeySpaceTableTest, AnotherRankOrGroupIsNoExplanation) {
  KeySpaceTable table(100);
  const KeySpace* mine = *table.Open(0, "d", Identity());
  KeySpaceIdentity other = Identity();
  other.group = "1";
  (*table.Open(0, "d", other))->blocks_stored.store(1);
  EXPECT_EQ(table.WhyEmpty(*mine), Reason::kKeySpaceEmpty);
}

TEST(KeySpaceTableTest, OpensFromManyThreads) {
  KeySpaceTable table(64);
  std::array<std::array<const KeySpace*, 32>, 4> seen{};
  std::vector<std::thread> threads;
  for (size_t t = 0; t < seen.size(); ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < 32; ++i) {
        KeySpaceIdentity identity = Identity();
        identity.extra = std::to_string(i);
        seen[t][i] = *table.Open(0, "d", identity);
        EXPECT_EQ(table.Find(0, seen[t][i]->id), seen[t][i]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t t = 1; t < seen.size(); ++t) EXPECT_EQ(seen[t], seen[0]);
  EXPECT_EQ(table.List().size(), 32u);
}

}  // namespace
}  // namespace terrace::kv
