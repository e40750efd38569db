// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/door/tenant_access.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace terrace::api {
namespace {

using testing::HasSubstr;

class TenantAccessTest : public testing::Test {
 protected:
  TenantAccessTest() {
    std::string pattern = testing::TempDir() + "terrace_tenant_XXXXXX";
    dir_ = mkdtemp(pattern.data());
  }
  ~TenantAccessTest() override { std::filesystem::remove_all(dir_); }
  std::string WriteToken(const std::string& text, mode_t mode) {
    const std::string path = dir_ + "/token";
    std::ofstream(path) << text;
    EXPECT_EQ(chmod(path.c_str(), mode), 0);
    return path;
  }
  std::string dir_;
};

TEST_F(TenantAccessTest, UserIdsAndTokens) {
  const std::string token_file = WriteToken("s3cret\nsecond line\n", 0600);
  const auto access = TenantAccess::Load({{"default", {}, ""}, {"red", {1000}, ""}, {"blue", {}, token_file}});
  ASSERT_TRUE(access.ok()) << access.status();
  const auto refused = [&](const char* tenant, const char* token, uint32_t uid) {
    const auto id = access->Authenticate(tenant, token, uid);
    EXPECT_EQ(id.status().code(), absl::StatusCode::kPermissionDenied) << tenant;
    EXPECT_EQ(std::string(id.status().message()).find("s3cret"), std::string::npos);
  };
  EXPECT_EQ(*access->Authenticate("default", "", 7), 0);
  EXPECT_EQ(*access->Authenticate("", "", 7), 0) << "no name means the default tenant";
  EXPECT_EQ(*access->Authenticate("red", "", 1000), 1);
  refused("red", "", 1001);
  refused("red", "", TenantAccess::kNoUid);
  EXPECT_EQ(*access->Authenticate("blue", "s3cret", TenantAccess::kNoUid), 2);
  refused("blue", "", 0);
  refused("blue", "s3cre", 0);
  refused("blue", "s3cret ", 0);
  refused("green", "", 0);
}

TEST_F(TenantAccessTest, TokenFilesThatProtectNothing) {
  const auto error = [](const std::string& path) {
    const auto access = TenantAccess::Load({{"a", {}, path}});
    EXPECT_EQ(access.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(access.status().message());
  };
  EXPECT_THAT(error(dir_ + "/absent"), HasSubstr("cannot be read"));
  EXPECT_THAT(error(WriteToken("x\n", 0644)), HasSubstr("chmod 0640"));
  EXPECT_THAT(error(WriteToken("  \n", 0600)), HasSubstr("1 to 127 bytes"));
  EXPECT_THAT(error(WriteToken(std::string(200, 'x'), 0600)), HasSubstr("1 to 127 bytes"));
}

}  // namespace
}  // namespace terrace::api
