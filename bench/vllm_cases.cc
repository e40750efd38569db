// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// "terrace_bench vllm": hands over to vllm_bench.py, which runs real engines against our daemon.
#include <unistd.h>

#include <cstdio>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "cases.h"
#include "kvstore/base/status_macros.h"
#include "process.h"

namespace terrace::bench {
namespace {

namespace fs = std::filesystem;

// The first of the candidates that exists; empty if none does.
std::string FirstExisting(std::initializer_list<fs::path> candidates) {
  std::error_code error;
  for (const fs::path& path : candidates) {
    if (fs::exists(path, error)) return path.string();
  }
  return "";
}

}  // namespace

absl::Status RunVllm(const CaseContext& context) {
  const fs::path root = TERRACE_BENCH_SOURCE_DIR;
  const fs::path bin = fs::path(SelfPath()).parent_path();
  const std::string script = FirstExisting({root / "bench/vllm_bench.py", bin / "../share/terrace/vllm_bench.py"});
  const std::string python =
      context.options.python.empty() ? FirstExisting({root / ".venv/bin/python"}) : context.options.python;
  if (script.empty()) return absl::NotFoundError("vllm_bench.py is not there: run from a source tree");
  if (python.empty()) {
    return absl::NotFoundError("no Python with vLLM: run scripts/setup_python.sh, or give --python");
  }
  ChildProcess::Options options;
  options.arguments = {python, script, "--socket", context.daemon->socket(), "--library",
                       FirstExisting({bin / "../lib/libterrace.so", bin / "../lib/x86_64-linux-gnu/libterrace.so"}),
                       "--cache", context.options.cache, "--daemon-pid", absl::StrCat(context.daemon->pid())};
  if (!context.options.peers.empty()) {
    options.arguments.insert(options.arguments.end(), {"--peers", context.options.peers});
  }
  if (!context.options.json) options.arguments.push_back("--table");
  for (const std::string& argument : context.options.vllm_arguments) options.arguments.push_back(argument);
  ASSIGN_OR_RETURN(ChildProcess process, ChildProcess::Start(options));
  constexpr double kSilenceSeconds = 1800;  // between two lines: engines start and compute in between
  for (;;) {
    const absl::StatusOr<std::string> line = process.ReadLine(kSilenceSeconds);
    if (absl::IsUnavailable(line.status())) break;  // it ended
    RETURN_IF_ERROR(line.status());
    std::printf("%s\n", line->c_str());
    std::fflush(stdout);
  }
  ASSIGN_OR_RETURN(const int code, process.Wait(10));
  return code == 0 ? absl::OkStatus() : absl::InternalError(absl::StrCat(script, " ended with exit code ", code));
}

}  // namespace terrace::bench
