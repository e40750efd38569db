// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// libterrace over a daemon with a slow disk: loads that begin before their blocks have arrived, and what
// becomes of them when the disk, the daemon or the caller does not wait to the end.
#include <algorithm>

#include "api/client_fixture.h"
#include "testing/slow_disk.h"

namespace terrace::api {
namespace {

constexpr uint32_t kChain = 8;
constexpr uint32_t kChains = 50;  // about twice what host memory holds

class ClientPendingTest : public ClientTest {
 protected:
  static constexpr uint64_t kBlockBytes = 256 << 10;
  using Payloads = std::vector<std::vector<std::byte>>;

  void SetUp() override {
    StartDaemon(1, 0, [this](tiering::TierStackOptions* options) {
      disk_.PutUnder(options);
      options->nvme.read_deadline_ns = 10'000'000'000;
    });
    terrace_options client_options = Options();
    client_options.staging_bytes = 1 << 20;  // of the small budget
    client_ = ConnectWith(client_options, TERRACE_OK);
    keyspace_ = Open(client_, kBlockBytes);
    for (uint32_t chain = 0; chain < kChains; ++chain) {
      const auto keys = ChainKeys(chain, kChain);
      for (uint32_t i = 0; i < kChain; ++i) {
        const std::vector<uint8_t> key(&keys[i * 32], &keys[i * 32] + 32);
        ASSERT_EQ(Store(client_, keyspace_, key, kBlockBytes), std::vector<uint8_t>{TERRACE_REASON_NONE});
        ASSERT_TRUE(testing::WaitForRoom(&daemon_->stack()));
      }
    }
    for (uint32_t chain = 0; chain < kChains; ++chain) {
      if (IsOnDisk(ChainKeys(chain, kChain))) on_disk_.push_back(chain);
    }
    ASSERT_GE(on_disk_.size(), 3u);
  }
  void TearDown() override {
    disk_.Release();
    terrace_keyspace_free(keyspace_);
    StopDaemon();  // before its disk
  }

  bool IsOnDisk(const std::vector<uint8_t>& keys) {
    const kv::KeySpace* key_space = daemon_->stack().KeySpaces().front();
    for (size_t at = 0; at < keys.size(); at += 32) {
      if (!testing::IsOnDiskOnly(&daemon_->stack(), *key_space, kv::BlockKey::FromBytes(&keys[at]))) return false;
    }
    return true;
  }
  std::vector<uint8_t> Chain(size_t i) const { return ChainKeys(on_disk_.at(i), kChain); }
  static std::vector<uint8_t> HostChain() { return ChainKeys(kChains - 1, kChain); }
  Found LookupPending(const std::vector<uint8_t>& keys) {
    const Found found = Lookup(client_, keyspace_, keys, TERRACE_MODE_PREFIX, TERRACE_LOOKUP_MAY_WAIT);
    EXPECT_EQ(found.status, TERRACE_OK) << terrace_error_text();
    EXPECT_EQ(found.n_prefix, keys.size() / 32)
        << terrace_reason_name(static_cast<terrace_reason>(found.reasons[found.n_prefix % kChain]));
    return found;
  }
  // Starts a load into payloads, which must stay.
  terrace_op* Start(terrace_client* client, terrace_keyspace* keyspace, const Found& found,
                    const std::vector<uint8_t>& keys, Payloads* payloads) {
    const auto n = static_cast<uint32_t>(keys.size() / 32);
    payloads->assign(n, std::vector<std::byte>(kBlockBytes));
    std::vector<terrace_piece> pieces;
    for (auto& payload : *payloads) pieces.push_back({payload.data(), kBlockBytes});
    const std::vector<uint32_t> counts(n, 1);
    terrace_op* op = nullptr;
    EXPECT_EQ(terrace_load_pieces(client, keyspace, found.refs.data(), keys.data(), n, pieces.data(),
                                  counts.data(), &op),
              TERRACE_OK)
        << terrace_error_text();
    return op;
  }
  static void ExpectRight(const std::vector<uint8_t>& keys, const Payloads& payloads) {
    for (size_t i = 0; i < payloads.size(); ++i) {
      EXPECT_TRUE(payloads[i] == PayloadOf(&keys[i * 32], kBlockBytes)) << "block " << i;
    }
  }
  static std::vector<uint8_t> All(terrace_reason reason) {
    return std::vector<uint8_t>(kChain, static_cast<uint8_t>(reason));
  }
  uint64_t Missed(terrace_reason reason) {
    terrace_client_stats stats{};
    stats.struct_bytes = sizeof(stats);
    EXPECT_EQ(terrace_get_stats(client_, &stats), TERRACE_OK);
    return stats.reasons[reason];
  }

  testing::SlowDisk disk_;
  terrace_client* client_ = nullptr;
  terrace_keyspace* keyspace_ = nullptr;
  std::vector<uint32_t> on_disk_;
};

TEST_F(ClientPendingTest, ALoadWaitsForItsBlocks) {
  disk_.DelayReads(20'000'000);
  const auto keys = Chain(0);
  const Found found = LookupPending(keys);
  EXPECT_EQ(found.n_pending, kChain);
  EXPECT_EQ(found.reasons, All(TERRACE_REASON_PENDING));
  EXPECT_NE(found.lease, 0u);
  EXPECT_EQ(Missed(TERRACE_REASON_PENDING), 0u);  // pending is no miss
  Payloads payloads;
  EXPECT_EQ(Load(client_, keyspace_, found.refs, keys, &payloads, kBlockBytes),
            All(TERRACE_REASON_NONE));
  ExpectRight(keys, payloads);
  EXPECT_GT(disk_.Fired(), 0u);
  EXPECT_EQ(terrace_release_sync(client_, found.lease), TERRACE_OK);
  // And then they are in host memory.
  EXPECT_EQ(Lookup(client_, keyspace_, keys).n_prefix, kChain);
}

TEST_F(ClientPendingTest, HostBlocksThenPendingOnesAreOneLoad) {
  const auto keys = Chain(0);
  const std::vector<uint8_t> head(keys.begin(), keys.begin() + 3 * 32);
  const Found first = LookupPending(head);
  Payloads payloads;
  Load(client_, keyspace_, first.refs, head, &payloads, kBlockBytes);
  const Found found = LookupPending(keys);
  EXPECT_EQ(found.n_pending, kChain - 3);
  EXPECT_EQ(Load(client_, keyspace_, found.refs, keys, &payloads, kBlockBytes), All(TERRACE_REASON_NONE));
  ExpectRight(keys, payloads);
}

TEST_F(ClientPendingTest, WithoutMayWaitTheyAreMisses) {
  const Found found = Lookup(client_, keyspace_, Chain(0));
  EXPECT_EQ(found.n_prefix, 0u);
  EXPECT_EQ(found.lease, 0u);
  EXPECT_EQ(found.reasons.front(), TERRACE_REASON_PENDING);
  EXPECT_EQ(Missed(TERRACE_REASON_PENDING), 1u);
  const Found asked = Lookup(client_, keyspace_, Chain(0), TERRACE_MODE_ALL,
                             TERRACE_LOOKUP_MAY_WAIT | TERRACE_LOOKUP_NO_LEASE);
  EXPECT_EQ(asked.n_here, 0u);
  EXPECT_TRUE(IsOnDisk(Chain(0)));
}

TEST_F(ClientPendingTest, BlocksAreCopiedAsTheyArriveAndOthersDoNotWait) {
  terrace_options options = Options();
  options.copy_threads = 1;
  terrace_client* single = ConnectWith(options, TERRACE_OK);
  terrace_keyspace* keyspace = Open(single, kBlockBytes);
  disk_.HangReads(/*skip=*/3);
  const auto keys = Chain(0), host = HostChain();
  const Found pending = LookupPending(keys), here = LookupPending(host);
  ASSERT_EQ(here.n_pending, 0u);
  Payloads late, soon;
  terrace_op* waiting = Start(single, keyspace, pending, keys, &late);
  // The one copy thread is free for a load of what is here.
  EXPECT_EQ(Reasons(Start(single, keyspace, here, host, &soon)), All(TERRACE_REASON_NONE));
  ExpectRight(host, soon);
  // And what arrived is in place while the rest hangs.
  terrace_client_stats stats{};
  stats.struct_bytes = sizeof(stats);
  EXPECT_TRUE(Eventually([&] {
    return terrace_get_stats(single, &stats) == TERRACE_OK && stats.load_blocks > kChain;
  }));
  EXPECT_EQ(terrace_op_done(waiting), 0);
  EXPECT_EQ(terrace_op_wait(waiting, 1000), TERRACE_DEADLINE_EXCEEDED);
  disk_.Release();
  EXPECT_EQ(Reasons(waiting), All(TERRACE_REASON_NONE));
  ExpectRight(keys, late);
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientPendingTest, ARefMayComeFromAnotherClient) {
  terrace_client* worker = Connect();
  terrace_keyspace* keyspace = Open(worker, kBlockBytes);
  disk_.DelayReads(20'000'000);
  const auto keys = Chain(0);
  const Found found = LookupPending(keys);  // the scheduler's lease
  Payloads payloads;
  EXPECT_EQ(Reasons(Start(worker, keyspace, found, keys, &payloads)), All(TERRACE_REASON_NONE));
  ExpectRight(keys, payloads);
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientPendingTest, ManyLoadsAtOnceAllEnd) {
  disk_.DelayReads(5'000'000);
  const size_t chains = 3;  // as many bytes as may be on their way at a time
  std::vector<Payloads> payloads(chains * 5);
  std::vector<terrace_op*> ops;
  for (size_t i = 0; i < payloads.size(); ++i) {
    const auto keys = Chain(i % chains);
    const Found found = LookupPending(keys);
    ops.push_back(Start(client_, keyspace_, found, keys, &payloads[i]));
  }
  for (size_t i = 0; i < ops.size(); ++i) {
    EXPECT_EQ(Reasons(ops[i]), All(TERRACE_REASON_NONE)) << i;
    ExpectRight(Chain(i % chains), payloads[i]);
  }
}

TEST_F(ClientPendingTest, ReadsThatFailGiveTheirReason) {
  disk_.FailReads();
  const auto keys = Chain(0);
  const Found found = LookupPending(keys);
  Payloads payloads;
  const auto reasons = Reasons(Start(client_, keyspace_, found, keys, &payloads));
  EXPECT_EQ(reasons.front(), TERRACE_REASON_IO_ERROR);
  for (const uint8_t reason : reasons) EXPECT_NE(reason, TERRACE_REASON_NONE);
  EXPECT_GT(disk_.Fired(), 0u);
  EXPECT_GE(Missed(TERRACE_REASON_IO_ERROR), 1u);
}

TEST_F(ClientPendingTest, WhatDoesNotArriveInTimeFails) {
  terrace_options options = Options();
  options.load_timeout_ms = 100;
  terrace_client* hasty = ConnectWith(options, TERRACE_OK);
  terrace_keyspace* keyspace = Open(hasty, kBlockBytes);
  disk_.HangReads();
  const auto keys = Chain(0);
  const Found found = LookupPending(keys);
  Payloads payloads;
  const auto began = std::chrono::steady_clock::now();
  EXPECT_EQ(Reasons(Start(hasty, keyspace, found, keys, &payloads)), All(TERRACE_REASON_DEADLINE));
  EXPECT_GE(std::chrono::steady_clock::now() - began, std::chrono::milliseconds(100));
  EXPECT_EQ(terrace_is_ready(hasty), 1);  // a slow disk is no hanging daemon
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientPendingTest, TheDaemonsEndEndsTheWaiting) {
  disk_.HangReads();
  const auto keys = Chain(0), host = HostChain();
  const Found found = LookupPending(keys);
  Payloads payloads;
  terrace_op* op = Start(client_, keyspace_, found, keys, &payloads);
  daemon_->StopServer();
  EXPECT_EQ(Reasons(op), All(TERRACE_REASON_UNAVAILABLE));
  disk_.Release();
  // The next daemon is another one: the old refs are stale there.
  StartDaemon(2);
  ASSERT_TRUE(WaitUsable(client_, keyspace_));
  EXPECT_EQ(Reasons(Start(client_, keyspace_, found, keys, &payloads)), All(TERRACE_REASON_STALE));
}

TEST_F(ClientPendingTest, AnAbandonedLoadIsNotWaitedForAndTouchesNothing) {
  disk_.HangReads();
  const auto keys = Chain(0);
  const Found found = LookupPending(keys);
  {
    Payloads payloads;
    terrace_op_free(Start(client_, keyspace_, found, keys, &payloads));
  }  // its memory is gone
  disk_.Release();
  Payloads payloads;
  EXPECT_EQ(Reasons(Start(client_, keyspace_, found, keys, &payloads)), All(TERRACE_REASON_NONE));
  ExpectRight(keys, payloads);
}

TEST_F(ClientPendingTest, ClosingCancelsWhatWaits) {
  terrace_client* other = Connect();
  terrace_keyspace* keyspace = Open(other, kBlockBytes);
  disk_.HangReads();
  const auto keys = Chain(0);
  const Found found = LookupPending(keys);
  Payloads payloads;
  terrace_op* op = Start(other, keyspace, found, keys, &payloads);
  Close(other);
  uint32_t n = 0;
  const uint8_t* reasons = terrace_op_reasons(op, &n);
  ASSERT_NE(reasons, nullptr) << "closing ends all operations";
  EXPECT_EQ(std::vector<uint8_t>(reasons, reasons + n), All(TERRACE_REASON_CANCELLED));
  terrace_op_free(op);
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientPendingTest, AViewWaitsWithinTheRequestTimeout) {
  terrace_options options = Options();
  options.request_timeout_ms = 200;
  terrace_client* hasty = ConnectWith(options, TERRACE_OK);
  terrace_keyspace* keyspace = Open(hasty, kBlockBytes);
  disk_.HangReads();
  const auto keys = Chain(0);
  const Found found = LookupPending(keys);
  const void* data = nullptr;
  uint64_t bytes = 0;
  terrace_reason reason = TERRACE_REASON_NONE;
  EXPECT_EQ(terrace_view(hasty, keyspace, &found.refs[0], keys.data(), &data, &bytes, &reason),
            TERRACE_DATA_LOSS);
  EXPECT_EQ(reason, TERRACE_REASON_PENDING);
  EXPECT_EQ(terrace_view_valid(hasty, &found.refs[0]), 0);
  EXPECT_EQ(terrace_is_ready(hasty), 1);
  disk_.Release();
  ASSERT_EQ(terrace_view(client_, keyspace_, &found.refs[0], keys.data(), &data, &bytes, &reason), TERRACE_OK)
      << terrace_error_text();
  const auto payload = PayloadOf(keys.data(), kBlockBytes);
  ASSERT_EQ(bytes, kBlockBytes);
  EXPECT_EQ(std::memcmp(data, payload.data(), bytes), 0);
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientPendingTest, MadeUpPendingRefsAreHarmless) {
  const auto keys = Chain(0), nowhere = ChainKeys(77'777, kChain);
  Found found = LookupPending(keys);
  Payloads payloads;
  // For keys that are nowhere; the daemon says so.
  const auto reasons = Reasons(Start(client_, keyspace_, found, nowhere, &payloads));
  for (const uint8_t reason : reasons) EXPECT_EQ(reason, TERRACE_REASON_COLD);
  for (size_t bit = 0; bit < sizeof(terrace_ref) * 8; ++bit) {
    terrace_ref& ref = found.refs[bit % kChain];
    ref.opaque[bit / 8] = static_cast<uint8_t>(ref.opaque[bit / 8] ^ (1u << bit % 8));
    if (bit % kChain == kChain - 1) {
      EXPECT_EQ(Reasons(Start(client_, keyspace_, found, keys, &payloads)), All(TERRACE_REASON_STALE)) << bit;
      found = LookupPending(keys);
    }
  }
}

TEST_F(ClientPendingTest, HintsAreCheckedAndSent) {
  const auto keys = HostChain();
  const terrace_retention pin{.reuse_after_ms = 0, .pin_ms = 60'000, .done = 0, .priority = 7};
  const terrace_retention zero{}, bad_done{0, 0, 2, 0}, bad_priority{0, 0, 0, 8};
  EXPECT_EQ(terrace_hint(client_, keyspace_, keys.data(), kChain, &pin), TERRACE_OK);
  EXPECT_EQ(terrace_hint(client_, keyspace_, keys.data(), kChain, &zero), TERRACE_OK);
  EXPECT_EQ(terrace_hint(client_, keyspace_, keys.data(), kChain, nullptr), TERRACE_INVALID_ARGUMENT);
  EXPECT_EQ(terrace_hint(client_, keyspace_, nullptr, kChain, &pin), TERRACE_INVALID_ARGUMENT);
  EXPECT_EQ(terrace_hint(client_, keyspace_, keys.data(), 0, &pin), TERRACE_INVALID_ARGUMENT);
  EXPECT_EQ(terrace_hint(client_, nullptr, keys.data(), kChain, &pin), TERRACE_INVALID_ARGUMENT);
  EXPECT_EQ(terrace_hint(nullptr, keyspace_, keys.data(), kChain, &pin), TERRACE_INVALID_ARGUMENT);
  for (const terrace_retention& bad : {bad_done, bad_priority}) {
    EXPECT_EQ(terrace_hint(client_, keyspace_, keys.data(), kChain, &bad), TERRACE_INVALID_ARGUMENT);
    terrace_op* op = nullptr;
    const auto payload = PayloadOf(keys.data(), kBlockBytes);
    const terrace_piece piece{const_cast<std::byte*>(payload.data()), kBlockBytes};
    const uint32_t one = 1;
    EXPECT_EQ(terrace_store_pieces(client_, keyspace_, nullptr, keys.data(), 1, 0, &bad, &piece, &one, &op),
              TERRACE_INVALID_ARGUMENT);
    EXPECT_EQ(op, nullptr);
  }
}

TEST_F(ClientPendingTest, HintedBlocksStayWhereOthersGo) {
  const auto pinned = ChainKeys(1'000, kChain);
  ASSERT_EQ(Store(client_, keyspace_, pinned, kBlockBytes), All(TERRACE_REASON_NONE));
  const terrace_retention pin{0, 3'600'000, 0, 0};
  ASSERT_EQ(terrace_hint(client_, keyspace_, pinned.data(), kChain, &pin), TERRACE_OK);
  for (uint32_t chain = 0; chain < kChains; ++chain) {
    ASSERT_EQ(Store(client_, keyspace_, ChainKeys(2'000 + chain, kChain), kBlockBytes), All(TERRACE_REASON_NONE));
    ASSERT_TRUE(testing::WaitForRoom(&daemon_->stack()));
  }
  EXPECT_EQ(Lookup(client_, keyspace_, pinned).n_prefix, kChain);
}

TEST_F(ClientPendingTest, LoadsDearerThanComputingAreMisses) {
  disk_.DelayReads(20'000'000);
  Payloads payloads;
  const Found measured = LookupPending(Chain(0));
  ASSERT_EQ(Reasons(Start(client_, keyspace_, measured, Chain(0), &payloads)), All(TERRACE_REASON_NONE));
  const auto keys = Chain(1);
  uint8_t reasons[kChain];
  terrace_lookup_part part = Part(keyspace_, keys.data(), kChain);
  part.reasons = reasons;
  part.recompute_ns_per_token = 1;
  ASSERT_EQ(terrace_lookup(client_, &part, 1, TERRACE_LOOKUP_MAY_WAIT, kLongUs), TERRACE_OK);
  EXPECT_EQ(part.n_here, 0u);
  EXPECT_EQ(part.n_pending, 0u);
  EXPECT_EQ(reasons[0], TERRACE_REASON_RECOMPUTE);
  part.recompute_ns_per_token = 1'000'000'000;
  ASSERT_EQ(terrace_lookup(client_, &part, 1, TERRACE_LOOKUP_MAY_WAIT, kLongUs), TERRACE_OK);
  EXPECT_EQ(part.n_pending, kChain);
}

}  // namespace
}  // namespace terrace::api
