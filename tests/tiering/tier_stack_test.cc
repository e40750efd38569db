// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/tier_stack.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <set>

#include "testing/arena_access.h"
#include "testing/test_stack.h"

namespace terrace::tiering {
namespace {

using testing::KeyOf;
using testing::KeysOf;
using testing::SmallStackOptions;
using testing::TestStack;

class TierStackTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kBlock = 100'000;

  absl::StatusOr<LookupAnswer> Lease(const std::vector<kv::BlockKey>& keys, LookupMode mode = LookupMode::kPrefix,
                                     uint64_t lease = Session::kNewLease) {
    return session_->Lookup(space_.id, keys, mode, lease);
  }

  TestStack stack_;
  std::unique_ptr<Session> session_ = stack_->OpenSession(0);
  const kv::KeySpace& space_ = TestStack::Open(session_.get(), kBlock);
};

TEST_F(TierStackTest, StoresAndServes) {
  EXPECT_EQ(TestStack::Ask(session_.get(), space_, KeyOf(1)), Reason::kKeySpaceEmpty);
  EXPECT_EQ(TestStack::Store(session_.get(), space_, KeyOf(1)), Reason::kNone);
  EXPECT_EQ(TestStack::Ask(session_.get(), space_, KeyOf(1)), Reason::kNone);
  EXPECT_EQ(TestStack::Ask(session_.get(), space_, KeyOf(2)), Reason::kCold);
  EXPECT_TRUE(stack_.Serves(session_.get(), space_, KeyOf(1)));
  EXPECT_EQ(stack_->Stats().tiers[0].blocks, 1u);
}

TEST_F(TierStackTest, ALeasedBlockCanBeMappedAndChecked) {
  TestStack::StoreChain(session_.get(), space_, 0, 5);
  const auto answer = Lease(KeysOf(0, 5));
  ASSERT_EQ(answer->places.size(), 5u);
  for (uint64_t i = 0; i < 5; ++i) {
    const BlockPlace& place = answer->places[i];
    const auto fds = stack_->FindSegment(0, place.segment_id);
    ASSERT_TRUE(fds.ok());
    auto* payload = static_cast<std::byte*>(
        mmap(nullptr, fds->payload_bytes, PROT_READ, MAP_SHARED, fds->payload_fd, 0));
    auto* headers = static_cast<std::byte*>(mmap(nullptr, fds->header_bytes, PROT_READ, MAP_SHARED, fds->header_fd, 0));
    ASSERT_NE(payload, MAP_FAILED);
    ASSERT_NE(headers, MAP_FAILED);
    const auto* header = reinterpret_cast<const kv::BlockHeader*>(headers + place.header_offset * kv::kHeaderUnit);
    EXPECT_EQ(kv::CheckHeader(header, space_.digest.data(), KeyOf(i).bytes.data(), place.generation, kBlock),
              kv::HeaderVerdict::kOk);
    EXPECT_TRUE(testing::IsPayloadOf(KeyOf(i), {payload + place.payload_offset, kBlock}));
    munmap(payload, fds->payload_bytes);
    munmap(headers, fds->header_bytes);
    close(fds->payload_fd);
    close(fds->header_fd);
  }
}

// A client that was paused and wakes without its lease sees that the frame is no longer its block's.
TEST_F(TierStackTest, AFreedFrameSaysSo) {
  TestStack::StoreChain(session_.get(), space_, 0, 2);
  const auto answer = Lease(KeysOf(0, 2));
  testing::ArenaAccess arena(stack_.stack.get());
  const auto header = [&](uint64_t i) {
    const BlockPlace& place = answer->places[i];
    return reinterpret_cast<const kv::BlockHeader*>(arena.Find(0, place.segment_id).headers.data() +
                                                    place.header_offset * kv::kHeaderUnit);
  };
  const auto check = [&](uint64_t i) {
    return kv::CheckHeader(header(i), space_.digest.data(), KeyOf(i).bytes.data(),
                           answer->places[i].generation, kBlock);
  };
  EXPECT_EQ(stack_->Flush(&space_), 2u);
  EXPECT_EQ(check(0), kv::HeaderVerdict::kOk) << "under lease";
  EXPECT_TRUE(session_->Release(answer->lease_id).ok());
  EXPECT_EQ(check(0), kv::HeaderVerdict::kStale);
  EXPECT_EQ(check(1), kv::HeaderVerdict::kStale);
  TestStack::StoreChain(session_.get(), space_, 0, 2);
  EXPECT_EQ(check(0), kv::HeaderVerdict::kStale) << "the same block again is another generation";
}

TEST_F(TierStackTest, FirstWriterWins) {
  EXPECT_EQ(TestStack::Store(session_.get(), space_, KeyOf(1), std::nullopt, 1), Reason::kNone);
  EXPECT_EQ(TestStack::Store(session_.get(), space_, KeyOf(1), std::nullopt, 2), Reason::kDuplicate);
  const auto other = stack_->OpenSession(0);
  const auto& same = TestStack::Open(other.get(), kBlock);
  EXPECT_EQ(&same, &space_) << "equal identities are one key space, whoever opens it";
  EXPECT_EQ(TestStack::Store(other.get(), same, KeyOf(1), std::nullopt, 3), Reason::kDuplicate);
  EXPECT_TRUE(stack_.Serves(other.get(), same, KeyOf(1), 1));
  EXPECT_EQ(stack_->Stats().tiers[0].blocks, 1u);
}

TEST_F(TierStackTest, StoresThatLieAreRefused) {
  std::vector<std::byte> payload;
  const auto make = [&] { return TestStack::Request(space_, KeyOf(1), std::nullopt, &payload); };
  PutRequest request = make();
  request.checksums[1] ^= 1;
  EXPECT_EQ(TestStack::Put(session_.get(), std::move(request)), Reason::kBadChecksum);
  request = make();
  payload[99'000] ^= std::byte{1};
  EXPECT_EQ(TestStack::Put(session_.get(), std::move(request)), Reason::kBadChecksum);
  request = make();
  request.checksums.pop_back();
  EXPECT_EQ(TestStack::Put(session_.get(), std::move(request)), Reason::kBadChecksum);
  request = make();
  request.checksums.push_back(0);
  EXPECT_EQ(TestStack::Put(session_.get(), std::move(request)), Reason::kBadChecksum);
  request = make();
  request.source = request.source.subspan(1);
  EXPECT_EQ(TestStack::Put(session_.get(), std::move(request)), Reason::kBadChecksum);
  request = make();
  request.key = KeyOf(2);  // the payload and checksums of another key
  EXPECT_EQ(TestStack::Put(session_.get(), std::move(request)), Reason::kBadChecksum);
  EXPECT_EQ(stack_->Stats().tiers[0].blocks, 0u);
  EXPECT_EQ(stack_->Stats().tiers[0].used_bytes, 0u) << "refused stores leave nothing behind";
  EXPECT_EQ(stack_.Metric("terrace_store_blocks_total", "reason", "bad_checksum"), 6);
  EXPECT_EQ(TestStack::Store(session_.get(), space_, KeyOf(1)), Reason::kNone);
}

TEST_F(TierStackTest, ChainLookupStopsAtTheGap) {
  TestStack::StoreChain(session_.get(), space_, 0, 4);
  TestStack::StoreChain(session_.get(), space_, 5, 3);
  auto answer = Lease(KeysOf(0, 10));
  EXPECT_EQ(answer->n_prefix, 4u);
  EXPECT_EQ(answer->n_here, 4u);
  ASSERT_EQ(answer->places.size(), 5u);
  EXPECT_EQ(answer->places[4].reason, Reason::kCold);
  answer = Lease(KeysOf(0, 10), LookupMode::kAll);
  EXPECT_EQ(answer->n_prefix, 4u);
  EXPECT_EQ(answer->n_here, 7u);
  ASSERT_EQ(answer->places.size(), 10u);
  for (size_t i = 0; i < 10; ++i) EXPECT_EQ(answer->places[i].reason == Reason::kNone, i < 8 && i != 4);
  // Each block asked for is a hit or a miss with a reason.
  EXPECT_EQ(stack_.Metric("terrace_lookup_blocks_total"),
            stack_.Metric("terrace_hit_blocks_total") + stack_.Metric("terrace_miss_blocks_total"));
  EXPECT_EQ(stack_.Metric("terrace_miss_blocks_total", "reason", "after_miss"), 5);
}

TEST_F(TierStackTest, LeasesEndOnce) {
  TestStack::StoreChain(session_.get(), space_, 0, 3);
  const auto first = Lease(KeysOf(0, 3));
  const auto second = Lease(KeysOf(0, 3));
  EXPECT_NE(first->lease_id, second->lease_id);
  EXPECT_EQ(session_->lease_count(), 2u);
  EXPECT_EQ(stack_->Stats().leases, 2u);
  EXPECT_EQ(stack_->Stat(space_, KeyOf(0))->pins, 2u);
  EXPECT_TRUE(session_->Release(first->lease_id).ok());
  EXPECT_TRUE(absl::IsNotFound(session_->Release(first->lease_id)));
  EXPECT_EQ(stack_->Stat(space_, KeyOf(0))->pins, 1u);
  EXPECT_TRUE(absl::IsNotFound(session_->Release(0)));
  EXPECT_TRUE(absl::IsNotFound(session_->Release(~0ull)));
  const auto other = stack_->OpenSession(0);
  EXPECT_TRUE(absl::IsNotFound(other->Release(second->lease_id))) << "another session's lease";
  EXPECT_TRUE(absl::IsNotFound(other->Renew(second->lease_id)));
  EXPECT_TRUE(absl::IsNotFound(
      other->Lookup(space_.id, KeysOf(0, 1), LookupMode::kPrefix, second->lease_id).status()));
  EXPECT_EQ(stack_->Stat(space_, KeyOf(0))->pins, 1u);
  session_.reset();
  EXPECT_EQ(stack_->Stat(space_, KeyOf(0))->pins, 0u) << "a session's end gives all of it back";
  EXPECT_EQ(stack_->Stats().leases, 0u);
  EXPECT_EQ(stack_->Stats().tiers[0].pinned_bytes, 0u);
}

TEST_F(TierStackTest, ALeaseCanGrow) {
  TestStack::StoreChain(session_.get(), space_, 0, 4);
  const auto lease = Lease(KeysOf(0, 2));
  const auto more = Lease(KeysOf(2, 2), LookupMode::kPrefix, lease->lease_id);
  EXPECT_EQ(more->lease_id, lease->lease_id);
  EXPECT_EQ(session_->lease_count(), 1u);
  for (uint64_t i = 0; i < 4; ++i) EXPECT_EQ(stack_->Stat(space_, KeyOf(i))->pins, 1u);
  EXPECT_TRUE(session_->Release(lease->lease_id).ok());
  for (uint64_t i = 0; i < 4; ++i) EXPECT_EQ(stack_->Stat(space_, KeyOf(i))->pins, 0u);
}

TEST_F(TierStackTest, ALookupThatFindsNothingLeasesNothing) {
  const auto answer = Lease(KeysOf(0, 3));
  EXPECT_EQ(answer->lease_id, 0u);
  EXPECT_EQ(session_->lease_count(), 0u);
  EXPECT_TRUE(Lease({})->places.empty());
  EXPECT_TRUE(absl::IsNotFound(session_->Lookup(99, KeysOf(0, 1), LookupMode::kPrefix, 0).status()));
  EXPECT_TRUE(absl::IsNotFound(session_->Lookup(0, KeysOf(0, 1), LookupMode::kPrefix, 0).status()));
}

TEST_F(TierStackTest, ProbesAndQuestionsLeaseNothing) {
  TestStack::StoreChain(session_.get(), space_, 0, 2);
  for (const LookupMode mode : {LookupMode::kProbe, LookupMode::kAll}) {
    const auto answer = Lease(KeysOf(0, 3), mode, Session::kNoLease);
    EXPECT_EQ(answer->n_here, 2u);
    EXPECT_EQ(answer->lease_id, 0u);
    EXPECT_EQ(answer->places[0].generation, 0u) << "no place without a lease";
  }
  const double misses = stack_.Metric("terrace_miss_blocks_total");
  EXPECT_EQ(Lease(KeysOf(0, 3), LookupMode::kProbe)->lease_id, 0u);
  EXPECT_EQ(stack_.Metric("terrace_miss_blocks_total"), misses) << "who is about to store misses nothing";
  EXPECT_EQ(stack_->Stat(space_, KeyOf(0))->pins, 0u);
}

TEST_F(TierStackTest, LeasesExpireAndCanBeRenewed) {
  TestStack::StoreChain(session_.get(), space_, 0, 1);
  const auto a = Lease(KeysOf(0, 1)), b = Lease(KeysOf(0, 1));
  const int64_t age = SmallStackOptions().lease_max_age_ns;
  stack_.clock.AdvanceNs(age - 1);
  stack_->Step();
  EXPECT_EQ(session_->lease_count(), 2u);
  EXPECT_TRUE(session_->Renew(b->lease_id).ok());
  stack_.clock.AdvanceNs(1);
  stack_->Step();
  EXPECT_EQ(session_->lease_count(), 1u);
  EXPECT_TRUE(absl::IsNotFound(session_->Renew(a->lease_id)));
  EXPECT_TRUE(absl::IsNotFound(session_->Release(a->lease_id)));
  EXPECT_EQ(stack_->Stat(space_, KeyOf(0))->pins, 1u);
  stack_.clock.AdvanceNs(age);
  stack_->Step();
  EXPECT_EQ(session_->lease_count(), 0u);
  EXPECT_EQ(stack_->Stat(space_, KeyOf(0))->pins, 0u);
  EXPECT_EQ(stack_.Metric("terrace_leases_expired_total"), 2);
}

TEST_F(TierStackTest, FlushTakesOutOfSightAndLeavesLeasedBytes) {
  TestStack::StoreChain(session_.get(), space_, 0, 10);
  const auto& other = TestStack::Open(session_.get(), kBlock, "other");
  TestStack::StoreChain(session_.get(), other, 0, 5);
  const auto lease = Lease(KeysOf(0, 2));
  const auto fds = stack_->FindSegment(0, lease->places[0].segment_id);
  auto* payload = static_cast<std::byte*>(mmap(nullptr, fds->payload_bytes, PROT_READ, MAP_SHARED, fds->payload_fd, 0));
  EXPECT_EQ(stack_->Flush(&space_), 10u);
  EXPECT_EQ(TestStack::Ask(session_.get(), space_, KeyOf(0)), Reason::kFlushed);
  EXPECT_EQ(TestStack::Ask(session_.get(), space_, KeyOf(9)), Reason::kFlushed);
  EXPECT_EQ(TestStack::Ask(session_.get(), space_, KeyOf(77)), Reason::kCold);
  EXPECT_TRUE(stack_.Serves(session_.get(), other, KeyOf(4))) << "another key space is not flushed";
  EXPECT_TRUE(testing::IsPayloadOf(KeyOf(0), {payload + lease->places[0].payload_offset, kBlock}));
  // The same key again, while the old bytes are still under lease.
  EXPECT_EQ(TestStack::Store(session_.get(), space_, KeyOf(0), std::nullopt, 5), Reason::kNone);
  EXPECT_TRUE(stack_.Serves(session_.get(), space_, KeyOf(0), 5));
  EXPECT_TRUE(testing::IsPayloadOf(KeyOf(0), {payload + lease->places[0].payload_offset, kBlock}));
  std::vector<std::byte> out(kBlock);
  EXPECT_FALSE(stack_->ReadLeased(space_, KeyOf(0), lease->places[0], out).ok()) << "an old ref is not the new block";
  EXPECT_TRUE(session_->Release(lease->lease_id).ok());
  EXPECT_EQ(stack_->Flush(nullptr), 6u);
  EXPECT_EQ(stack_->Stats().tiers[0].used_bytes, 0u);
  EXPECT_EQ(space_.blocks_resident.load(), 0u);
  munmap(payload, fds->payload_bytes);
  close(fds->payload_fd);
  close(fds->header_fd);
}

TEST_F(TierStackTest, OperatorsSeeWhatIsThere) {
  TestStack::StoreChain(session_.get(), space_, 0, 3);
  const auto& other = TestStack::Open(session_.get(), 4096, "other");
  TestStack::StoreChain(session_.get(), other, 10, 2);
  const auto lease = Lease(KeysOf(0, 1));
  const auto info = stack_->Stat(space_, KeyOf(0));
  ASSERT_TRUE(info.has_value());
  EXPECT_EQ(info->key, KeyOf(0));
  EXPECT_EQ(info->key_space, &space_);
  EXPECT_EQ(info->payload_bytes, kBlock);
  EXPECT_EQ(info->generation, lease->places[0].generation);
  EXPECT_EQ(info->pins, 1u);
  EXPECT_TRUE(info->has_children);
  EXPECT_FALSE(stack_->Stat(space_, KeyOf(2))->has_children);
  EXPECT_EQ(stack_->Stat(space_, KeyOf(10)), std::nullopt);
  EXPECT_EQ(stack_->List(nullptr, 100).size(), 5u);
  EXPECT_EQ(stack_->List(nullptr, 4).size(), 4u);
  EXPECT_EQ(stack_->List(&other, 100).size(), 2u);
  EXPECT_EQ(stack_->List(nullptr, 0).size(), 0u);
  const TierStackStats stats = stack_->Stats();
  EXPECT_EQ(stats.key_spaces, 2u);
  EXPECT_EQ(stats.sessions, 1u);
  EXPECT_EQ(stats.leases, 1u);
  EXPECT_EQ(stats.tiers[0].blocks, 5u);
  EXPECT_GE(stats.tiers[0].used_bytes, 3 * kBlock + 2 * 4096);
  EXPECT_GT(stats.index_bytes, 0u);
  EXPECT_LE(stats.budget_used_bytes, stats.budget_bytes);
  const VerifyReport report = stack_->Verify();
  EXPECT_EQ(report.blocks, 5u);
  EXPECT_EQ(report.bytes, 3 * kBlock + 2 * 4096);
  EXPECT_EQ(report.corrupt, 0u);
  const std::atomic<bool> stop{true};
  EXPECT_EQ(stack_->Verify(&stop).blocks, 0u);
}

TEST_F(TierStackTest, ReportsAreCheckedNotBelieved) {
  TestStack::StoreChain(session_.get(), space_, 0, 1);
  const uint64_t generation = stack_->Stat(space_, KeyOf(0))->generation;
  EXPECT_FALSE(stack_->CheckReported(space_, KeyOf(0), generation)) << "the block is good";
  EXPECT_FALSE(stack_->CheckReported(space_, KeyOf(0), generation + 1));
  EXPECT_FALSE(stack_->CheckReported(space_, KeyOf(5), 1));
  EXPECT_TRUE(stack_.Serves(session_.get(), space_, KeyOf(0)));
}

TEST_F(TierStackTest, SegmentsAreGivenToTheirTenantOnly) {
  TestStack::StoreChain(session_.get(), space_, 0, 1);
  const auto lease = Lease(KeysOf(0, 1));
  EXPECT_TRUE(absl::IsNotFound(stack_->FindSegment(1, lease->places[0].segment_id).status()));
  EXPECT_TRUE(absl::IsNotFound(stack_->FindSegment(0, 9999).status()));
  EXPECT_TRUE(absl::IsNotFound(stack_->FindSegment(0, 0).status()));
}

TEST_F(TierStackTest, DrainRefusesStoresAndServesOn) {
  TestStack::StoreChain(session_.get(), space_, 0, 1);
  stack_->Drain();
  EXPECT_EQ(TestStack::Store(session_.get(), space_, KeyOf(1)), Reason::kCancelled);
  EXPECT_TRUE(stack_.Serves(session_.get(), space_, KeyOf(0)));
}

TEST_F(TierStackTest, SessionsMayGoWithStoresUnderWay) {
  std::vector<std::vector<std::byte>> payloads(200);
  std::atomic<int> answered{0};
  for (uint64_t i = 0; i < 200; ++i) {
    PutRequest request = TestStack::Request(space_, KeyOf(i), std::nullopt, &payloads[i]);
    request.done = [&answered](Reason) { answered.fetch_add(1); };
    session_->Put(std::move(request));
  }
  session_.reset();
  stack_->WaitForStores();
  EXPECT_EQ(answered.load(), 200) << "each store is answered exactly once";
}

TEST(TierStackLimitsTest, TooManyStoresAtOnceAreRefusedNotQueued) {
  auto options = SmallStackOptions();
  options.store_queue_depth = 4;
  options.store_threads = 1;
  TestStack stack(options);
  auto session = stack->OpenSession(0);
  const auto& space = TestStack::Open(session.get(), 1 << 20);
  std::vector<std::vector<std::byte>> payloads(40);
  std::vector<PutRequest> requests;
  std::atomic<int> outcomes[kReasonCount] = {};
  for (uint64_t i = 0; i < 40; ++i) {
    requests.push_back(TestStack::Request(space, KeyOf(i), std::nullopt, &payloads[i]));
    requests.back().done = [&outcomes](Reason reason) { outcomes[static_cast<int>(reason)].fetch_add(1); };
  }
  for (PutRequest& request : requests) session->Put(std::move(request));
  stack->WaitForStores();
  const int stored = outcomes[static_cast<int>(Reason::kNone)].load();
  const int refused = outcomes[static_cast<int>(Reason::kOverload)].load();
  EXPECT_EQ(stored + refused, 40);
  EXPECT_GE(stored, 4);
  EXPECT_GT(refused, 0);
  EXPECT_EQ(stack->Stats().tiers[0].used_bytes, static_cast<uint64_t>(stored) << 20) << "refused stores leak frames";
}

TEST(TierStackLimitsTest, LeasesPerSession) {
  auto options = SmallStackOptions();
  options.max_leases_per_session = 3;
  TestStack stack(options);
  auto session = stack->OpenSession(0);
  const auto& space = TestStack::Open(session.get(), 4096);
  TestStack::StoreChain(session.get(), space, 0, 1);
  const auto key = KeyOf(0);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(session->Lookup(space.id, {&key, 1}, LookupMode::kPrefix, 0).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(session->Lookup(space.id, {&key, 1}, LookupMode::kPrefix, 0).status()));
  EXPECT_EQ(stack->Stat(space, key)->pins, 3u);
  EXPECT_TRUE(stack->OpenSession(0)->Lookup(space.id, {&key, 1}, LookupMode::kPrefix, 0).ok());
}

TEST(TierStackLimitsTest, OnlyPartOfTheTierMayBeLeased) {
  auto options = SmallStackOptions(32 << 20);
  options.max_leased_ratio = 0.5;
  TestStack stack(options);
  auto session = stack->OpenSession(0);
  const auto& space = TestStack::Open(session.get(), 1 << 20);
  TestStack::StoreChain(session.get(), space, 0, 30);
  const auto answer = session->Lookup(space.id, KeysOf(0, 30), LookupMode::kAll, Session::kNewLease);
  const uint64_t capacity = stack->Stats().tiers[0].capacity_bytes;
  EXPECT_LE(stack->Stats().tiers[0].pinned_bytes, capacity / 2 + (1 << 20));
  EXPECT_GE(answer->n_here, capacity / 2 >> 20);
  EXPECT_LT(answer->n_here, 30u);
  for (size_t i = 0; i < 30; ++i) {
    EXPECT_EQ(answer->places[i].reason, i < answer->n_here ? Reason::kNone : Reason::kLeaseLimit);
  }
  EXPECT_TRUE(session->Release(answer->lease_id).ok());
  EXPECT_EQ(stack->Stats().tiers[0].pinned_bytes, 0u);
}

// Asking for the same block for ever must not make the daemon grow.
TEST(TierStackLimitsTest, OneBlockLeasedOverAndOver) {
  TestStack stack;
  auto session = stack->OpenSession(0);
  const auto& space = TestStack::Open(session.get(), 4096);
  TestStack::StoreChain(session.get(), space, 0, 1);
  const std::vector<kv::BlockKey> same(4096, KeyOf(0));
  auto answer = session->Lookup(space.id, same, LookupMode::kAll, Session::kNewLease);
  const uint64_t lease = answer->lease_id;
  bool refused = false;
  for (int i = 0; i < 4000 && !refused; ++i) {
    answer = session->Lookup(space.id, same, LookupMode::kAll, lease);
    ASSERT_TRUE(answer.ok());
    refused = answer->places.back().reason == Reason::kLeaseLimit;
  }
  EXPECT_TRUE(refused);
  EXPECT_TRUE(session->Release(lease).ok());
  EXPECT_TRUE(stack.Serves(session.get(), space, KeyOf(0))) << "what was released can be leased again";
}

// The usual state of a cache is full: a new engine must still be able to store.
TEST(TierStackLimitsTest, AFullTierStillHasStaging) {
  TestStack stack(SmallStackOptions(256 << 20));
  auto session = stack->OpenSession(0);
  const auto& space = TestStack::Open(session.get(), 4 << 20);
  for (uint64_t i = 0; stack.Metric("terrace_evictions_total") < 3; ++i)
    TestStack::Store(session.get(), space, KeyOf(i));
  EXPECT_TRUE(stack->ChargeStaging(4 << 20).ok());
  EXPECT_LE(stack->Stats().budget_used_bytes, stack->Stats().budget_bytes);
  const absl::Status too_much = stack->ChargeStaging(1 << 30);
  EXPECT_TRUE(absl::IsResourceExhausted(too_much));
  stack->ReleaseStaging(4 << 20);
}

TEST(TierStackTenantsTest, AreApart) {
  auto options = SmallStackOptions();
  options.tenants = {{"a"}, {"b"}};
  TestStack stack(options);
  auto a = stack->OpenSession(0), b = stack->OpenSession(1);
  const auto& of_a = TestStack::Open(a.get(), 65536);
  const auto& of_b = TestStack::Open(b.get(), 65536);
  EXPECT_NE(&of_a, &of_b);
  EXPECT_EQ(*stack->FindTenant("b"), 1);
  EXPECT_TRUE(absl::IsNotFound(stack->FindTenant("c").status()));
  EXPECT_EQ(stack->TenantName(0), "a");
  TestStack::StoreChain(a.get(), of_a, 0, 3);
  EXPECT_EQ(TestStack::Ask(b.get(), of_b, KeyOf(0)), Reason::kKeySpaceEmpty);
  EXPECT_TRUE(absl::IsNotFound(b->Lookup(of_a.id, KeysOf(0, 1), LookupMode::kPrefix, 0).status()))
      << "a key space of another tenant does not exist";
  EXPECT_EQ(stack->FindKeySpace(1, of_a.id), nullptr);
  std::vector<std::byte> payload;
  EXPECT_NE(TestStack::Put(b.get(), TestStack::Request(of_a, KeyOf(9), std::nullopt, &payload)), Reason::kNone);
  EXPECT_EQ(TestStack::Put(b.get(), TestStack::Request(of_a, KeyOf(0), std::nullopt, &payload)), Reason::kBadChecksum)
      << "nor does it tell which blocks another tenant has";
  TestStack::StoreChain(b.get(), of_b, 0, 3);
  const auto lease_a = a->Lookup(of_a.id, KeysOf(0, 3), LookupMode::kPrefix, 0);
  const auto lease_b = b->Lookup(of_b.id, KeysOf(0, 3), LookupMode::kPrefix, 0);
  std::set<uint32_t> segments_a, segments_b;
  for (const auto& place : lease_a->places) segments_a.insert(place.segment_id);
  for (const auto& place : lease_b->places) segments_b.insert(place.segment_id);
  for (const uint32_t id : segments_a) {
    EXPECT_FALSE(segments_b.contains(id));
    EXPECT_FALSE(stack->FindSegment(1, id).ok());
  }
}

TEST(TierStackOptionsTest, EachMistakeNamesItsKey) {
  const auto message = [](auto change) {
    TierStackOptions options = SmallStackOptions();
    change(&options);
    return std::string(options.Validate().message());
  };
  EXPECT_EQ(message([](auto*) {}), "");
  EXPECT_THAT(message([](auto* o) { o->budget_bytes = 0; }), ::testing::HasSubstr("host.budget"));
  EXPECT_THAT(message([](auto* o) { o->budget_bytes = o->process_bytes; }), ::testing::HasSubstr("host.budget"));
  EXPECT_THAT(message([](auto* o) { o->tenants.clear(); }), ::testing::HasSubstr("tenants"));
  EXPECT_THAT(message([](auto* o) { o->max_leased_ratio = 0; }), ::testing::HasSubstr("max_leased_ratio"));
  EXPECT_THAT(message([](auto* o) { o->max_leased_ratio = std::nan(""); }), ::testing::HasSubstr("max_leased_ratio"));
  EXPECT_THAT(message([](auto* o) { o->lease_max_age_ns = 0; }), ::testing::HasSubstr("lease_max_age"));
  EXPECT_THAT(message([](auto* o) { o->store_queue_depth = 0; }), ::testing::HasSubstr("store_queue_depth"));
  EXPECT_THAT(message([](auto* o) { o->store_threads = 1000; }), ::testing::HasSubstr("store_threads"));
  EXPECT_THAT(message([](auto* o) { o->eviction_policy = "x"; }), ::testing::HasSubstr("eviction_policy"));
}

}  // namespace
}  // namespace terrace::tiering
