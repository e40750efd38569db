// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// terracectl: arguments in, exit code out.
#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <new>

#include "absl/strings/str_cat.h"
#include "api/client/terrace.h"
#include "api/ctl/command.h"
#include "api/ctl/replay.h"
#include "api/ctl/size_option.h"

namespace terrace::ctl {
namespace {

std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// $TERRACE_GRPC_SOCKET, or the daemon's default under $TERRACE_RUN_DIR or /run/terrace.
std::string DefaultGrpcSocket() {
  const std::string socket = Variable("TERRACE_GRPC_SOCKET");
  const std::string run_dir = Variable("TERRACE_RUN_DIR");
  if (!socket.empty()) return socket;
  return absl::StrCat(run_dir.empty() ? "/run/terrace" : run_dir, "/grpc.sock");
}

std::string DefaultEngineSocket(const std::string& grpc_socket) {
  const std::string socket = Variable("TERRACE_SOCKET");
  if (!socket.empty()) return socket;
  const size_t slash = grpc_socket.rfind('/');
  return absl::StrCat(slash == std::string::npos ? "." : grpc_socket.substr(0, slash), "/engine.sock");
}

int Main(int argc, char** argv) {
  CLI::App app{"terracectl: looks into and looks after a node's terraced"};
  app.set_version_flag("--version", absl::StrCat("terracectl ", TERRACE_VERSION, "\nlibterrace ", terrace_version()));
  app.footer("Exit codes: 0 done, 1 something was found or is not there, 2 wrong usage, 3 refused by the daemon,\n"
             "4 no daemon answers. Colour: only on a terminal and without NO_COLOR.");
  app.require_subcommand(1);
  app.fallthrough();
  app.option_defaults()->take_last();  // the last one wins
  Settings settings;
  std::string output = "table", engine_socket;
  settings.grpc_socket = DefaultGrpcSocket();
  app.add_option("--socket", settings.grpc_socket, "gRPC socket of the daemon ($TERRACE_GRPC_SOCKET)")
      ->capture_default_str();
  app.add_option("--engine-socket", engine_socket, "Engine socket, for bench and doctor ($TERRACE_SOCKET; default: "
                                                   "engine.sock beside the gRPC socket)");
  app.add_option("-o,--output", output, "table or json")->check(CLI::IsMember({"table", "json"}));

  CLI::App* status = app.add_subcommand("status", "The daemon, its memory, its counters, its clients");
  CLI::App* reasons = app.add_subcommand("reasons", "Why blocks were not served or not stored, counted");
  CLI::App* top = app.add_subcommand("top", "What happens now, drawn anew each second");
  double interval = 1;
  bool is_once = false;
  top->add_option("--interval", interval, "Seconds between two pictures")->check(CLI::Range(0.1, 3600.0));
  top->add_flag("--once", is_once, "One picture, with rates since the daemon's start");
  CLI::App* list = app.add_subcommand("ls", "Key spaces, or some blocks of one");
  uint32_t key_space = 0, limit = 1000;
  list->add_option("KEYSPACE", key_space, "Id of a key space")->check(CLI::Range(1u, UINT32_MAX));
  list->add_option("--limit", limit, "Blocks to show")->check(CLI::Range(1, 10000));
  CLI::App* stat = app.add_subcommand("stat", "One block; exit 1 when it is not there");
  std::string key;
  stat->add_option("KEY", key, "64 hex digits")->required();
  CLI::App* flush = app.add_subcommand("flush", "Drop the blocks of one key space or all");
  bool is_all = false, is_confirmed = false;
  flush->add_option("KEYSPACE", key_space, "Id of a key space")->check(CLI::Range(1u, UINT32_MAX));
  flush->add_flag("--all", is_all, "Of all key spaces of all tenants");
  flush->add_flag("--yes", is_confirmed, "Do it");
  CLI::App* verify = app.add_subcommand("verify", "Re-read and check every block; exit 1 when one was corrupt");
  CLI::App* doctor = app.add_subcommand("doctor", "Check this machine and the daemon; works without a daemon, too");
  std::string python = "python3";
  doctor->add_option("--python", python, "Python of the engine, asked for the plugin's version")
      ->capture_default_str();
  std::vector<std::string> nvme_places;
  doctor->add_option("--nvme", nvme_places, "Directory or disk for an NVMe tier to be looked at, too; may be repeated");
  CLI::App* bench = app.add_subcommand("bench", "A short measurement through libterrace, beside memcpy");
  BenchOptions bench_options;
  bench->add_option("--blocks", bench_options.blocks, "Blocks of the chain")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  bench->add_option("--block-bytes", bench_options.block_bytes, "Bytes of a block")
      ->transform(AsSize())
      ->check(CLI::Range(uint64_t{4096}, uint64_t{1} << 30));
  bench->add_option("--rounds", bench_options.rounds, "Repeats; the median is shown")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  ReplayArguments replay_arguments;
  CLI::App* replay = AddReplay(app, &replay_arguments);
  for (CLI::App* command : {status, reasons, top, list, stat, flush, verify, doctor, bench, replay}) {
    command->fallthrough();
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::RequiredError& e) {
    if (app.remaining().empty()) return app.exit(e), kExitUsage;
    std::cerr << "terracectl: no command \"" << app.remaining().front() << "\"; terracectl --help lists them\n";
    return kExitUsage;
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? kExitOk : kExitUsage;
  }
  settings.is_json = output == "json";
  settings.engine_socket = engine_socket.empty() ? DefaultEngineSocket(settings.grpc_socket) : engine_socket;

  if (status->parsed()) return RunStatus(settings);
  if (reasons->parsed()) return RunReasons(settings);
  if (top->parsed()) return RunTop(settings, interval, is_once);
  if (list->parsed()) return RunList(settings, key_space, limit);
  if (stat->parsed()) return RunStat(settings, key);
  if (flush->parsed()) return RunFlush(settings, key_space, is_all, is_confirmed);
  if (verify->parsed()) return RunVerify(settings);
  if (doctor->parsed()) return RunDoctor(settings, python, nvme_places);
  if (replay->parsed()) return RunReplay(settings, replay_arguments);
  return RunBench(settings, bench_options);
}

}  // namespace
}  // namespace terrace::ctl

// Libraries may throw; a user gets a sentence, not a core file.
int main(int argc, char** argv) {
  try {
    return terrace::ctl::Main(argc, argv);
  } catch (const std::bad_alloc&) {
    std::cerr << "terracectl: there is not enough memory for what was asked\n";
  } catch (const std::exception& e) {
    std::cerr << "terracectl: " << e.what() << "\n";
  }
  return terrace::ctl::kExitUsage;
}
