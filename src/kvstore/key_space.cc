// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "kvstore/key_space.h"

#include <openssl/sha.h>

#include <cstring>

#include "absl/strings/str_cat.h"

namespace terrace::kv {
namespace {

constexpr size_t kMaxFieldBytes = 1024;
constexpr uint64_t kMaxBlockBytes = 1ull << 30;

struct NamedField {
  const char* name;
  const std::string KeySpaceIdentity::*field;
};
constexpr NamedField kFields[] = {
    {"model", &KeySpaceIdentity::model},       {"model_fingerprint", &KeySpaceIdentity::model_fingerprint},
    {"kv_dtype", &KeySpaceIdentity::kv_dtype}, {"layout", &KeySpaceIdentity::layout},
    {"parallel", &KeySpaceIdentity::parallel}, {"hash", &KeySpaceIdentity::hash},
    {"group", &KeySpaceIdentity::group},       {"extra", &KeySpaceIdentity::extra},
};

// Length-prefixed, so that no two different identities give the same bytes.
std::string Canonical(absl::string_view tenant_name, const KeySpaceIdentity& identity) {
  std::string out = "terrace key space v1";
  const auto append = [&out](absl::string_view text) {
    const auto size = static_cast<uint32_t>(text.size());
    out.append(reinterpret_cast<const char*>(&size), sizeof(size));
    out.append(text.data(), text.size());
  };
  append(tenant_name);
  for (const NamedField& field : kFields) append(identity.*field.field);
  out.append(reinterpret_cast<const char*>(&identity.block_bytes), sizeof(identity.block_bytes));
  out.append(reinterpret_cast<const char*>(&identity.tokens_per_block), sizeof(identity.tokens_per_block));
  if (identity.block_class != 0) append("shard");
  return out;
}

}  // namespace

KeySpaceTable::KeySpaceTable(uint32_t max_key_spaces)
    : max_key_spaces_(max_key_spaces), by_id_(new std::atomic<const KeySpace*>[max_key_spaces]()) {}

absl::StatusOr<const KeySpace*> KeySpaceTable::Open(TenantId tenant, absl::string_view tenant_name,
                                                    const KeySpaceIdentity& identity) {
  for (const NamedField& field : kFields) {
    if ((identity.*field.field).size() > kMaxFieldBytes) {
      return absl::InvalidArgumentError(absl::StrCat("key space field ", field.name, " has ",
                                                     (identity.*field.field).size(),
                                                     " bytes; at most 1024: use a digest"));
    }
  }
  if (identity.block_bytes == 0 || identity.block_bytes > kMaxBlockBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("block_bytes is ", identity.block_bytes, "; it must be 1 to ", kMaxBlockBytes));
  }
  const std::string canonical = Canonical(tenant_name, identity);
  std::array<uint8_t, 32> digest;
  SHA256(reinterpret_cast<const unsigned char*>(canonical.data()), canonical.size(), digest.data());
  const std::string name(reinterpret_cast<const char*>(digest.data()), digest.size());

  MutexLock lock(&mu_);
  if (auto it = by_digest_.find(name); it != by_digest_.end()) {
    return by_id_[it->second - 1].load(std::memory_order_relaxed);
  }
  if (owned_.size() >= max_key_spaces_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("all ", max_key_spaces_,
                     " key spaces are taken; restart the daemon or raise host.max_key_spaces"));
  }
  auto key_space = std::make_unique<KeySpace>();
  key_space->id = static_cast<KeySpaceId>(owned_.size() + 1);
  key_space->tenant = tenant;
  key_space->identity = identity;
  key_space->digest = digest;
  const KeySpace* result = key_space.get();
  by_id_[result->id - 1].store(result, std::memory_order_release);
  count_.store(result->id, std::memory_order_release);
  by_digest_.emplace(name, result->id);
  owned_.push_back(std::move(key_space));
  return result;
}

const KeySpace* KeySpaceTable::Find(TenantId tenant, KeySpaceId id) const {
  if (id == 0 || id > count_.load(std::memory_order_acquire)) return nullptr;
  const KeySpace* key_space = by_id_[id - 1].load(std::memory_order_acquire);
  return key_space->tenant == tenant ? key_space : nullptr;
}

std::vector<const KeySpace*> KeySpaceTable::List() const {
  MutexLock lock(&mu_);
  std::vector<const KeySpace*> all;
  for (const auto& key_space : owned_) all.push_back(key_space.get());
  return all;
}

Reason KeySpaceTable::WhyEmpty(const KeySpace& key_space) const {
  const KeySpaceIdentity& mine = key_space.identity;
  Reason nearest = Reason::kKeySpaceEmpty;
  const auto rank = [](Reason reason) {
    return reason == Reason::kHashDiffers ? 3 : reason == Reason::kLayoutDiffers ? 2
                                            : reason == Reason::kModelDiffers    ? 1
                                                                                 : 0;
  };
  for (const KeySpace* other : List()) {
    if (other == &key_space || other->tenant != key_space.tenant) continue;
    if (other->blocks_stored.load(std::memory_order_relaxed) == 0) continue;
    const KeySpaceIdentity& theirs = other->identity;
    // Another rank or group of the same engine is no explanation.
    const bool same_model = theirs.model_fingerprint == mine.model_fingerprint;
    const bool same_layout = theirs.layout == mine.layout && theirs.kv_dtype == mine.kv_dtype &&
                             theirs.block_bytes == mine.block_bytes && theirs.parallel == mine.parallel &&
                             theirs.group == mine.group;
    Reason reason = Reason::kKeySpaceEmpty;
    if (same_model && same_layout && theirs.hash != mine.hash) reason = Reason::kHashDiffers;
    if (same_model && !same_layout &&
        (theirs.group == mine.group || theirs.kv_dtype != mine.kv_dtype)) {
      reason = Reason::kLayoutDiffers;
    }
    if (!same_model && same_layout) reason = Reason::kModelDiffers;
    if (rank(reason) > rank(nearest)) nearest = reason;
  }
  return nearest;
}

}  // namespace terrace::kv
