// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// absl::Status <-> grpc::Status, one table. Codes that our rules do not know (STYLE.md) arrive as
// INTERNAL, so that a client never has to handle more than the documented ones.
#pragma once

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace terrace::api {

grpc::Status ToGrpcStatus(const absl::Status& status);
absl::Status FromGrpcStatus(const grpc::Status& status);

}  // namespace terrace::api
