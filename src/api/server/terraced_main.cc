// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// terraced: flags, signals, start and end. Exit codes: 0 ended as asked, 1 failed while running or
// starting, 2 wrong usage or configuration, 3 another daemon holds the run directory.
#include <pthread.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "api/config.h"
#include "api/server/config_env.h"
#include "api/server/config_options.h"
#include "api/server/config_text.h"
#include "api/server/daemon.h"
#include "api/server/grpc_server.h"
#include "api/server/service_notify.h"
#include "api/server/version.h"
#include "kvstore/base/log.h"

namespace terrace::api {
namespace {

constexpr int kExitOk = 0;
constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;
constexpr int kExitHeld = 3;

std::string VersionText() {
  return absl::StrCat("terraced ", kVersion, "\ncommit    ", kCommit, "\ncompiler  ", kCompiler, "\nbuild     ",
                      kBuildType, "\ncuda      ", kCuda);
}

void PrintLines(const absl::Status& status) {
  std::cerr << "terraced: " << std::string(status.message().data(), status.message().size()) << "\n";
}

// As many descriptors as the system allows: each client connection takes one, and its segments more.
void RaiseDescriptorLimit(const Config& config) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  (void)setrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_max < config.max_connections + 256ull) {
    Log(LogLevel::kWarning, "few_descriptors",
        {{"limit", limit.rlim_max},
         {"max_connections", config.max_connections},
         {"advice", "raise LimitNOFILE (systemd) or ulimit -n, or lower engine.max_connections"}});
  }
}

sigset_t BlockSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  return signals;
}

// The next SIGTERM or SIGINT.
int WaitForEnd(const sigset_t& signals) {
  int signal = 0;
  while (sigwait(&signals, &signal) != 0 || signal == SIGHUP) {
    if (signal == SIGHUP) Log(LogLevel::kWarning, "sighup_ignored", {{"advice", "restart to read the configuration"}});
  }
  return signal;
}

// Whoever asks twice does not want to wait. Returns when is_ended.
void ExitAtOnceIfAskedAgain(const sigset_t& signals, const std::atomic<bool>* is_ended) {
  constexpr timespec kLook = {0, 20'000'000};
  while (!*is_ended) {
    const int signal = sigtimedwait(&signals, nullptr, &kLook);
    if (signal != SIGTERM && signal != SIGINT) continue;
    Log(LogLevel::kWarning, "stopped_at_once", {{"reason", "second signal"}});
    _exit(kExitFailed);
  }
}

int Run(const ConfigSources& sources) {
  const absl::StatusOr<Config> config = LoadConfig(sources);
  if (!config.ok()) {
    PrintLines(config.status());
    return kExitUsage;
  }
  SetLogLevel(LogLevelFromText(config->log_level));
  SetLogFormat(config->log_format == "json" ? LogFormat::kJson : LogFormat::kLogfmt);
  umask(0027);
  RaiseDescriptorLimit(*config);
  const sigset_t signals = BlockSignals();  // before any thread exists
  PrepareGrpcProcess();

  absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(*config, Clock::Real());
  if (!daemon.ok()) {
    Log(LogLevel::kError, "start_failed", {{"error", daemon.status().message()}});
    switch (daemon.status().code()) {
      case absl::StatusCode::kAlreadyExists: return kExitHeld;
      case absl::StatusCode::kInvalidArgument: return kExitUsage;
      default: return kExitFailed;
    }
  }
  const std::string manager = EnvironmentVariable("NOTIFY_SOCKET");
  Log(LogLevel::kInfo, "ready",
      {{"version", kVersion},
       {"pid", getpid()},
       {"budget_bytes", config->stack.budget_bytes},
       {"engine_socket", config->engine_socket},
       {"grpc_socket", config->grpc_socket},
       {"http", (*daemon)->http_address()}});
  NotifyServiceManager(manager, "READY=1");

  const int signal = WaitForEnd(signals);
  Log(LogLevel::kInfo, "stopping", {{"signal", signal == SIGINT ? "SIGINT" : "SIGTERM"}});
  NotifyServiceManager(manager, "STOPPING=1");
  std::atomic<bool> is_ended{false};
  std::thread ending([&] {
    (*daemon)->Drain();
    daemon->reset();
    is_ended = true;
  });
  ExitAtOnceIfAskedAgain(signals, &is_ended);
  ending.join();
  Log(LogLevel::kInfo, "stopped");
  return kExitOk;
}

int CheckConfig(const ConfigSources& sources) {
  const absl::StatusOr<Config> config = LoadConfig(sources);
  if (!config.ok()) {
    PrintLines(config.status());
    return kExitUsage;
  }
  std::cout << "ok\n";
  return kExitOk;
}

int PrintConfig(const ConfigSources& sources) {
  const absl::StatusOr<Config> config = LoadConfig(sources);
  if (!config.ok()) {
    PrintLines(config.status());
    return kExitUsage;
  }
  std::cout << ConfigYaml(*config, false);
  return kExitOk;
}

int PrintDefaults(const std::string& format) {
  std::cout << (format == "markdown" ? ConfigMarkdown() : ConfigYaml(Config{}, true));
  return kExitOk;
}

// Names the right flag for each that does not exist, as for a wrong key in a file.
void SuggestFlags(const CLI::App& app, int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    std::string name(argv[i]);
    name = name.substr(0, name.find('='));
    if (name.rfind("--", 0) != 0 || name.size() == 2 || app.get_option_no_throw(name) != nullptr) continue;
    std::string key = name.substr(2);
    std::replace(key.begin(), key.end(), '-', '.');
    key = NearestConfigKey(key);
    for (const ConfigOption& option : ConfigOptions()) {
      if (option.key != key) continue;
      std::cerr << "terraced: no flag " << name << "; did you mean " << option.FlagName() << "?\n";
    }
  }
}

// As the parser takes them. "--flag=" is an empty value; CLI11 would take the next argument for it.
std::vector<std::string> ReversedArguments(int argc, char** argv) {
  std::vector<std::string> arguments;
  for (int i = argc - 1; i > 0; --i) {
    const std::string argument(argv[i]);
    const bool is_empty_value = argument.rfind("--", 0) == 0 && argument.find('=') == argument.size() - 1;
    if (is_empty_value) arguments.emplace_back();
    arguments.push_back(is_empty_value ? argument.substr(0, argument.size() - 1) : argument);
  }
  return arguments;
}

int Main(int argc, char** argv) {
  CLI::App app{"terraced: keeps KV-cache blocks of inference engines on this node", "terraced"};
  app.set_version_flag("--version", VersionText());
  app.footer("Sources of the configuration, later ones win: defaults, --config, TERRACE_* variables, flags.\n"
             "Exit codes: 0 ended as asked, 1 failed, 2 wrong usage or configuration, 3 run_dir is held by another.");
  ConfigSources sources;
  std::vector<std::string> sets;
  sources.file = EnvironmentVariable("TERRACE_CONFIG");
  app.add_option("-c,--config", sources.file, "YAML file (default: $TERRACE_CONFIG, else none)");
  app.add_option("-s,--set", sets, "key=value, e.g. host.budget=4GiB; may be repeated")->allow_extra_args(false);
  std::vector<std::string> flag_values(ConfigOptions().size());
  std::vector<CLI::Option*> flags;
  for (size_t i = 0; i < ConfigOptions().size(); ++i) {
    const ConfigOption& option = ConfigOptions()[i];
    flags.push_back(app.add_option(option.FlagName(), flag_values[i], option.doc)
                        ->type_name(option.type)
                        ->take_last()
                        ->group("Options of the configuration"));
  }
  app.fallthrough();
  CLI::App* run = app.add_subcommand("run", "Run the daemon (what happens without a command, too)");
  CLI::App* config = app.add_subcommand("config", "Check and show the configuration");
  config->fallthrough();
  config->require_subcommand(1);
  CLI::App* check = config->add_subcommand("check", "Check it; exit 2 and say what is wrong, else print ok");
  CLI::App* print = config->add_subcommand("print", "Print it as YAML, all sources applied");
  CLI::App* defaults = config->add_subcommand("defaults", "Print every option with its default");
  for (CLI::App* command : {run, check, print, defaults}) command->fallthrough();
  for (CLI::App* command : {check, print}) command->add_option("FILE", sources.file, "The same as --config");
  std::string format = "yaml";
  defaults->add_option("--format", format, "yaml or markdown")->check(CLI::IsMember({"yaml", "markdown"}));
  try {
    app.parse(ReversedArguments(argc, argv));
  } catch (const CLI::ParseError& e) {
    if (app.exit(e) == 0) return kExitOk;
    SuggestFlags(app, argc, argv);
    return kExitUsage;
  }
  for (const std::string& set : sets) {
    const size_t equals = set.find('=');
    if (equals == std::string::npos) {
      std::cerr << "terraced: --set " << set << ": expected key=value\n";
      return kExitUsage;
    }
    sources.settings.emplace_back(set.substr(0, equals), set.substr(equals + 1));
  }
  for (size_t i = 0; i < flags.size(); ++i) {
    if (flags[i]->count() > 0) sources.settings.emplace_back(ConfigOptions()[i].key, flag_values[i]);
  }
  if (defaults->parsed()) return PrintDefaults(format);
  sources.environment = TerraceVariables();
  if (check->parsed()) return CheckConfig(sources);
  if (print->parsed()) return PrintConfig(sources);
  return Run(sources);
}

}  // namespace
}  // namespace terrace::api

int main(int argc, char** argv) { return terrace::api::Main(argc, argv); }
