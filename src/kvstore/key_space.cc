// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "kvstore/key_space.h"

#include <openssl/sha.h>

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/log.h"
#include "kvstore/key_space_registry.h"

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

KeySpaceTable::~KeySpaceTable() = default;

KeySpaceTable::Digest KeySpaceTable::DigestOf(absl::string_view tenant_name, const KeySpaceIdentity& identity) {
  const std::string canonical = Canonical(tenant_name, identity);
  Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(canonical.data()), canonical.size(), digest.data());
  return digest;
}

void KeySpaceTable::UseRegistry(std::unique_ptr<KeySpaceRegistry> registry,
                                absl::FunctionRef<std::optional<TenantId>(absl::string_view)> find_tenant) {
  MutexLock lock(&registry_mu_);
  registry_ = std::move(registry);
  for (KeySpaceRegistry::Record& record : registry_->TakeRecords()) {
    const auto tenant = find_tenant(record.tenant);
    if (!tenant.has_value() || DigestOf(record.tenant, record.identity) != record.digest) continue;
    recorded_[record.digest] = {*tenant, std::move(record.tenant), std::move(record.identity)};
  }
}

const KeySpace* KeySpaceTable::FindOpen(const Digest& digest) const {
  MutexLock lock(&mu_);
  const auto it = by_digest_.find(digest);
  return it == by_digest_.end() ? nullptr : by_id_[it->second - 1].load(std::memory_order_relaxed);
}

const KeySpace* KeySpaceTable::Insert(TenantId tenant, absl::string_view tenant_name,
                                      const KeySpaceIdentity& identity, const Digest& digest) {
  MutexLock lock(&mu_);
  if (owned_.size() >= max_key_spaces_) return nullptr;
  auto key_space = std::make_unique<KeySpace>();
  key_space->id = static_cast<KeySpaceId>(owned_.size() + 1);
  key_space->tenant = tenant;
  key_space->identity = identity;
  key_space->digest = digest;
  const KeySpace* result = key_space.get();
  by_id_[result->id - 1].store(result, std::memory_order_release);
  count_.store(result->id, std::memory_order_release);
  by_digest_.emplace(digest, result->id);
  owned_.push_back({std::move(key_space), std::string(tenant_name.data(), tenant_name.size())});
  return result;
}

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
  const Digest digest = DigestOf(tenant_name, identity);
  if (const KeySpace* open = FindOpen(digest)) return open;
  MutexLock lock(&registry_mu_);
  if (const KeySpace* open = FindOpen(digest)) return open;
  // Recorded before anyone can store a block in it.
  const bool is_recorded = recorded_.erase(digest) > 0;
  if (registry_ != nullptr && !is_recorded && count_.load(std::memory_order_relaxed) < max_key_spaces_) {
    const absl::Status recorded = registry_->Append(tenant_name, identity, digest);
    if (!recorded.ok() && !std::exchange(is_registry_full_, true)) {
      Log(LogLevel::kWarning, "key_space_not_recorded",
          {{"error", recorded.message()}, {"consequence", "its blocks are lost with this process"}});
    }
  }
  const KeySpace* made = Insert(tenant, tenant_name, identity, digest);
  if (made != nullptr) return made;
  return absl::ResourceExhaustedError(
      absl::StrCat("all ", max_key_spaces_,
                   " key spaces are taken; restart the daemon or raise host.max_key_spaces"));
}

const KeySpace* KeySpaceTable::Recall(const Digest& digest) {
  if (const KeySpace* open = FindOpen(digest)) return open;
  MutexLock lock(&registry_mu_);
  if (const KeySpace* open = FindOpen(digest)) return open;
  const auto it = recorded_.find(digest);
  if (it == recorded_.end()) return nullptr;
  const KeySpace* made = Insert(it->second.tenant, it->second.tenant_name, it->second.identity, digest);
  if (made != nullptr) recorded_.erase(it);
  return made;
}

void KeySpaceTable::ForgetUnrecalled() {
  MutexLock lock(&registry_mu_);
  if (registry_ == nullptr) return;
  recorded_.clear();
  std::vector<KeySpaceRegistry::Record> records;
  {
    MutexLock open_lock(&mu_);
    for (const Owned& owned : owned_) {
      records.push_back({owned.tenant_name, owned.key_space->digest, owned.key_space->identity});
    }
  }
  // Where it fails the old file stays, which holds all of these and more.
  const absl::Status written = registry_->Rewrite(records);
  if (!written.ok()) Log(LogLevel::kWarning, "key_spaces_not_compacted", {{"error", written.message()}});
}

const KeySpace* KeySpaceTable::Find(TenantId tenant, KeySpaceId id) const {
  if (id == 0 || id > count_.load(std::memory_order_acquire)) return nullptr;
  const KeySpace* key_space = by_id_[id - 1].load(std::memory_order_acquire);
  return key_space->tenant == tenant ? key_space : nullptr;
}

std::vector<const KeySpace*> KeySpaceTable::List() const {
  MutexLock lock(&mu_);
  std::vector<const KeySpace*> all;
  for (const Owned& owned : owned_) all.push_back(owned.key_space.get());
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
