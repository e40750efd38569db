// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What all commands of terracectl share: the connection's settings, the output format, the exit codes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace terrace::ctl {

// Documented in docs/terracectl.md; scripts rely on them.
enum ExitCode : int {
  kExitOk = 0,
  kExitFinding = 1,      // doctor or verify found something, or what was asked for is not there
  kExitUsage = 2,        // wrong arguments, or --yes is missing
  kExitRefused = 3,      // the daemon refused or failed the call
  kExitUnreachable = 4,  // no daemon answers
};

struct Settings {
  std::string grpc_socket;
  std::string engine_socket;  // of bench and doctor
  bool is_json = false;
};

// Prints what went wrong on standard error; the exit code that belongs to it.
int Fail(const absl::Status& status);

int RunStatus(const Settings& settings);
int RunReasons(const Settings& settings);
// key_space: an id as `ls` shows it, 0: list the key spaces themselves.
int RunList(const Settings& settings, uint32_t key_space, uint32_t limit);
int RunStat(const Settings& settings, const std::string& key_hex);
// Exactly one of key_space != 0 and is_all.
int RunFlush(const Settings& settings, uint32_t key_space, bool is_all, bool is_confirmed);
int RunVerify(const Settings& settings);

// Until interrupted, or one picture only.
int RunTop(const Settings& settings, double interval_seconds, bool is_once);

// python: the interpreter of the engine's environment, asked for the plugin's version. nvme_places:
// directories, files or disks that an NVMe tier is to use.
int RunDoctor(const Settings& settings, const std::string& python, const std::vector<std::string>& nvme_places);

struct BenchOptions {
  uint32_t blocks = 16;
  uint64_t block_bytes = 2ull << 20;
  uint32_t rounds = 20;
};
int RunBench(const Settings& settings, const BenchOptions& options);

}  // namespace terrace::ctl
