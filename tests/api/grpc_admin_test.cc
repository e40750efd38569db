// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// AdminService, and the doors themselves: who may come in, by which socket, and what is served
// there.
#include <grpcpp/impl/codegen/client_unary_call.h>
#include <grpcpp/impl/codegen/rpc_method.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "api/grpc_fixture.h"
#include "api/server/admin_service.h"
#include "testing/region_fixture.h"

namespace terrace::api {
namespace {

using Stub = v1::AdminService::Stub;

// A call of a service we have no stubs of, in plain bytes.
grpc::Status RawCall(const std::shared_ptr<grpc::Channel>& channel, const char* method,
                     const std::string& request, std::string* response) {
  grpc::ClientContext call;
  call.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  grpc::Slice slice(request);
  const grpc::ByteBuffer in(&slice, 1);
  grpc::ByteBuffer out;
  const grpc::internal::RpcMethod rpc(method, grpc::internal::RpcMethod::NORMAL_RPC);
  const grpc::Status status = grpc::internal::BlockingUnaryCall<grpc::ByteBuffer, grpc::ByteBuffer>(
      channel.get(), rpc, &call, in, &out);
  std::vector<grpc::Slice> slices;
  if (status.ok() && out.Dump(&slices).ok()) {
    for (const grpc::Slice& part : slices) {
      response->append(reinterpret_cast<const char*>(part.begin()), part.size());
    }
  }
  return status;
}

TEST_F(GrpcTest, StatusAndListings) {
  StartServer();
  const std::string session = OpenSession();
  const uint32_t key_space = OpenKeySpace(session, 64 << 10);
  PutChain(session, key_space, 1, 5, 64 << 10);
  Lookup(session, key_space, {KeyOf(1, 0), KeyOf(1, 1), KeyOf(7, 7)}, v1::LOOKUP_MODE_PREFIX, true);

  const v1::GetStatusResponse status = AdminStatus();
  EXPECT_EQ(status.version(), "1.2.3");
  EXPECT_EQ(status.epoch(), 0xabcdef0123456789u);
  EXPECT_EQ(status.pid(), static_cast<uint32_t>(getpid()));
  EXPECT_GT(status.uptime().nanos() + status.uptime().seconds(), 0);
  EXPECT_EQ(status.budget_bytes(), 256u << 20);
  ASSERT_EQ(status.tiers_size(), 1);
  EXPECT_EQ(status.tiers(0).tier(), "host");
  EXPECT_EQ(status.tiers(0).block_count(), 5u);
  EXPECT_EQ(status.lease_count(), 1u);
  EXPECT_EQ(status.key_space_count(), 1u);
  ASSERT_EQ(status.engine_connections_size(), 1);
  EXPECT_EQ(status.engine_connections(0).pid(), 7u);
  ASSERT_EQ(status.grpc_sessions_size(), 1);
  EXPECT_EQ(status.grpc_sessions(0).client_name(), "test");
  EXPECT_EQ(status.grpc_sessions(0).tenant(), "default");
  EXPECT_EQ(status.grpc_sessions(0).lease_count(), 1u);
  EXPECT_EQ(status.counters().lookups(), 1u);
  EXPECT_EQ(status.counters().lookup_blocks(), 3u);
  EXPECT_EQ(status.counters().hit_blocks(), 2u);
  EXPECT_EQ(status.counters().stored_blocks(), 5u);
  EXPECT_EQ(status.counters().stored_bytes(), 5u * (64 << 10));
  EXPECT_EQ(status.counters().miss_reasons_size(), v1::Reason_ARRAYSIZE - 1);
  EXPECT_EQ(status.counters().miss_reasons(v1::REASON_COLD - 1).name(), "cold");
  EXPECT_EQ(status.counters().miss_reasons(v1::REASON_COLD - 1).count(), 1u);

  v1::ListTenantsResponse tenants;
  ASSERT_TRUE(Call(*admin_, &Stub::ListTenants, v1::ListTenantsRequest(), &tenants).ok());
  ASSERT_EQ(tenants.tenants_size(), 2);
  EXPECT_EQ(tenants.tenants(0).resident_bytes(), 5u * (64 << 10));
  EXPECT_EQ(tenants.tenants(1).name(), "other");
  EXPECT_EQ(tenants.tenants(1).key_space_count(), 0u);

  v1::ListKeySpacesResponse key_spaces;
  ASSERT_TRUE(Call(*admin_, &Stub::ListKeySpaces, v1::ListKeySpacesRequest(), &key_spaces).ok());
  ASSERT_EQ(key_spaces.key_spaces_size(), 1);
  EXPECT_EQ(key_spaces.key_spaces(0).identity().model(), "model");
  EXPECT_EQ(key_spaces.key_spaces(0).resident_blocks(), 5u);

  v1::ListBlocksRequest list;
  list.set_limit(3);
  v1::ListBlocksResponse blocks;
  ASSERT_TRUE(Call(*admin_, &Stub::ListBlocks, list, &blocks).ok());
  EXPECT_EQ(blocks.blocks_size(), 3);
  EXPECT_TRUE(blocks.truncated());
  list.set_limit(5);
  ASSERT_TRUE(Call(*admin_, &Stub::ListBlocks, list, &blocks).ok());
  EXPECT_EQ(blocks.blocks_size(), 5);
  EXPECT_FALSE(blocks.truncated());
  list.set_limit(10001);
  EXPECT_EQ(Call(*admin_, &Stub::ListBlocks, list, &blocks).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  list.set_limit(1);
  list.set_key_space_id(key_space + 1);
  EXPECT_EQ(Call(*admin_, &Stub::ListBlocks, list, &blocks).error_code(),
            grpc::StatusCode::NOT_FOUND);

  v1::StatBlockRequest stat;
  stat.set_key(KeyOf(1, 0));
  v1::StatBlockResponse found;
  ASSERT_TRUE(Call(*admin_, &Stub::StatBlock, stat, &found).ok());
  ASSERT_EQ(found.blocks_size(), 1);
  EXPECT_EQ(found.blocks(0).payload_bytes(), 64u << 10);
  EXPECT_EQ(found.blocks(0).pin_count(), 1u);
  EXPECT_TRUE(found.blocks(0).has_children());
  stat.set_key(KeyOf(7, 7));
  ASSERT_TRUE(Call(*admin_, &Stub::StatBlock, stat, &found).ok());
  EXPECT_EQ(found.blocks_size(), 0);
}

TEST_F(GrpcTest, WhatIsStoredOutOfRegionsCountsAsStored) {
  StartServer();
  const testing::RegionMemory memory;
  const auto session = stack_->OpenSession(0);
  const auto region = session->OpenRegion({}, memory.layout(), memory.handles(), {});
  ASSERT_TRUE(region.ok()) << region.status();
  const kv::KeySpace& space = testing::TestStack::Open(session.get(), memory.page_bytes());
  testing::Store(session.get(), testing::StoreRequestOf(*region, space, testing::KeysOf(1, 4), 0));
  EXPECT_EQ(AdminStatus().counters().stored_blocks(), 4u);
  EXPECT_EQ(AdminStatus().counters().stored_bytes(), 4 * memory.page_bytes());
}

TEST_F(GrpcTest, FlushAndVerify) {
  StartServer();
  const std::string session = OpenSession();
  const uint32_t small = OpenKeySpace(session, 4096), large = OpenKeySpace(session, 64 << 10);
  PutChain(session, small, 1, 4, 4096);
  PutChain(session, large, 1, 3, 64 << 10);

  grpc::ClientContext call;
  const auto reader = admin_->Verify(&call, v1::VerifyRequest());
  v1::VerifyResponse progress;
  while (reader->Read(&progress)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_TRUE(progress.done());
  EXPECT_EQ(progress.checked_blocks(), 7u);
  EXPECT_EQ(progress.checked_bytes(), 4u * 4096 + 3u * (64 << 10));
  EXPECT_EQ(progress.corrupt_blocks(), 0u);

  v1::FlushRequest flush;
  v1::FlushResponse flushed;
  EXPECT_EQ(Call(*admin_, &Stub::Flush, flush, &flushed).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  flush.set_all(false);
  EXPECT_EQ(Call(*admin_, &Stub::Flush, flush, &flushed).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  flush.set_key_space_id(0);  // not "all"
  EXPECT_EQ(Call(*admin_, &Stub::Flush, flush, &flushed).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  flush.set_key_space_id(small);
  ASSERT_TRUE(Call(*admin_, &Stub::Flush, flush, &flushed).ok());
  EXPECT_EQ(flushed.flushed_blocks(), 4u);
  EXPECT_EQ(Lookup(session, small, {KeyOf(1, 0)}, v1::LOOKUP_MODE_ALL, false).reasons(0),
            v1::REASON_FLUSHED);
  EXPECT_EQ(Lookup(session, large, {KeyOf(1, 0)}, v1::LOOKUP_MODE_ALL, false).n_here(), 1u);
  flush.set_all(true);
  ASSERT_TRUE(Call(*admin_, &Stub::Flush, flush, &flushed).ok());
  EXPECT_EQ(flushed.flushed_blocks(), 3u);
}

TEST_F(GrpcTest, ThePeerIsWhoTheKernelSays) {
  options_.listen = "127.0.0.1:0";
  StartServer();
  OpenSession();
  EXPECT_EQ(seen_uid_, geteuid());
  cache_ = v1::CacheService::NewStub(NewChannel(absl::StrCat("127.0.0.1:", server_->tcp_port())));
  OpenSession();
  EXPECT_EQ(seen_uid_, kUidUnknown);
}

TEST_F(GrpcTest, AdminIsNotServedOverTcp) {
  options_.listen = "127.0.0.1:0";
  StartServer();
  ASSERT_NE(server_->tcp_port(), 0);
  const auto tcp = NewChannel(absl::StrCat("127.0.0.1:", server_->tcp_port()));
  const auto admin = v1::AdminService::NewStub(tcp);
  v1::GetStatusResponse response;
  EXPECT_EQ(Call(*admin, &Stub::GetStatus, v1::GetStatusRequest(), &response).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  cache_ = v1::CacheService::NewStub(tcp);
  const std::string session = OpenSession();
  EXPECT_EQ(PutChain(session, OpenKeySpace(session), 1, 1), std::vector<int>{0});
}

TEST_F(GrpcTest, OnlyLoopbackIsListenedOn) {
  for (const char* listen :
       {"0.0.0.0:0", "[::]:0", "localhost:0", "192.0.2.1:80", ":9465", "nonsense"}) {
    options_.listen = listen;
    const absl::Status status = StartAnother(options_);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << listen << " " << status;
  }
}

TEST_F(GrpcTest, APortInUseIsAnError) {
  options_.listen = "127.0.0.1:0";
  StartServer();
  GrpcServerOptions second = options_;
  second.socket_path = folder_.File("second.sock");
  second.listen = absl::StrCat("127.0.0.1:", server_->tcp_port());
  const absl::Status status = StartAnother(second);
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
}

TEST_F(GrpcTest, ASecondServerOnOneSocketIsRefused) {
  StartServer();
  EXPECT_TRUE(absl::IsUnavailable(StartAnother(options_)));
  OpenSession();  // the first one still answers
}

TEST_F(GrpcTest, OnlyNamedAdministratorsAreAdmitted) {
  std::atomic<int64_t> uid{-1};  // -1: the kernel did not say
  GrpcSessions sessions({}, stack_.get(), Clock::Real());
  MetricRegistry registry;
  GrpcMetrics metrics(&registry, Clock::Real());
  const auto service =
      MakeAdminService(&context_, &sessions, &metrics, {12345}, [&](const std::string&) {
        return uid < 0 ? std::optional<uint32_t>() : static_cast<uint32_t>(uid);
      });
  grpc::ServerBuilder builder;
  builder.RegisterService(service.get());
  const auto server = builder.BuildAndStart();
  const auto admin = v1::AdminService::NewStub(server->InProcessChannel({}));
  const std::vector<std::pair<int64_t, grpc::StatusCode>> cases = {
      {-1, grpc::StatusCode::PERMISSION_DENIED},
      {54321, grpc::StatusCode::PERMISSION_DENIED},
      {12345, grpc::StatusCode::OK},
      {0, grpc::StatusCode::OK},
      {geteuid(), grpc::StatusCode::OK}};
  for (const auto& [who, expected] : cases) {
    uid = who;
    v1::GetStatusResponse status;
    EXPECT_EQ(Call(*admin, &Stub::GetStatus, v1::GetStatusRequest(), &status).error_code(),
              expected);
    v1::FlushRequest flush;
    flush.set_all(true);
    v1::FlushResponse flushed;
    EXPECT_EQ(Call(*admin, &Stub::Flush, flush, &flushed).error_code(), expected) << who;
    grpc::ClientContext call;
    const auto reader = admin->Verify(&call, v1::VerifyRequest());
    v1::VerifyResponse progress;
    while (reader->Read(&progress)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), expected) << who;
  }
  server->Shutdown();
  EXPECT_EQ(metrics.rejected_auth->Value(), 6u);
}

TEST_F(GrpcTest, HealthAndReflection) {
  StartServer();
  const auto health = [&](const std::string& service) {
    std::string request, response;
    if (!service.empty()) {
      request = "\x0a";
      request += static_cast<char>(service.size());
      request += service;
    }
    EXPECT_TRUE(RawCall(channel_, "/grpc.health.v1.Health/Check", request, &response).ok())
        << service;
    return response;
  };
  const std::string serving = "\x08\x01", not_serving = "\x08\x02";  // field 1: status
  EXPECT_EQ(health(""), serving);
  EXPECT_EQ(health("terrace.v1.CacheService"), serving);
  server_->SetServing(false);
  EXPECT_EQ(health(""), not_serving);
  EXPECT_EQ(health("terrace.v1.CacheService"), not_serving);

  const std::string method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
  const grpc::internal::RpcMethod rpc(method.c_str(), grpc::internal::RpcMethod::BIDI_STREAMING);
  grpc::ClientContext call;
  const std::unique_ptr<grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>> stream(
      grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(
          channel_.get(), rpc, &call));
  grpc::Slice list_services("\x3a\x01*");
  ASSERT_TRUE(stream->Write(grpc::ByteBuffer(&list_services, 1)));
  grpc::ByteBuffer answer;
  ASSERT_TRUE(stream->Read(&answer));
  grpc::Slice text;
  ASSERT_TRUE(answer.DumpToSingleSlice(&text).ok());
  const std::string names(reinterpret_cast<const char*>(text.begin()), text.size());
  for (const char* name :
       {"terrace.v1.CacheService", "terrace.v1.AdminService", "grpc.health.v1.Health"}) {
    EXPECT_NE(names.find(name), std::string::npos) << name;
  }
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(GrpcTest, ConnectionsOfOneUserAreLimited) {
  options_.acceptor.connections_per_uid_max = 2;
  StartServer();
  OpenSession();
  const auto first = channel_;
  Connect();
  OpenSession();
  const auto third = NewChannel("unix:" + options_.socket_path);
  const auto refused = [&] {
    grpc::ClientContext call;
    call.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    v1::OpenSessionResponse response;
    return v1::CacheService::NewStub(third)->OpenSession(&call, v1::OpenSessionRequest(),
                                                         &response);
  };
  EXPECT_EQ(refused().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(AdminStatus().grpc_sessions_size(), 2);  // those inside are not disturbed
}

TEST_F(GrpcTest, ShutdownUnderLoadAnswersEveryCall) {
  StartServer();
  const std::string session = OpenSession();
  const uint32_t key_space = OpenKeySpace(session, 64 << 10);
  PutChain(session, key_space, 1, 8, 64 << 10);
  std::atomic<bool> is_up{false};
  std::vector<std::thread> clients;
  for (int i = 0; i < 4; ++i) {
    clients.emplace_back([&] {
      while (true) {  // ends with the first call that the stopping server refuses
        v1::GetRequest request;
        request.set_session_id(session);
        request.set_key_space_id(key_space);
        for (uint64_t block = 0; block < 8; ++block) request.add_keys(KeyOf(1, block));
        const Got got = Get(request);
        for (size_t block = 0; block < got.payloads.size(); ++block) {
          if (got.payloads[block].has_value()) {
            EXPECT_EQ(*got.payloads[block], PayloadOf(KeyOf(1, block), 64 << 10));
          }
        }
        if (!got.status.ok()) return;
        is_up = true;
      }
    });
  }
  while (!is_up) std::this_thread::yield();
  server_->Shutdown(50'000'000);
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(stack_->Stats().leases, 0u);
  EXPECT_FALSE(std::filesystem::exists(options_.socket_path));
  server_.reset();
}

}  // namespace
}  // namespace terrace::api
