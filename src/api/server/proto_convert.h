// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// terrace.v1 messages <-> our values: what both services need.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/duration.pb.h"
#include "kvstore/base/reason.h"
#include "kvstore/block_key.h"
#include "kvstore/key_space.h"
#include "terrace/v1/kv.pb.h"
#include "terrace/v1/reason.pb.h"
#include "tiering/policy/retention.h"

namespace terrace::api {

// InvalidArgument unless it has 32 bytes; field names it in the message.
absl::StatusOr<kv::BlockKey> KeyFromProto(absl::string_view bytes, absl::string_view field);
absl::string_view KeyToProto(const kv::BlockKey& key);  // a view of key's bytes

// InvalidArgument: an unknown class.
absl::StatusOr<kv::KeySpaceIdentity> IdentityFromProto(const v1::KeySpaceIdentity& message);
void IdentityToProto(const kv::KeySpaceIdentity& identity, v1::KeySpaceIdentity* message);

// now_ns: of the daemon's Clock. What is too far away is cut; InvalidArgument: a bad duration.
absl::StatusOr<tiering::RetentionHint> RetentionFromProto(const v1::Retention& message, int64_t now_ns);

constexpr v1::Reason ReasonToProto(Reason reason) { return static_cast<v1::Reason>(reason); }

void DurationToProto(int64_t ns, google::protobuf::Duration* message);
// InvalidArgument: negative, or more than 100 years.
absl::StatusOr<int64_t> DurationFromProto(const google::protobuf::Duration& message);

}  // namespace terrace::api
