// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// mooncake_*: Mooncake Store beside us, started and measured by the scripts in Options::peers, round by
// round. Its data ports listen on all interfaces, so each of its rounds runs in a network namespace that
// has nothing but a loopback device.
#include <cstdio>
#include <filesystem>
#include <map>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cache_client.h"
#include "cases.h"
#include "kvstore/base/status_macros.h"
#include "machine.h"
#include "payload.h"
#include "process.h"
#include "stopwatch.h"

namespace terrace::bench {
namespace {

constexpr size_t kBlocks = 16;
constexpr size_t kBlockBytes = 2 << 20;
constexpr double kBytes = kBlocks * kBlockBytes;
constexpr double kInstallSeconds = 600;

// Runs a shell script and returns what it printed.
absl::StatusOr<std::vector<std::string>> Shell(const std::string& script, bool closed_network, double timeout_s,
                                               const std::string& log) {
  ChildProcess::Options options;
  if (closed_network) options.arguments = {"unshare", "-rn"};
  for (const char* word : {"bash", "-c"}) options.arguments.push_back(word);
  options.arguments.push_back(script);
  options.log_path = log;
  ASSIGN_OR_RETURN(ChildProcess process, ChildProcess::Start(options));
  std::vector<std::string> lines;
  const double deadline = Seconds() + timeout_s;
  for (;;) {
    absl::StatusOr<std::string> line = process.ReadLine(deadline - Seconds());
    if (absl::IsUnavailable(line.status())) break;  // it ended
    RETURN_IF_ERROR(line.status());
    lines.push_back(*std::move(line));
  }
  ASSIGN_OR_RETURN(const int code, process.Wait(5));
  if (code != 0) return absl::UnavailableError(absl::StrCat("exit code ", code, ", see ", log));
  return lines;
}

// The number behind "key": in a flat JSON object; negative if there is none.
double NumberIn(const std::string& json, const std::string& key) {
  const size_t at = json.find("\"" + key + "\": ");
  double value = -1;
  if (at == std::string::npos || std::sscanf(json.c_str() + at + key.size() + 4, "%lf", &value) != 1) return -1;
  return value;
}

// p50 in seconds by case.
using Times = std::map<std::string, double>;

absl::StatusOr<Times> MooncakeRound(const std::string& peers, const std::string& venv, const std::string& run) {
  const std::string script = absl::StrCat(
      "set -e; ip link set lo up; trap '", peers, "/mooncake_up.sh --stop ", run, "' EXIT; ", peers, "/mooncake_up.sh ",
      venv, " ", run, " >&2; ", venv, "/bin/python ", peers,
      "/mooncake_bench.py --sizes 2m --modes local --rounds 1 --bytes 512m --batch 16");
  ASSIGN_OR_RETURN(const std::vector<std::string> lines, Shell(script, true, 300, run + "/bench.log"));
  Times times;
  for (const std::string& line : lines) {
    for (const char* name : {"batch_get_reg", "batch_put_reg", "is_exist", "batch_is_exist_1000"}) {
      if (line.find(absl::StrCat("\"local.", name, "\"")) != std::string::npos) {
        times[name] = NumberIn(line, "p50_us") * 1e-6;
      }
    }
  }
  if (times.size() != 4) return absl::InternalError(absl::StrCat("unexpected output, see ", run, "/bench.log"));
  return times;
}

// The same operations with ours: as many calls as the script makes.
absl::StatusOr<Times> OurRound(const CaseContext& context, uint64_t seed) {
  constexpr int kGroups = 16;
  ASSIGN_OR_RETURN(const auto client, CacheClient::Connect(context.daemon->socket()));
  ASSIGN_OR_RETURN(terrace_keyspace * key_space, client->OpenKeySpace("copy", kBlockBytes));
  ASSIGN_OR_RETURN(terrace_keyspace * small, client->OpenKeySpace("lookup", 4096));
  ASSIGN_OR_RETURN(const auto pages, BlockPages::Make(client->handle(), kBlocks, kBlockBytes));
  std::vector<double> stores, loads, ones, thousands;
  for (int group = 0; group < kGroups; ++group) {
    const std::vector<uint8_t> keys = MakeKeys(Mix(seed * kGroups + group), kBlocks);
    pages->Fill(keys);
    absl::Status status;
    stores.push_back(TimeOf([&] { status = client->Store(key_space, keys, *pages); }));
    RETURN_IF_ERROR(status);
    loads.push_back(TimeOf([&] {  // with its lookup and release, as a get has it
      absl::StatusOr<Chain> chain = client->Lookup(key_space, keys);
      status = chain.status();
      if (status.ok()) status = client->Load(key_space, *chain, keys, *pages);
      if (status.ok()) status = client->Release(*chain);
    }));
    RETURN_IF_ERROR(status);
    if (!pages->Holds(keys)) return absl::DataLossError("a load gave other bytes than were stored");
  }
  const std::vector<uint8_t> chain_keys = MakeKeys(2, 1000);
  ASSIGN_OR_RETURN(const auto small_pages, BlockPages::Make(client->handle(), 1000, 4096));
  RETURN_IF_ERROR(client->MakeResident(small, chain_keys, *small_pages));
  for (int i = 0; i < 1000; ++i) {
    absl::Status status;
    const bool one = i % 10 != 0;
    const std::span<const uint8_t> keys(chain_keys.data(), one ? 32 : chain_keys.size());
    (one ? ones : thousands).push_back(TimeOf([&] {
      absl::StatusOr<Chain> chain = client->Lookup(small, keys);
      status = chain.ok() ? client->Release(*chain) : chain.status();
    }));
    RETURN_IF_ERROR(status);
  }
  return Times{{"batch_get_reg", Median(loads)},
               {"batch_put_reg", Median(stores)},
               {"is_exist", Median(ones)},
               {"batch_is_exist_1000", Median(thousands)}};
}

}  // namespace

absl::Status RunMooncake(const CaseContext& context) {
  const std::string& peers = context.options.peers;
  if (peers.empty()) {
    context.report->Skip("mooncake", "needs --peers DIR: the folder of mooncake_up.sh and mooncake_bench.py");
    return absl::OkStatus();
  }
  const std::string venv = context.options.cache + "/mooncake-venv";
  const std::string run = context.options.cache + "/mooncake-run";
  std::error_code error;
  std::filesystem::create_directories(run, error);
  // Installs and starts it once, to find out whether it runs here at all.
  const absl::Status installed =
      Shell(absl::StrCat("set -e; ", peers, "/mooncake_up.sh ", venv, " ", run, " >&2; ", peers,
                         "/mooncake_up.sh --stop ", run, " >&2"),
            false, kInstallSeconds, run + "/install.log")
          .status();
  if (!installed.ok()) {
    context.report->Skip("mooncake", absl::StrCat("does not start: ", installed.message()));
    return absl::OkStatus();
  }
  struct Line {
    Measurement m;
    const char* theirs;
    double scale;  // value = scale / seconds
  };
  std::vector<Line> lines(4);
  lines[0] = {{.name = "mooncake_load", .what = "lookup + load + release of 16 x 2 MiB, against batch_get_into",
               .unit = "GB/s"}, "batch_get_reg", kBytes / 1e9};
  lines[1] = {{.name = "mooncake_store", .what = "store of 16 x 2 MiB, against batch_put_from", .unit = "GB/s"},
              "batch_put_reg", kBytes / 1e9};
  lines[2] = {{.name = "mooncake_lookup_1000", .what = "lookup + lease + release of 1,000, against batch_is_exist",
               .unit = "keys/s"}, "batch_is_exist_1000", 1000};
  lines[3] = {{.name = "mooncake_lookup_1", .what = "lookups of 1 block a second, against is_exist", .unit = "keys/s"},
              "is_exist", 1};
  const OthersMeter meter({context.daemon->pid()});
  for (int round = 0; round < context.Rounds(3); ++round) {
    ASSIGN_OR_RETURN(const Times theirs, MooncakeRound(peers, venv, run));
    ASSIGN_OR_RETURN(const Times ours, OurRound(context, 100 + static_cast<uint64_t>(round)));
    for (Line& line : lines) {
      line.m.values.push_back(line.scale / ours.at(line.theirs));
      line.m.limits.push_back(line.scale / theirs.at(line.theirs));
    }
  }
  const double others = meter.Cores();
  for (Line& line : lines) {
    line.m.limit_name = "Mooncake";
    line.m.note = "theirs is called from Python and checks no checksum";
    context.report->Add(line.m, others);
  }
  return absl::OkStatus();
}

}  // namespace terrace::bench
