// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// TenantAccess: who may use a tenant, as the configuration says. Knows no protocol.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "api/config.h"
#include "kvstore/key_space.h"

namespace terrace::api {

// Immutable after Load. Owner: Daemon. Threads: any.
class TenantAccess {
 public:
  // Reads the token files once. InvalidArgument: a file is missing, empty, or readable for everyone.
  static absl::StatusOr<TenantAccess> Load(const std::vector<TenantConfig>& tenants);

  // The tenant's index. PermissionDenied for any doubt; the message does not tell an unknown tenant
  // from a wrong token. uid: as the kernel says; kNoUid (an unknown peer) fits no list of user ids.
  absl::StatusOr<kv::TenantId> Authenticate(absl::string_view tenant, absl::string_view token,
                                            uint32_t uid) const;

  static constexpr uint32_t kNoUid = ~0u;

 private:
  struct Entry {
    std::string name;
    std::vector<uint32_t> uids;
    bool needs_token = false;
    std::string token;
  };
  std::vector<Entry> entries_;
};

}  // namespace terrace::api
