// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What terrace_bench was asked to do. Plain values, set by the command line.
#pragma once

#include <string>
#include <vector>

namespace terrace::bench {

struct Options {
  std::vector<std::string> cases;  // names of the speed table; empty: all
  bool json = false;               // one JSON object a line; else a table
  bool check = false;              // exit code 4 when a target is not reached
  bool busy = false;               // keep every core awake with an idle-class spinner
  std::string socket;              // a running daemon's engine socket; empty: start one
  std::string terraced;            // binary to start; empty: beside this program
  std::string budget = "1GiB";     // of the daemon that is started
  std::string redis = "redis-server";
  std::string fio = "fio";
  std::string directory;  // of the NVMe cases' files: on the disk to be measured; empty: $TMPDIR or /tmp
  std::string peers;  // folder with the scripts that start and measure other caches; empty: leave them out
  std::string cache;  // folder for the peers' virtual environments and models
  std::string python;  // interpreter with vLLM
  double scale = 1;    // rounds are multiplied by it
  std::vector<std::string> gpu_arguments;   // handed through to terrace_gpu_bench
  std::vector<std::string> vllm_arguments;  // handed through to vllm_bench.py
};

}  // namespace terrace::bench
