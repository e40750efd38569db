// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// libterrace against a daemon that behaves: what is stored comes back, once, and only under its name.
#include <atomic>
#include <set>

#include "api/client_fixture.h"

namespace terrace::api {
namespace {

TEST_F(ClientTest, StoreLookupLoadRoundTripThroughStridedPages) {
  StartDaemon(1);
  terrace_client* client = Connect();
  const std::vector<uint64_t> planes = {65'536, 1'000, 7, 70'000};
  const uint64_t block_bytes = 65'536 + 1'000 + 7 + 70'000;
  terrace_keyspace* keyspace = Open(client, block_bytes);
  constexpr uint32_t kBlocks = 12;
  const std::vector<uint8_t> keys = ChainKeys(1, kBlocks);
  TestPages source(planes, 32), target(planes, 40);
  std::vector<uint64_t> source_ids, target_ids;
  for (uint32_t i = 0; i < kBlocks; ++i) {
    source_ids.push_back((i * 7) % 32);
    target_ids.push_back(39 - i * 3);
    source.Fill(source_ids[i], PayloadOf(&keys[i * 32], block_bytes));
  }
  terrace_pages* from = source.Register(client);
  terrace_op* op = nullptr;
  ASSERT_EQ(terrace_store(client, keyspace, nullptr, keys.data(), kBlocks, TERRACE_STORE_CHAIN,
                          nullptr, from, source_ids.data(), &op),
            TERRACE_OK)
      << terrace_error_text();
  EXPECT_EQ(terrace_op_wait_sources(op, kLongUs), TERRACE_OK);
  EXPECT_EQ(terrace_op_sources_read(op), 1);
  EXPECT_EQ(Reasons(op), std::vector<uint8_t>(kBlocks, TERRACE_REASON_NONE));

  const Found found = Lookup(client, keyspace, keys);
  ASSERT_EQ(found.status, TERRACE_OK) << terrace_error_text();
  EXPECT_EQ(found.n_prefix, kBlocks);
  EXPECT_EQ(found.n_here, kBlocks);
  ASSERT_NE(found.lease, 0u);

  terrace_pages* to = target.Register(client);
  ASSERT_EQ(terrace_load(client, keyspace, found.refs.data(), keys.data(), kBlocks, to,
                         target_ids.data(), &op),
            TERRACE_OK)
      << terrace_error_text();
  EXPECT_EQ(Reasons(op), std::vector<uint8_t>(kBlocks, TERRACE_REASON_NONE));
  for (uint32_t i = 0; i < kBlocks; ++i) {
    EXPECT_EQ(target.Get(target_ids[i]), PayloadOf(&keys[i * 32], block_bytes)) << i;
  }
  EXPECT_TRUE(target.GapsUntouched());
  EXPECT_EQ(terrace_release_sync(client, found.lease), TERRACE_OK) << terrace_error_text();

  terrace_client_stats stats{};
  stats.struct_bytes = sizeof(stats);
  ASSERT_EQ(terrace_get_stats(client, &stats), TERRACE_OK);
  EXPECT_EQ(stats.connects, 1u);
  EXPECT_EQ(stats.store_blocks, kBlocks);
  EXPECT_EQ(stats.store_bytes, kBlocks * block_bytes);
  EXPECT_EQ(stats.load_blocks, kBlocks);
  EXPECT_EQ(stats.hit_blocks, kBlocks);
  terrace_pages_free(from);
  terrace_pages_free(to);
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientTest, AnotherClientLoadsWhatOneStoredAndNothingIsStoredTwice) {
  StartDaemon(1);
  terrace_client* writer = Connect();
  terrace_client* reader = Connect();
  terrace_keyspace* written = Open(writer);
  terrace_keyspace* read = Open(reader);
  const std::vector<uint8_t> keys = ChainKeys(2, 5);
  EXPECT_EQ(Store(writer, written, keys), std::vector<uint8_t>(5, TERRACE_REASON_NONE));
  EXPECT_EQ(Store(reader, read, keys), std::vector<uint8_t>(5, TERRACE_REASON_DUPLICATE));
  const Found found = Lookup(reader, read, keys);
  std::vector<std::vector<std::byte>> payloads;
  EXPECT_EQ(Load(reader, read, found.refs, keys, &payloads),
            std::vector<uint8_t>(5, TERRACE_REASON_NONE));
  for (uint32_t i = 0; i < 5; ++i) EXPECT_EQ(payloads[i], PayloadOf(&keys[i * 32], kBlockBytes));
  terrace_keyspace_free(written);
  terrace_keyspace_free(read);
}

TEST_F(ClientTest, StoringOnSkipsTheBlocksAlreadyThereAndKeepsTheChain) {
  StartDaemon(1);
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  const std::vector<uint8_t> keys = ChainKeys(3, 6);
  const std::vector<uint8_t> head(keys.begin(), keys.begin() + 3 * 32);
  Store(client, keyspace, head);
  const std::vector<uint8_t> expected = {14, 14, 14, 0, 0, 0};  // 14: duplicate
  EXPECT_EQ(Store(client, keyspace, keys), expected);
  EXPECT_EQ(Lookup(client, keyspace, keys).n_prefix, 6u);
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientTest, AKeySpaceThatDiffersInOneFieldFindsNothing) {
  StartDaemon(1);
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  const std::vector<uint8_t> keys = ChainKeys(4, 1);
  Store(client, keyspace, keys);
  ASSERT_EQ(Lookup(client, keyspace, keys).n_here, 1u);
  uint8_t digest[32], other_digest[32];
  ASSERT_EQ(terrace_keyspace_digest(keyspace, digest), TERRACE_OK);
  const char* terrace_keyspace_desc::*const fields[] = {
      &terrace_keyspace_desc::model,    &terrace_keyspace_desc::model_fingerprint,
      &terrace_keyspace_desc::kv_dtype, &terrace_keyspace_desc::layout,
      &terrace_keyspace_desc::parallel, &terrace_keyspace_desc::hash,
      &terrace_keyspace_desc::group,    &terrace_keyspace_desc::extra};
  for (const auto field : fields) {
    terrace_keyspace_desc desc = Desc();
    desc.*field = "something else";
    terrace_keyspace* other = nullptr;
    ASSERT_EQ(terrace_keyspace_open(client, &desc, &other), TERRACE_OK) << terrace_error_text();
    const Found found = Lookup(client, other, keys);
    EXPECT_EQ(found.n_here, 0u);
    EXPECT_NE(found.reasons[0], TERRACE_REASON_NONE);
    EXPECT_EQ(found.lease, 0u);
    ASSERT_EQ(terrace_keyspace_digest(other, other_digest), TERRACE_OK);
    EXPECT_NE(std::memcmp(digest, other_digest, 32), 0);
    terrace_keyspace_free(other);
  }
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientTest, ARefOfOneBlockNeverServesAnotherKeysBytes) {
  StartDaemon(1);
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  terrace_keyspace_desc other_desc = Desc();
  other_desc.model = "another/model";
  terrace_keyspace* other = nullptr;
  ASSERT_EQ(terrace_keyspace_open(client, &other_desc, &other), TERRACE_OK);
  const std::vector<uint8_t> keys = ChainKeys(5, 2);
  Store(client, keyspace, keys);
  const Found found = Lookup(client, keyspace, keys);
  std::vector<std::vector<std::byte>> payloads;
  // Refs swapped between two keys, and a ref used in another key space.
  const std::vector<terrace_ref> swapped = {found.refs[1], found.refs[0]};
  for (const uint8_t reason : Load(client, keyspace, swapped, keys, &payloads)) {
    EXPECT_EQ(reason, TERRACE_REASON_CORRUPT);
  }
  for (const uint8_t reason : Load(client, other, found.refs, keys, &payloads)) {
    EXPECT_EQ(reason, TERRACE_REASON_CORRUPT);
  }
  // The daemon was told of bad blocks, checked for itself, and kept the good ones.
  EXPECT_EQ(Load(client, keyspace, found.refs, keys, &payloads),
            std::vector<uint8_t>(2, TERRACE_REASON_NONE));
  terrace_keyspace_free(other);
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientTest, RefsThatWereDamagedOrMadeUpAreStale) {
  StartDaemon(1);
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  const std::vector<uint8_t> keys = ChainKeys(6, 1);
  Store(client, keyspace, keys);
  const Found found = Lookup(client, keyspace, keys);
  std::vector<std::vector<std::byte>> payloads;
  for (size_t bit = 0; bit < TERRACE_REF_BYTES * 8; ++bit) {
    std::vector<terrace_ref> bad = found.refs;
    bad[0].opaque[bit / 8] ^= static_cast<uint8_t>(1u << (bit % 8));
    EXPECT_EQ(Load(client, keyspace, bad, keys, &payloads)[0], TERRACE_REASON_STALE) << bit;
  }
  const std::vector<terrace_ref> zero(1);
  EXPECT_EQ(Load(client, keyspace, zero, keys, &payloads)[0], TERRACE_REASON_STALE);
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientTest, ViewsShowTheBytesInPlace) {
  StartDaemon(1);
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  const std::vector<uint8_t> keys = ChainKeys(7, 3);
  Store(client, keyspace, keys);
  const Found found = Lookup(client, keyspace, keys);
  for (uint32_t i = 0; i < 3; ++i) {
    const void* data = nullptr;
    uint64_t bytes = 0;
    terrace_reason reason = TERRACE_REASON_COUNT;
    ASSERT_EQ(terrace_view(client, keyspace, &found.refs[i], &keys[i * 32], &data, &bytes, &reason),
              TERRACE_OK)
        << terrace_error_text();
    EXPECT_EQ(reason, TERRACE_REASON_NONE);
    ASSERT_EQ(bytes, kBlockBytes);
    EXPECT_EQ(std::memcmp(data, PayloadOf(&keys[i * 32], kBlockBytes).data(), bytes), 0);
    EXPECT_EQ(terrace_view_valid(client, &found.refs[i]), 1);
  }
  // The wrong key: refused.
  const void* data = &keys;
  terrace_reason reason = TERRACE_REASON_NONE;
  EXPECT_EQ(terrace_view(client, keyspace, &found.refs[0], &keys[32], &data, nullptr, &reason),
            TERRACE_DATA_LOSS);
  EXPECT_EQ(reason, TERRACE_REASON_CORRUPT);
  EXPECT_EQ(data, nullptr);
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientTest, StoresThroughLessStagingMemoryWhereTheBudgetHasNoMore) {
  StartDaemon(1);
  terrace_client* first = Connect();
  terrace_keyspace* keyspace = Open(first);
  Store(first, keyspace, ChainKeys(1, 1));
  terrace_keyspace_free(keyspace);

  constexpr uint64_t kStep = 1 << 20;
  uint64_t taken = 0;
  while (daemon_->stack().ChargeStaging(kStep).ok()) taken += kStep;
  ASSERT_GT(taken, 5 * kStep);
  daemon_->stack().ReleaseStaging(5 * kStep);  // a quarter of the usual size fits
  terrace_client* second = Connect();
  keyspace = Open(second);
  Store(second, keyspace, ChainKeys(2, 1));
  EXPECT_EQ(Lookup(second, keyspace, ChainKeys(2, 1), TERRACE_MODE_PREFIX).n_prefix, 1u);
  terrace_keyspace_free(keyspace);
  daemon_->stack().ReleaseStaging(taken - 5 * kStep);
}

TEST_F(ClientTest, PrefixStopsAtTheFirstMissAndAllGoesOn) {
  StartDaemon(1);
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  const std::vector<uint8_t> keys = ChainKeys(8, 5);
  // Blocks 0, 1 and 4 are there.
  std::vector<uint8_t> stored(keys.begin(), keys.begin() + 64);
  Store(client, keyspace, stored);
  stored.assign(keys.begin() + 4 * 32, keys.end());
  Store(client, keyspace, stored);

  const Found prefix = Lookup(client, keyspace, keys, TERRACE_MODE_PREFIX);
  EXPECT_EQ(prefix.n_prefix, 2u);
  EXPECT_EQ(prefix.n_here, 2u);
  EXPECT_EQ(prefix.reasons, (std::vector<uint8_t>{0, 0, TERRACE_REASON_COLD, TERRACE_REASON_AFTER_MISS,
                                                  TERRACE_REASON_AFTER_MISS}));
  const Found all = Lookup(client, keyspace, keys, TERRACE_MODE_ALL);
  EXPECT_EQ(all.n_prefix, 2u);
  EXPECT_EQ(all.n_here, 3u);
  EXPECT_EQ(all.reasons,
            (std::vector<uint8_t>{0, 0, TERRACE_REASON_COLD, TERRACE_REASON_COLD, 0}));
  const terrace_ref zero{};
  EXPECT_EQ(std::memcmp(&all.refs[2], &zero, sizeof(zero)), 0);
  EXPECT_NE(std::memcmp(&all.refs[4], &zero, sizeof(zero)), 0);

  const Found asked = Lookup(client, keyspace, keys, TERRACE_MODE_ALL, TERRACE_LOOKUP_NO_LEASE);
  EXPECT_EQ(asked.n_here, 3u);
  EXPECT_EQ(asked.lease, 0u);
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientTest, ChainsLongerThanAMessageAndSeveralPartsAtOnce) {
  StartDaemon(1);
  terrace_client* client = Connect();
  constexpr uint64_t kSmall = 64;
  terrace_keyspace* keyspace = Open(client, kSmall);
  constexpr uint32_t kLong = 3 * 4096 + 17;
  const std::vector<uint8_t> keys = ChainKeys(9, kLong);
  EXPECT_EQ(Store(client, keyspace, keys, kSmall), std::vector<uint8_t>(kLong, TERRACE_REASON_NONE));
  const Found found = Lookup(client, keyspace, keys);
  EXPECT_EQ(found.status, TERRACE_OK);
  EXPECT_EQ(found.n_prefix, kLong);
  EXPECT_EQ(found.n_here, kLong);
  ASSERT_NE(found.lease, 0u);
  std::vector<std::vector<std::byte>> payloads;
  EXPECT_EQ(Load(client, keyspace, found.refs, keys, &payloads, kSmall),
            std::vector<uint8_t>(kLong, TERRACE_REASON_NONE));
  for (uint32_t i = 0; i < kLong; ++i) {
    ASSERT_EQ(payloads[i], PayloadOf(&keys[i * 32], kSmall)) << i;
  }
  // One lease holds all of it.
  EXPECT_EQ(terrace_release_sync(client, found.lease), TERRACE_OK);
  EXPECT_EQ(daemon_->stack().Stats().leases, 0u);

  // Part 0 is complete; part 1 ends in the second message; part 2 has nothing.
  std::vector<uint8_t> cut = keys;
  const std::vector<uint8_t> missing = ChainKeys(10, 3);
  std::copy(missing.begin(), missing.begin() + 32, cut.begin() + 5000 * 32);
  std::vector<uint8_t> reasons(kLong, 255);
  terrace_lookup_part parts[3] = {Part(keyspace, keys.data(), kLong),
                                  Part(keyspace, cut.data(), kLong),
                                  Part(keyspace, missing.data(), 3)};
  parts[1].reasons = reasons.data();
  ASSERT_EQ(terrace_lookup(client, parts, 3, 0, kLongUs), TERRACE_OK) << terrace_error_text();
  EXPECT_EQ(parts[0].n_prefix, kLong);
  EXPECT_EQ(parts[1].n_prefix, 5000u);
  EXPECT_EQ(parts[1].n_here, 5000u);
  EXPECT_EQ(reasons[4999], TERRACE_REASON_NONE);
  EXPECT_EQ(reasons[5000], TERRACE_REASON_COLD);
  EXPECT_EQ(reasons[kLong - 1], TERRACE_REASON_AFTER_MISS);
  EXPECT_EQ(parts[2].n_prefix, 0u);
  EXPECT_EQ(parts[2].lease, 0u);
  EXPECT_EQ(terrace_release_sync(client, parts[0].lease), TERRACE_OK);
  EXPECT_EQ(terrace_release_sync(client, parts[1].lease), TERRACE_OK);
  EXPECT_EQ(daemon_->stack().Stats().leases, 0u);
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientTest, LeasesAreReleasedOnceAndByTheirOwnerOnly) {
  StartDaemon(1);
  terrace_client* owner = Connect();
  terrace_client* stranger = Connect();
  terrace_keyspace* keyspace = Open(owner);
  const std::vector<uint8_t> keys = ChainKeys(11, 2);
  Store(owner, keyspace, keys);
  const uint64_t lease = Lookup(owner, keyspace, keys).lease;
  ASSERT_NE(lease, 0u);
  EXPECT_EQ(terrace_release_sync(stranger, lease), TERRACE_NOT_FOUND);
  EXPECT_EQ(terrace_release_sync(owner, lease + 1), TERRACE_NOT_FOUND);
  EXPECT_EQ(terrace_release_sync(owner, 0), TERRACE_OK);  // ignored
  EXPECT_EQ(daemon_->stack().Stats().leases, 1u);
  EXPECT_EQ(terrace_release_sync(owner, lease), TERRACE_OK);
  EXPECT_EQ(terrace_release_sync(owner, lease), TERRACE_NOT_FOUND);
  EXPECT_NE(std::string(terrace_error_text()).find("not held by this client"), std::string::npos);
  // The one that does not wait.
  const uint64_t second = Lookup(owner, keyspace, keys).lease;
  EXPECT_EQ(terrace_release(owner, second), TERRACE_OK);
  EXPECT_TRUE(Eventually([&] { return daemon_->stack().Stats().leases == 0; }));
  // What a client holds ends with it.
  Lookup(owner, keyspace, keys);
  EXPECT_EQ(daemon_->stack().Stats().leases, 1u);
  terrace_keyspace_free(keyspace);
  Close(owner);
  EXPECT_TRUE(Eventually([&] { return daemon_->stack().Stats().leases == 0; }));
}

TEST_F(ClientTest, OfSixteenStoresOfOneKeyExactlyOneWholePayloadIsServed) {
  StartDaemon(1);
  constexpr int kWriters = 16;
  constexpr int kRounds = 8;
  std::vector<terrace_client*> writers;
  std::vector<terrace_keyspace*> keyspaces;
  for (int i = 0; i < kWriters; ++i) {
    writers.push_back(Connect());
    keyspaces.push_back(Open(writers.back()));
  }
  for (int round = 0; round < kRounds; ++round) {
    const std::vector<uint8_t> key = ChainKeys(100 + static_cast<uint64_t>(round), 1);
    std::atomic<int> stored{0}, duplicates{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < kWriters; ++i) {
      threads.emplace_back([&, i] {
        const auto reasons =
            Store(writers[i], keyspaces[i], key, kBlockBytes, 1 + static_cast<uint64_t>(i));
        if (reasons.size() == 1 && reasons[0] == TERRACE_REASON_NONE) ++stored;
        if (reasons.size() == 1 && reasons[0] == TERRACE_REASON_DUPLICATE) ++duplicates;
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(stored, 1);
    EXPECT_EQ(duplicates, kWriters - 1);
    std::set<uint64_t> served;
    for (int i = 0; i < kWriters; ++i) {
      const Found found = Lookup(writers[i], keyspaces[i], key);
      std::vector<std::vector<std::byte>> payloads;
      ASSERT_EQ(Load(writers[i], keyspaces[i], found.refs, key, &payloads)[0], TERRACE_REASON_NONE);
      for (uint64_t variant = 1; variant <= kWriters; ++variant) {
        if (payloads[0] == PayloadOf(key.data(), kBlockBytes, variant)) served.insert(variant);
      }
      terrace_release(writers[i], found.lease);
    }
    EXPECT_EQ(served.size(), 1u);
  }
  for (terrace_keyspace* keyspace : keyspaces) terrace_keyspace_free(keyspace);
}

TEST_F(ClientTest, BlocksOfManySizesThroughTheSameRing) {
  StartDaemon(1);
  terrace_client* client = Connect();
  uint64_t chain = 200;
  for (const uint64_t bytes : {1ull, 63ull, 64ull, 65'536ull, 65'537ull, 3'000'001ull, 20'000'000ull}) {
    terrace_keyspace* keyspace = Open(client, bytes);
    const std::vector<uint8_t> keys = ChainKeys(++chain, 7);
    EXPECT_EQ(Store(client, keyspace, keys, bytes), std::vector<uint8_t>(7, TERRACE_REASON_NONE)) << bytes;
    const Found found = Lookup(client, keyspace, keys);
    std::vector<std::vector<std::byte>> payloads;
    EXPECT_EQ(Load(client, keyspace, found.refs, keys, &payloads, bytes),
              std::vector<uint8_t>(7, TERRACE_REASON_NONE));
    for (uint32_t i = 0; i < 7; ++i) EXPECT_EQ(payloads[i], PayloadOf(&keys[i * 32], bytes)) << bytes;
    terrace_release(client, found.lease);
    terrace_keyspace_free(keyspace);
  }
}

TEST_F(ClientTest, ManyThreadsShareOneClient) {
  StartDaemon(1);
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client, 4096);
  constexpr int kThreads = 8;
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t round = 0; round < 20; ++round) {
        const std::vector<uint8_t> keys = ChainKeys(1000 + static_cast<uint64_t>(t) * 100 + round, 9);
        Store(client, keyspace, keys, 4096);
        const Found found = Lookup(client, keyspace, keys);
        std::vector<std::vector<std::byte>> payloads;
        const auto reasons = Load(client, keyspace, found.refs, keys, &payloads, 4096);
        bool all = found.n_prefix == 9 && reasons == std::vector<uint8_t>(9, TERRACE_REASON_NONE);
        for (uint32_t i = 0; all && i < 9; ++i) all = payloads[i] == PayloadOf(&keys[i * 32], 4096);
        all = terrace_release_sync(client, found.lease) == TERRACE_OK && all;
        right += all ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, kThreads * 20);
  terrace_keyspace_free(keyspace);
}

}  // namespace
}  // namespace terrace::api
