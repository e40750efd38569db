// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Lower tiers, hints and block classes over gRPC.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "api/grpc_fixture.h"
#include "testing/slow_disk.h"

namespace terrace::api {
namespace {

constexpr uint64_t kBlock = 256 << 10;
constexpr uint64_t kChain = 8, kChains = 50;

struct DiskHolder {
  testing::SlowDisk disk_;  // outlives the fixture's core
};

class GrpcPendingTest : protected DiskHolder, public GrpcTest {
 protected:
  GrpcPendingTest()
      : GrpcTest([this](tiering::TierStackOptions* options) {
          disk_.PutUnder(options, 64 << 20);
          options->nvme.read_deadline_ns = 10'000'000'000;
        }) {}
  void SetUp() override {
    StartServer();
    steps_ = std::thread([this] {
      while (!stopping_.load()) {
        stack_->Step();
        std::this_thread::sleep_for(std::chrono::milliseconds(5));  // tidy: sleep: as the daemon's thread
      }
    });
    session_ = OpenSession();
    space_ = OpenKeySpace(session_, kBlock);
    for (uint64_t chain = 0; chain < kChains; ++chain) {
      for (const int reason : PutChain(session_, space_, chain, kChain, kBlock)) ASSERT_EQ(reason, v1::REASON_NONE);
      ASSERT_TRUE(testing::WaitForRoom(stack_.get()));
    }
    for (uint64_t chain = 0; chain < kChains; ++chain) {
      const auto keys = Keys(chain);
      if (std::all_of(keys.begin(), keys.end(), [&](const std::string& key) { return Tier(key) == "nvme"; })) {
        on_disk_.push_back(chain);
      }
    }
    ASSERT_GE(on_disk_.size(), 2u);
  }
  void TearDown() override {
    disk_.Release();
    stopping_ = true;
    if (steps_.joinable()) steps_.join();
    server_.reset();
    stack_.reset();  // before its disk
  }

  static std::vector<std::string> Keys(uint64_t chain) {
    std::vector<std::string> keys;
    for (uint64_t i = 0; i < kChain; ++i) keys.push_back(KeyOf(chain, i));
    return keys;
  }
  std::string Tier(const std::string& key) {
    v1::StatRequest request;
    request.set_session_id(session_);
    request.set_key_space_id(space_);
    request.set_key(key);
    v1::StatResponse response;
    EXPECT_TRUE(Call(*cache_, &v1::CacheService::Stub::Stat, request, &response).ok());
    return response.tier();
  }
  v1::LookupResponse LookupMayWait(uint64_t chain, uint32_t recompute_ns_per_token = 0) {
    v1::LookupRequest request;
    request.set_session_id(session_);
    request.set_key_space_id(space_);
    for (const std::string& key : Keys(chain)) request.add_keys(key);
    request.set_lease(true);
    request.set_may_wait(true);
    request.set_recompute_ns_per_token(recompute_ns_per_token);
    v1::LookupResponse response;
    const grpc::Status status = Call(*cache_, &v1::CacheService::Stub::Lookup, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  v1::GetRequest GetOf(uint64_t chain) {
    v1::GetRequest request;
    request.set_session_id(session_);
    request.set_key_space_id(space_);
    for (const std::string& key : Keys(chain)) request.add_keys(key);
    return request;
  }
  void ExpectRight(uint64_t chain, const Got& got) {
    EXPECT_TRUE(got.status.ok()) << got.status.error_message();
    ASSERT_EQ(got.reasons.size(), kChain);
    for (uint64_t i = 0; i < kChain; ++i) {
      EXPECT_EQ(got.reasons[i], v1::REASON_NONE);
      EXPECT_TRUE(got.payloads[i] == PayloadOf(KeyOf(chain, i), kBlock)) << i;
    }
  }
  grpc::Status Hint(const std::vector<std::string>& keys, const v1::Retention& retention, uint32_t* n_taken) {
    v1::HintRequest request;
    request.set_session_id(session_);
    request.set_key_space_id(space_);
    for (const std::string& key : keys) request.add_keys(key);
    *request.mutable_retention() = retention;
    v1::HintResponse response;
    const grpc::Status status = Call(*cache_, &v1::CacheService::Stub::Hint, request, &response);
    *n_taken = response.n_taken();
    return status;
  }

  std::atomic<bool> stopping_{false};
  std::thread steps_;
  std::string session_;
  uint32_t space_ = 0;
  std::vector<uint64_t> on_disk_;
};

TEST_F(GrpcPendingTest, GetWaitsForBlocksOfTheDisk) {
  disk_.DelayReads(20'000'000);
  const v1::LookupResponse found = LookupMayWait(on_disk_[0]);
  EXPECT_EQ(found.n_prefix(), kChain);
  EXPECT_EQ(found.n_here(), kChain);
  EXPECT_EQ(found.n_pending(), kChain);
  EXPECT_NE(found.lease_id(), 0u);
  for (const int reason : found.reasons()) EXPECT_EQ(reason, v1::REASON_PENDING);
  ExpectRight(on_disk_[0], Get(GetOf(on_disk_[0])));
  // And without a lookup before it.
  EXPECT_EQ(Tier(KeyOf(on_disk_[1], 0)), "nvme");
  ExpectRight(on_disk_[1], Get(GetOf(on_disk_[1])));
  EXPECT_GT(disk_.Fired(), 0u);
}

TEST_F(GrpcPendingTest, WithoutMayWaitTheyAreMisses) {
  const v1::LookupResponse found =
      Lookup(session_, space_, Keys(on_disk_[0]), v1::LOOKUP_MODE_PREFIX, /*lease=*/true);
  EXPECT_EQ(found.n_here(), 0u);
  EXPECT_EQ(found.n_pending(), 0u);
  EXPECT_EQ(found.reasons(0), v1::REASON_PENDING);
  EXPECT_EQ(Tier(KeyOf(on_disk_[0], 0)), "nvme");
}

TEST_F(GrpcPendingTest, GetEndsWithItsCall) {
  disk_.HangReads();
  grpc::ClientContext call;
  call.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
  const auto began = std::chrono::steady_clock::now();
  const auto reader = cache_->Get(&call, GetOf(on_disk_[0]));
  v1::GetResponse message;
  while (reader->Read(&message)) {
    ASSERT_TRUE(message.has_block_end());
    EXPECT_EQ(message.block_end().reason(), v1::REASON_DEADLINE);
  }
  // Whichever of the two ends notices first.
  const grpc::Status status = reader->Finish();
  EXPECT_TRUE(status.ok() || status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) << status.error_message();
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(10));
  // The daemon has noticed as well: nothing of the call is left, though the disk still hangs.
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (stack_->Stats().leases != 0 && std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // poll
  }
  EXPECT_EQ(stack_->Stats().leases, 0u);
}

TEST_F(GrpcPendingTest, ReadsThatFailGiveTheirReason) {
  disk_.FailReads();
  const Got got = Get(GetOf(on_disk_[0]));
  EXPECT_TRUE(got.status.ok());
  ASSERT_EQ(got.reasons.size(), kChain);
  EXPECT_EQ(got.reasons[0], v1::REASON_IO_ERROR);
  for (const auto& payload : got.payloads) EXPECT_FALSE(payload.has_value());
}

TEST_F(GrpcPendingTest, HintsReachWhatIsHere) {
  v1::Retention retention;
  retention.set_priority(1000);  // counts as 7
  retention.mutable_pin()->set_seconds(7200);
  retention.mutable_reuse_after()->set_nanos(1);
  uint32_t n_taken = 0;
  std::vector<std::string> keys = Keys(kChains - 1);
  keys.push_back(KeyOf(999'999, 0));
  EXPECT_TRUE(Hint(keys, retention, &n_taken).ok());
  EXPECT_EQ(n_taken, kChain);
  EXPECT_EQ(Hint({}, retention, &n_taken).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Hint({"short"}, retention, &n_taken).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  retention.mutable_pin()->set_seconds(-1);
  EXPECT_EQ(Hint(keys, retention, &n_taken).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  // In a Put as well.
  const std::string key = KeyOf(12'345, 0), payload = PayloadOf(key, kBlock);
  std::vector<v1::PutRequest> messages = {StartMessage(session_, space_)};
  for (auto& message : BlockMessages(key, "", payload)) messages.push_back(std::move(message));
  *messages[1].mutable_block()->mutable_retention() = retention;
  std::vector<int> reasons;
  EXPECT_EQ(Put(messages, &reasons).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  messages[1].mutable_block()->mutable_retention()->mutable_pin()->set_seconds(60);
  EXPECT_TRUE(Put(messages, &reasons).ok());
  EXPECT_EQ(reasons, std::vector<int>{v1::REASON_NONE});
}

TEST_F(GrpcPendingTest, ClassesAreKeySpacesOfTheirOwn) {
  v1::OpenKeySpaceRequest request;
  request.set_session_id(session_);
  request.mutable_identity()->set_model("model");
  request.mutable_identity()->set_block_bytes(kBlock);
  std::vector<std::string> digests;
  for (const v1::BlockClass block_class : {v1::BLOCK_CLASS_UNSPECIFIED, v1::BLOCK_CLASS_KV, v1::BLOCK_CLASS_SHARD}) {
    request.mutable_identity()->set_block_class(block_class);
    v1::OpenKeySpaceResponse response;
    EXPECT_TRUE(Call(*cache_, &v1::CacheService::Stub::OpenKeySpace, request, &response).ok());
    digests.push_back(response.digest());
  }
  EXPECT_EQ(digests[0], digests[1]);
  EXPECT_NE(digests[1], digests[2]);
  request.mutable_identity()->set_block_class(static_cast<v1::BlockClass>(3));
  v1::OpenKeySpaceResponse response;
  EXPECT_EQ(Call(*cache_, &v1::CacheService::Stub::OpenKeySpace, request, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

}  // namespace
}  // namespace terrace::api
