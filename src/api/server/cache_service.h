// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// terrace.v1.CacheService: parse, call the TierStack, answer. What each call means is written in
// src/api/proto/terrace/v1/kv.proto.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "api/server/grpc_metrics.h"
#include "api/server/grpc_server.h"
#include "api/server/grpc_sessions.h"

namespace grpc {
class Service;
}

namespace terrace::api {

// User id at the other end of a call, from grpc::ServerContext::peer().
using UidOfPeer = std::function<std::optional<uint32_t>(const std::string& peer)>;

// One instance a grpc::Server. The pointers must outlive it; threads: gRPC's.
std::unique_ptr<grpc::Service> MakeCacheService(const GrpcContext* context, GrpcSessions* sessions,
                                                GrpcMetrics* metrics, UidOfPeer uid_of_peer);

}  // namespace terrace::api
