// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "kvstore/key_space.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include "kvstore/key_space_registry.h"

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

// What the next process knows of the last one's key spaces.
class KeySpaceRegistryTest : public ::testing::Test {
 protected:
  KeySpaceRegistryTest() {
    char path[] = "/tmp/terrace-registry-XXXXXX";
    folder_ = mkdtemp(path);
    path_ = folder_ + "/key_spaces";
  }
  ~KeySpaceRegistryTest() override { std::filesystem::remove_all(folder_); }

  std::unique_ptr<KeySpaceTable> Table(uint32_t max_key_spaces = 100) {
    auto registry = KeySpaceRegistry::Open(path_, max_key_spaces);
    EXPECT_TRUE(registry.ok()) << registry.status();
    auto table = std::make_unique<KeySpaceTable>(max_key_spaces);
    table->UseRegistry(*std::move(registry), [](absl::string_view name) -> std::optional<TenantId> {
      if (name == "default") return TenantId{3};
      return std::nullopt;
    });
    return table;
  }
  static KeySpaceIdentity Numbered(int i) {
    KeySpaceIdentity identity = Identity();
    identity.extra = std::to_string(i);
    identity.block_class = static_cast<uint8_t>(i % 2);
    return identity;
  }
  std::string folder_, path_;
};

TEST_F(KeySpaceRegistryTest, RecalledByDigestOnly) {
  std::array<uint8_t, 32> digest;
  {
    const auto table = Table();
    digest = (*table->Open(3, "default", Numbered(1)))->digest;
    ASSERT_TRUE(table->Open(3, "default", Numbered(2)).ok());
    ASSERT_TRUE(table->Open(4, "gone", Numbered(3)).ok());
  }
  const auto table = Table();
  EXPECT_TRUE(table->List().empty());
  const KeySpace* recalled = table->Recall(digest);
  ASSERT_NE(recalled, nullptr);
  EXPECT_EQ(recalled->tenant, 3);
  EXPECT_EQ(recalled->digest, digest);
  EXPECT_EQ(recalled->identity.extra, "1");
  EXPECT_EQ(recalled->identity.block_class, 1);
  EXPECT_EQ(recalled->identity.block_bytes, 4096u);
  EXPECT_EQ(recalled->identity.tokens_per_block, 16u);
  EXPECT_EQ(table->Recall(digest), recalled);
  EXPECT_EQ(*table->Open(3, "default", Numbered(1)), recalled);
  digest[0] ^= 1;
  EXPECT_EQ(table->Recall(digest), nullptr);
  EXPECT_EQ(table->Recall((*KeySpaceTable(9).Open(4, "gone", Numbered(3)))->digest), nullptr)
      << "nobody knows its tenant";
}

TEST_F(KeySpaceRegistryTest, WhatNobodyAskedForIsForgotten) {
  std::vector<std::array<uint8_t, 32>> digests;
  {
    const auto table = Table();
    for (int i = 0; i < 20; ++i) digests.push_back((*table->Open(3, "default", Numbered(i)))->digest);
  }
  const auto before = std::filesystem::file_size(path_);
  {
    const auto table = Table();
    for (int i = 0; i < 5; ++i) ASSERT_NE(table->Recall(digests[i]), nullptr);
    ASSERT_TRUE(table->Open(3, "default", Numbered(100)).ok());
    table->ForgetUnrecalled();
    EXPECT_EQ(table->Recall(digests[6]), nullptr);
    ASSERT_TRUE(table->Open(3, "default", Numbered(101)).ok());  // recorded after it, too
  }
  EXPECT_LT(std::filesystem::file_size(path_), before / 2);
  const auto table = Table();
  for (int i = 0; i < 20; ++i) EXPECT_EQ(table->Recall(digests[i]) != nullptr, i < 5) << i;
  for (const int i : {100, 101}) {
    EXPECT_NE(table->Recall((*KeySpaceTable(9).Open(3, "default", Numbered(i)))->digest), nullptr) << i;
  }
}

TEST_F(KeySpaceRegistryTest, EveryFlippedBitCostsItsRecordAtMostOrAllBehindIt) {
  std::vector<std::array<uint8_t, 32>> digests;
  {
    const auto table = Table();
    for (int i = 0; i < 3; ++i) digests.push_back((*table->Open(3, "default", Numbered(i)))->digest);
  }
  std::string whole(std::filesystem::file_size(path_), '\0');
  std::ifstream(path_, std::ios::binary).read(whole.data(), static_cast<std::streamsize>(whole.size()));
  const size_t record = whole.size() / 3;
  ASSERT_EQ(record * 3, whole.size());
  for (size_t bit = record * 8; bit < 2 * record * 8; ++bit) {
    std::string damaged = whole;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ 1 << bit % 8);
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << damaged;
    const auto table = Table();
    ASSERT_NE(table->Recall(digests[0]), nullptr) << "bit " << bit;
    ASSERT_EQ(table->Recall(digests[1]), nullptr) << "bit " << bit;
    if (bit / 8 >= record + 8) ASSERT_NE(table->Recall(digests[2]), nullptr) << "bit " << bit;
  }
}

TEST_F(KeySpaceRegistryTest, ATornRecordIsCutOffAndWrittenOver) {
  std::vector<std::array<uint8_t, 32>> digests;
  {
    const auto table = Table();
    for (int i = 0; i < 2; ++i) digests.push_back((*table->Open(3, "default", Numbered(i)))->digest);
  }
  const auto whole = std::filesystem::file_size(path_);
  for (uint64_t cut = 1; cut < whole / 2; cut += 7) {
    std::filesystem::resize_file(path_, whole - cut);
    {
      const auto table = Table();
      ASSERT_EQ(table->Recall(digests[1]), nullptr);
      ASSERT_TRUE(table->Open(3, "default", Numbered(1)).ok());
    }
    const auto table = Table();
    ASSERT_NE(table->Recall(digests[0]), nullptr) << cut;
    ASSERT_NE(table->Recall(digests[1]), nullptr) << cut;
    ASSERT_EQ(std::filesystem::file_size(path_), whole);
  }
}

TEST_F(KeySpaceRegistryTest, ItsLimitIsThatOfTheTable) {
  {
    const auto table = Table(4);
    for (int i = 0; i < 4; ++i) ASSERT_TRUE(table->Open(3, "default", Numbered(i)).ok());
    EXPECT_TRUE(absl::IsResourceExhausted(table->Open(3, "default", Numbered(4)).status()));
  }
  // A full registry of which nothing is asked for makes room with the first compaction; until then key
  // spaces open all the same, unrecorded.
  const auto table = Table(4);
  EXPECT_TRUE(table->Open(3, "default", Numbered(9)).ok());
  table->ForgetUnrecalled();
  for (int i = 10; i < 13; ++i) EXPECT_TRUE(table->Open(3, "default", Numbered(i)).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(table->Open(3, "default", Numbered(13)).status()));
  const auto next = Table(4);
  for (const int i : {9, 10, 11, 12}) {
    EXPECT_NE(next->Recall((*KeySpaceTable(9).Open(3, "default", Numbered(i)))->digest), nullptr) << i;
  }
}

}  // namespace
}  // namespace terrace::kv
