// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// A GrpcServer over a small TierStack in a temporary directory, and a client of it. Payloads derive
// from the key, so that any served byte can be checked without a stored copy.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "api/server/grpc_server.h"
#include "kvstore/base/block_copy.h"
#include "terrace/v1/admin.grpc.pb.h"
#include "terrace/v1/kv.grpc.pb.h"

namespace terrace::api {

inline uint64_t Xxh3(const std::string& bytes) { return Checksum64(bytes.data(), bytes.size(), 0); }

inline std::string KeyOf(uint64_t chain, uint64_t index) {
  std::string key(32, '\0');
  for (int i = 0; i < 4; ++i) {
    const uint64_t parts[3] = {chain, index, static_cast<uint64_t>(i)};
    const uint64_t word = Checksum64(parts, sizeof(parts), 1);
    std::memcpy(key.data() + 8 * i, &word, 8);
  }
  return key;
}

inline std::string PayloadOf(const std::string& key, uint64_t bytes, uint64_t variant = 0) {
  std::string payload(bytes, '\0');
  uint64_t x = Checksum64(key.data(), key.size(), 2 + variant);
  for (char& c : payload) {
    x = x * 6364136223846793005ull + 1442695040888963407ull;
    c = static_cast<char>(x >> 56);
  }
  return payload;
}

// A temporary directory, removed with all that is in it.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = std::filesystem::temp_directory_path() / "terrace_grpc_XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    path_ = name;
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  std::string File(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

class GrpcTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kBlockBytes = (2 << 20) + 12345;  // three chunks, the last one odd

  explicit GrpcTest(const std::function<void(tiering::TierStackOptions*)>& adjust = {}) {
    static const bool kPrepared = (PrepareGrpcProcess(), true);
    EXPECT_TRUE(kPrepared);
    tiering::TierStackOptions stack_options;
    stack_options.tenants = {{"default"}, {"other"}};
    stack_options.budget_bytes = 256 << 20;
    stack_options.prefault = false;
    stack_options.huge_pages = false;
    if (adjust) adjust(&stack_options);
    auto stack = tiering::TierStack::Create(stack_options, Clock::Real(), &metrics_);
    EXPECT_TRUE(stack.ok()) << stack.status();
    stack_ = std::move(*stack);
    options_.socket_path = folder_.File("grpc.sock");
    context_.stack = stack_.get();
    context_.clock = Clock::Real();
    context_.metrics = &metrics_;
    context_.authenticate = [this](absl::string_view tenant, absl::string_view token,
                                   uint32_t uid) { return Authenticate(tenant, token, uid); };
    context_.engine_connections = [] {
      EngineConnection connection;
      connection.client_name = "engine";
      connection.pid = 7;
      return std::vector<EngineConnection>{connection};
    };
    context_.tenants = {"default", "other"};
    context_.version = "1.2.3";
    context_.epoch = 0xabcdef0123456789;
  }

  void StartServer() {
    auto server = GrpcServer::Start(options_, context_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = std::move(*server);
    server_->SetServing(true);
    Connect();
  }

  // A server beside server_, with counters of its own. Ends before this returns.
  absl::Status StartAnother(const GrpcServerOptions& options) const {
    MetricRegistry metrics;
    GrpcContext context = context_;
    context.metrics = &metrics;
    return GrpcServer::Start(options, context).status();
  }

  // A connection of its own: gRPC otherwise shares one between equal channels.
  std::shared_ptr<grpc::Channel> NewChannel(const std::string& target) {
    grpc::ChannelArguments arguments;
    arguments.SetInt("terrace.test.channel", ++channels_);
    return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
  }

  void Connect() {
    channel_ = NewChannel("unix:" + options_.socket_path);
    cache_ = v1::CacheService::NewStub(channel_);
    admin_ = v1::AdminService::NewStub(channel_);
  }

  // One unary call: Call(*cache_, &Stub::Lookup, request, &response).
  template <typename Stub, typename Request, typename Response>
  static grpc::Status Call(Stub& stub,
                           grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                        Response*),
                           const Request& request, Response* response) {
    grpc::ClientContext call;
    call.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    return (stub.*method)(&call, request, response);
  }

  std::string OpenSession(const std::string& tenant = "") {
    v1::OpenSessionRequest request;
    request.set_tenant(tenant);
    request.set_client_name("test");
    v1::OpenSessionResponse response;
    const grpc::Status status =
        Call(*cache_, &v1::CacheService::Stub::OpenSession, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.session_id();
  }

  uint32_t OpenKeySpace(const std::string& session, uint64_t block_bytes = kBlockBytes) {
    v1::OpenKeySpaceRequest request;
    request.set_session_id(session);
    request.mutable_identity()->set_model("model");
    request.mutable_identity()->set_block_bytes(block_bytes);
    v1::OpenKeySpaceResponse response;
    const grpc::Status status =
        Call(*cache_, &v1::CacheService::Stub::OpenKeySpace, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(response.digest().size(), 32u);
    return response.key_space_id();
  }

  static std::vector<v1::PutRequest> BlockMessages(const std::string& key,
                                                   const std::string& parent,
                                                   const std::string& payload) {
    std::vector<v1::PutRequest> messages(1);
    v1::PutBlock* block = messages[0].mutable_block();
    block->set_key(key);
    block->set_parent(parent);
    block->set_payload_bytes(payload.size());
    block->set_checksum(Xxh3(payload));
    for (size_t offset = 0; offset < payload.size(); offset += 1 << 20) {
      v1::PutChunk* chunk = messages.emplace_back().mutable_chunk();
      chunk->set_offset(offset);
      chunk->set_data(payload.substr(offset, 1 << 20));
      chunk->set_checksum(Xxh3(chunk->data()));
    }
    return messages;
  }

  static v1::PutRequest StartMessage(const std::string& session, uint32_t key_space) {
    v1::PutRequest message;
    message.mutable_start()->set_session_id(session);
    message.mutable_start()->set_key_space_id(key_space);
    return message;
  }

  // Sends the messages; the reasons, or the stream's error.
  grpc::Status Put(const std::vector<v1::PutRequest>& messages, std::vector<int>* reasons) {
    grpc::ClientContext call;
    call.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    v1::PutResponse response;
    const auto writer = cache_->Put(&call, &response);
    for (const v1::PutRequest& message : messages) {
      if (!writer->Write(message)) break;
    }
    writer->WritesDone();
    const grpc::Status status = writer->Finish();
    reasons->assign(response.reasons().begin(), response.reasons().end());
    return status;
  }

  std::vector<int> PutChain(const std::string& session, uint32_t key_space, uint64_t chain,
                            uint64_t n, uint64_t block_bytes = kBlockBytes) {
    std::vector<v1::PutRequest> messages = {StartMessage(session, key_space)};
    for (uint64_t i = 0; i < n; ++i) {
      const std::string key = KeyOf(chain, i);
      for (auto& message :
           BlockMessages(key, i == 0 ? "" : KeyOf(chain, i - 1), PayloadOf(key, block_bytes))) {
        messages.push_back(std::move(message));
      }
    }
    std::vector<int> reasons;
    const grpc::Status status = Put(messages, &reasons);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return reasons;
  }

  v1::LookupResponse Lookup(const std::string& session, uint32_t key_space,
                            const std::vector<std::string>& keys, v1::LookupMode mode, bool lease) {
    v1::LookupRequest request;
    request.set_session_id(session);
    request.set_key_space_id(key_space);
    for (const std::string& key : keys) request.add_keys(key);
    request.set_mode(mode);
    request.set_lease(lease);
    v1::LookupResponse response;
    const grpc::Status status = Call(*cache_, &v1::CacheService::Stub::Lookup, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  struct Got {
    grpc::Status status;
    std::vector<std::optional<std::string>> payloads;  // by index; nothing where a reason was given
    std::vector<int> reasons;
  };
  Got Get(const v1::GetRequest& request) {
    Got got;
    grpc::ClientContext call;
    call.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    const auto reader = cache_->Get(&call, request);
    v1::GetResponse message;
    std::string payload;
    while (reader->Read(&message)) {
      if (message.has_chunk()) {
        EXPECT_EQ(message.chunk().block_index(), got.reasons.size());
        EXPECT_EQ(message.chunk().offset(), payload.size());
        EXPECT_EQ(message.chunk().checksum(), Xxh3(message.chunk().data()));
        payload += message.chunk().data();
        continue;
      }
      const v1::GetBlockEnd& end = message.block_end();
      EXPECT_EQ(end.block_index(), got.reasons.size());
      EXPECT_EQ(end.payload_bytes(), payload.size());
      got.reasons.push_back(end.reason());
      got.payloads.emplace_back();
      if (end.reason() == v1::REASON_NONE) {
        EXPECT_EQ(end.checksum(), Xxh3(payload));
        got.payloads.back() = std::move(payload);
      }
      payload.clear();
    }
    got.status = reader->Finish();
    return got;
  }

  v1::GetStatusResponse AdminStatus() {
    v1::GetStatusResponse response;
    const grpc::Status status =
        Call(*admin_, &v1::AdminService::Stub::GetStatus, v1::GetStatusRequest(), &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  absl::StatusOr<kv::TenantId> Authenticate(absl::string_view tenant, absl::string_view token,
                                            uint32_t uid) {
    seen_uid_ = uid;
    if (tenant == "default") return kv::TenantId{0};
    if (tenant == "other" && token == "secret") return kv::TenantId{1};
    return absl::PermissionDeniedError("no");
  }

  TemporaryFolder folder_;
  MetricRegistry metrics_;
  std::unique_ptr<tiering::TierStack> stack_;
  GrpcServerOptions options_;
  GrpcContext context_;
  std::unique_ptr<GrpcServer> server_;
  std::atomic<uint32_t> seen_uid_{0};
  int channels_ = 0;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::CacheService::Stub> cache_;
  std::unique_ptr<v1::AdminService::Stub> admin_;
};

}  // namespace terrace::api
