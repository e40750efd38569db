// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// One meaning at every door: status codes and reasons of C++, C and gRPC.
#include "api/server/status_convert.h"

#include <gtest/gtest.h>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "api/client/terrace.h"
#include "kvstore/base/reason.h"
#include "terrace/v1/reason.pb.h"

namespace terrace::api {
namespace {

TEST(StatusConvertTest, CodesOfTheRulesSurviveBothWays) {
  for (const absl::StatusCode code :
       {absl::StatusCode::kCancelled, absl::StatusCode::kInvalidArgument,
        absl::StatusCode::kDeadlineExceeded, absl::StatusCode::kNotFound,
        absl::StatusCode::kPermissionDenied, absl::StatusCode::kResourceExhausted,
        absl::StatusCode::kFailedPrecondition, absl::StatusCode::kInternal,
        absl::StatusCode::kUnavailable, absl::StatusCode::kDataLoss}) {
    const absl::Status status(code, "text");
    const grpc::Status converted = ToGrpcStatus(status);
    EXPECT_EQ(static_cast<int>(converted.error_code()), static_cast<int>(code));
    EXPECT_EQ(converted.error_message(), "text");
    EXPECT_EQ(FromGrpcStatus(converted), status);
  }
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  EXPECT_TRUE(FromGrpcStatus(grpc::Status::OK).ok());
}

TEST(StatusConvertTest, OtherCodesBecomeInternal) {
  EXPECT_EQ(ToGrpcStatus(absl::AbortedError("x")).error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_TRUE(absl::IsInternal(FromGrpcStatus({grpc::StatusCode::OUT_OF_RANGE, "x"})));
}

TEST(StatusConvertTest, CodesOfTheCApiAreTheSameNumbers) {
  EXPECT_EQ(TERRACE_INVALID_ARGUMENT, static_cast<int>(grpc::StatusCode::INVALID_ARGUMENT));
  EXPECT_EQ(TERRACE_DEADLINE_EXCEEDED, static_cast<int>(grpc::StatusCode::DEADLINE_EXCEEDED));
  EXPECT_EQ(TERRACE_NOT_FOUND, static_cast<int>(grpc::StatusCode::NOT_FOUND));
  EXPECT_EQ(TERRACE_PERMISSION_DENIED, static_cast<int>(grpc::StatusCode::PERMISSION_DENIED));
  EXPECT_EQ(TERRACE_RESOURCE_EXHAUSTED, static_cast<int>(grpc::StatusCode::RESOURCE_EXHAUSTED));
  EXPECT_EQ(TERRACE_FAILED_PRECONDITION, static_cast<int>(grpc::StatusCode::FAILED_PRECONDITION));
  EXPECT_EQ(TERRACE_INTERNAL, static_cast<int>(grpc::StatusCode::INTERNAL));
  EXPECT_EQ(TERRACE_UNAVAILABLE, static_cast<int>(grpc::StatusCode::UNAVAILABLE));
  EXPECT_EQ(TERRACE_DATA_LOSS, static_cast<int>(grpc::StatusCode::DATA_LOSS));
}

TEST(ReasonTest, OneListForAllDoors) {
  static_assert(TERRACE_REASON_COUNT == kReasonCount);
  ASSERT_EQ(v1::Reason_ARRAYSIZE, kReasonCount);
  for (int i = 0; i < kReasonCount; ++i) {
    const std::string name(ReasonName(static_cast<Reason>(i)));
    EXPECT_EQ(v1::Reason_Name(static_cast<v1::Reason>(i)),
              absl::StrCat("REASON_", absl::AsciiStrToUpper(name)));
  }
  // Both ends and one from the middle of the C list; its names are held by libterrace's own test.
  EXPECT_EQ(TERRACE_REASON_COLD, v1::REASON_COLD);
  EXPECT_EQ(TERRACE_REASON_AFTER_MISS, v1::REASON_AFTER_MISS);
  EXPECT_EQ(TERRACE_REASON_CANCELLED, v1::REASON_CANCELLED);
  EXPECT_EQ(TERRACE_REASON_IO_ERROR, v1::REASON_IO_ERROR);
}

}  // namespace
}  // namespace terrace::api
