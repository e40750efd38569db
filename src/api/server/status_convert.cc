// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/server/status_convert.h"

#include <string>
#include <utility>

namespace terrace::api {
namespace {

constexpr std::pair<absl::StatusCode, grpc::StatusCode> kTable[] = {
    {absl::StatusCode::kOk, grpc::StatusCode::OK},
    {absl::StatusCode::kCancelled, grpc::StatusCode::CANCELLED},
    {absl::StatusCode::kInvalidArgument, grpc::StatusCode::INVALID_ARGUMENT},
    {absl::StatusCode::kDeadlineExceeded, grpc::StatusCode::DEADLINE_EXCEEDED},
    {absl::StatusCode::kNotFound, grpc::StatusCode::NOT_FOUND},
    {absl::StatusCode::kPermissionDenied, grpc::StatusCode::PERMISSION_DENIED},
    {absl::StatusCode::kResourceExhausted, grpc::StatusCode::RESOURCE_EXHAUSTED},
    {absl::StatusCode::kFailedPrecondition, grpc::StatusCode::FAILED_PRECONDITION},
    {absl::StatusCode::kInternal, grpc::StatusCode::INTERNAL},
    {absl::StatusCode::kUnavailable, grpc::StatusCode::UNAVAILABLE},
    {absl::StatusCode::kDataLoss, grpc::StatusCode::DATA_LOSS},
    // Not made by us, but by gRPC itself: a server without the called service or method.
    {absl::StatusCode::kUnimplemented, grpc::StatusCode::UNIMPLEMENTED},
};

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  for (const auto& [ours, theirs] : kTable) {
    if (ours == status.code()) return {theirs, std::string(status.message())};
  }
  return {grpc::StatusCode::INTERNAL, status.ToString()};
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  for (const auto& [ours, theirs] : kTable) {
    if (theirs == status.error_code()) return absl::Status(ours, status.error_message());
  }
  return absl::InternalError(status.error_message());
}

}  // namespace terrace::api
