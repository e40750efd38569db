// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Pages in shared memory, copied by a real daemon core: every byte compared, with ordinary clients
// beside it.
#include "api/client_fixture.h"
#include "api/shared_pages.h"

namespace terrace::api {
namespace {

class ClientRegionTest : public ClientTest {
 protected:
  static std::vector<uint64_t> Ids(uint32_t n, uint64_t first, uint64_t step, uint64_t n_pages) {
    std::vector<uint64_t> ids;
    for (uint32_t i = 0; i < n; ++i) ids.push_back((first + i * step) % n_pages);
    return ids;
  }
  static std::vector<uint8_t> StorePages(terrace_client* client, terrace_keyspace* keyspace,
                                         terrace_pages* pages, const std::vector<uint8_t>& keys,
                                         const std::vector<uint64_t>& ids) {
    terrace_op* op = nullptr;
    EXPECT_EQ(terrace_store(client, keyspace, nullptr, keys.data(),
                            static_cast<uint32_t>(ids.size()), 0, nullptr, pages, ids.data(), &op),
              TERRACE_OK)
        << terrace_error_text();
    return Reasons(op);
  }
  static terrace_op* LoadPages(terrace_client* client, terrace_keyspace* keyspace,
                               terrace_pages* pages, const std::vector<terrace_ref>& refs,
                               const std::vector<uint8_t>& keys, const std::vector<uint64_t>& ids) {
    terrace_op* op = nullptr;
    EXPECT_EQ(terrace_load(client, keyspace, refs.data(), keys.data(),
                           static_cast<uint32_t>(ids.size()), pages, ids.data(), &op),
              TERRACE_OK)
        << terrace_error_text();
    return op;
  }
  static std::string Why(terrace_pages* pages, terrace_copier expected) {
    const char* why = nullptr;
    EXPECT_EQ(terrace_pages_copier(pages, &why), expected) << why;
    return why;
  }
};

TEST_F(ClientRegionTest, TheDaemonStoresAndLoadsEveryByte) {
  StartDaemon(1);
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  const SharedPages memory({70'000, 30'000, 65'536, 34'464}, 80);
  terrace_pages* pages = memory.Register(client);
  Why(pages, TERRACE_COPIER_DAEMON);
  const uint32_t n = 70;
  const std::vector<uint8_t> keys = ChainKeys(1, n);
  const std::vector<uint64_t> ids = Ids(n, 3, 7, 80);
  for (uint32_t i = 0; i < n; ++i) memory.Fill(ids[i], PayloadOf(&keys[i * 32], kBlockBytes));
  EXPECT_EQ(StorePages(client, keyspace, pages, keys, ids),
            std::vector<uint8_t>(n, TERRACE_REASON_NONE));
  EXPECT_EQ(StorePages(client, keyspace, pages, keys, ids),
            std::vector<uint8_t>(n, TERRACE_REASON_DUPLICATE));
  // Another client, in ordinary memory.
  terrace_client* other = Connect();
  terrace_keyspace* other_keyspace = Open(other);
  Found found = Lookup(other, other_keyspace, keys);
  ASSERT_EQ(found.n_prefix, n);
  std::vector<std::vector<std::byte>> payloads;
  EXPECT_EQ(Load(other, other_keyspace, found.refs, keys, &payloads),
            std::vector<uint8_t>(n, TERRACE_REASON_NONE));
  for (uint32_t i = 0; i < n; ++i)
    ASSERT_EQ(payloads[i], PayloadOf(&keys[i * 32], kBlockBytes)) << i;
  // And back, into other pages.
  memory.Clear();
  const std::vector<uint64_t> targets = Ids(n, 1, 11, 80);
  found = Lookup(client, keyspace, keys);
  terrace_op* op = LoadPages(client, keyspace, pages, found.refs, keys, targets);
  EXPECT_EQ(terrace_op_wait_planes(op, 1, kLongUs), TERRACE_OK);
  for (uint32_t i = 0; i < n; ++i) {
    const std::vector<std::byte> payload = PayloadOf(&keys[i * 32], kBlockBytes),
                                 page = memory.Get(targets[i]);
    ASSERT_TRUE(std::equal(page.begin(), page.begin() + 70'000, payload.begin())) << i;
  }
  EXPECT_EQ(terrace_op_wait_planes(op, 4, kLongUs), TERRACE_OK);
  EXPECT_EQ(Reasons(op), std::vector<uint8_t>(n, TERRACE_REASON_NONE));
  for (uint32_t i = 0; i < n; ++i)
    ASSERT_EQ(memory.Get(targets[i]), PayloadOf(&keys[i * 32], kBlockBytes)) << i;
  EXPECT_TRUE(memory.GapsUntouched());
  terrace_client_stats stats{};
  stats.struct_bytes = sizeof(stats);
  terrace_get_stats(client, &stats);
  EXPECT_EQ(stats.store_blocks, n);
  EXPECT_EQ(stats.store_duplicate_blocks, n);
  EXPECT_EQ(stats.load_bytes, n * kBlockBytes);
  terrace_pages_free(pages);
  terrace_keyspace_free(keyspace);
  terrace_keyspace_free(other_keyspace);
}

// The daemon opens no file with holes: the library has the engine's process take what is missing.
TEST_F(ClientRegionTest, MemoryThatNobodyHasTouchedIsTakenBeforeItIsRegistered) {
  StartDaemon(1);
  const SharedPages memory({70'000, 30'000, 65'536, 34'464}, 8);
  for (const terrace_shared_memory& file : memory.memory()) {
    ASSERT_EQ(fallocate(file.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                        static_cast<off_t>(file.bytes)),
              0);
  }
  terrace_pages* pages = memory.Register(Connect());
  Why(pages, TERRACE_COPIER_DAEMON);
  terrace_pages_free(pages);
}

TEST_F(ClientRegionTest, ABlockThatIsNotThereHasItsReasonAndTheOthersArrive) {
  StartDaemon(1);
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  const SharedPages memory({kBlockBytes}, 8);
  terrace_pages* pages = memory.Register(client);
  const std::vector<uint8_t> keys = ChainKeys(2, 2);
  Store(client, keyspace, keys);
  const Found found = Lookup(client, keyspace, keys);
  ASSERT_EQ(found.n_prefix, 2u);
  // A ref of this daemon, for a block that it has not.
  std::vector<uint8_t> asked = keys;
  const std::vector<uint8_t> unknown = ChainKeys(3, 1);
  std::copy(unknown.begin(), unknown.end(), asked.begin() + 32);
  terrace_op* op = LoadPages(client, keyspace, pages, found.refs, asked, {4, 5});
  EXPECT_EQ(terrace_op_wait_planes(op, 1, kLongUs), TERRACE_DATA_LOSS);
  const std::vector<uint8_t> reasons = Reasons(op);
  EXPECT_EQ(reasons[0], TERRACE_REASON_NONE);
  EXPECT_NE(reasons[1], TERRACE_REASON_NONE);
  EXPECT_EQ(memory.Get(4), PayloadOf(keys.data(), kBlockBytes));
  terrace_pages_free(pages);
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientRegionTest, RegionsOutliveTheDaemonAndOperationsGoOnWithoutIt) {
  StartDaemon(1);
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  const SharedPages memory({100'000, 100'000}, 16);
  terrace_pages* pages = memory.Register(client);
  const std::vector<uint8_t> keys = ChainKeys(4, 8);
  for (uint32_t i = 0; i < 8; ++i) memory.Fill(i, PayloadOf(&keys[i * 32], kBlockBytes));
  EXPECT_EQ(StorePages(client, keyspace, pages, keys, Ids(8, 0, 1, 16)),
            std::vector<uint8_t>(8, TERRACE_REASON_NONE));
  for (uint64_t epoch = 2; epoch < 5; ++epoch) {
    StopDaemon();
    EXPECT_TRUE(
        Eventually([&] { return terrace_pages_copier(pages, nullptr) == TERRACE_COPIER_LIBRARY; }));
    EXPECT_NE(Why(pages, TERRACE_COPIER_LIBRARY), "");
    terrace_op* op = nullptr;
    const uint64_t id = 0;
    EXPECT_EQ(terrace_store(client, keyspace, nullptr, keys.data(), 1, 0, nullptr, pages, &id, &op),
              TERRACE_UNAVAILABLE);
    StartDaemon(epoch);
    EXPECT_TRUE(WaitUsable(client, keyspace));
    // By whomever at first, by the daemon soon.
    EXPECT_EQ(StorePages(client, keyspace, pages, keys, Ids(8, 0, 1, 16)),
              std::vector<uint8_t>(8, TERRACE_REASON_NONE));
    EXPECT_TRUE(
        Eventually([&] { return terrace_pages_copier(pages, nullptr) == TERRACE_COPIER_DAEMON; }));
    const Found found = Lookup(client, keyspace, keys);
    EXPECT_EQ(Reasons(LoadPages(client, keyspace, pages, found.refs, keys, Ids(8, 8, 1, 16))),
              std::vector<uint8_t>(8, TERRACE_REASON_NONE));
    for (uint32_t i = 0; i < 8; ++i)
      ASSERT_EQ(memory.Get(8 + i), PayloadOf(&keys[i * 32], kBlockBytes));
  }
  terrace_pages_free(pages);
  terrace_keyspace_free(keyspace);
}

// Daemons come and go under a stream of operations: each ends, and a page that is said to be loaded
// is.
TEST_F(ClientRegionTest, OperationsUnderWayEndWhenTheDaemonGoes) {
  StartDaemon(1);
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  const SharedPages memory({100'000, 100'000}, 128);
  terrace_pages* pages = memory.Register(client);
  uint32_t loaded = 0;
  for (uint64_t epoch = 2; epoch < 6; ++epoch) {
    const std::vector<uint8_t> keys = ChainKeys(epoch, 64);
    for (uint32_t i = 0; i < 64; ++i) memory.Fill(i, PayloadOf(&keys[i * 32], kBlockBytes));
    ASSERT_TRUE(
        Eventually([&] { return terrace_pages_copier(pages, nullptr) == TERRACE_COPIER_DAEMON; }));
    ASSERT_TRUE(WaitUsable(client, keyspace));
    StorePages(client, keyspace, pages, keys, Ids(64, 0, 1, 128));
    const Found found = Lookup(client, keyspace, keys);
    ASSERT_EQ(found.n_prefix, 64u);
    terrace_op* load = LoadPages(client, keyspace, pages, found.refs, keys, Ids(64, 64, 1, 128));
    StopDaemon();
    const std::vector<uint8_t> reasons = Reasons(load);
    for (uint32_t i = 0; i < 64; ++i) {
      if (reasons[i] != TERRACE_REASON_NONE) continue;
      ++loaded;
      ASSERT_EQ(memory.Get(64 + i), PayloadOf(&keys[i * 32], kBlockBytes));
    }
    StartDaemon(epoch);
  }
  RecordProperty("loaded", static_cast<int>(loaded));
  EXPECT_TRUE(memory.GapsUntouched());
  terrace_pages_free(pages);
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientRegionTest, ADaemonThatOpensNoRegionsLeavesTheCopyingToTheLibrary) {
  StartDaemon(1, 512ull << 20,
              [](tiering::TierStackOptions* options) { options->host_regions = false; });
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  const SharedPages memory({kBlockBytes}, 8);
  terrace_pages* pages = memory.Register(client);
  EXPECT_NE(Why(pages, TERRACE_COPIER_LIBRARY), "");
  const std::vector<uint8_t> keys = ChainKeys(6, 2);
  for (uint32_t i = 0; i < 2; ++i) memory.Fill(i, PayloadOf(&keys[i * 32], kBlockBytes));
  EXPECT_EQ(StorePages(client, keyspace, pages, keys, {0, 1}),
            std::vector<uint8_t>(2, TERRACE_REASON_NONE));
  const Found found = Lookup(client, keyspace, keys);
  terrace_op* op = LoadPages(client, keyspace, pages, found.refs, keys, {6, 7});
  EXPECT_EQ(terrace_op_wait_planes(op, 1, kLongUs), TERRACE_OK);
  EXPECT_EQ(Reasons(op), std::vector<uint8_t>(2, TERRACE_REASON_NONE));
  EXPECT_EQ(memory.Get(7), PayloadOf(&keys[32], kBlockBytes));
  terrace_pages_free(pages);
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientRegionTest, ManyThreadsAtOnce) {
  StartDaemon(1);
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client, 40'000);
  const SharedPages memory({25'000, 15'000}, 160);
  terrace_pages* pages = memory.Register(client);
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t round = 0; round < 20; ++round) {
        const std::vector<uint8_t> keys = ChainKeys(1000 + t * 100 + round, 20);
        const std::vector<uint64_t> ids = Ids(20, t * 40, 1, 160),
                                    targets = Ids(20, t * 40 + 20, 1, 160);
        for (uint32_t i = 0; i < 20; ++i) memory.Fill(ids[i], PayloadOf(&keys[i * 32], 40'000));
        EXPECT_EQ(StorePages(client, keyspace, pages, keys, ids),
                  std::vector<uint8_t>(20, TERRACE_REASON_NONE));
        const Found found = Lookup(client, keyspace, keys);
        EXPECT_EQ(Reasons(LoadPages(client, keyspace, pages, found.refs, keys, targets)),
                  std::vector<uint8_t>(20, TERRACE_REASON_NONE));
        for (uint32_t i = 0; i < 20; ++i)
          EXPECT_EQ(memory.Get(targets[i]), PayloadOf(&keys[i * 32], 40'000));
        terrace_release(client, found.lease);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  terrace_pages_free(pages);
  terrace_keyspace_free(keyspace);
}

}  // namespace
}  // namespace terrace::api
