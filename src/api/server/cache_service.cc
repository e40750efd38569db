// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/server/cache_service.h"

#include <algorithm>
#include <chrono>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "api/server/block_fetcher.h"
#include "api/server/proto_convert.h"
#include "api/server/put_receiver.h"
#include "api/server/status_convert.h"
#include "kvstore/base/block_copy.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"
#include "terrace/v1/kv.grpc.pb.h"

namespace terrace::api {
namespace {

absl::StatusOr<std::vector<kv::BlockKey>> KeysFromProto(
    const google::protobuf::RepeatedPtrField<std::string>& keys) {
  if (keys.empty() || keys.size() > kKeysPerCallMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("keys must be 1 to ", kKeysPerCallMax, ", are ", keys.size()));
  }
  std::vector<kv::BlockKey> parsed;
  parsed.reserve(static_cast<size_t>(keys.size()));
  for (const std::string& bytes : keys) {
    ASSIGN_OR_RETURN(kv::BlockKey key, KeyFromProto(bytes, "each of keys"));
    parsed.push_back(key);
  }
  return parsed;
}

// Until the call's deadline; 0 when its client has gone.
int64_t LeftNs(const grpc::ServerContext& call) {
  if (call.IsCancelled()) return 0;
  const auto left = call.deadline() - std::chrono::system_clock::now();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(left).count();
}

class CacheService final : public v1::CacheService::Service {
 public:
  CacheService(const GrpcContext* context, GrpcSessions* sessions, GrpcMetrics* metrics,
               UidOfPeer uid_of_peer)
      : context_(*context),
        sessions_(*sessions),
        metrics_(*metrics),
        uid_of_peer_(std::move(uid_of_peer)) {}

  grpc::Status OpenSession(grpc::ServerContext* call, const v1::OpenSessionRequest* request,
                           v1::OpenSessionResponse* response) override {
    return Answer(GrpcOp::kOpenSession,
                  [&] { return DoOpenSession(call->peer(), *request, response); });
  }

  grpc::Status KeepAlive(grpc::ServerContext*, const v1::KeepAliveRequest* request,
                         v1::KeepAliveResponse* response) override {
    return Answer(GrpcOp::kKeepAlive, [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const auto session, sessions_.Find(request->session_id()));
      response->set_lease_count(session->core().lease_count());
      return absl::OkStatus();
    });
  }

  grpc::Status CloseSession(grpc::ServerContext*, const v1::CloseSessionRequest* request,
                            v1::CloseSessionResponse*) override {
    return Answer(GrpcOp::kCloseSession, [&] { return sessions_.Close(request->session_id()); });
  }

  grpc::Status OpenKeySpace(grpc::ServerContext*, const v1::OpenKeySpaceRequest* request,
                            v1::OpenKeySpaceResponse* response) override {
    return Answer(GrpcOp::kOpenKeySpace, [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const auto session, sessions_.Find(request->session_id()));
      ASSIGN_OR_RETURN(const kv::KeySpaceIdentity identity,
                       IdentityFromProto(request->identity()));
      ASSIGN_OR_RETURN(const kv::KeySpace* key_space, session->OpenKeySpace(identity));
      response->set_key_space_id(key_space->id);
      response->set_digest(key_space->digest.data(), key_space->digest.size());
      return absl::OkStatus();
    });
  }

  grpc::Status Lookup(grpc::ServerContext*, const v1::LookupRequest* request,
                      v1::LookupResponse* response) override {
    return Answer(GrpcOp::kLookup, [&] { return DoLookup(*request, response); });
  }

  grpc::Status Get(grpc::ServerContext* call, const v1::GetRequest* request,
                   grpc::ServerWriter<v1::GetResponse>* writer) override {
    return Answer(GrpcOp::kGet, [&] { return DoGet(call, *request, writer); });
  }

  grpc::Status Put(grpc::ServerContext* call, grpc::ServerReader<v1::PutRequest>* reader,
                   v1::PutResponse* response) override {
    return Answer(GrpcOp::kPut, [&] { return DoPut(call, reader, response); });
  }

  grpc::Status Hint(grpc::ServerContext*, const v1::HintRequest* request,
                    v1::HintResponse* response) override {
    return Answer(GrpcOp::kHint, [&] { return DoHint(*request, response); });
  }

  grpc::Status Stat(grpc::ServerContext*, const v1::StatRequest* request,
                    v1::StatResponse* response) override {
    return Answer(GrpcOp::kStat, [&] { return DoStat(*request, response); });
  }

  grpc::Status Release(grpc::ServerContext*, const v1::ReleaseRequest* request,
                       v1::ReleaseResponse*) override {
    return Answer(GrpcOp::kRelease, [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const auto session, sessions_.Find(request->session_id()));
      return session->core().Release(request->lease_id());
    });
  }

  grpc::Status Renew(grpc::ServerContext*, const v1::RenewRequest* request,
                     v1::RenewResponse*) override {
    return Answer(GrpcOp::kRenew, [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const auto session, sessions_.Find(request->session_id()));
      return session->core().Renew(request->lease_id());
    });
  }

 private:
  // Runs one call, counts it, and converts its status.
  template <typename Work>
  grpc::Status Answer(GrpcOp op, const Work& work) {
    const int64_t begin_ns = metrics_.NowNs();
    const absl::Status status = work();
    metrics_.Answered(op, status, begin_ns);
    return ToGrpcStatus(status);
  }

  absl::Status DoOpenSession(const std::string& peer, const v1::OpenSessionRequest& request,
                             v1::OpenSessionResponse* response) {
    const std::string tenant = request.tenant().empty() ? "default" : request.tenant();
    const uint32_t uid = uid_of_peer_(peer).value_or(kUidUnknown);
    const auto tenant_id = context_.authenticate(tenant, request.token(), uid);
    if (!tenant_id.ok()) {
      metrics_.rejected_auth->Add();
      Log(LogLevel::kWarning, "grpc_session_refused",
          {{"tenant", tenant}, {"uid", static_cast<int64_t>(static_cast<int32_t>(uid))}});
      return tenant_id.status();
    }
    int64_t ttl_ns = 0;  // the default
    if (request.has_ttl()) {
      ASSIGN_OR_RETURN(ttl_ns, DurationFromProto(request.ttl()));
      if (ttl_ns == 0) ttl_ns = 1;  // said, and too short: refused by Open
    }
    ASSIGN_OR_RETURN(const GrpcSessions::Opened opened,
                     sessions_.Open(*tenant_id, request.client_name(), ttl_ns));
    response->set_session_id(opened.id);
    DurationToProto(opened.ttl_ns, response->mutable_ttl());
    response->set_max_chunk_bytes(kChunkBytesMax);
    response->set_epoch(context_.epoch);
    response->set_server_version(context_.version);
    return absl::OkStatus();
  }

  absl::Status DoLookup(const v1::LookupRequest& request, v1::LookupResponse* response) {
    ASSIGN_OR_RETURN(const std::shared_ptr<GrpcSession> session,
                     sessions_.Find(request.session_id()));
    ASSIGN_OR_RETURN(const kv::KeySpace* key_space, session->FindKeySpace(request.key_space_id()));
    ASSIGN_OR_RETURN(const std::vector<kv::BlockKey> keys, KeysFromProto(request.keys()));
    if (!v1::LookupMode_IsValid(request.mode())) {
      return absl::InvalidArgumentError(absl::StrCat("unknown lookup mode ", request.mode()));
    }
    tiering::LookupOptions options;
    options.mode = request.mode() == v1::LOOKUP_MODE_ALL ? tiering::LookupMode::kAll
                                                         : tiering::LookupMode::kPrefix;
    options.lease = request.lease() ? tiering::Session::kNewLease : tiering::Session::kNoLease;
    options.may_wait = request.may_wait();
    options.recompute_ns_per_token = request.recompute_ns_per_token();
    ASSIGN_OR_RETURN(const tiering::LookupAnswer answer,
                     session->core().Lookup(key_space->id, keys, options));
    response->set_n_prefix(answer.n_prefix);
    response->set_n_here(answer.n_here);
    response->set_n_pending(answer.n_pending);
    response->set_lease_id(answer.lease_id);
    response->mutable_reasons()->Reserve(static_cast<int>(keys.size()));
    for (size_t i = 0; i < keys.size(); ++i) {
      // A prefix lookup says nothing about what lies behind its first miss.
      response->add_reasons(
          ReasonToProto(i < answer.places.size() ? answer.places[i].reason : Reason::kAfterMiss));
    }
    return absl::OkStatus();
  }

  absl::Status DoGet(grpc::ServerContext* call, const v1::GetRequest& request,
                     grpc::ServerWriter<v1::GetResponse>* writer) {
    ASSIGN_OR_RETURN(const std::shared_ptr<GrpcSession> session,
                     sessions_.Find(request.session_id()));
    ASSIGN_OR_RETURN(const kv::KeySpace* key_space, session->FindKeySpace(request.key_space_id()));
    ASSIGN_OR_RETURN(const std::vector<kv::BlockKey> keys, KeysFromProto(request.keys()));
    if (request.lease_id() != 0) RETURN_IF_ERROR(session->core().Renew(request.lease_id()));
    ASSIGN_OR_RETURN(GrpcSessions::StreamGuard stream,
                     sessions_.BeginStream(session, [call] { call->TryCancel(); }));
    const uint64_t block_bytes = key_space->identity.block_bytes;
    ASSIGN_OR_RETURN(const StagingCharge charge,
                     StagingCharge::Make(context_.stack, block_bytes + kStreamOverheadBytes));
    const auto payload = std::make_unique_for_overwrite<std::byte[]>(block_bytes);
    const std::span<std::byte> target(payload.get(), static_cast<size_t>(block_bytes));
    BlockFetcher blocks(context_.stack, &session->core(), key_space, keys, context_.clock,
                        [call] { return LeftNs(*call); });
    for (uint32_t i = 0; i < keys.size(); ++i) {
      ASSIGN_OR_RETURN(const Reason reason, blocks.Next(target));
      RETURN_IF_ERROR(SendBlock(i, reason, target, writer, stream));
    }
    return absl::OkStatus();
  }

  static absl::Status SendBlock(uint32_t index, Reason reason, std::span<const std::byte> payload,
                                grpc::ServerWriter<v1::GetResponse>* writer,
                                GrpcSessions::StreamGuard& stream) {
    const absl::Status gone = absl::CancelledError("the client went away or the session ended");
    if (reason == Reason::kNone) {
      for (size_t offset = 0; offset < payload.size(); offset += kChunkBytesMax) {
        const auto data =
            payload.subspan(offset, std::min(kChunkBytesMax, payload.size() - offset));
        v1::GetResponse message;
        v1::GetChunk* chunk = message.mutable_chunk();
        chunk->set_block_index(index);
        chunk->set_offset(offset);
        chunk->set_data(data.data(), data.size());
        chunk->set_checksum(Checksum64(data.data(), data.size(), 0));
        if (!writer->Write(message)) return gone;
        stream.Progress();
      }
    }
    v1::GetResponse message;
    v1::GetBlockEnd* end = message.mutable_block_end();
    end->set_block_index(index);
    end->set_reason(ReasonToProto(reason));
    if (reason == Reason::kNone) {
      end->set_payload_bytes(payload.size());
      end->set_checksum(Checksum64(payload.data(), payload.size(), 0));
    }
    if (!writer->Write(message)) return gone;
    stream.Progress();
    return absl::OkStatus();
  }

  absl::Status DoPut(grpc::ServerContext* call, grpc::ServerReader<v1::PutRequest>* reader,
                     v1::PutResponse* response) {
    v1::PutRequest request;
    {
      ASSIGN_OR_RETURN(GrpcSessions::StreamGuard waiting,
                       sessions_.BeginNamelessStream([call] { call->TryCancel(); }));
      if (!reader->Read(&request) || !request.has_start()) {
        return absl::InvalidArgumentError("the first message of a Put stream must be PutStart");
      }
    }
    ASSIGN_OR_RETURN(const std::shared_ptr<GrpcSession> session,
                     sessions_.Find(request.start().session_id()));
    ASSIGN_OR_RETURN(const kv::KeySpace* key_space,
                     session->FindKeySpace(request.start().key_space_id()));
    ASSIGN_OR_RETURN(GrpcSessions::StreamGuard stream,
                     sessions_.BeginStream(session, [call] { call->TryCancel(); }));
    ASSIGN_OR_RETURN(const std::unique_ptr<PutReceiver> receiver,
                     PutReceiver::Make(context_.stack, &session->core(), key_space,
                                       context_.clock));
    while (reader->Read(&request)) {
      stream.Progress();
      switch (request.part_case()) {
        case v1::PutRequest::kBlock:
          RETURN_IF_ERROR(receiver->OnBlock(request.block()));
          break;
        case v1::PutRequest::kChunk:
          RETURN_IF_ERROR(receiver->OnChunk(request.chunk()));
          break;
        case v1::PutRequest::kStart:
          return absl::InvalidArgumentError("PutStart may only be the first message");
        case v1::PutRequest::PART_NOT_SET:
          return absl::InvalidArgumentError("a PutRequest must have a start, block or chunk");
      }
    }
    if (call->IsCancelled())
      return absl::CancelledError("the client went away or the session ended");
    RETURN_IF_ERROR(receiver->Finish());
    for (const Reason reason : receiver->reasons()) response->add_reasons(ReasonToProto(reason));
    return absl::OkStatus();
  }

  absl::Status DoHint(const v1::HintRequest& request, v1::HintResponse* response) {
    ASSIGN_OR_RETURN(const std::shared_ptr<GrpcSession> session,
                     sessions_.Find(request.session_id()));
    ASSIGN_OR_RETURN(const kv::KeySpace* key_space, session->FindKeySpace(request.key_space_id()));
    ASSIGN_OR_RETURN(const std::vector<kv::BlockKey> keys, KeysFromProto(request.keys()));
    ASSIGN_OR_RETURN(const tiering::RetentionHint hint,
                     RetentionFromProto(request.retention(), context_.clock->NowNs()));
    ASSIGN_OR_RETURN(const uint32_t n_taken, session->core().Hint(key_space->id, keys, hint));
    response->set_n_taken(n_taken);
    return absl::OkStatus();
  }

  absl::Status DoStat(const v1::StatRequest& request, v1::StatResponse* response) {
    ASSIGN_OR_RETURN(const std::shared_ptr<GrpcSession> session,
                     sessions_.Find(request.session_id()));
    ASSIGN_OR_RETURN(const kv::KeySpace* key_space, session->FindKeySpace(request.key_space_id()));
    ASSIGN_OR_RETURN(const kv::BlockKey key, KeyFromProto(request.key(), "key"));
    if (const auto info = context_.stack->Stat(*key_space, key); info.has_value()) {
      response->set_payload_bytes(info->payload_bytes);
      response->set_tier(info->tier);
      response->set_lease_count(info->pins);
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(const tiering::LookupAnswer answer,
                     session->core().Lookup(key_space->id, {&key, 1}, tiering::LookupMode::kAll,
                                            tiering::Session::kNoLease));
    // Here after all: it came in between the two questions. Its size is that of its key space.
    const Reason reason = answer.places.at(0).reason;
    response->set_reason(ReasonToProto(reason));
    if (reason == Reason::kNone) response->set_payload_bytes(key_space->identity.block_bytes);
    return absl::OkStatus();
  }

  const GrpcContext& context_;
  GrpcSessions& sessions_;
  GrpcMetrics& metrics_;
  const UidOfPeer uid_of_peer_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeCacheService(const GrpcContext* context, GrpcSessions* sessions,
                                                GrpcMetrics* metrics, UidOfPeer uid_of_peer) {
  return std::make_unique<CacheService>(context, sessions, metrics, std::move(uid_of_peer));
}

}  // namespace terrace::api
