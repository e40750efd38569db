// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Blocks of lower tiers and hints at the engine socket: what Lookup, Locate, Hint and Put promise about
// them, and what they answer to clients that break the rules, flood or vanish.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "testing/engine_rig.h"
#include "testing/raw_client.h"
#include "testing/slow_disk.h"

namespace terrace::testing {
namespace {

constexpr uint64_t kBlock = 256 << 10;
constexpr uint32_t kSecondUs = 1'000'000;
constexpr uint64_t kChain = 8;  // blocks a chain
constexpr uint64_t kChains = 50;

uint32_t Code(Reason reason) { return static_cast<uint32_t>(reason); }

class EngineLocateTest : public ::testing::Test {
 protected:
  // Chains of which some lie on disk alone; disk_ is the first block of one of these.
  void SetUp() override {
    client_ = rig_.Client();
    const auto space = client_->Open(kBlock);
    ASSERT_TRUE(space.ok() && client_->GetStaging(kBlock).ok());
    space_ = *space;
    key_space_ = rig_.stack()->FindKeySpace(0, space_.id);
    for (uint64_t i = 0; i < kChains * kChain; ++i) {
      std::optional<kv::BlockKey> parent;
      if (i % kChain != 0) parent = KeyOf(i - 1);
      ASSERT_EQ(*client_->Put(space_, KeyOf(i), PayloadOf(KeyOf(i), 0, kBlock), 0, parent), Reason::kNone) << i;
      ASSERT_TRUE(WaitForRoom(rig_.stack()));
    }
    for (uint64_t first = 0; first < kChains * kChain; first += kChain) {
      const auto keys = KeysOf(first, kChain);
      if (std::all_of(keys.begin(), keys.end(), [&](const kv::BlockKey& key) { return IsOnDisk(key); })) {
        on_disk_.push_back(first);
      }
    }
    ASSERT_GE(on_disk_.size(), 3u);
  }
  void TearDown() override {
    disk_.Release();
    client_.reset();
    EXPECT_EQ(rig_.WhatIsLeft(20'000), "");
  }
  bool IsOnDisk(const kv::BlockKey& key) { return IsOnDiskOnly(rig_.stack(), *key_space_, key); }
  // Asks without waiting for the answer.
  uint32_t Send(RawClient* client, wire::Type type, std::span<const std::byte> body) {
    const uint32_t id = client->next_id();
    EXPECT_TRUE(client->SendBytes(RawClient::Encode(type, id, body)));
    return id;
  }

  SlowDisk disk_;
  EngineRig rig_{[this](api::Config* config) {
    disk_.PutUnder(&config->stack);
    config->stack.nvme.read_deadline_ns = 10'000'000'000;
  }};
  std::unique_ptr<RawClient> client_;
  OpenSpace space_;
  const kv::KeySpace* key_space_ = nullptr;
  std::vector<uint64_t> on_disk_;
};

TEST_F(EngineLocateTest, PendingBlocksAreLocatedInOrderAndWhole) {
  const auto keys = KeysOf(on_disk_[0], kChain);
  const auto found = client_->Lookup(space_, keys, wire::kLookupMayWait);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_NE(found->done.lease_id, 0u);
  EXPECT_EQ(found->done.n_prefix, kChain);
  EXPECT_EQ(found->done.n_here, kChain);
  EXPECT_EQ(found->done.n_pending, kChain);
  for (const wire::Ref& ref : found->refs) {
    EXPECT_EQ(ref.reason, Code(Reason::kPending));
    EXPECT_EQ(ref.payload_bytes, kBlock);
    EXPECT_EQ(ref.generation, 0u);
    EXPECT_EQ(ref.payload_offset, 0u);
  }
  size_t have = 0;
  while (have < kChain) {
    const auto located = client_->Locate(space_, std::span(keys).subspan(have), 20 * kSecondUs);
    ASSERT_TRUE(located.ok()) << located.status();
    ASSERT_GE(located->refs.size(), 1u);
    EXPECT_EQ(located->done.lease_id, 0u);
    EXPECT_EQ(located->done.n_here, located->refs.size());
    EXPECT_EQ(located->done.n_prefix, located->refs.size());
    for (const wire::Ref& ref : located->refs) {
      ASSERT_EQ(ref.reason, 0u);
      std::vector<std::byte> bytes;
      EXPECT_EQ(client_->Read(space_, keys[have], ref, &bytes), Verdict::kGood);
      EXPECT_EQ(bytes, PayloadOf(keys[have], 0, kBlock));
      ++have;
    }
  }
  EXPECT_TRUE(client_->Release(found->done.lease_id).ok());
}

TEST_F(EngineLocateTest, AnotherClientOfTheTenantMayLocateToo) {
  const auto keys = KeysOf(on_disk_[0], kChain);
  ASSERT_EQ(client_->Lookup(space_, keys, wire::kLookupMayWait)->done.n_pending, kChain);
  auto other = rig_.Client();
  const auto located = other->Locate(space_, keys, 20 * kSecondUs);
  ASSERT_TRUE(located.ok()) << located.status();
  EXPECT_EQ(other->Read(space_, keys[0], located->refs.at(0), nullptr), Verdict::kGood);
  // Not one of another tenant.
  auto stranger = rig_.Client("other");
  EXPECT_EQ(stranger->Locate(space_, keys, kSecondUs).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(stranger->Hint(space_, keys, {}).code(), absl::StatusCode::kNotFound);
}

TEST_F(EngineLocateTest, WhoMayNotWaitGetsAMiss) {
  const auto keys = KeysOf(on_disk_[0], kChain);
  for (const uint32_t flags : {0u, wire::kLookupNoLease | wire::kLookupMayWait}) {
    const auto found = client_->Lookup(space_, keys, flags);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->done.lease_id, 0u);
    EXPECT_EQ(found->done.n_here, 0u);
    EXPECT_EQ(found->done.n_pending, 0u);
    EXPECT_EQ(found->refs.at(0).reason, Code(Reason::kPending));
  }
  EXPECT_TRUE(IsOnDisk(keys[0]));  // nothing was started
}

TEST_F(EngineLocateTest, AnswersComeOutOfOrderAndNobodyElseWaits) {
  disk_.HangReads();
  const auto keys = KeysOf(on_disk_[0], kChain);
  ASSERT_EQ(client_->Lookup(space_, keys, wire::kLookupMayWait)->done.n_pending, kChain);
  const uint32_t locate = Send(client_.get(), wire::Type::kLocate, RawClient::LocateBody(space_, keys, 20 * kSecondUs));
  EXPECT_TRUE(client_->Ping().ok());  // checks that its own answer is the next to come
  const auto host = KeysOf(kChains * kChain - 1, 1);
  EXPECT_EQ(client_->Lookup(space_, host)->done.n_here, 1u);
  disk_.Release();
  const auto answer = client_->Receive();
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->header.request_id, locate);
  EXPECT_EQ(RawClient::ParseLookup(*answer)->refs.at(0).reason, 0u);
}

TEST_F(EngineLocateTest, TheTimeLimitIsKeptAndSaysPending) {
  disk_.HangReads();
  const auto keys = KeysOf(on_disk_[0], kChain);
  ASSERT_EQ(client_->Lookup(space_, keys, wire::kLookupMayWait)->done.n_pending, kChain);
  for (const uint32_t timeout_us : {0u, 1u, 30'000u}) {
    const auto located = client_->Locate(space_, keys, timeout_us);
    ASSERT_TRUE(located.ok()) << located.status();
    ASSERT_EQ(located->refs.size(), 1u);
    EXPECT_EQ(located->refs[0].reason, Code(Reason::kPending));
    EXPECT_EQ(located->refs[0].payload_bytes, kBlock);
    EXPECT_EQ(located->done.n_pending, 1u);
  }
}

TEST_F(EngineLocateTest, WhatIsHereOrNowhereIsAnsweredAtOnce) {
  const kv::BlockKey here = KeyOf(kChains * kChain - 1), nowhere = KeyOf(1 << 20);
  const auto leased = client_->Lookup(space_, {&here, 1});
  const kv::BlockKey keys[] = {here, nowhere, here};
  const auto located = client_->Locate(space_, keys, 20 * kSecondUs);
  ASSERT_TRUE(located.ok()) << located.status();
  ASSERT_EQ(located->refs.size(), 3u);
  EXPECT_EQ(std::memcmp(&located->refs[0], &leased->refs[0], sizeof(wire::Ref)), 0);
  EXPECT_EQ(located->refs[1].reason, Code(Reason::kCold));
  EXPECT_EQ(located->done.n_prefix, 1u);
  EXPECT_EQ(located->done.n_here, 2u);
}

TEST_F(EngineLocateTest, ReadsThatFailAreToldWithTheirReason) {
  const auto keys = KeysOf(on_disk_[0], kChain);
  disk_.FailReads();
  ASSERT_EQ(client_->Lookup(space_, keys, wire::kLookupMayWait)->done.n_pending, kChain);
  const auto located = client_->Locate(space_, {&keys[0], 1}, 20 * kSecondUs);
  ASSERT_TRUE(located.ok()) << located.status();
  EXPECT_EQ(located->refs.at(0).reason, Code(Reason::kIoError));
  EXPECT_GT(disk_.Fired(), 0u);
}

TEST_F(EngineLocateTest, AFloodIsRefusedAndTheRestGoesOn) {
  disk_.HangReads();
  const auto keys = KeysOf(on_disk_[0], kChain);
  ASSERT_EQ(client_->Lookup(space_, keys, wire::kLookupMayWait)->done.n_pending, kChain);
  constexpr int kAllowed = 64, kTooMany = 200;
  std::set<uint32_t> ids;
  const auto body = RawClient::LocateBody(space_, keys, 60 * kSecondUs);
  for (int i = 0; i < kAllowed + kTooMany; ++i) ids.insert(Send(client_.get(), wire::Type::kLocate, body));
  for (int i = 0; i < kTooMany; ++i) {
    const auto answer = client_->Receive();
    ASSERT_TRUE(answer.has_value());
    EXPECT_EQ(answer->header.status, static_cast<uint16_t>(absl::StatusCode::kResourceExhausted));
    EXPECT_EQ(ids.erase(answer->header.request_id), 1u);
  }
  EXPECT_TRUE(client_->Ping().ok());
  auto other = rig_.Client();  // the limit is the connection's
  EXPECT_EQ(other->Locate(space_, keys, 0)->refs.at(0).reason, Code(Reason::kPending));
  disk_.Release();
  for (int i = 0; i < kAllowed; ++i) {
    const auto answer = client_->Receive();
    ASSERT_TRUE(answer.has_value());
    EXPECT_EQ(answer->header.status, 0);
    EXPECT_EQ(ids.erase(answer->header.request_id), 1u);
  }
  EXPECT_TRUE(client_->Locate(space_, keys, kSecondUs).ok());  // its places are free again
}

TEST_F(EngineLocateTest, AConnectionThatEndsWhileItWaitsLeavesNothing) {
  const size_t descriptors = OpenDescriptors();
  disk_.HangReads();
  const auto keys = KeysOf(on_disk_[0], kChain);
  for (int round = 0; round < 20; ++round) {
    auto client = rig_.Client();
    ASSERT_EQ(client->Lookup(space_, keys, wire::kLookupMayWait)->done.n_pending, kChain);
    for (int i = 0; i < 64; ++i) {
      Send(client.get(), wire::Type::kLocate, RawClient::LocateBody(space_, keys, 60 * kSecondUs));
    }
  }
  // While the disk still hangs.
  EXPECT_TRUE(Eventually([&] { return OpenDescriptors() == descriptors; }));
  EXPECT_TRUE(Eventually([&] { return rig_.stack()->Stats().sessions == 1; }));
  disk_.Release();  // the answers find nobody
  EXPECT_TRUE(Eventually([&] { return rig_.stack()->Stats().tiers[0].pinned_bytes == 0; }));
  EXPECT_TRUE(client_->Ping().ok());
}

TEST_F(EngineLocateTest, TheServerEndsWhileClientsWait) {
  disk_.HangReads();
  const auto keys = KeysOf(on_disk_[0], kChain);
  ASSERT_EQ(client_->Lookup(space_, keys, wire::kLookupMayWait)->done.n_pending, kChain);
  Send(client_.get(), wire::Type::kLocate, RawClient::LocateBody(space_, keys, 60 * kSecondUs));
  rig_.StopServer();
  EXPECT_TRUE(client_->WaitClosed());
  disk_.Release();
}

TEST_F(EngineLocateTest, WrongLocatesAreRefused) {
  const auto keys = KeysOf(on_disk_[0], kChain);
  const auto call = [&](wire::Locate locate, size_t sent) {
    std::vector<std::byte> body(sizeof(locate) + sent * wire::kKeyBytes);
    std::memcpy(body.data(), &locate, sizeof(locate));
    return client_->Call(wire::Type::kLocate, body).status().code();
  };
  for (const uint32_t claimed : {0u, 4097u, 1u << 27, (1u << 27) + 1, ~0u}) {
    for (const size_t sent : {size_t{0}, size_t{1}, size_t{4096}}) {
      EXPECT_EQ(call({space_.id, claimed, 0, 0}, sent), absl::StatusCode::kInvalidArgument) << claimed;
    }
  }
  EXPECT_EQ(call({space_.id, 1, wire::kMaxLocateUs + 1, 0}, 1), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(call({space_.id, 1, ~0u, 0}, 1), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(call({space_.id, 1, 0, 1}, 1), absl::StatusCode::kInvalidArgument);
  for (const uint32_t id : {space_.id + 1000, 0u, ~0u}) {
    // More often than could wait: a refusal takes no place.
    for (int i = 0; i < 100; ++i) EXPECT_EQ(call({id, 1, 0, 0}, 1), absl::StatusCode::kNotFound) << id;
  }
  EXPECT_EQ(call({space_.id, 4096, wire::kMaxLocateUs, 0}, 4096), absl::StatusCode::kOk);
}

TEST_F(EngineLocateTest, WrongHintsAreRefusedAndExtremeOnesAreCut) {
  const auto keys = KeysOf(kChains * kChain - 4, 4);
  EXPECT_TRUE(client_->Hint(space_, keys, {}).ok());
  EXPECT_TRUE(client_->Hint(space_, keys, {~0u, ~0u, 1, 255, 0}).ok());
  EXPECT_TRUE(client_->Hint(space_, KeysOf(1 << 20, 4096), {.priority = 3}).ok());  // nothing of it is here
  EXPECT_EQ(client_->Hint(space_, keys, {.done = 2}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(client_->Hint(space_, keys, {.reserved = 1}).code(), absl::StatusCode::kInvalidArgument);
  OpenSpace nowhere = space_;
  nowhere.id += 1000;
  EXPECT_EQ(client_->Hint(nowhere, keys, {}).code(), absl::StatusCode::kNotFound);
  const auto body = RawClient::HintBody(space_, {}, {});
  EXPECT_EQ(client_->Call(wire::Type::kHint, body).status().code(), absl::StatusCode::kInvalidArgument);
  // Without an answer, right or wrong.
  for (const uint32_t id : {space_.id, space_.id + 1000}) {
    OpenSpace space = space_;
    space.id = id;
    ASSERT_TRUE(client_->SendBytes(RawClient::Encode(wire::Type::kHint, client_->next_id(),
                                                     RawClient::HintBody(space, keys, {}), wire::kFlagNoReply)));
  }
  EXPECT_TRUE(client_->Ping().ok());
}

TEST_F(EngineLocateTest, StoresWithWrongRetentionAreRefused) {
  const kv::BlockKey key = KeyOf(1 << 20);
  const auto payload = PayloadOf(key, 0, kBlock);
  std::memcpy(client_->staging()->data(), payload.data(), kBlock);
  const auto checksums = RawClient::Checksums(space_, key, payload);
  const auto put = [&](const wire::Retention& retention) {
    return client_->Call(wire::Type::kPut, RawClient::PutBody(space_, key, 0, checksums, {}, retention)).status();
  };
  EXPECT_EQ(put({.done = 2}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(put({.reserved = 7}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(client_->Lookup(space_, {&key, 1}, wire::kLookupNoLease)->done.n_here, 0u);
  EXPECT_TRUE(put({~0u, ~0u, 1, 255, 0}).ok());
  EXPECT_EQ(client_->Lookup(space_, {&key, 1}, wire::kLookupNoLease)->done.n_here, 1u);
}

TEST_F(EngineLocateTest, PinnedBlocksStayInHostMemory) {
  const auto pinned = KeysOf(1 << 20, kChain);
  for (const kv::BlockKey& key : pinned) {
    const auto payload = PayloadOf(key, 0, kBlock);
    std::memcpy(client_->staging()->data(), payload.data(), kBlock);
    const auto body = RawClient::PutBody(space_, key, 0, RawClient::Checksums(space_, key, payload), {},
                                         {.pin_ms = 3'600'000});
    ASSERT_TRUE(client_->Call(wire::Type::kPut, body).ok());
  }
  const auto unpinned = KeysOf(2 << 20, kChain);
  for (const kv::BlockKey& key : unpinned) {
    ASSERT_EQ(*client_->Put(space_, key, PayloadOf(key, 0, kBlock)), Reason::kNone);
  }
  for (uint64_t i = 0; i < kChains * kChain; ++i) {
    ASSERT_EQ(*client_->Put(space_, KeyOf((3 << 20) + i), PayloadOf(KeyOf((3 << 20) + i), 0, kBlock)), Reason::kNone);
    ASSERT_TRUE(WaitForRoom(rig_.stack()));
  }
  EXPECT_TRUE(Eventually([&] { return IsOnDisk(unpinned[0]); }));
  for (const kv::BlockKey& key : pinned) {
    EXPECT_EQ(client_->Lookup(space_, {&key, 1}, wire::kLookupNoLease)->done.n_here, 1u);
    EXPECT_FALSE(IsOnDisk(key));
  }
}

TEST_F(EngineLocateTest, LoadsThatCostMoreThanComputingAreMisses) {
  // Measured by a first load.
  disk_.DelayReads(20'000'000);
  auto keys = KeysOf(on_disk_[0], kChain);
  ASSERT_EQ(client_->Lookup(space_, keys, wire::kLookupMayWait)->done.n_pending, kChain);
  for (size_t have = 0; have < kChain;) {
    have += client_->Locate(space_, std::span(keys).subspan(have), 20 * kSecondUs)->refs.size();
  }
  keys = KeysOf(on_disk_[1], kChain);
  const auto cheap = client_->LookupOrRecompute(space_, keys, wire::kLookupMayWait, 1);  // 16 ns a block
  ASSERT_TRUE(cheap.ok()) << cheap.status();
  EXPECT_EQ(cheap->done.n_here, 0u);
  EXPECT_EQ(cheap->refs.at(0).reason, Code(Reason::kRecompute));
  const auto dear = client_->LookupOrRecompute(space_, keys, wire::kLookupMayWait, 1'000'000'000);
  EXPECT_EQ(dear->done.n_pending, kChain);
}

TEST(EngineBlockClassTest, ClassesAreKeySpacesOfTheirOwn) {
  EngineRig rig;
  auto client = rig.Client();
  const auto kv = client->Open(kBlock), shard = client->Open(kBlock, {.block_class = 1});
  ASSERT_TRUE(kv.ok() && shard.ok());
  EXPECT_NE(kv->id, shard->id);
  EXPECT_NE(std::memcmp(kv->digest, shard->digest, 32), 0);
  for (const uint32_t wrong : {2u, 255u, 256u, 257u, ~0u}) {
    EXPECT_EQ(client->Open(kBlock, {.block_class = wrong}).status().code(), absl::StatusCode::kInvalidArgument)
        << wrong;
  }
}

}  // namespace
}  // namespace terrace::testing
