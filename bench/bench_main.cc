// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// terrace_bench: command line, and the order of the cases. Exit codes: 0 measured, 1 a case failed (wrong
// bytes, no daemon), 2 wrong usage, 4 measured but a target was missed (with --check).
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cases.h"
#include "kvstore/base/status_macros.h"
#include "process.h"
#include "terrace.h"

namespace terrace::bench {

int SpinMain() {
  const sched_param parameters{};
  if (sched_setscheduler(0, SCHED_IDLE, &parameters) != 0) return 1;  // never takes time from anybody
  const pid_t parent = getppid();
  for (volatile uint64_t turns = 0; turns % (1 << 26) != 0 || getppid() == parent; turns = turns + 1) {
  }
  return 0;
}

namespace {

constexpr int kExitFailed = 1, kExitUsage = 2, kExitMissed = 4;

struct NamedCase {
  const char* name;
  absl::Status (*run)(const CaseContext&);
  bool needs_daemon;
};

constexpr NamedCase kLocalCases[] = {
    {"lookup_1", RunLookup1, true},      {"lookup_1000", RunLookup1000, true},
    {"load", RunLoadAndView, true},      {"view", RunLoadAndView, true},
    {"store", RunStore, true},           {"index_bytes", RunIndexBytes, false},
    {"clients_4", RunClients4, true},    {"mooncake", RunMooncake, true},
};

constexpr NamedCase kNvmeCases[] = {
    {"nvme_write", RunNvmeWrite, false},
    {"nvme_read", RunNvmeRead, false},
    {"nvme_read_64k", RunNvmeRead64k, false},
    {"host_p99_busy", RunHostP99Busy, false},
    {"restart", RunRestart, false},
    {"nvme_index_bytes", RunNvmeIndexBytes, false},
};

// One idle-class spinner a core, so that no round trip waits for a sleeping core to wake.
absl::StatusOr<std::vector<ChildProcess>> StartSpinners() {
  std::vector<ChildProcess> spinners;
  for (long core = 0; core < sysconf(_SC_NPROCESSORS_ONLN); ++core) {
    ASSIGN_OR_RETURN(ChildProcess spinner, ChildProcess::StartSelf({"child-spin"}));
    spinners.push_back(std::move(spinner));
  }
  return spinners;
}

// Runs the cases; returns the exit code.
absl::StatusOr<int> RunCases(const Options& options, std::span<const NamedCase> cases) {
  Report report(options.json);
  report.Machine(terrace_version());
  std::unique_ptr<BenchDaemon> daemon;
  std::vector<ChildProcess> spinners;
  if (options.busy) {
    ASSIGN_OR_RETURN(spinners, StartSpinners());
  }
  int exit_code = 0;
  absl::Status (*last)(const CaseContext&) = nullptr;
  for (const NamedCase& named : cases) {
    const bool wanted = options.cases.empty() ||
                        std::find(options.cases.begin(), options.cases.end(), named.name) != options.cases.end();
    if (!wanted || named.run == last) continue;  // load and view are measured together
    last = named.run;
    if (named.needs_daemon && daemon == nullptr) {
      ASSIGN_OR_RETURN(daemon, BenchDaemon::Start(options));
    }
    const absl::Status status = named.run(CaseContext{options, daemon.get(), &report});
    if (absl::IsUnimplemented(status)) {  // what it compares with is not installed
      report.Skip(named.name, status.message());
    } else if (!status.ok()) {
      std::fprintf(stderr, "terrace_bench: %s: %s\n", named.name, status.ToString().c_str());
      exit_code = kExitFailed;
    }
  }
  if (exit_code == 0 && options.check && !report.all_targets_reached()) exit_code = kExitMissed;
  return exit_code;
}

absl::StatusOr<int> RunVllmCommand(Options options) {
  Report report(options.json);
  report.Machine(terrace_version());
  ASSIGN_OR_RETURN(const std::unique_ptr<BenchDaemon> daemon, BenchDaemon::Start(options));
  RETURN_IF_ERROR(RunVllm(CaseContext{options, daemon.get(), &report}));
  return 0;
}

// The GPU cases and host_gather are a program of their own, which builds where nothing else of this does. Returns only
// if it cannot be started.
absl::StatusOr<int> RunGpuProgram(const Options& options) {
  std::vector<std::string> arguments = {BesideSelf("terrace_gpu_bench"), "--scale", absl::StrCat(options.scale)};
  if (options.json) arguments.push_back("--json");
  if (options.check) arguments.push_back("--check");
  for (const std::string& name : options.cases) arguments.insert(arguments.end(), {"--case", name});
  arguments.insert(arguments.end(), options.gpu_arguments.begin(), options.gpu_arguments.end());
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  execv(argv[0], argv.data());
  return absl::NotFoundError(absl::StrCat(arguments[0], ": ", std::strerror(errno)));
}

int ChildMain(const std::vector<std::string>& arguments) {
  const std::string& command = arguments[0];
  if (command == "child-spin") return SpinMain();
  if (command == "child-nvme-index" && arguments.size() == 3) {
    return NvmeIndexWorkerMain(arguments[1], std::strtoull(arguments[2].c_str(), nullptr, 10));
  }
  if (arguments.size() != 2) return kExitUsage;
  if (command == "child-echo") return EchoMain(std::atoi(arguments[1].c_str()));
  if (command == "child-load") return LoadWorkerMain(arguments[1], false);
  if (command == "child-memcpy") return LoadWorkerMain(arguments[1], true);
  if (command == "child-index") return IndexWorkerMain(std::strtoull(arguments[1].c_str(), nullptr, 10));
  return kExitUsage;
}

int Main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  if (argc > 1 && std::string(argv[1]).rfind("child-", 0) == 0) {
    return ChildMain(std::vector<std::string>(argv + 1, argv + argc));
  }
  CLI::App app{"terrace_bench: measures terraced and libterrace beside the machine's limits and other caches"};
  app.set_version_flag("--version", std::string("terrace_bench ") + terrace_version());
  app.require_subcommand(1);
  app.fallthrough();
  app.footer("Exit codes: 0 measured, 1 a case failed, 2 wrong usage, 4 a target was missed (--check).\n"
             "What each case means: docs/benchmarks.md");
  Options options;
  app.add_flag("--json", options.json, "One JSON object a line");
  app.add_option("--socket", options.socket, "Engine socket of a running daemon (default: start one)");
  app.add_option("--terraced", options.terraced, "Daemon to start (default: beside this program)");
  app.add_option("--budget", options.budget, "host.budget of the daemon that is started")->capture_default_str();
  app.add_option("--peers", options.peers, "Folder of scripts that start and measure other caches");
  app.add_option("--cache", options.cache, "Folder for the peers' virtual environments and the model "
                                           "(default: ~/.cache/terrace-bench)");
  app.add_option("--scale", options.scale, "Rounds times this; 0.1 for a quick look")->check(CLI::PositiveNumber);
  CLI::App* local = app.add_subcommand("local", "Lookups, loads, views, stores, memory; no engine needed");
  local->add_option("--case", options.cases, "Only these cases; may be repeated");
  local->add_option("--redis", options.redis, "redis-server to compare with")->capture_default_str();
  local->add_flag("--busy", options.busy, "Keep the cores awake meanwhile, with spinners of the idle class");
  local->add_flag("--check", options.check, "Exit with 4 if a target is missed");
  CLI::App* nvme = app.add_subcommand("nvme", "The NVMe tier beside fio; a few GiB of disk, a few minutes");
  nvme->add_option("--case", options.cases, "Only these cases; may be repeated");
  nvme->add_option("--dir", options.directory, "Directory on the disk to be measured (default: $TMPDIR or /tmp)");
  nvme->add_option("--fio", options.fio, "fio to compare with")->capture_default_str();
  nvme->add_flag("--check", options.check, "Exit with 4 if a target is missed");
  CLI::App* gpu = app.add_subcommand("gpu", "Copies of a GPU's pages beside the driver's own; host_gather without one");
  gpu->add_option("--case", options.cases, "Only these cases; may be repeated");
  gpu->add_flag("--check", options.check, "Exit with 4 if a target is missed");
  gpu->add_option("--pass", options.gpu_arguments, "An argument for terrace_gpu_bench; may be repeated")
      ->allow_extra_args(false);
  CLI::App* vllm = app.add_subcommand("vllm", "Real vLLM engines (CPU build)");
  vllm->add_option("--python", options.python, "Interpreter with vLLM (default: .venv of the source tree)");
  vllm->add_option("--pass", options.vllm_arguments, "An argument for vllm_bench.py; may be repeated")
      ->allow_extra_args(false);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : kExitUsage;
  }
  if (options.cache.empty()) {
    const char* home = std::getenv("HOME");
    options.cache = std::string(home == nullptr ? "/tmp" : home) + "/.cache/terrace-bench";
  }
  const absl::StatusOr<int> code = vllm->parsed()   ? RunVllmCommand(options)
                                   : gpu->parsed()  ? RunGpuProgram(options)
                                   : nvme->parsed() ? RunCases(options, kNvmeCases)
                                                    : RunCases(options, kLocalCases);
  if (code.ok()) return *code;
  std::fprintf(stderr, "terrace_bench: %s\n", code.status().ToString().c_str());
  return kExitFailed;
}

}  // namespace
}  // namespace terrace::bench

int main(int argc, char** argv) { return terrace::bench::Main(argc, argv); }
