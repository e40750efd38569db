// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/server/proto_convert.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"

namespace terrace::api {
namespace {

constexpr int64_t kNsPerSecond = 1'000'000'000;
constexpr int64_t kSecondsMax = 100ll * 366 * 24 * 3600;

}  // namespace

// The numbering of all doors is one: a cast is the conversion.
static_assert(kReasonCount == v1::Reason_ARRAYSIZE);
static_assert(static_cast<int>(Reason::kHashDiffers) == v1::REASON_HASH_DIFFERS);
static_assert(static_cast<int>(Reason::kBadChecksum) == v1::REASON_BAD_CHECKSUM);
static_assert(static_cast<int>(Reason::kCancelled) == v1::REASON_CANCELLED);
static_assert(static_cast<int>(Reason::kRecompute) == v1::REASON_RECOMPUTE);
static_assert(static_cast<int>(Reason::kIoError) == v1::REASON_IO_ERROR);

absl::StatusOr<kv::BlockKey> KeyFromProto(absl::string_view bytes, absl::string_view field) {
  if (bytes.size() != sizeof(kv::BlockKey)) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " must have 32 bytes, has ", bytes.size()));
  }
  return kv::BlockKey::FromBytes(bytes.data());
}

absl::string_view KeyToProto(const kv::BlockKey& key) {
  return {reinterpret_cast<const char*>(key.bytes.data()), key.bytes.size()};
}

absl::StatusOr<kv::KeySpaceIdentity> IdentityFromProto(const v1::KeySpaceIdentity& message) {
  if (!v1::BlockClass_IsValid(message.block_class())) {
    return absl::InvalidArgumentError(absl::StrCat("unknown block class ", message.block_class()));
  }
  kv::KeySpaceIdentity identity;
  identity.model = message.model();
  identity.model_fingerprint = message.model_fingerprint();
  identity.kv_dtype = message.kv_dtype();
  identity.layout = message.layout();
  identity.parallel = message.parallel();
  identity.hash = message.hash();
  identity.group = message.group();
  identity.extra = message.extra();
  identity.block_bytes = message.block_bytes();
  identity.tokens_per_block = message.tokens_per_block();
  identity.block_class = static_cast<uint8_t>(message.block_class() == v1::BLOCK_CLASS_SHARD
                                                  ? tiering::BlockClass::kShard
                                                  : tiering::BlockClass::kKv);
  return identity;
}

void IdentityToProto(const kv::KeySpaceIdentity& identity, v1::KeySpaceIdentity* message) {
  message->set_model(identity.model);
  message->set_model_fingerprint(identity.model_fingerprint);
  message->set_kv_dtype(identity.kv_dtype);
  message->set_layout(identity.layout);
  message->set_parallel(identity.parallel);
  message->set_hash(identity.hash);
  message->set_group(identity.group);
  message->set_extra(identity.extra);
  message->set_block_bytes(identity.block_bytes);
  message->set_tokens_per_block(identity.tokens_per_block);
  const bool is_shard = identity.block_class == static_cast<uint8_t>(tiering::BlockClass::kShard);
  message->set_block_class(is_shard ? v1::BLOCK_CLASS_SHARD : v1::BLOCK_CLASS_KV);
}

void DurationToProto(int64_t ns, google::protobuf::Duration* message) {
  message->set_seconds(ns / kNsPerSecond);
  message->set_nanos(static_cast<int32_t>(ns % kNsPerSecond));
}

absl::StatusOr<int64_t> DurationFromProto(const google::protobuf::Duration& message) {
  if (message.seconds() < 0 || message.seconds() > kSecondsMax || message.nanos() < 0 ||
      message.nanos() >= kNsPerSecond) {
    return absl::InvalidArgumentError("a duration must be positive and below 100 years");
  }
  return message.seconds() * kNsPerSecond + message.nanos();
}

absl::StatusOr<tiering::RetentionHint> RetentionFromProto(const v1::Retention& message, int64_t now_ns) {
  const auto at = [now_ns](const google::protobuf::Duration& from_now) -> absl::StatusOr<int64_t> {
    ASSIGN_OR_RETURN(const int64_t ns, DurationFromProto(from_now));
    return ns == 0 ? 0 : now_ns + std::min(ns, tiering::kMaxHintNs);
  };
  tiering::RetentionHint hint;
  ASSIGN_OR_RETURN(hint.reuse_at_ns, at(message.reuse_after()));
  ASSIGN_OR_RETURN(hint.pin_until_ns, at(message.pin()));
  hint.done = message.done();
  hint.priority = static_cast<uint8_t>(std::min<uint32_t>(message.priority(), tiering::kMaxPriority));
  return hint;
}

}  // namespace terrace::api
