// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Many threads at one TierStack: every byte served is its key's, every store is answered once, and when
// all is let go nothing is held.
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <thread>

#include "testing/scribbling_process.h"
#include "testing/test_stack.h"

namespace terrace::tiering {
namespace {

using testing::KeyOf;
using testing::KeysOf;
using testing::Random;
using testing::SmallStackOptions;
using testing::TestStack;

class Threads {
 public:
  void Start(std::function<void()> run) { threads_.emplace_back(std::move(run)); }
  void Join() {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

 private:
  std::vector<std::thread> threads_;
};

// Sixteen clients offer different bytes for one key at the same instant: one of them is stored whole.
TEST(TierStackStressTest, ConcurrentStoresOfOneKeyKeepExactlyOnePayload) {
  constexpr uint64_t kThreads = 16, kRounds = 60, kBlock = 150'000;
  TestStack stack;
  std::vector<std::unique_ptr<Session>> sessions;
  for (uint64_t t = 0; t < kThreads; ++t) sessions.push_back(stack->OpenSession(0));
  const auto& space = TestStack::Open(sessions[0].get(), kBlock);
  for (uint64_t round = 0; round < kRounds; ++round) {
    const auto key = KeyOf(round);
    std::vector<std::vector<std::byte>> payloads(kThreads);
    std::vector<PutRequest> requests;
    std::atomic<int> outcomes[kReasonCount] = {};
    std::atomic<uint64_t> winner{kThreads};
    for (uint64_t t = 0; t < kThreads; ++t) {
      requests.push_back(TestStack::Request(space, key, std::nullopt, &payloads[t], t + 1));
      requests.back().done = [&outcomes, &winner, t](Reason reason) {
        if (reason == Reason::kNone) winner.store(t);
        outcomes[static_cast<int>(reason)].fetch_add(1);
      };
    }
    std::atomic<uint64_t> ready{0};
    Threads threads;
    for (uint64_t t = 0; t < kThreads; ++t) {
      threads.Start([&, t] {
        ready.fetch_add(1);
        while (ready.load() < kThreads) std::this_thread::yield();
        sessions[t]->Put(std::move(requests[t]));
      });
    }
    threads.Join();
    stack->WaitForStores();
    ASSERT_EQ(outcomes[static_cast<int>(Reason::kNone)].load(), 1);
    ASSERT_EQ(outcomes[static_cast<int>(Reason::kDuplicate)].load(), static_cast<int>(kThreads) - 1);
    ASSERT_TRUE(stack.Serves(sessions[round % kThreads].get(), space, key, winner.load() + 1));
    ASSERT_EQ(stack->Stats().tiers[0].blocks, round + 1) << "one copy";
  }
}

// Stores, lookups, flushes, verifies and dying sessions over a tier that is always full, with two sizes
// and two tenants.
TEST(TierStackStressTest, EveryServedByteIsItsKeys) {
  auto options = SmallStackOptions(32 << 20);
  options.tenants = {{"a"}, {"b"}};
  TestStack stack(options);
  struct Group {
    kv::TenantId tenant;
    uint64_t bytes, keys;
  };
  constexpr Group kGroups[] = {{0, 65536, 400}, {0, 1 << 20, 40}, {1, 65536, 300}, {1, 12'000, 800}};
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> served{0}, stored{0}, answered{0}, wrong{0}, lost{0}, asked{0};
  Threads threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.Start([&, t] {
      Random random(t + 1);
      auto session = stack->OpenSession(kGroups[t].tenant);
      const auto* space = &TestStack::Open(session.get(), kGroups[t].bytes);
      std::vector<std::byte> out(space->identity.block_bytes);
      // Payloads outlive the session: a store may still be under way when it goes.
      std::vector<std::vector<std::byte>> payloads(64);
      std::vector<std::atomic<bool>> busy(64);
      while (!stop.load()) {
        const uint64_t what = random.Below(10);
        const uint64_t first = random.Below(kGroups[t].keys);
        if (what < 5) {
          const uint64_t slot = random.Below(64);
          if (busy[slot].exchange(true)) continue;
          const std::optional<kv::BlockKey> parent = first % 8 == 0 ? std::nullopt : std::optional(KeyOf(first - 1));
          PutRequest request = TestStack::Request(*space, KeyOf(first), parent, &payloads[slot]);
          request.done = [&, slot](Reason reason) {
            stored.fetch_add(reason == Reason::kNone);
            answered.fetch_add(1);
            busy[slot].store(false);
          };
          asked.fetch_add(1);
          session->Put(std::move(request));
        } else if (what < 9) {
          const auto keys = KeysOf(first / 8 * 8, 8);
          const auto mode = random.OneIn(2) ? LookupMode::kPrefix : LookupMode::kAll;
          const auto answer = session->Lookup(space->id, keys, mode, Session::kNewLease);
          if (!answer.ok() || answer->lease_id == 0) continue;
          for (size_t i = 0; i < answer->places.size(); ++i) {
            if (answer->places[i].reason != Reason::kNone) continue;
            const absl::Status read = stack->ReadLeased(*space, keys[i], answer->places[i], out);
            if (read.ok()) {
              served.fetch_add(1);
              wrong.fetch_add(!testing::IsPayloadOf(keys[i], out));
            } else {
              // A flush may have come between; its bytes are no longer to be had through the index.
              lost.fetch_add(!absl::IsNotFound(read));
            }
          }
          if (random.OneIn(2)) wrong.fetch_add(!session->Release(answer->lease_id).ok());
        } else {
          session.reset();  // with leases held and stores under way
          session = stack->OpenSession(kGroups[t].tenant);
        }
      }
      session.reset();
      stack->WaitForStores();
    });
  }
  std::atomic<uint64_t> overdrawn{0}, corrupt{0};
  threads.Start([&] {
    Random random(99);
    for (uint64_t round = 0; !stop.load(); ++round) {
      const TierStackStats stats = stack->Stats();
      overdrawn.fetch_add(stats.budget_used_bytes > stats.budget_bytes);
      stack->Step();
      if (round % 16 == 3) corrupt.fetch_add(stack->Verify().corrupt);
      if (round % 64 == 7) stack->Flush(stack->KeySpaces()[random.Below(stack->KeySpaces().size())]);
      stack->List(nullptr, 50);
      std::this_thread::yield();
    }
  });
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while ((served.load() < 20'000 || stored.load() < 5'000) && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
  stop.store(true);
  threads.Join();
  stack->WaitForStores();
  EXPECT_EQ(wrong.load(), 0u);
  EXPECT_EQ(lost.load(), 0u);
  EXPECT_EQ(corrupt.load(), 0u);
  EXPECT_EQ(overdrawn.load(), 0u);
  EXPECT_EQ(answered.load(), asked.load());
  EXPECT_GT(served.load(), 1000u);
  EXPECT_GT(stack.Metric("terrace_evictions_total"), 0) << "the tier was never full";
  const TierStackStats stats = stack->Stats();
  EXPECT_EQ(stats.leases, 0u);
  EXPECT_EQ(stats.tiers[0].pinned_bytes, 0u);
  stack->Flush(nullptr);
  EXPECT_EQ(stack->Stats().tiers[0].used_bytes, 0u);
  EXPECT_EQ(stack->Stats().tiers[0].blocks, 0u);
}

// New key spaces come while an operator lists and verifies what is there.
TEST(TierStackStressTest, ListsWhileKeySpacesAreOpened) {
  TestStack stack;
  std::atomic<bool> stop{false};
  Threads threads;
  threads.Start([&] {
    auto session = stack->OpenSession(0);
    for (uint64_t i = 0; i < 1500; ++i) {
      const auto& space = TestStack::Open(session.get(), 4096, std::to_string(i));
      for (uint64_t n = 0; n < 3; ++n) TestStack::Store(session.get(), space, KeyOf(n));
    }
    stop.store(true);
  });
  uint64_t rounds = 0;
  do {
    for (const BlockInfo& info : stack->List(nullptr, 100'000)) ASSERT_EQ(info.payload_bytes, 4096u);
    ASSERT_EQ(stack->Verify().corrupt, 0u);
    ++rounds;
  } while (!stop.load());
  threads.Join();
  EXPECT_GT(rounds, 1u);
  EXPECT_EQ(stack->List(nullptr, 100'000).size(), 4500u);
}

// A client that changes its memory while it is stored gets the block refused or stored as announced.
TEST(TierStackStressTest, AScribblingClientStoresNothingElse) {
  TestStack stack;
  auto session = stack->OpenSession(0);
  constexpr uint64_t kBlock = 65536;
  const auto& space = TestStack::Open(session.get(), kBlock);
  std::byte* memory = testing::MapShared(kBlock);
  const testing::ScribblingProcess scribbler(memory, kBlock);
  int stored = 0, refused = 0;
  for (uint64_t i = 0; i < 100'000 && (stored < 100 || refused < 100); ++i) {
    std::vector<std::byte> payload;
    PutRequest request = TestStack::Request(space, KeyOf(i), std::nullopt, &payload);
    std::memcpy(memory, payload.data(), kBlock);
    request.source = {memory, kBlock};
    const Reason reason = TestStack::Put(session.get(), std::move(request));
    if (reason == Reason::kNone) {
      ++stored;
      ASSERT_TRUE(stack.Serves(session.get(), space, KeyOf(i)));
    } else {
      ASSERT_EQ(reason, Reason::kBadChecksum);
      ++refused;
    }
  }
  EXPECT_GT(stored, 0);
  EXPECT_GT(refused, 0);
  EXPECT_EQ(stack.Metric("terrace_integrity_failures_total"), 0);
  testing::UnmapShared(memory, kBlock);
}

}  // namespace
}  // namespace terrace::tiering
