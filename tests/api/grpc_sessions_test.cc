// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Sessions of the gRPC door: their limits and their end.
#include "api/server/grpc_sessions.h"

#include <gtest/gtest.h>

#include <atomic>

namespace terrace::api {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

// Time that stands still until it is moved.
class SteppedClock final : public Clock {
 public:
  int64_t NowNs() const override { return now_ns_; }
  void Advance(int64_t ns) { now_ns_ += ns; }

 private:
  std::atomic<int64_t> now_ns_{kSecond};
};

class GrpcSessionsTest : public ::testing::Test {
 protected:
  GrpcSessionsTest() {
    tiering::TierStackOptions options;
    options.tenants = {{"a"}, {"b"}};
    options.budget_bytes = 128 << 20;
    options.prefault = false;
    options.huge_pages = false;
    auto stack = tiering::TierStack::Create(options, &clock_, &metrics_);
    EXPECT_TRUE(stack.ok()) << stack.status();
    stack_ = std::move(*stack);
  }

  SteppedClock clock_;
  MetricRegistry metrics_;
  std::unique_ptr<tiering::TierStack> stack_;
  GrpcSessions::Options options_;
};

TEST_F(GrpcSessionsTest, IdsAreLongAndDiffer) {
  GrpcSessions sessions(options_, stack_.get(), &clock_);
  const auto one = sessions.Open(0, "x", 0), two = sessions.Open(0, "x", 0);
  ASSERT_TRUE(one.ok() && two.ok());
  EXPECT_EQ(one->id.size(), 32u);
  EXPECT_NE(one->id, two->id);
  EXPECT_EQ(one->ttl_ns, 60 * kSecond);
}

TEST_F(GrpcSessionsTest, UseKeepsASessionAliveAndSilenceEndsIt) {
  GrpcSessions sessions(options_, stack_.get(), &clock_);
  const std::string id = sessions.Open(0, "x", 10 * kSecond)->id;
  for (int i = 0; i < 5; ++i) {
    clock_.Advance(9 * kSecond);
    sessions.Sweep();
    EXPECT_TRUE(sessions.Find(id).ok());
  }
  EXPECT_EQ(stack_->Stats().sessions, 1u);
  clock_.Advance(10 * kSecond + 1);
  EXPECT_TRUE(absl::IsNotFound(sessions.Find(id).status()));  // before any sweep
  EXPECT_EQ(stack_->Stats().sessions, 1u);
  sessions.Sweep();
  EXPECT_EQ(stack_->Stats().sessions, 0u);  // and with it its leases
  EXPECT_TRUE(absl::IsNotFound(sessions.Close(id)));
}

TEST_F(GrpcSessionsTest, TtlHasBounds) {
  GrpcSessions sessions(options_, stack_.get(), &clock_);
  EXPECT_TRUE(absl::IsInvalidArgument(sessions.Open(0, "x", kSecond - 1).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(sessions.Open(0, "x", 3600 * kSecond + 1).status()));
  EXPECT_TRUE(sessions.Open(0, "x", kSecond).ok());
  EXPECT_TRUE(sessions.Open(0, "x", 3600 * kSecond).ok());
}

TEST_F(GrpcSessionsTest, SessionsAreLimitedInAllAndPerTenant) {
  options_.sessions_max = 5;
  options_.sessions_per_tenant_max = 3;
  GrpcSessions sessions(options_, stack_.get(), &clock_);
  std::string last;
  for (int i = 0; i < 3; ++i) last = sessions.Open(0, "x", 0)->id;
  EXPECT_TRUE(absl::IsResourceExhausted(sessions.Open(0, "x", 0).status()));
  EXPECT_TRUE(sessions.Open(1, "x", 0).ok());
  EXPECT_TRUE(sessions.Open(1, "x", 0).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(sessions.Open(1, "x", 0).status()));
  EXPECT_TRUE(sessions.Close(last).ok());
  EXPECT_TRUE(sessions.Open(0, "x", 0).ok());
  clock_.Advance(3600 * kSecond);
  sessions.Sweep();  // expiry gives the places back too
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(sessions.Open(1, "x", 0).ok());
}

TEST_F(GrpcSessionsTest, StreamsEndWithTheirSession) {
  GrpcSessions sessions(options_, stack_.get(), &clock_);
  const std::string id = sessions.Open(0, "x", 0)->id;
  int cancelled = 0;
  {
    const auto session = *sessions.Find(id);
    auto stream = sessions.BeginStream(session, [&] { ++cancelled; });
    ASSERT_TRUE(stream.ok());
    EXPECT_EQ(sessions.List().at(0).streams, 1u);
    EXPECT_TRUE(sessions.Close(id).ok());
    EXPECT_EQ(cancelled, 1);
    EXPECT_TRUE(absl::IsNotFound(sessions.BeginStream(session, [] {}).status()));
    EXPECT_EQ(stack_->Stats().sessions, 1u);  // the call has not returned yet
  }
  EXPECT_EQ(stack_->Stats().sessions, 0u);
}

TEST_F(GrpcSessionsTest, StalledStreamsAreCancelledAndMovingOnesKeepTheSession) {
  GrpcSessions sessions(options_, stack_.get(), &clock_);
  const auto session = *sessions.Find(sessions.Open(0, "x", 40 * kSecond)->id);
  int moving_cancelled = 0, stalled_cancelled = 0, nameless_cancelled = 0;
  auto moving = sessions.BeginStream(session, [&] { ++moving_cancelled; });
  auto stalled = sessions.BeginStream(session, [&] { ++stalled_cancelled; });
  auto nameless = sessions.BeginNamelessStream([&] { ++nameless_cancelled; });
  ASSERT_TRUE(moving.ok() && stalled.ok() && nameless.ok());
  for (int i = 0; i < 3; ++i) {
    clock_.Advance(25 * kSecond);
    moving->Progress();
    sessions.Sweep();
  }
  EXPECT_EQ(moving_cancelled, 0);
  EXPECT_GE(stalled_cancelled, 1);
  EXPECT_GE(nameless_cancelled, 1);
  EXPECT_EQ(sessions.List().size(), 1u);
}

TEST_F(GrpcSessionsTest, StreamsAreLimited) {
  options_.streams_max = 2;
  GrpcSessions sessions(options_, stack_.get(), &clock_);
  const auto session = *sessions.Find(sessions.Open(0, "x", 0)->id);
  {
    auto one = sessions.BeginStream(session, [] {});
    auto two = sessions.BeginNamelessStream([] {});
    ASSERT_TRUE(one.ok() && two.ok());
    EXPECT_TRUE(absl::IsResourceExhausted(sessions.BeginStream(session, [] {}).status()));
  }
  EXPECT_TRUE(sessions.BeginStream(session, [] {}).ok());
}

TEST_F(GrpcSessionsTest, KeySpacesBelongToTheSessionThatOpenedThem) {
  GrpcSessions sessions(options_, stack_.get(), &clock_);
  const auto one = *sessions.Find(sessions.Open(0, "x", 0)->id);
  const auto two = *sessions.Find(sessions.Open(0, "x", 0)->id);
  kv::KeySpaceIdentity identity;
  identity.block_bytes = 4096;
  const auto key_space = one->OpenKeySpace(identity);
  ASSERT_TRUE(key_space.ok());
  EXPECT_EQ(*one->FindKeySpace((*key_space)->id), *key_space);
  EXPECT_TRUE(absl::IsNotFound(two->FindKeySpace((*key_space)->id).status()));
  EXPECT_EQ(*two->OpenKeySpace(identity), *key_space);  // the same one
}

TEST_F(GrpcSessionsTest, NothingOpensAfterCloseAll) {
  GrpcSessions sessions(options_, stack_.get(), &clock_);
  const std::string id = sessions.Open(0, "x", 0)->id;
  sessions.CloseAll();
  EXPECT_TRUE(absl::IsNotFound(sessions.Find(id).status()));
  EXPECT_TRUE(absl::IsUnavailable(sessions.Open(0, "x", 0).status()));
  EXPECT_TRUE(absl::IsNotFound(sessions.BeginNamelessStream([] {}).status()));
}

}  // namespace
}  // namespace terrace::api
