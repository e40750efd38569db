// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// KeySpace: who may share blocks and what their bytes mean; and the table of all that are open.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "kvstore/base/mutex.h"
#include "kvstore/base/reason.h"

namespace terrace::kv {

using TenantId = uint16_t;    // index into the configured tenants
using KeySpaceId = uint32_t;  // of this daemon process; 0 is never used

// What a client says about its blocks. Two key spaces are the same exactly when tenant and all fields
// are equal.
struct KeySpaceIdentity {
  std::string model, model_fingerprint, kv_dtype, layout, parallel, hash, group, extra;
  uint64_t block_bytes = 0;
  uint32_t tokens_per_block = 0;
  uint8_t block_class = 0;  // tiering::BlockClass: 0 KV, 1 training shards
};

// One open key space. Immutable but for its counters.
// Owner: KeySpaceTable, for the life of the daemon. Threads: any.
struct KeySpace {
  KeySpaceId id = 0;
  TenantId tenant = 0;
  KeySpaceIdentity identity;
  std::array<uint8_t, 32> digest{};  // SHA-256 over tenant name and identity, length-prefixed fields
  mutable std::atomic<uint64_t> blocks_stored{0};  // ever
  mutable std::atomic<int64_t> blocks_resident{0};
  mutable std::atomic<bool> is_warned{false};  // something was logged about it that is said once
  mutable std::atomic<uint32_t> flushes{0};  // what set out before the last one must not arrive
};

class KeySpaceRegistry;

// All key spaces of a daemon. Never forgets one: its id stays valid. Any thread.
// Limit: max_key_spaces; the next one is ResourceExhausted.
class KeySpaceTable {
 public:
  explicit KeySpaceTable(uint32_t max_key_spaces);
  ~KeySpaceTable();

  // From now on every key space is recorded before Open returns it, and those that the last process
  // recorded can be recalled; those of tenants that find_tenant does not know are forgotten. Before any
  // other thread comes. A key space that cannot be recorded is opened nevertheless: the next process will
  // not know its blocks.
  void UseRegistry(std::unique_ptr<KeySpaceRegistry> registry,
                   absl::FunctionRef<std::optional<TenantId>(absl::string_view)> find_tenant);
  // The key space of a block that was found: open, or recorded by the last process and opened now.
  // nullptr: nobody knows it, or all key spaces are taken.
  const KeySpace* Recall(const std::array<uint8_t, 32>& digest);
  // All blocks were found: recorded key spaces that nobody asked for are forgotten.
  void ForgetUnrecalled();

  // Finds or makes the key space. InvalidArgument: field over 1024 bytes, block_bytes 0 or over 1 GiB.
  absl::StatusOr<const KeySpace*> Open(TenantId tenant, absl::string_view tenant_name,
                                       const KeySpaceIdentity& identity);
  // nullptr when there is none or it belongs to another tenant.
  const KeySpace* Find(TenantId tenant, KeySpaceId id) const;
  std::vector<const KeySpace*> List() const;
  uint32_t max_key_spaces() const { return max_key_spaces_; }

  // Why nothing can be found in an empty key space: the nearest non-empty one of the tenant tells
  // (kHashDiffers, kLayoutDiffers, kModelDiffers), else kKeySpaceEmpty.
  Reason WhyEmpty(const KeySpace& key_space) const;

 private:
  static std::array<uint8_t, 32> DigestOf(absl::string_view tenant_name, const KeySpaceIdentity& identity);
  const KeySpace* FindOpen(const std::array<uint8_t, 32>& digest) const;
  // Makes it, if it is not there. nullptr: all are taken.
  const KeySpace* Insert(TenantId tenant, absl::string_view tenant_name, const KeySpaceIdentity& identity,
                         const std::array<uint8_t, 32>& digest) ABSL_EXCLUSIVE_LOCKS_REQUIRED(registry_mu_);

  using Digest = std::array<uint8_t, 32>;
  struct Recorded {
    TenantId tenant;
    std::string tenant_name;
    KeySpaceIdentity identity;
  };
  const uint32_t max_key_spaces_;
  Mutex registry_mu_;  // held by who opens a new one, over the writing of its record
  std::unique_ptr<KeySpaceRegistry> registry_ ABSL_GUARDED_BY(registry_mu_);
  absl::flat_hash_map<Digest, Recorded> recorded_ ABSL_GUARDED_BY(registry_mu_);  // and not open
  bool is_registry_full_ ABSL_GUARDED_BY(registry_mu_) = false;

  mutable Mutex mu_ ABSL_ACQUIRED_AFTER(registry_mu_);
  std::atomic<uint32_t> count_{0};
  std::unique_ptr<std::atomic<const KeySpace*>[]> by_id_;  // slot id - 1; written under mu_
  absl::flat_hash_map<Digest, KeySpaceId> by_digest_ ABSL_GUARDED_BY(mu_);
  struct Owned {
    std::unique_ptr<KeySpace> key_space;
    std::string tenant_name;
  };
  std::vector<Owned> owned_ ABSL_GUARDED_BY(mu_);
};

}  // namespace terrace::kv
