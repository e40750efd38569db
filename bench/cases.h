// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The cases of "terrace_bench local", "nvme" and "vllm": each measures one line of the table in
// docs/benchmarks.md, or several that share their preparation.
//
// A case prepares, checks once that right bytes come back, then alternates ours with its limit round by
// round, and adds to the report. An error means that it could not be measured or that something was wrong.
#pragma once

#include "absl/status/status.h"
#include "bench_daemon.h"
#include "options.h"
#include "report.h"

namespace terrace::bench {

// What a case works with. Owner: main.
struct CaseContext {
  const Options& options;
  BenchDaemon* daemon;  // null for cases that need none
  Report* report;

  int Rounds(int n) const { return n * options.scale < 1 ? 1 : static_cast<int>(n * options.scale); }
};

absl::Status RunLookup1(const CaseContext& context);
absl::Status RunLookup1000(const CaseContext& context);
absl::Status RunLoadAndView(const CaseContext& context);
absl::Status RunStore(const CaseContext& context);
absl::Status RunIndexBytes(const CaseContext& context);
absl::Status RunClients4(const CaseContext& context);
absl::Status RunMooncake(const CaseContext& context);
absl::Status RunVllm(const CaseContext& context);
// "terrace_bench nvme"
absl::Status RunNvmeWrite(const CaseContext& context);
absl::Status RunNvmeRead(const CaseContext& context);
absl::Status RunNvmeRead64k(const CaseContext& context);
absl::Status RunNvmeIndexBytes(const CaseContext& context);
absl::Status RunHostP99Busy(const CaseContext& context);
absl::Status RunRestart(const CaseContext& context);

// What the program does when it starts itself as a child: hidden commands. Each returns an exit code.
int EchoMain(int fd);                                            // answers packets until the end
int LoadWorkerMain(const std::string& socket, bool plain_copy);  // loads for as long as it is told
int IndexWorkerMain(uint64_t keys);                              // weighs the index's tables
int NvmeIndexWorkerMain(const std::string& directory, uint64_t file_bytes);  // weighs the NVMe tier's
int SpinMain();                                                  // keeps one core awake, at idle priority

}  // namespace terrace::bench
