// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// terrace.v1.AdminService: parse, ask the TierStack, answer. What each call means is written in
// src/api/proto/terrace/v1/admin.proto.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "api/server/cache_service.h"

namespace terrace::api {

// For the Unix socket's grpc::Server only. Callers are those of GrpcServerOptions::admin_uids. The
// pointers must outlive it; threads: gRPC's, and one of its own while a Verify runs.
std::unique_ptr<grpc::Service> MakeAdminService(const GrpcContext* context, GrpcSessions* sessions,
                                                GrpcMetrics* metrics,
                                                std::vector<uint32_t> admin_uids,
                                                UidOfPeer uid_of_peer);

}  // namespace terrace::api
