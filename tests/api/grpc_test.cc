// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// CacheService as a client sees it: what is stored comes back, what is wrong is refused.
#include <thread>

#include "api/grpc_fixture.h"

namespace terrace::api {
namespace {

using Stub = v1::CacheService::Stub;

v1::GetRequest GetOf(const std::string& session, uint32_t key_space,
                     const std::vector<std::string>& keys, uint64_t lease = 0) {
  v1::GetRequest request;
  request.set_session_id(session);
  request.set_key_space_id(key_space);
  for (const std::string& key : keys) request.add_keys(key);
  request.set_lease_id(lease);
  return request;
}

TEST_F(GrpcTest, WhatIsStoredComesBack) {
  StartServer();
  const std::string session = OpenSession();
  const uint32_t key_space = OpenKeySpace(session);
  EXPECT_EQ(PutChain(session, key_space, 1, 3), (std::vector<int>{0, 0, 0}));
  EXPECT_EQ(PutChain(session, key_space, 1, 3),
            (std::vector<int>(3, v1::REASON_DUPLICATE)));  // one copy, whoever stored it

  // Another client sees them by key space and key alone.
  Connect();
  const std::string reader = OpenSession();
  const uint32_t same = OpenKeySpace(reader);
  const std::vector<std::string> keys = {KeyOf(1, 0), KeyOf(1, 1), KeyOf(1, 2), KeyOf(1, 3)};
  const v1::LookupResponse found = Lookup(reader, same, keys, v1::LOOKUP_MODE_PREFIX, true);
  EXPECT_EQ(found.n_prefix(), 3u);
  EXPECT_EQ(found.n_here(), 3u);
  EXPECT_NE(found.lease_id(), 0u);
  EXPECT_EQ(std::vector<int>(found.reasons().begin(), found.reasons().end()),
            (std::vector<int>{0, 0, 0, v1::REASON_COLD}));
  const Got got = Get(GetOf(reader, same, keys, found.lease_id()));
  ASSERT_TRUE(got.status.ok()) << got.status.error_message();
  EXPECT_EQ(got.reasons, (std::vector<int>{0, 0, 0, v1::REASON_COLD}));
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(got.payloads[i], PayloadOf(keys[i], kBlockBytes)) << i;
  EXPECT_FALSE(got.payloads[3].has_value());
}

TEST_F(GrpcTest, LeasesEndOnceAndBelongToTheirSession) {
  StartServer();
  const std::string session = OpenSession(), stranger = OpenSession();
  const uint32_t key_space = OpenKeySpace(session);
  PutChain(session, key_space, 1, 2);
  const uint64_t lease =
      Lookup(session, key_space, {KeyOf(1, 0)}, v1::LOOKUP_MODE_UNSPECIFIED, true).lease_id();
  const auto release = [&](const std::string& who, uint64_t id) {
    v1::ReleaseRequest request;
    request.set_session_id(who);
    request.set_lease_id(id);
    v1::ReleaseResponse response;
    return Call(*cache_, &Stub::Release, request, &response).error_code();
  };
  const auto renew = [&](uint64_t id) {
    v1::RenewRequest request;
    request.set_session_id(session);
    request.set_lease_id(id);
    v1::RenewResponse response;
    return Call(*cache_, &Stub::Renew, request, &response).error_code();
  };
  EXPECT_EQ(AdminStatus().lease_count(), 1u);
  EXPECT_EQ(renew(lease), grpc::StatusCode::OK);
  EXPECT_EQ(release(stranger, lease), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(release(session, lease + 1), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(release(session, lease), grpc::StatusCode::OK);
  EXPECT_EQ(release(session, lease), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(renew(lease), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Get(GetOf(session, key_space, {KeyOf(1, 0)}, lease)).status.error_code(),
            grpc::StatusCode::NOT_FOUND);

  Lookup(session, key_space, {KeyOf(1, 0), KeyOf(1, 1)}, v1::LOOKUP_MODE_ALL, true);
  EXPECT_EQ(AdminStatus().lease_count(), 1u);
  v1::CloseSessionRequest close;
  close.set_session_id(session);
  v1::CloseSessionResponse closed;
  EXPECT_TRUE(Call(*cache_, &Stub::CloseSession, close, &closed).ok());
  EXPECT_EQ(AdminStatus().lease_count(), 0u);
  EXPECT_EQ(Call(*cache_, &Stub::CloseSession, close, &closed).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(GrpcTest, LookupSaysWhy) {
  StartServer();
  const std::string session = OpenSession();
  const uint32_t key_space = OpenKeySpace(session);
  const std::vector<std::string> keys = {KeyOf(1, 0), KeyOf(9, 9), KeyOf(1, 1)};
  v1::LookupResponse found = Lookup(session, key_space, keys, v1::LOOKUP_MODE_PREFIX, true);
  EXPECT_EQ(found.n_prefix(), 0u);
  EXPECT_EQ(found.lease_id(), 0u);
  EXPECT_EQ(found.reasons(0), v1::REASON_KEY_SPACE_EMPTY);
  EXPECT_EQ(found.reasons(2), v1::REASON_AFTER_MISS);
  PutChain(session, key_space, 1, 2);
  found = Lookup(session, key_space, keys, v1::LOOKUP_MODE_PREFIX, false);
  EXPECT_EQ(found.lease_id(), 0u);
  EXPECT_EQ(std::vector<int>(found.reasons().begin(), found.reasons().end()),
            (std::vector<int>{0, v1::REASON_COLD, v1::REASON_AFTER_MISS}));
  found = Lookup(session, key_space, keys, v1::LOOKUP_MODE_ALL, false);
  EXPECT_EQ(found.n_here(), 2u);
  EXPECT_EQ(std::vector<int>(found.reasons().begin(), found.reasons().end()),
            (std::vector<int>{0, v1::REASON_COLD, 0}));

  v1::StatRequest stat;
  stat.set_session_id(session);
  stat.set_key_space_id(key_space);
  stat.set_key(keys[0]);
  v1::StatResponse info;
  EXPECT_TRUE(Call(*cache_, &Stub::Stat, stat, &info).ok());
  EXPECT_EQ(info.reason(), v1::REASON_NONE);
  EXPECT_EQ(info.payload_bytes(), kBlockBytes);
  EXPECT_EQ(info.tier(), "host");
  stat.set_key(keys[1]);
  EXPECT_TRUE(Call(*cache_, &Stub::Stat, stat, &info).ok());
  EXPECT_EQ(info.reason(), v1::REASON_COLD);
}

TEST_F(GrpcTest, DamagedBytesAreNeverVisible) {
  StartServer();
  const std::string session = OpenSession();
  const uint32_t key_space = OpenKeySpace(session);
  const std::string key = KeyOf(1, 0), payload = PayloadOf(key, kBlockBytes);
  // 0: the whole block's checksum; 1: a chunk's; 2: a flipped bit; 3: both agree on other bytes.
  for (int damage = 0; damage < 4; ++damage) {
    std::vector<v1::PutRequest> messages = BlockMessages(key, "", payload);
    if (damage == 0) messages[0].mutable_block()->set_checksum(1);
    if (damage == 1) messages[2].mutable_chunk()->set_checksum(1);
    if (damage >= 2) (*messages[2].mutable_chunk()->mutable_data())[7] ^= 1;
    if (damage == 3) messages[2].mutable_chunk()->set_checksum(Xxh3(messages[2].chunk().data()));
    messages.insert(messages.begin(), StartMessage(session, key_space));
    // A good block behind a bad one is stored all the same.
    const std::string next = KeyOf(2, static_cast<uint64_t>(damage));
    for (auto& message : BlockMessages(next, "", PayloadOf(next, kBlockBytes))) {
      messages.push_back(std::move(message));
    }
    std::vector<int> reasons;
    EXPECT_TRUE(Put(messages, &reasons).ok());
    EXPECT_EQ(reasons, (std::vector<int>{v1::REASON_BAD_CHECKSUM, 0})) << damage;
    const v1::LookupResponse found = Lookup(session, key_space, {key}, v1::LOOKUP_MODE_ALL, false);
    EXPECT_EQ(found.n_here(), 0u) << damage;
  }
  uint64_t counted = 0;
  const v1::GetStatusResponse status = AdminStatus();
  for (const auto& entry : status.counters().store_reasons()) {
    if (entry.reason() == v1::REASON_BAD_CHECKSUM) counted = entry.count();
  }
  EXPECT_EQ(counted, 4u);
}

TEST_F(GrpcTest, OneWholePayloadWinsAmongMany) {
  StartServer();
  const std::string session = OpenSession();
  const uint32_t key_space = OpenKeySpace(session);
  const std::string key = KeyOf(1, 0);
  std::vector<int> outcomes(16, -1);
  std::vector<std::thread> writers;
  for (uint64_t i = 0; i < 16; ++i) {
    writers.emplace_back([&, i] {
      std::vector<v1::PutRequest> messages = BlockMessages(key, "", PayloadOf(key, kBlockBytes, i));
      messages.insert(messages.begin(), StartMessage(session, key_space));
      std::vector<int> reasons;
      if (Put(messages, &reasons).ok() && reasons.size() == 1) outcomes[i] = reasons[0];
    });
  }
  for (std::thread& writer : writers) writer.join();
  uint64_t winner = 16, winners = 0;
  for (uint64_t i = 0; i < 16; ++i) {
    if (outcomes[i] == 0) winner = i, ++winners;
    EXPECT_TRUE(outcomes[i] == 0 || outcomes[i] == v1::REASON_DUPLICATE) << outcomes[i];
  }
  ASSERT_EQ(winners, 1u);
  const Got got = Get(GetOf(session, key_space, {key}));
  ASSERT_TRUE(got.status.ok());
  EXPECT_EQ(got.payloads.at(0), PayloadOf(key, kBlockBytes, winner));
}

TEST_F(GrpcTest, PutStreamsOutOfOrderAreRefused) {
  StartServer();
  const std::string session = OpenSession();
  const uint32_t key_space = OpenKeySpace(session);
  const std::string key = KeyOf(1, 0);
  const v1::PutRequest start = StartMessage(session, key_space);
  const auto block = BlockMessages(key, "", PayloadOf(key, kBlockBytes));
  const auto changed = [](v1::PutRequest message, auto change) {
    change(message);
    return message;
  };
  const std::vector<std::pair<const char*, std::vector<v1::PutRequest>>> bad = {
      {"no start", {block[0]}},
      {"nothing", {}},
      {"two starts", {start, start}},
      {"empty message", {start, v1::PutRequest()}},
      {"chunk first", {start, block[1]}},
      {"gap", {start, block[0], block[2]}},
      {"again", {start, block[0], block[1], block[1]}},
      {"cut off", {start, block[0], block[1]}},
      {"block in block", {start, block[0], block[1], block[0]}},
      {"short key",
       {start, changed(block[0], [](auto& m) { m.mutable_block()->set_key("short"); })}},
      {"short parent",
       {start, changed(block[0], [](auto& m) { m.mutable_block()->set_parent("short"); })}},
      {"empty chunk",
       {start, block[0], changed(block[1], [](auto& m) { m.mutable_chunk()->set_data(""); })}},
      {"large chunk",
       {start, block[0],
        changed(block[1], [](auto& m) { m.mutable_chunk()->mutable_data()->append("x"); })}},
      {"beyond the end",
       {start, block[0], block[1], block[2],
        changed(block[3], [](auto& m) { m.mutable_chunk()->mutable_data()->append("x"); })}},
  };
  std::vector<int> reasons;
  for (const auto& [name, messages] : bad) {
    EXPECT_EQ(Put(messages, &reasons).error_code(), grpc::StatusCode::INVALID_ARGUMENT) << name;
  }
  for (const uint64_t bytes :
       {uint64_t{0}, kBlockBytes - 1, uint64_t{1} << 31, uint64_t{1} << 63, ~uint64_t{0}}) {
    const auto wrong =
        changed(block[0], [&](auto& m) { m.mutable_block()->set_payload_bytes(bytes); });
    EXPECT_EQ(Put({start, wrong}, &reasons).error_code(), grpc::StatusCode::INVALID_ARGUMENT)
        << bytes;
  }
  EXPECT_EQ(Lookup(session, key_space, {key}, v1::LOOKUP_MODE_ALL, false).n_here(), 0u);
}

TEST_F(GrpcTest, WrongArgumentsAreRefusedWithAText) {
  StartServer();
  const std::string session = OpenSession();
  const uint32_t key_space = OpenKeySpace(session);
  const auto lookup = [&](const std::string& who, uint32_t where,
                          const std::vector<std::string>& keys, int mode = 0) {
    v1::LookupRequest request;
    request.set_session_id(who);
    request.set_key_space_id(where);
    for (const std::string& key : keys) request.add_keys(key);
    request.set_mode(static_cast<v1::LookupMode>(mode));
    v1::LookupResponse response;
    const grpc::Status status = Call(*cache_, &Stub::Lookup, request, &response);
    EXPECT_FALSE(status.error_message().empty());
    return status.error_code();
  };
  EXPECT_EQ(lookup("", key_space, {KeyOf(1, 0)}), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(lookup(std::string(32, '0'), key_space, {KeyOf(1, 0)}), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(lookup(session, 0, {KeyOf(1, 0)}), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(lookup(session, key_space + 1, {KeyOf(1, 0)}), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(lookup(session, key_space, {}), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(lookup(session, key_space, {"short"}), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(lookup(session, key_space, std::vector<std::string>(65537, KeyOf(1, 0))),
            grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(lookup(session, key_space, {KeyOf(1, 0)}, 17), grpc::StatusCode::INVALID_ARGUMENT);
  // The other tenant's session does not know this one's key space, opened or not.
  v1::OpenSessionRequest open;
  open.set_tenant("other");
  v1::OpenSessionResponse opened;
  EXPECT_EQ(Call(*cache_, &Stub::OpenSession, open, &opened).error_code(),
            grpc::StatusCode::PERMISSION_DENIED);
  open.set_token("secret");
  ASSERT_TRUE(Call(*cache_, &Stub::OpenSession, open, &opened).ok());
  EXPECT_EQ(lookup(opened.session_id(), key_space, {KeyOf(1, 0)}), grpc::StatusCode::NOT_FOUND);
  for (const int64_t ttl : {int64_t{0}, int64_t{-1}, int64_t{3601}, INT64_MAX}) {
    open.mutable_ttl()->set_seconds(ttl);
    EXPECT_EQ(Call(*cache_, &Stub::OpenSession, open, &opened).error_code(),
              grpc::StatusCode::INVALID_ARGUMENT)
        << ttl;
  }
  v1::OpenKeySpaceRequest key_space_request;
  key_space_request.set_session_id(session);
  v1::OpenKeySpaceResponse key_space_response;
  for (const uint64_t bytes :
       {uint64_t{0}, (uint64_t{1} << 30) + 1, uint64_t{1} << 63, ~uint64_t{0}}) {
    key_space_request.mutable_identity()->set_block_bytes(bytes);
    EXPECT_EQ(
        Call(*cache_, &Stub::OpenKeySpace, key_space_request, &key_space_response).error_code(),
        grpc::StatusCode::INVALID_ARGUMENT)
        << bytes;
  }
}

TEST_F(GrpcTest, AStalledStreamIsCancelledAndGivesItsMemoryBack) {
  options_.sessions.stall_ns = 100'000'000;
  StartServer();
  const std::string session = OpenSession();
  const uint32_t key_space = OpenKeySpace(session);
  const uint64_t before = stack_->Stats().budget_used_bytes;
  const auto block = BlockMessages(KeyOf(1, 0), "", PayloadOf(KeyOf(1, 0), kBlockBytes));
  grpc::ClientContext named_call, nameless_call;
  v1::PutResponse response;
  const auto named = cache_->Put(&named_call, &response);
  const auto nameless = cache_->Put(&nameless_call, &response);  // never says who it is
  EXPECT_TRUE(named->Write(StartMessage(session, key_space)));
  EXPECT_TRUE(named->Write(block[0]));
  EXPECT_TRUE(named->Write(block[1]));
  EXPECT_EQ(named->Finish().error_code(), grpc::StatusCode::CANCELLED);  // waits for the server
  EXPECT_EQ(nameless->Finish().error_code(), grpc::StatusCode::CANCELLED);
  server_->Shutdown(0);  // the call has returned
  EXPECT_EQ(stack_->Stats().budget_used_bytes, before);
}

TEST_F(GrpcTest, StreamsBeyondTheBudgetAreRefused) {
  StartServer();
  const std::string session = OpenSession();
  const uint32_t key_space = OpenKeySpace(session, 1 << 30);  // a block larger than all memory
  std::vector<int> reasons;
  EXPECT_EQ(Put({StartMessage(session, key_space)}, &reasons).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(Get(GetOf(session, key_space, {KeyOf(1, 0)})).status.error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
}

}  // namespace
}  // namespace terrace::api
