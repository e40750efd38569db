// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Reads the sources one after the other into a Config and collects all errors. YAML through yaml-cpp
// (https://github.com/jbeder/yaml-cpp), whose exceptions end here.
#include "api/config.h"

#include <unistd.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "api/server/config_options.h"
#include "api/server/config_value.h"
#include "kvstore/base/status_macros.h"

namespace terrace::api {
namespace {

constexpr size_t kMaxFileBytes = 1 << 20;
constexpr size_t kMaxErrors = 20;
constexpr size_t kMaxTenants = 1024;
constexpr size_t kMaxTenantNameBytes = 63;  // wire::Hello::tenant

// TERRACE_* names that are not ours: of libterrace, the plugins, the tests, and what Kubernetes makes for a
// service called "terrace".
constexpr const char* kForeignVariables[] = {"TERRACE_SOCKET",   "TERRACE_TOKEN",   "TERRACE_TENANT",
                                             "TERRACE_CONFIG",   "TERRACE_BIN_DIR", "TERRACE_LIBRARY",
                                             "TERRACE_LIB",      "TERRACE_GRPC_TARGET"};
constexpr const char* kForeignPrefixes[] = {"TERRACE_VLLM_", "TERRACE_TEST_", "TERRACE_BENCH_", "TERRACE_DEMO_",
                                            "TERRACE_LIB_",  "TERRACE_SERVICE_", "TERRACE_PORT_"};

bool IsForeignVariable(absl::string_view name) {
  for (const char* foreign : kForeignVariables) {
    if (name == foreign) return true;
  }
  for (const char* prefix : kForeignPrefixes) {
    if (absl::StartsWith(name, prefix)) return true;
  }
  return name == "TERRACE_PORT";
}

// "127.0.0.1:80", "[::1]:80", "localhost:80".
bool IsLoopback(absl::string_view address) {
  const absl::string_view host = address.substr(0, address.rfind(':'));
  return host == "localhost" || host == "::1" || host == "[::1]" || absl::StartsWith(host, "127.");
}

// A device without a size: one that is there, or may appear when the machine starts.
bool MayBeRaw(const std::string& path) {
  std::error_code ignored;
  const auto type = std::filesystem::status(path, ignored).type();
  if (type != std::filesystem::file_type::not_found) return type == std::filesystem::file_type::block;
  return absl::StartsWith(path, "/dev/") && !absl::StartsWith(path, "/dev/shm/");
}

class Loader {
 public:
  absl::Status Load(const ConfigSources& sources) {
    if (!sources.file.empty()) LoadFile(sources.file);
    for (const auto& [name, value] : sources.environment) LoadVariable(name, value);
    for (const auto& [key, value] : sources.settings) Set("command line: ", key, value);
    if (errors_.empty()) Resolve();
    if (errors_.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrJoin(errors_, "\n"));
  }
  Config Take() { return std::move(config_); }

 private:
  void Error(absl::string_view where, absl::string_view text) {
    if (errors_.size() < kMaxErrors) errors_.push_back(absl::StrCat(where, text));
  }

  void UnknownKey(absl::string_view where, absl::string_view key, absl::string_view shown_near) {
    Error(where, absl::StrCat("unknown key \"", key.substr(0, 100), "\"",
                              shown_near.empty() ? "; `terraced config defaults` lists all"
                                                 : absl::StrCat("; did you mean \"", shown_near, "\"?")));
  }

  void Set(const std::string& where, absl::string_view key, absl::string_view value) {
    if (key == kTenantsKey) return SetTenantsText(where, value);
    const ConfigOption* option = FindConfigOption(key);
    if (option == nullptr) return UnknownKey(where, key, NearestConfigKey(key));
    if (const absl::Status status = option->set(value, &config_); !status.ok()) {
      Error(where, absl::StrCat(key, ": \"", value.substr(0, 100), "\" is not ", status.message()));
    }
  }

  void LoadVariable(const std::string& name, const std::string& value) {
    if (IsForeignVariable(name)) return;
    const std::string where = absl::StrCat("variable ", name, ": ");
    if (name == "TERRACE_TENANTS") return SetTenantsText(where, value);
    for (const ConfigOption& option : ConfigOptions()) {
      if (option.EnvironmentName() == name) return Set(where, option.key, value);
    }
    // "HOST_BUGDET" -> "host_bugdet": near enough to "host.budget".
    const std::string key = absl::AsciiStrToLower(absl::string_view(name).substr(8));
    const ConfigOption* near = FindConfigOption(NearestConfigKey(key));
    UnknownKey(where, name, near == nullptr ? "" : near->EnvironmentName());
  }

  void LoadFile(const std::string& path) {
    std::error_code ignored;
    if (std::filesystem::is_directory(path, ignored)) return Error(path, ": cannot be read, it is a directory");
    std::ifstream file(path, std::ios::binary);
    std::string text(kMaxFileBytes + 1, '\0');
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<size_t>(std::max<std::streamsize>(file.gcount(), 0)));
    if (!file.eof() || file.bad()) {
      return Error(path, text.size() > kMaxFileBytes ? ": larger than 1 MiB, so not a configuration"
                                                     : ": cannot be read; check the path and its permissions");
    }
    try {
      Flatten(path, "", YAML::Load(text), 0);
    } catch (const YAML::Exception& e) {
      Error(absl::StrCat(path, ":", e.mark.line + 1, ": "), absl::StrCat("not valid YAML: ", e.msg));
    }
  }

  static bool IsSection(absl::string_view path) {
    for (const ConfigOption& option : ConfigOptions()) {
      if (absl::StartsWith(option.key, absl::StrCat(path, "."))) return true;
    }
    return false;
  }

  // Options whose value may be written as a sequence; as one text its parts are separated by commas.
  static bool IsList(const std::string& path) {
    return FindConfigOption(path) != nullptr && (absl::EndsWith(path, "uids") || path == "nvme.devices");
  }

  void Flatten(const std::string& file, const std::string& path, const YAML::Node& node, int depth) {
    const std::string where = absl::StrCat(file, ":", node.Mark().line + 1, ": ");
    if (path == kTenantsKey) return SetTenants(where, node);
    if (node.IsMap() && depth < 8) {
      std::set<std::string> seen;
      for (const auto& entry : node) {
        const std::string name = entry.first.IsScalar() ? entry.first.Scalar() : "";
        const std::string key = path.empty() ? name : absl::StrCat(path, ".", name);
        const std::string here = absl::StrCat(file, ":", entry.first.Mark().line + 1, ": ");
        if (!seen.insert(name).second) {
          Error(here, absl::StrCat("\"", key, "\" stands twice; keep one"));
        } else if (key != kTenantsKey && !IsSection(key) && FindConfigOption(key) == nullptr) {
          UnknownKey(here, key, NearestConfigKey(key));
        } else {
          Flatten(file, key, entry.second, depth + 1);
        }
      }
    } else if (node.IsScalar() && FindConfigOption(path) != nullptr) {
      Set(where, path, node.Scalar());
    } else if (node.IsSequence() && IsList(path)) {
      std::vector<std::string> parts;
      for (const YAML::Node& part : node) parts.push_back(part.IsScalar() ? part.Scalar() : "?");
      Set(where, path, absl::StrJoin(parts, ","));
    } else if (!node.IsNull()) {  // a section with all its keys commented out is null
      Error(where, path.empty() ? "expected keys and values such as `log.level: info`"
                                : absl::StrCat("\"", path, "\" has the wrong shape; ",
                                               IsSection(path) ? "keys belong under it" : "one value is expected"));
    }
  }

  void SetTenantsText(const std::string& where, absl::string_view text) {
    try {
      SetTenants(where, YAML::Load(std::string(text.data(), text.size())));
    } catch (const YAML::Exception& e) {
      Error(where, absl::StrCat("tenants: not valid YAML: ", e.msg));
    }
  }

  void SetTenants(const std::string& where, const YAML::Node& list) {
    if (!list.IsSequence() || list.size() == 0 || list.size() > kMaxTenants) {
      return Error(where, "tenants: expected a list such as [{name: a, uids: [1000]}], 1 to 1024 of them");
    }
    std::vector<TenantConfig> tenants;
    std::set<std::string> names;
    for (const YAML::Node& entry : list) {
      TenantConfig tenant;
      tenant.name = "";
      if (!entry.IsMap()) return Error(where, "tenants: each is a map with `name`, `uids`, `token_file`");
      for (const auto& field : entry) {
        const std::string name = field.first.IsScalar() ? field.first.Scalar() : "";
        if (name == "name" && field.second.IsScalar()) {
          tenant.name = field.second.Scalar();
        } else if (name == "token_file" && field.second.IsScalar()) {
          tenant.token_file = field.second.Scalar();
        } else if (name == "uids" && field.second.IsSequence()) {
          SetUids(where, field.second, &tenant);
        } else if (name == "uids") {
          return Error(where, "tenants: uids: expected a list such as [1000, 1001]");
        } else if (name == "name" || name == "token_file") {
          return Error(where, absl::StrCat("tenants: ", name, ": expected one value"));
        } else {
          return Error(where, absl::StrCat("tenants: \"", name, "\" is not one of name, uids, token_file"));
        }
      }
      if (!IsTenantName(tenant.name)) {
        return Error(where, "tenants: a name is 1 to 63 letters, digits, '-', '_' or '.'");
      }
      if (!names.insert(tenant.name).second) {
        return Error(where, absl::StrCat("tenants: \"", tenant.name, "\" stands twice"));
      }
      tenants.push_back(std::move(tenant));
    }
    config_.tenants = std::move(tenants);
  }

  // Names are metric labels and log values: no control characters, no surprises.
  static bool IsTenantName(absl::string_view name) {
    return !name.empty() && name.size() <= kMaxTenantNameBytes && std::all_of(name.begin(), name.end(), [](char c) {
      return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.';
    });
  }

  void SetUids(const std::string& where, const YAML::Node& list, TenantConfig* tenant) {
    for (const YAML::Node& uid : list) {
      const absl::StatusOr<uint64_t> value = ParseUint(uid.IsScalar() ? uid.Scalar() : "", 0, 4294967294);
      if (value.ok()) {
        tenant->uids.push_back(static_cast<uint32_t>(*value));
      } else {
        Error(where, absl::StrCat("tenants: uids: each is ", value.status().message()));
      }
    }
  }

  // What depends on several options, and values derived from them.
  void Resolve() {
    Config& c = config_;
    if (c.engine_socket.empty()) c.engine_socket = absl::StrCat(c.run_dir, "/engine.sock");
    if (c.grpc_socket.empty()) c.grpc_socket = absl::StrCat(c.run_dir, "/grpc.sock");
    if (c.engine_socket == c.grpc_socket) Error("", "engine.socket and grpc.socket must differ");
    if (c.staging_bytes > c.staging_bytes_max) {
      Error("", "engine.staging_bytes must not be larger than engine.staging_bytes_max");
    }
    if (!c.http_listen.empty() && !c.http_allow_remote && !IsLoopback(c.http_listen)) {
      Error("", absl::StrCat("http.listen: \"", c.http_listen,
                             "\" is no loopback address; everyone who reaches it can read the metrics. Set "
                             "http.allow_remote: true if that is wanted"));
    }
    if (!c.grpc_listen.empty() && !IsLoopback(c.grpc_listen)) {
      Error("", absl::StrCat("grpc.listen: \"", c.grpc_listen, "\" is no loopback address such as 127.0.0.1:9465"));
    }
    ResolveBudget();
    c.stack.tenants.clear();
    for (const TenantConfig& tenant : c.tenants) c.stack.tenants.push_back({tenant.name});
    c.stack.run_dir = c.run_dir;
    c.stack.client_staging_bytes = c.staging_bytes;
    for (tiering::BlockDeviceOptions& device : c.stack.nvme.devices) {
      using Backend = tiering::BlockDeviceOptions::Backend;
      device.backend = c.nvme_io == "posix"      ? Backend::kPosix
                       : c.nvme_io == "io_uring" ? Backend::kIoUring
                                                 : Backend::kAuto;
      device.depth = c.nvme_depth;
      if (device.bytes == 0 && !MayBeRaw(device.path)) {
        Error("", absl::StrCat("nvme.devices: ", device.path, " is no block device, and a file needs a size: ",
                               device.path, "=800GiB"));
      }
    }
    if (const absl::Status status = c.stack.Validate(); !status.ok()) {
      Error("", absl::string_view(status.message().data(), status.message().size()));
    }
  }

  void ResolveBudget() {
    const uint64_t machine = MachineMemoryBytes();
    const std::string& text = config_.host_budget;
    if (text.back() == '%') {
      const absl::StatusOr<double> ratio = ParseRatio(text);
      // Whole MiB, so that the figure is readable wherever it is shown.
      config_.stack.budget_bytes =
          static_cast<uint64_t>(static_cast<double>(machine) * ratio.value_or(0)) >> 20 << 20;
    } else {
      config_.stack.budget_bytes = ParseSize(text).value_or(0);
    }
    if (config_.stack.budget_bytes > machine) {
      Error("", absl::StrCat("host.budget: ", text, " is more than the ", machine >> 20,
                             "MiB this machine or control group has; lower it"));
    }
  }

  Config config_;
  std::vector<std::string> errors_;
};

// First number of a file, 0 when there is none ("max").
uint64_t ReadNumber(const std::string& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  return file >> value ? value : 0;
}

}  // namespace

absl::StatusOr<Config> LoadConfig(const ConfigSources& sources) {
  Loader loader;
  RETURN_IF_ERROR(loader.Load(sources));
  return loader.Take();
}

uint64_t MachineMemoryBytes() {
  uint64_t bytes = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  // Version 2 (own group at the root of a container's view, or by its path), then version 1.
  std::string group;
  std::ifstream cgroup("/proc/self/cgroup");
  for (std::string line; std::getline(cgroup, line);) {
    if (absl::StartsWith(line, "0::")) group = line.substr(3);
  }
  for (const std::string& path :
       {absl::StrCat("/sys/fs/cgroup", group, "/memory.max"), std::string("/sys/fs/cgroup/memory.max"),
        std::string("/sys/fs/cgroup/memory/memory.limit_in_bytes")}) {
    const uint64_t limit = ReadNumber(path);
    if (limit > 0) bytes = std::min(bytes, limit);
  }
  return bytes;
}

}  // namespace terrace::api
