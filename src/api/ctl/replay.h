// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// replay: a trace against policies in virtual time, or against a running daemon. See docs/replay.md.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "api/ctl/command.h"
#include "tiering/replay/replay_result.h"
#include "tiering/replay/trace.h"

namespace CLI {
class App;
}

namespace terrace::ctl {

struct ReplayArguments {
  std::string trace_path;
  std::vector<uint64_t> capacities = {1000, 2000, 5000, 10000, 20000, 50000};
  uint64_t nvme_blocks = 0;
  std::vector<std::string> policies;  // empty: ours beside those everybody knows; "all"
  std::string admission = "adaptive";
  uint64_t write_bytes_per_day = 0;
  std::string hints = "none";
  uint64_t seed = 1;
  uint32_t block_tokens = 512;
  uint64_t block_bytes = 2ull << 20;
  std::string plot_path;
  bool is_live = false;
  std::string socket;  // live: engine socket; empty: Settings::engine_socket
  double speed = 1;    // live: timestamps are divided by it
  uint64_t max_requests = 0;  // live: 0: all
};

// Declares the subcommand and its options. arguments must outlive the parsing.
CLI::App* AddReplay(CLI::App& app, ReplayArguments* arguments);

// 0: done; 2: a trace, a policy or a capacity that cannot be; live also 4: no daemon, 1: a wrong byte.
int RunReplay(const Settings& settings, const ReplayArguments& arguments);

int RunLiveReplay(const Settings& settings, const ReplayArguments& arguments, const tiering::Trace& trace);

// Whether a picture could be written there, before a long run.
absl::Status CheckReplayPlot(const std::string& path);

// Token hit rate over capacity, one line a policy, as an SVG file.
absl::Status WriteReplayPlot(const std::string& path, const std::string& title,
                             const std::vector<tiering::ReplayResult>& results);

}  // namespace terrace::ctl
