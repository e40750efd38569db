// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>

#include "absl/strings/match.h"
#include "api/ctl/replay.h"
#include "api/ctl/size_option.h"

namespace terrace::ctl {

namespace {

std::string MustBeSvg(const std::string& path) {
  return absl::EndsWithIgnoreCase(path, ".svg") ? "" : "the picture is SVG: the name must end in .svg";
}

// Of virtual time only; what is ignored is refused.
std::vector<CLI::Option*> AddSimulated(CLI::App* replay, ReplayArguments* a) {
  CLI::Option* capacities = replay->add_option("--capacity-blocks", a->capacities, "Sizes of host memory, in blocks")
                                ->delimiter(',')
                                ->check(CLI::Range(uint64_t{1}, uint64_t{1} << 30))
                                ->take_all()
                                ->capture_default_str();
  CLI::Option* nvme = replay->add_option("--nvme-blocks", a->nvme_blocks, "Size of the NVMe tier; 0: none")
                          ->check(CLI::Range(uint64_t{0}, uint64_t{1} << 30));
  CLI::Option* policies = replay->add_option("--policy", a->policies,
                                             "Eviction policies, or all (default: terrace,lru,s3fifo,arc,infinite,"
                                             "belady)")
                              ->delimiter(',')
                              ->take_all();
  CLI::Option* admission = replay->add_option("--admission", a->admission, "NVMe admission")
                               ->check(CLI::IsMember({"adaptive", "all", "second_use"}))
                               ->needs(nvme)
                               ->capture_default_str();
  CLI::Option* budget = replay->add_option("--write-bytes-per-day", a->write_bytes_per_day,
                                           "NVMe endurance; 0: no limit")
                            ->transform(AsSize())
                            ->needs(nvme);
  CLI::Option* hints = replay->add_option("--hints", a->hints, "none, or noisy:SHARE,SIGMA: that share of requests "
                                                               "says when its blocks will be used next, "
                                                               "log-normally wrong")
                           ->capture_default_str();
  CLI::Option* seed = replay->add_option("--seed", a->seed, "Of the hints' noise")->capture_default_str();
  CLI::Option* plot = replay->add_option("--plot", a->plot_path, "Also write a picture, FILE.svg")->check(MustBeSvg);
  return {capacities, nvme, policies, admission, budget, hints, seed, plot};
}

}  // namespace

CLI::App* AddReplay(CLI::App& app, ReplayArguments* a) {
  CLI::App* replay = app.add_subcommand("replay", "What a trace would hit: policies and sizes side by side");
  replay->add_option("TRACE", a->trace_path, "Mooncake JSON lines or CSV, plain or .gz")->required();
  const std::vector<CLI::Option*> simulated = AddSimulated(replay, a);
  replay->add_option("--block-tokens", a->block_tokens, "Tokens of a block")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  replay->add_option("--block-bytes", a->block_bytes, "Bytes of a block (default: 2 MiB; live: 4 KiB would do)")
      ->transform(AsSize())
      ->check(CLI::Range(uint64_t{64}, uint64_t{1} << 32));
  CLI::Option* live = replay->add_flag("--live", a->is_live, "Against the running daemon, through libterrace");
  for (CLI::Option* option : simulated) live->excludes(option);
  replay->add_option("--socket", a->socket, "Live: engine socket ($TERRACE_SOCKET)")->needs(live);
  replay->add_option("--speed", a->speed, "Live: the trace's times are divided by this")
      ->needs(live)
      ->check(CLI::Range(0.001, 1e9))
      ->capture_default_str();
  replay->add_option("--requests", a->max_requests, "Live: only so many; 0: all")->needs(live);
  return replay;
}

}  // namespace terrace::ctl
