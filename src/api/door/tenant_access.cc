// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/door/tenant_access.h"

#include <openssl/crypto.h>
#include <sys/stat.h>

#include <algorithm>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"

namespace terrace::api {
namespace {

constexpr size_t kMaxTokenBytes = 127;  // wire::Hello::token

absl::StatusOr<std::string> ReadToken(const std::string& tenant, const std::string& path) {
  const std::string what = absl::StrCat("tenants: token_file of \"", tenant, "\": ", path);
  struct stat info {};
  std::string token;
  std::ifstream file(path);
  if (stat(path.c_str(), &info) != 0 || !std::getline(file, token)) {
    return absl::InvalidArgumentError(absl::StrCat(what, " cannot be read or is empty"));
  }
  if ((info.st_mode & (S_IROTH | S_IWOTH | S_IWGRP)) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(what, " is open to others; chmod 0640 it"));
  }
  const absl::string_view stripped = absl::StripAsciiWhitespace(token);
  if (stripped.empty() || stripped.size() > kMaxTokenBytes) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": a token has 1 to ", kMaxTokenBytes, " bytes"));
  }
  return std::string(stripped.data(), stripped.size());
}

// Takes as long for a wrong token as for the right one.
bool SameToken(absl::string_view given, absl::string_view expected) {
  return given.size() == expected.size() && CRYPTO_memcmp(given.data(), expected.data(), given.size()) == 0;
}

}  // namespace

absl::StatusOr<TenantAccess> TenantAccess::Load(const std::vector<TenantConfig>& tenants) {
  TenantAccess access;
  for (const TenantConfig& tenant : tenants) {
    Entry entry{tenant.name, tenant.uids, !tenant.token_file.empty(), ""};
    if (entry.needs_token) {
      ASSIGN_OR_RETURN(entry.token, ReadToken(tenant.name, tenant.token_file));
    }
    access.entries_.push_back(std::move(entry));
  }
  return access;
}

absl::StatusOr<kv::TenantId> TenantAccess::Authenticate(absl::string_view tenant, absl::string_view token,
                                                        uint32_t uid) const {
  if (tenant.empty()) tenant = "default";
  for (size_t i = 0; i < entries_.size(); ++i) {
    const Entry& entry = entries_[i];
    if (tenant != entry.name) continue;
    const bool uid_fits = entry.uids.empty() || (uid != kNoUid && std::find(entry.uids.begin(), entry.uids.end(),
                                                                            uid) != entry.uids.end());
    if (uid_fits && (!entry.needs_token || SameToken(token, entry.token))) return static_cast<kv::TenantId>(i);
  }
  return absl::PermissionDeniedError(absl::StrCat(
      "tenant \"", tenant.substr(0, 63),
      "\" is refused: it is not configured, or this user or token may not use it; see `tenants` in terraced's "
      "configuration"));
}

}  // namespace terrace::api
