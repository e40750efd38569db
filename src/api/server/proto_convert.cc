// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/server/proto_convert.h"

#include "absl/strings/str_cat.h"

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

kv::KeySpaceIdentity IdentityFromProto(const v1::KeySpaceIdentity& message) {
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

}  // namespace terrace::api
