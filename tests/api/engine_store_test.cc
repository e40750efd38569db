// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Stores that must not become visible, or only as one whole payload: wrong checksums, memory that changes
// under the daemon's hands, many writers of one key, a full budget, sizes that take turns.
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "kvstore/base/block_copy.h"
#include "testing/engine_rig.h"
#include "testing/raw_client.h"

namespace terrace::testing {
namespace {

constexpr uint64_t kBlock = 256 << 10;

Reason AskWhy(RawClient* client, const OpenSpace& space, const kv::BlockKey& key) {
  const auto found = client->Lookup(space, {&key, 1}, wire::kLookupNoLease);
  EXPECT_TRUE(found.ok()) << found.status();
  return found.ok() ? static_cast<Reason>(found->refs.at(0).reason) : Reason::kUnavailable;
}

TEST(EngineStoreTest, WrongChecksumIsRefusedAndNothingIsVisible) {
  EngineRig rig;
  auto client = rig.Client();
  const auto space = client->Open(kBlock);
  ASSERT_TRUE(space.ok() && client->GetStaging(kBlock).ok());
  const kv::BlockKey key = KeyOf(1);
  const auto payload = PayloadOf(key, 0, kBlock);
  const auto right = RawClient::Checksums(*space, key, payload);
  std::memcpy(client->staging()->data(), payload.data(), kBlock);
  const uint64_t used = rig.stack()->Stats().tiers[0].used_bytes;
  const auto put = [&](std::span<const uint64_t> checksums) {
    const auto answer = client->Call(wire::Type::kPut, RawClient::PutBody(*space, key, 0, checksums));
    EXPECT_TRUE(answer.ok()) << answer.status();
    wire::PutDone done;
    std::memcpy(&done, answer->body.data(), sizeof(done));
    return static_cast<Reason>(done.reason);
  };
  // A checksum of each segment is wrong by one bit.
  for (size_t i = 0; i < right.size(); ++i) {
    for (const int bit : {0, 31, 63}) {
      auto wrong = right;
      wrong[i] ^= uint64_t{1} << bit;
      EXPECT_EQ(put(wrong), Reason::kBadChecksum);
    }
  }
  // Right checksums of the same bytes under another key, in another key space, in another order.
  EXPECT_EQ(put(RawClient::Checksums(*space, KeyOf(2), payload)), Reason::kBadChecksum);
  OpenSpace other = *space;
  other.digest[31] ^= 1;
  EXPECT_EQ(put(RawClient::Checksums(other, key, payload)), Reason::kBadChecksum);
  auto swapped = right;
  std::swap(swapped[0], swapped[1]);
  EXPECT_EQ(put(swapped), Reason::kBadChecksum);
  // One bit of the payload is wrong.
  client->staging()->data()[kBlock - 1] ^= std::byte{1};
  EXPECT_EQ(put(right), Reason::kBadChecksum);
  client->staging()->data()[kBlock - 1] ^= std::byte{1};

  EXPECT_EQ(AskWhy(client.get(), *space, key), Reason::kKeySpaceEmpty);
  EXPECT_EQ(rig.stack()->Stats().tiers[0].used_bytes, used);
  EXPECT_EQ(rig.Metric("terrace_store_blocks_total", "bad_checksum"), 16);
  EXPECT_EQ(put(right), Reason::kNone);
}

// Flips bytes of the staging memory and flips them back until stop. A data race by design: it plays a
// hostile process, so the thread sanitizer must not look at it.
__attribute__((no_sanitize("thread"))) void Scribble(std::byte* staging, const std::atomic<bool>& stop,
                                                     std::atomic<uint64_t>& scribbles) {
  for (uint64_t i = 0; !stop.load(std::memory_order_relaxed); ++i) {
    volatile std::byte* at = staging + Mix(i) % kBlock;
    // Wrong for about a microsecond: some of the daemon's copies meet it, some do not.
    *at = *at ^ std::byte{0x5a};
    for (uint64_t spin = 0, x = i; spin < 200; ++spin) asm volatile("" : "+r"(x));
    *at = *at ^ std::byte{0x5a};
    scribbles.fetch_add(1, std::memory_order_relaxed);
  }
}

// A client whose checksum is right while it scribbles over the bytes that the daemon copies: the store is
// refused, or what is visible passes every check and is the payload. Never anything else.
TEST(EngineStoreTest, ScribblerIsRefusedOrHarmless) {
  EngineRig rig;
  auto client = rig.Client();
  const auto space = client->Open(kBlock);
  ASSERT_TRUE(space.ok() && client->GetStaging(kBlock).ok());
  std::byte* staging = client->staging()->data();
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> scribbles{0};
  std::thread scribbler([&] { Scribble(staging, stop, scribbles); });
  int stored = 0, refused = 0, corrupt = 0, wrong = 0;
  // On until some copies were hit: on a busy machine the two may seldom run at once.
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(40);
  for (uint64_t n = 0; n < (kSanitized ? 150 : 600) || refused == 0 || stored == 0; ++n) {
    if (std::chrono::steady_clock::now() > end) break;
    const kv::BlockKey key = KeyOf(n);
    const auto payload = PayloadOf(key, 0, kBlock);
    const auto reason = client->Put(*space, key, payload);
    ASSERT_TRUE(reason.ok()) << reason.status();
    if (*reason == Reason::kBadChecksum) {
      ++refused;
      EXPECT_NE(AskWhy(client.get(), *space, key), Reason::kNone);
      continue;
    }
    ASSERT_EQ(*reason, Reason::kNone);
    ++stored;
    const auto found = client->Lookup(*space, {&key, 1});
    ASSERT_EQ(found->done.n_here, 1u);
    std::vector<std::byte> bytes;
    const Verdict verdict = client->Read(*space, key, found->refs[0], &bytes);
    corrupt += verdict == Verdict::kCorrupt;
    wrong += verdict == Verdict::kGood && bytes != payload;
    EXPECT_TRUE(client->Release(found->done.lease_id).ok());
  }
  stop = true;
  scribbler.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(corrupt, 0) << "the daemon checked other bytes than it kept";
  EXPECT_GT(refused, 0) << "the scribbler never hit (" << scribbles << " tries): this test shows nothing";
  EXPECT_GT(stored, 0);
  // The daemon's own check finds nothing bad either.
  EXPECT_EQ(rig.stack()->Verify().corrupt, 0u);
}

TEST(EngineStoreTest, SixteenWritersOfOneKeyGiveOneWholePayload) {
  EngineRig rig([](api::Config* config) { config->stack.store_threads = 4; });
  constexpr int kWriters = 16;
  constexpr int kRounds = 20;
  std::vector<std::unique_ptr<RawClient>> writers;
  std::vector<OpenSpace> spaces;
  for (int i = 0; i < kWriters; ++i) {
    writers.push_back(rig.Client());
    spaces.push_back(*writers.back()->Open(kBlock));
    ASSERT_TRUE(writers.back()->GetStaging(kBlock).ok());
  }
  int first_writers_other_than_0 = 0;
  for (uint64_t round = 0; round < kRounds; ++round) {
    const kv::BlockKey key = KeyOf(7000 + round);
    std::vector<std::vector<std::byte>> payloads;
    for (uint64_t i = 0; i < kWriters; ++i) payloads.push_back(PayloadOf(key, i, kBlock));
    // All requests are on their way before the first answer is read.
    for (size_t i = 0; i < kWriters; ++i) {
      const size_t w = (i + round) % kWriters;
      std::memcpy(writers[w]->staging()->data(), payloads[w].data(), kBlock);
      const auto body =
          RawClient::PutBody(spaces[w], key, 0, RawClient::Checksums(spaces[w], key, payloads[w]));
      ASSERT_TRUE(writers[w]->SendBytes(RawClient::Encode(wire::Type::kPut, 1, body)));
    }
    int winner = -1, duplicates = 0;
    for (int i = 0; i < kWriters; ++i) {
      const auto answer = writers[i]->Receive();
      ASSERT_TRUE(answer.has_value() && answer->header.status == 0);
      wire::PutDone done;
      std::memcpy(&done, answer->body.data(), sizeof(done));
      if (done.reason == 0) {
        EXPECT_EQ(winner, -1) << "two writers were told that they are the first";
        winner = i;
      } else {
        EXPECT_EQ(done.reason, static_cast<uint32_t>(Reason::kDuplicate));
        ++duplicates;
      }
    }
    ASSERT_NE(winner, -1);
    EXPECT_EQ(duplicates, kWriters - 1);
    first_writers_other_than_0 += winner != 0;
    for (int i = 0; i < kWriters; ++i) {
      const auto found = writers[i]->Lookup(spaces[i], {&key, 1});
      ASSERT_EQ(found->done.n_here, 1u);
      std::vector<std::byte> bytes;
      ASSERT_EQ(writers[i]->Read(spaces[i], key, found->refs[0], &bytes), Verdict::kGood);
      EXPECT_EQ(bytes, payloads[winner]) << "writer " << i;
    }
  }
  EXPECT_GT(first_writers_other_than_0, 0) << "the writers never raced";
  EXPECT_EQ(rig.stack()->Stats().tiers[0].blocks, static_cast<uint64_t>(kRounds));
  EXPECT_EQ(rig.stack()->Stats().tiers[0].used_bytes, kRounds * kBlock) << "losers' frames came back";
}

TEST(EngineStoreTest, FullBudgetEvictsAndNeverGrows) {
  EngineRig rig([](api::Config* config) { config->stack.budget_bytes = 96 << 20; });
  auto client = rig.Client();
  const auto space = client->Open(kBlock);
  ASSERT_TRUE(space.ok() && client->GetStaging(kBlock).ok());
  for (uint64_t n = 0; n < 1000; ++n) {  // 250 MiB into some 45
    const kv::BlockKey key = KeyOf(n);
    ASSERT_EQ(*client->Put(*space, key, PayloadOf(key, 0, kBlock)), Reason::kNone) << n;
    const auto stats = rig.stack()->Stats();
    ASSERT_LE(stats.budget_used_bytes, stats.budget_bytes);
    ASSERT_LE(stats.tiers[0].used_bytes, stats.tiers[0].capacity_bytes);
  }
  EXPECT_GT(rig.Metric("terrace_evictions_total"), 500);
  int evicted = 0;  // the memory of reasons may forget some
  for (uint64_t n = 0; n < 100; ++n) evicted += AskWhy(client.get(), *space, KeyOf(n)) == Reason::kEvicted;
  EXPECT_GT(evicted, 80);
  EXPECT_EQ(AskWhy(client.get(), *space, KeyOf(999)), Reason::kNone);
}

TEST(EngineStoreTest, FullOfLeasedBlocksRefusesWithReason) {
  EngineRig rig([](api::Config* config) {
    config->stack.budget_bytes = 96 << 20;
    config->stack.max_leased_ratio = 1.0;
  });
  auto client = rig.Client();
  const auto space = client->Open(kBlock);
  ASSERT_TRUE(space.ok() && client->GetStaging(kBlock).ok());
  uint64_t n = 0;
  Reason reason = Reason::kNone;
  std::vector<std::pair<kv::BlockKey, wire::Ref>> leased;
  std::vector<uint64_t> leases;
  for (; n < 1000; ++n) {
    const kv::BlockKey key = KeyOf(n);
    reason = *client->Put(*space, key, PayloadOf(key, 0, kBlock));
    if (reason != Reason::kNone) break;
    const auto found = client->Lookup(*space, {&key, 1});
    if (found->done.n_here == 0) break;
    leased.emplace_back(key, found->refs[0]);
    leases.push_back(found->done.lease_id);
  }
  EXPECT_EQ(reason, Reason::kBudget) << "after " << n << " blocks";
  EXPECT_GT(leased.size(), 50u);
  EXPECT_LE(rig.stack()->Stats().budget_used_bytes, rig.stack()->Stats().budget_bytes);
  // Readers go on meanwhile, and one released block is enough for the next store.
  for (const auto& [key, ref] : leased) {
    ASSERT_EQ(client->Read(*space, key, ref, nullptr), Verdict::kGood);
  }
  ASSERT_TRUE(client->Release(leases[0]).ok());
  const kv::BlockKey key = KeyOf(5000);
  EXPECT_EQ(*client->Put(*space, key, PayloadOf(key, 0, kBlock)), Reason::kNone);
  EXPECT_EQ(client->Read(*space, leased[0].first, leased[0].second, nullptr), Verdict::kStale);
}

// A block that can never fit must not throw out what is there.
TEST(EngineStoreTest, BlockLargerThanTheCacheEvictsNothing) {
  EngineRig rig([](api::Config* config) {
    config->stack.budget_bytes = 96 << 20;
    config->stack.process_bytes = 40 << 20;
    config->staging_bytes_max = 1 << 30;
  });
  auto client = rig.Client();
  const auto space = client->Open(kBlock);
  ASSERT_TRUE(space.ok() && client->GetStaging(kBlock).ok());
  for (uint64_t n = 0; n < 20; ++n) {
    const kv::BlockKey key = KeyOf(n);
    ASSERT_EQ(*client->Put(*space, key, PayloadOf(key, 0, kBlock)), Reason::kNone);
  }
  // Past the socket's own limits on staging memory, as the gRPC door stores.
  auto session = rig.stack()->OpenSession(0);
  kv::KeySpaceIdentity identity;
  identity.block_bytes = 80 << 20;
  const auto huge = session->OpenKeySpace(identity);
  ASSERT_TRUE(huge.ok()) << huge.status();
  const std::vector<std::byte> payload(identity.block_bytes);
  tiering::PutRequest request;
  request.key_space = *huge;
  request.key = KeyOf(1);
  request.source = payload;
  request.checksums.resize(ChecksumCount(payload.size()));
  std::atomic<int> reason{-1};
  request.done = [&](Reason r) { reason = static_cast<int>(r); };
  session->Put(std::move(request));
  ASSERT_TRUE(Eventually([&] { return reason.load() != -1; }));
  EXPECT_EQ(reason.load(), static_cast<int>(Reason::kBudget));
  for (uint64_t n = 0; n < 20; ++n) EXPECT_EQ(AskWhy(client.get(), *space, KeyOf(n)), Reason::kNone) << n;
  EXPECT_EQ(rig.Metric("terrace_evictions_total"), 0);
}

TEST(EngineStoreTest, StagingMemoryThatIsRefusedAgainAndAgainIsLoggedOnce) {
  EngineRig rig([](api::Config* config) {
    config->stack.budget_bytes = 96 << 20;
    config->staging_bytes_max = 1 << 30;
  });
  ::testing::internal::CaptureStderr();
  for (int n = 0; n < 3; ++n) {  // clients that come again, and ask again
    auto client = rig.Client();
    for (int i = 0; i < 4; ++i) EXPECT_EQ(client->GetStaging(512 << 20).code(), absl::StatusCode::kResourceExhausted);
  }
  const std::string log = ::testing::internal::GetCapturedStderr();
  size_t said = 0;
  for (size_t at = 0; (at = log.find("staging_refused", at)) != std::string::npos; ++at) ++said;
  EXPECT_EQ(said, 1u) << log;
}

// Tables of frames and memory that was taken over eat up what the budget has left, but never the first client's part.
TEST(EngineStoreTest, AFullCacheHasStagingMemoryForOneClient) {
  constexpr uint64_t kAsked = 16 << 20, kSmall = 16 << 10;
  EngineRig rig([](api::Config* config) {
    config->stack.process_bytes = 48 << 20;
    config->stack.budget_bytes = (48 << 20) + 8 * kAsked;
    config->stack.client_staging_bytes = kAsked;
    config->staging_bytes_max = 1 << 30;
  });
  {
    auto client = rig.Client();
    const auto space = client->Open(kSmall);
    ASSERT_TRUE(space.ok() && client->GetStaging(kSmall).ok());
    for (uint64_t n = 0; rig.Metric("terrace_evictions_total") == 0; ++n) {
      ASSERT_LT(n, 8 * kAsked / kSmall);
      ASSERT_EQ(*client->Put(*space, KeyOf(n), PayloadOf(KeyOf(n), 0, kSmall)), Reason::kNone);
    }
  }
  ASSERT_TRUE(Eventually([&] { return rig.server()->Connections().empty(); }));
  EXPECT_TRUE(rig.Client()->GetStaging(kAsked).ok());
}

// Frames change size again and again: headers of one size lie where those of another were.
TEST(EngineStoreTest, BlockSizesTakeTurnsInOneBudget) {
  EngineRig rig([](api::Config* config) { config->stack.budget_bytes = 96 << 20; });
  auto client = rig.Client();
  ASSERT_TRUE(client->GetStaging(4 << 20).ok());
  const uint64_t sizes[] = {64 << 10, 1 << 20, 4096, 640 << 10, 100'000, 3 << 20, 128 << 10};
  std::vector<OpenSpace> spaces;
  for (const uint64_t bytes : sizes) {
    const auto space = client->Open(bytes);
    ASSERT_TRUE(space.ok()) << space.status();
    spaces.push_back(*space);
  }
  uint64_t number = 0, last_used = 0;
  for (int round = 0; round < (kSanitized ? 7 : 14); ++round) {
    const OpenSpace& space = spaces[static_cast<size_t>(round) % spaces.size()];
    // Enough to push out everything of the size before.
    const uint64_t n = std::min<uint64_t>((100ull << 20) / space.block_bytes, 6000);
    const uint64_t first = number;
    for (uint64_t i = 0; i < n; ++i) {
      const kv::BlockKey key = KeyOf(number++);
      ASSERT_EQ(*client->Put(space, key, PayloadOf(key, 0, space.block_bytes)), Reason::kNone)
          << "round " << round << ", block " << i << " of " << space.block_bytes;
    }
    const auto stats = rig.stack()->Stats();
    ASSERT_LE(stats.budget_used_bytes, stats.budget_bytes);
    last_used = stats.tiers[0].used_bytes;
    for (uint64_t i = n > 10 ? n - 10 : 0; i < n; ++i) {
      const kv::BlockKey key = KeyOf(first + i);
      const auto found = client->Lookup(space, {&key, 1});
      ASSERT_EQ(found->done.n_here, 1u);
      std::vector<std::byte> bytes;
      ASSERT_EQ(client->Read(space, key, found->refs[0], &bytes), Verdict::kGood);
      ASSERT_EQ(bytes, PayloadOf(key, 0, space.block_bytes));
      ASSERT_TRUE(client->Release(found->done.lease_id).ok());
    }
  }
  EXPECT_GT(last_used, 16u << 20);
  EXPECT_EQ(rig.stack()->Verify().corrupt, 0u);
}

}  // namespace
}  // namespace terrace::testing
