// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/key_space.h"

#include <cstring>

namespace terrace::client {
namespace {

constexpr size_t kMaxTextBytes = 1024;
constexpr uint64_t kMaxBlockBytes = wire::kMaxBlockBytes;

class OpenRequest : public Request {
 public:
  wire::KeySpaceOpened opened{};

 private:
  Result OnReply(Reply& reply) override {
    if (!reply.Read(&opened) || opened.segment_bytes != wire::kSegmentBytes) {
      return Fail(TERRACE_INTERNAL, "the daemon's answer to a key space has the wrong form");
    }
    return {};
  }
};

}  // namespace

Result KeySpace::Create(const terrace_keyspace_desc& desc, std::shared_ptr<KeySpace>* out) {
  if (desc.struct_bytes < sizeof(desc)) {
    return Fail(TERRACE_INVALID_ARGUMENT, "terrace_keyspace_desc.struct_bytes is %zu, must be %zu",
                desc.struct_bytes, sizeof(desc));
  }
  if (desc.block_bytes == 0 || desc.block_bytes > kMaxBlockBytes) {
    return Fail(TERRACE_INVALID_ARGUMENT, "block_bytes is %llu, must be 1 to %llu",
                static_cast<unsigned long long>(desc.block_bytes),
                static_cast<unsigned long long>(kMaxBlockBytes));
  }
  if (desc.block_class != TERRACE_CLASS_KV && desc.block_class != TERRACE_CLASS_SHARD) {
    return Fail(TERRACE_INVALID_ARGUMENT, "block_class is %u, must be TERRACE_CLASS_*", desc.block_class);
  }
  const struct {
    const char* name;
    const char* text;
  } fields[] = {{"model", desc.model},
                {"model_fingerprint", desc.model_fingerprint},
                {"kv_dtype", desc.kv_dtype},
                {"layout", desc.layout},
                {"parallel", desc.parallel},
                {"hash", desc.hash},
                {"group", desc.group},
                {"extra", desc.extra}};
  std::shared_ptr<KeySpace> key_space(new KeySpace);
  for (const auto& [name, text] : fields) {
    const size_t bytes = text == nullptr ? 0 : strnlen(text, kMaxTextBytes + 1);
    if (bytes > kMaxTextBytes) {
      return Fail(TERRACE_INVALID_ARGUMENT, "%s is longer than %zu bytes: give a digest instead",
                  name, kMaxTextBytes);
    }
    const auto length = static_cast<uint32_t>(bytes);
    key_space->identity_.append(reinterpret_cast<const char*>(&length), sizeof(length));
    if (bytes > 0) key_space->identity_.append(text, bytes);
  }
  key_space->block_bytes_ = desc.block_bytes;
  key_space->tokens_per_block_ = desc.tokens_per_block;
  key_space->block_class_ = desc.block_class;
  *out = std::move(key_space);
  return {};
}

KeySpace::Opened KeySpace::opened() const {
  std::lock_guard lock(mu_);
  return opened_;
}

Result KeySpace::Open(Connection* connection, Deadline deadline) {
  const wire::OpenKeySpace open{block_bytes_, tokens_per_block_, static_cast<uint32_t>(identity_.size()),
                                block_class_, 0};
  OpenRequest request;
  Result asked = connection->Call(wire::Type::kOpenKeySpace,
                                  {{const_cast<wire::OpenKeySpace*>(&open), sizeof(open)},
                                   {identity_.data(), identity_.size()}},
                                  &request, deadline);
  if (!asked.ok()) return asked;
  Opened opened;
  opened.epoch = connection->welcome().epoch;
  opened.id = request.opened.key_space_id;
  std::memcpy(opened.digest.data(), request.opened.digest, opened.digest.size());
  std::lock_guard lock(mu_);
  opened_ = opened;
  return {};
}

}  // namespace terrace::client
