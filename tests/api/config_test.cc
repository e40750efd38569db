// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "api/server/config_options.h"
#include "api/server/config_text.h"
#include "api/server/config_value.h"

namespace terrace::api {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

class ConfigTest : public testing::Test {
 protected:
  ConfigTest() {
    std::string pattern = testing::TempDir() + "terrace_config_XXXXXX";
    dir_ = mkdtemp(pattern.data());
  }
  ~ConfigTest() override { std::filesystem::remove_all(dir_); }

  std::string Write(const std::string& yaml) {
    const std::string path = dir_ + "/terraced.yaml";
    std::ofstream(path) << yaml;
    return path;
  }
  absl::StatusOr<Config> LoadYaml(const std::string& yaml) { return LoadConfig({.file = Write(yaml)}); }
  std::string YamlError(const std::string& yaml) { return Error(LoadYaml(yaml)); }
  static std::string Error(const absl::StatusOr<Config>& config) {
    EXPECT_FALSE(config.ok());
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(config.status().message());
  }
  static std::string SetError(const std::string& key, const std::string& value) {
    return Error(LoadConfig({.settings = {{key, value}}}));
  }

  std::string dir_;
};

TEST_F(ConfigTest, DefaultsAreValidAndResolved) {
  const absl::StatusOr<Config> config = LoadConfig({});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->engine_socket, "/run/terrace/engine.sock");
  EXPECT_EQ(config->grpc_socket, "/run/terrace/grpc.sock");
  EXPECT_EQ(config->http_listen, "127.0.0.1:9464");
  EXPECT_NEAR(static_cast<double>(config->stack.budget_bytes), 0.25 * static_cast<double>(MachineMemoryBytes()),
              1 << 20);
  ASSERT_EQ(config->stack.tenants.size(), 1u);
  EXPECT_EQ(config->stack.tenants[0].name, "default");
}

TEST_F(ConfigTest, LaterSourcesWin) {
  const std::string file = Write("host: {budget: 100MiB, store_threads: 3, prefault: no}\n");
  const absl::StatusOr<Config> config = LoadConfig({.file = file,
                                                    .environment = {{"TERRACE_HOST_BUDGET", "200MiB"},
                                                                    {"TERRACE_HOST_STORE_THREADS", "4"}},
                                                    .settings = {{"host.budget", "300MiB"}}});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->stack.budget_bytes, 300u << 20);
  EXPECT_EQ(config->stack.store_threads, 4u);
  EXPECT_FALSE(config->stack.prefault);
}

TEST_F(ConfigTest, AnUnknownKeyIsRefusedAndTheRightOneNamed) {
  EXPECT_THAT(YamlError("log:\n  level: info\nhost:\n  bugdet: 1GiB\n"),
              AllOf(HasSubstr("terraced.yaml:4: "), HasSubstr("unknown key \"host.bugdet\""),
                    HasSubstr("did you mean \"host.budget\"?")));
  EXPECT_THAT(YamlError("hots:\n  budget: 1GiB\n"),
              HasSubstr("terraced.yaml:1: unknown key \"hots\"; did you mean \"host\"?"));
  EXPECT_THAT(YamlError("budget: 1GiB\n"), HasSubstr("did you mean \"host.budget\"?"));
  EXPECT_THAT(SetError("engine.sokcet", "/x"), HasSubstr("did you mean \"engine.socket\"?"));
  EXPECT_THAT(Error(LoadConfig({.environment = {{"TERRACE_HOST_BUGDET", "1GiB"}}})),
              AllOf(HasSubstr("variable TERRACE_HOST_BUGDET"), HasSubstr("did you mean \"TERRACE_HOST_BUDGET\"?")));
  EXPECT_THAT(SetError("zzzzzzzzzzzzzz", "1"), HasSubstr("config defaults"));
}

TEST_F(ConfigTest, EveryOptionHasAVariableThatSetsIt) {
  for (const ConfigOption& option : ConfigOptions()) {
    const absl::StatusOr<Config> config =
        LoadConfig({.environment = {{option.EnvironmentName(), option.get(Config{})}}});
    EXPECT_TRUE(config.ok()) << option.key << ": " << config.status();
  }
}

TEST_F(ConfigTest, OtherProgramsVariablesAreNoneOfOurs) {
  EXPECT_TRUE(LoadConfig({.environment = {{"TERRACE_SOCKET", "/x"},
                                          {"TERRACE_BIN_DIR", "/y"},
                                          {"TERRACE_PORT", "tcp://192.0.2.1:1"},           // Kubernetes, service
                                          {"TERRACE_PORT_9464_TCP", "tcp://192.0.2.1:1"},  // "terrace"
                                          {"TERRACE_SERVICE_HOST", "192.0.2.1"}}})
                  .ok());
}

TEST_F(ConfigTest, ABadValueIsNamedWithWhatIsAccepted) {
  EXPECT_THAT(YamlError("host:\n  budget: lots\n"),
              AllOf(HasSubstr("terraced.yaml:2: host.budget: \"lots\" is not a size such as 64GiB")));
  EXPECT_THAT(SetError("host.budget", "1MiB"), HasSubstr("at least 64MiB"));
  EXPECT_THAT(SetError("nvme.devices", "/disk=1MiB"), HasSubstr("at least 8MiB"));
  EXPECT_THAT(SetError("nvme.devices", "/disk=0"), HasSubstr("at least 8MiB"));
  EXPECT_EQ(SetError("nvme.depth", "0"), "command line: nvme.depth: \"0\" is not a whole number from 4 to 1024");
  EXPECT_THAT(SetError("gpu.staging_bytes", "1KiB"), HasSubstr("0, or a size of at least 2MiB"));
  EXPECT_THAT(SetError("host.budget", "0%"), HasSubstr("share of the machine's memory"));
  EXPECT_THAT(SetError("host.budget", "1000TiB"), HasSubstr("lower it"));
  EXPECT_THAT(SetError("host.lease_max_age", "30"), HasSubstr("with its unit"));
  EXPECT_THAT(SetError("host.max_leased_ratio", "1.5"), HasSubstr("from 0 to 1"));
  EXPECT_THAT(SetError("host.prefault", "maybe"), HasSubstr("true or false"));
  EXPECT_THAT(SetError("engine.socket_mode", "0999"), HasSubstr("octal"));
  EXPECT_THAT(SetError("engine.max_connections", "-1"), HasSubstr("whole number from 1"));
  EXPECT_THAT(SetError("engine.socket", "relative/path"), HasSubstr("absolute path"));
  EXPECT_THAT(SetError("log.level", "loud"), HasSubstr("one of debug, info, warning, error"));
  EXPECT_THAT(SetError("host.eviction_policy", "magic"), HasSubstr("lru"));
  EXPECT_THAT(SetError("http.listen", "9464"), HasSubstr("ADDRESS:PORT"));
  EXPECT_THAT(SetError("http.listen", "127.0.0.1:99999"), HasSubstr("ADDRESS:PORT"));
  EXPECT_THAT(SetError("grpc.admin_uids", "root"), HasSubstr("list of user ids"));
}

TEST_F(ConfigTest, AllErrorsAreTold) {
  EXPECT_THAT(YamlError("log:\n  level: loud\n  format: xml\nnope: 1\n"),
              AllOf(HasSubstr(":2: log.level"), HasSubstr(":3: log.format"), HasSubstr(":4: unknown key \"nope\"")));
}

TEST_F(ConfigTest, OptionsThatContradictEachOtherAreRefused) {
  EXPECT_THAT(SetError("http.listen", "0.0.0.0:9464"), HasSubstr("http.allow_remote"));
  EXPECT_TRUE(LoadConfig({.settings = {{"http.listen", "0.0.0.0:9464"}, {"http.allow_remote", "true"}}}).ok());
  EXPECT_THAT(SetError("grpc.listen", "0.0.0.0:9465"), HasSubstr("loopback"));
  EXPECT_THAT(SetError("engine.staging_bytes", "1GiB"), HasSubstr("engine.staging_bytes_max"));
  EXPECT_EQ(SetError("nvme.devices", "/disk=1GiB,/disk=1GiB"), "nvme.devices: /disk is there twice");
  for (const char* file : {"/absent", "/dev/shm/absent", "/dev/null", "/tmp"}) {
    EXPECT_THAT(SetError("nvme.devices", file), HasSubstr("a file needs a size")) << file;
  }
  EXPECT_TRUE(LoadConfig({.settings = {{"nvme.devices", "/dev/absent"}}}).ok()) << "a disk may come later";
  EXPECT_THAT(Error(LoadConfig({.settings = {{"engine.socket", "/x"}, {"grpc.socket", "/x"}}})),
              HasSubstr("must differ"));
}

TEST_F(ConfigTest, MemoryOfDisksLeavesRoomForBlocks) {
  const auto load = [](const std::string& key, const std::string& size) {
    return LoadConfig({.settings = {{"host.budget", "256MiB"}, {"nvme.devices", "/disk=1GiB"}, {key, size}}});
  };
  for (const char* key : {"nvme.index_memory", "nvme.io_memory"}) {
    EXPECT_THAT(Error(load(key, "1TiB")), HasSubstr(key));
  }
  EXPECT_THAT(Error(load("nvme.index_memory", "128MiB")), HasSubstr("host.budget leaves at most"));
  EXPECT_TRUE(load("nvme.index_memory", "64MiB").ok());
}

TEST_F(ConfigTest, OneClientsStagingIsPlannedFor) {
  const absl::StatusOr<Config> config = LoadConfig({.settings = {{"engine.staging_bytes", "24MiB"}}});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->stack.client_staging_bytes, 24u << 20);
}

TEST_F(ConfigTest, FilesThatAreNoConfiguration) {
  EXPECT_THAT(Error(LoadConfig({.file = dir_ + "/absent.yaml"})), HasSubstr("cannot be read"));
  EXPECT_THAT(Error(LoadConfig({.file = dir_})), HasSubstr("is a directory"));
  EXPECT_THAT(YamlError("host: [1\n"), HasSubstr("not valid YAML"));
  EXPECT_THAT(YamlError("just text\n"), HasSubstr("expected keys and values"));
  EXPECT_THAT(YamlError("host: 5\n"), HasSubstr("wrong shape"));
  EXPECT_THAT(YamlError("host:\n  budget: {a: 1}\n"), HasSubstr("unknown key \"host.budget.a\""));
  EXPECT_THAT(YamlError("log:\n  level: info\n  level: debug\n"), HasSubstr("stands twice"));
  EXPECT_THAT(YamlError(std::string(2 << 20, '#')), HasSubstr("larger than 1 MiB"));
  EXPECT_TRUE(LoadYaml("").ok());
  EXPECT_TRUE(LoadYaml("host:\n  # budget: 1GiB\n").ok()) << "a section whose keys are comments is empty";
}

TEST_F(ConfigTest, Tenants) {
  const absl::StatusOr<Config> config = LoadYaml(
      "tenants:\n  - {name: red, uids: [1000, 1001]}\n  - name: blue\n    token_file: /etc/blue\n");
  ASSERT_TRUE(config.ok()) << config.status();
  ASSERT_EQ(config->tenants.size(), 2u);
  EXPECT_EQ(config->tenants[0].name, "red");
  EXPECT_THAT(config->tenants[0].uids, ElementsAre(1000u, 1001u));
  EXPECT_EQ(config->tenants[1].token_file, "/etc/blue");
  EXPECT_EQ(config->stack.tenants[1].name, "blue");
  EXPECT_THAT(YamlError("tenants: []\n"), HasSubstr("expected a list"));
  EXPECT_THAT(YamlError("tenants: [{uids: [1]}]\n"), HasSubstr("a name is"));
  EXPECT_THAT(YamlError("tenants: [{name: a}, {name: a}]\n"), HasSubstr("stands twice"));
  EXPECT_THAT(YamlError("tenants: [{name: a, uids: [-1]}]\n"), HasSubstr("whole number"));
  EXPECT_THAT(YamlError("tenants: [{name: a, tokens: x}]\n"), HasSubstr("\"tokens\" is not one of"));
  EXPECT_THAT(YamlError("tenants: [{name: a, uids: x}]\n"), HasSubstr("uids: expected a list"));
  EXPECT_THAT(YamlError("tenants: [{name: [a]}]\n"), HasSubstr("name: expected one value"));
  EXPECT_THAT(YamlError("tenants: [{name: \"a\\nb\"}]\n"), HasSubstr("letters"));
  EXPECT_TRUE(LoadConfig({.environment = {{"TERRACE_TENANTS", "[{name: x}]"}}}).ok());
}

TEST_F(ConfigTest, PrintedYamlReadsBackTheSame) {
  const absl::StatusOr<Config> first = LoadConfig({.settings = {{"host.budget", "1536MiB"},
                                                                {"host.lease_max_age", "90s"},
                                                                {"engine.socket_mode", "0600"},
                                                                {"grpc.admin_uids", "7,8"},
                                                                {"http.listen", ""},
                                                                {"tenants", "[{name: a, uids: [5]}]"}}});
  ASSERT_TRUE(first.ok()) << first.status();
  const std::string yaml = ConfigYaml(*first, true);
  const absl::StatusOr<Config> second = LoadYaml(yaml);
  ASSERT_TRUE(second.ok()) << second.status() << "\n" << yaml;
  EXPECT_EQ(ConfigYaml(*second, true), yaml);
  EXPECT_THAT(second->grpc_admin_uids, ElementsAre(7u, 8u));
  EXPECT_EQ(second->http_listen, "");
}

TEST_F(ConfigTest, ValuesOfAllShapes) {
  EXPECT_EQ(*ParseSize("64GiB"), 64ull << 30);
  EXPECT_EQ(*ParseSize("1.5 GiB"), 3ull << 29);
  EXPECT_EQ(*ParseSize("10GB"), 10'000'000'000ull);
  EXPECT_EQ(*ParseSize("1073741824"), 1ull << 30);
  for (const char* bad : {"", "GiB", "-1", "1e9", "1.5", "1 XB", "99999999999TiB", "0x10", "nan", "inf"}) {
    EXPECT_FALSE(ParseSize(bad).ok()) << bad;
  }
  EXPECT_EQ(*ParseDuration("250ms"), 250'000'000);
  EXPECT_EQ(*ParseDuration("5m"), 300'000'000'000);
  for (const char* bad : {"", "5", "5 min", "-5s", "1e300h"}) EXPECT_FALSE(ParseDuration(bad).ok()) << bad;
  EXPECT_EQ(*ParseMode("0660"), 0660u);
  for (const char* bad : {"", "888", "1777", "00000660", "rw"}) EXPECT_FALSE(ParseMode(bad).ok()) << bad;
  EXPECT_DOUBLE_EQ(*ParseRatio("80%"), 0.8);
  for (const uint64_t bytes : {0ull, 1ull, 1023ull, 1ull << 20, 5ull << 30, (5ull << 30) + 1}) {
    EXPECT_EQ(*ParseSize(FormatSize(bytes)), bytes);
  }
  for (const int64_t ns : {0ll, 1ll, 1'000ll, 90'000'000'000ll, 3'600'000'000'000ll}) {
    EXPECT_EQ(*ParseDuration(FormatDuration(ns)), ns);
  }
}

TEST_F(ConfigTest, TheDocumentListsExactlyTheTable) {
  std::ifstream file(TERRACE_SOURCE_DIR "/docs/configuration.md");
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_THAT(text.str(), HasSubstr(ConfigMarkdown()))
      << "replace the table of docs/configuration.md by `terraced config defaults --format markdown`";
  std::set<std::string> keys;
  for (const ConfigOption& option : ConfigOptions()) EXPECT_TRUE(keys.insert(option.key).second) << option.key;
}

}  // namespace
}  // namespace terrace::api
