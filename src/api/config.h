// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Configuration of terraced: one YAML file, TERRACE_* variables over it, flags over those. Strict: an
// unknown key is an error that names the nearest right one. Sizes "64GiB", durations "30s".
// Documented in docs/configuration.md, which a golden test compares with the defaults.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "tiering/tier_stack.h"

namespace terrace::api {

struct TenantConfig {
  std::string name = "default";
  std::vector<uint32_t> uids;  // peers with these user ids may use the tenant; empty: anyone who connects
  std::string token_file;      // if set, a client must also give this file's first line
};

struct Config {
  Config() { stack.memory_dir = "/dev/shm"; }
  std::string run_dir = "/run/terrace";  // run_dir: lock file and sockets; made with mode 0750
  // Sockets; empty means run_dir/engine.sock, run_dir/grpc.sock.
  std::string engine_socket;     // engine.socket
  std::string grpc_socket;       // grpc.socket
  uint32_t socket_mode = 0660;   // engine.socket_mode (octal), both sockets
  uint32_t engine_threads = 0;   // engine.threads; 0: 1 up to 4 cores, else 2
  uint32_t max_connections = 8192;         // engine.max_connections
  uint32_t max_connections_per_uid = 8192; // engine.max_connections_per_uid
  uint64_t staging_bytes = 16ull << 20;    // engine.staging_bytes, default per storing connection
  uint64_t staging_bytes_max = 256ull << 20;
  uint32_t max_regions = 64;                 // engine.max_regions, a connection
  uint64_t region_bytes_max = 1ull << 40;    // engine.region_bytes_max, all allocations of one
  std::string grpc_listen;   // grpc.listen: loopback TCP, without AdminService; "" = off
  std::vector<uint32_t> grpc_admin_uids;  // grpc.admin_uids; empty: everyone who may open the socket
  std::string http_listen = "127.0.0.1:9464";  // http.listen: /metrics /healthz /readyz; "" = off; port 0 = free port
  bool http_allow_remote = false;    // http.allow_remote: http.listen may be other than loopback
  std::string log_level = "info";    // log.level
  std::string log_format = "logfmt"; // log.format: logfmt | json
  std::vector<TenantConfig> tenants = {TenantConfig{}};
  std::string nvme_io = "auto";      // nvme.io: auto | io_uring | posix
  uint32_t nvme_depth = 64;          // nvme.depth
  std::string host_budget = "25%";   // host.budget as given; resolved into stack.budget_bytes
  tiering::TierStackOptions stack;   // host.prefault, host.huge_pages, host.eviction_policy, ...
};

// Where a configuration comes from; later ones win: defaults, file, environment, settings.
struct ConfigSources {
  std::string file;  // path of a YAML file; "" = none
  std::vector<std::pair<std::string, std::string>> environment;  // all TERRACE_* variables
  std::vector<std::pair<std::string, std::string>> settings;     // key, value: flags and --set
};

// Reads, checks and resolves (sockets' paths, budget in bytes, stack.tenants). The error names every
// bad key and value, one a line, with file and line number where there is one.
absl::StatusOr<Config> LoadConfig(const ConfigSources& sources);

// Memory that host.budget's share counts from: physical, or the control group's limit if lower.
uint64_t MachineMemoryBytes();

}  // namespace terrace::api
