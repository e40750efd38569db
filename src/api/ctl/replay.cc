// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/ctl/replay.h"

#include <algorithm>
#include <chrono>
#include <iostream>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "api/ctl/json.h"
#include "api/ctl/table.h"
#include "kvstore/base/status_macros.h"
#include "tiering/policy/eviction_policy.h"
#include "tiering/replay/belady.h"
#include "tiering/replay/replayer.h"

namespace terrace::ctl {
namespace {

using tiering::ReplayResult;

constexpr const char* kInfinite = "infinite";
constexpr const char* kBelady = "belady";

absl::StatusOr<std::vector<std::string>> Policies(const std::vector<std::string>& asked) {
  if (asked.empty()) return std::vector<std::string>{"terrace", "lru", "s3fifo", "arc", kInfinite, kBelady};
  std::vector<std::string> known = tiering::EvictionPolicyNames();
  known.push_back(kInfinite);
  known.push_back(kBelady);
  if (asked == std::vector<std::string>{"all"}) return known;
  if (std::find(asked.begin(), asked.end(), "all") != asked.end()) {
    return absl::InvalidArgumentError("--policy: all stands for every policy; name no other beside it");
  }
  for (const std::string& policy : asked) {
    if (std::find(known.begin(), known.end(), policy) == known.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("there is no policy \"", policy, "\"; there are: all, ", absl::StrJoin(known, ", ")));
    }
  }
  return asked;
}

absl::StatusOr<ReplayResult> RunOne(const tiering::Trace& trace, const std::string& policy, uint64_t capacity,
                                    const ReplayArguments& arguments, const tiering::HintOptions& hints) {
  const tiering::ReplayBlocks blocks{.tokens = arguments.block_tokens, .bytes = arguments.block_bytes};
  if (policy == kInfinite || policy == kBelady) {
    // Bounds: one tier of the size of both.
    ReplayResult result = policy == kInfinite
                              ? tiering::ReplayInfinite(trace, blocks)
                              : tiering::ReplayBelady(trace, blocks, capacity + arguments.nvme_blocks);
    result.capacity_blocks = capacity;
    result.nvme_blocks = arguments.nvme_blocks;
    return result;
  }
  return tiering::Replay(trace, {.policy = policy,
                                 .capacity_blocks = capacity,
                                 .nvme_blocks = arguments.nvme_blocks,
                                 .admission = arguments.admission,
                                 .write_bytes_per_day = arguments.write_bytes_per_day,
                                 .hints = hints,
                                 .blocks = blocks});
}

double Seconds(int64_t ns) { return static_cast<double>(ns) / 1e9; }

std::string Json(const ReplayResult& r, const ReplayArguments& arguments) {
  const auto rate = [&](uint64_t part, uint64_t whole) {
    return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
  };
  const uint64_t bytes = arguments.block_bytes;
  return absl::StrFormat(
      "{\"policy\": %s, \"capacity_blocks\": %d, \"nvme_blocks\": %d, \"token_hit_rate\": %.6f, "
      "\"block_hit_rate\": %.6f, \"host_token_hit_rate\": %.6f, \"nvme_token_hit_rate\": %.6f, "
      "\"nvme_writes_per_100_hits\": %.3f, \"nvme_writes\": %d, \"nvme_reinsertions\": %d, "
      "\"loaded_bytes\": %d, \"stored_bytes\": %d, \"nvme_written_bytes\": %d, \"nvme_read_bytes\": %d, "
      "\"evictions\": %d, \"eviction_age_seconds_p50\": %.3f, \"eviction_age_seconds_p90\": %.3f, "
      "\"refused_stores\": %d, \"ghost_hits\": %d, \"fallbacks\": %d, \"decided_by\": %s, \"requests\": %d, "
      "\"references\": %d, \"block_operations\": %d}",
      JsonText(r.policy), r.capacity_blocks, r.nvme_blocks, r.token_hit_rate(), r.block_hit_rate(),
      rate(r.host_hit_tokens, r.input_tokens), rate(r.nvme_hit_tokens, r.input_tokens),
      r.nvme_writes_per_100_hits(), r.nvme_writes, r.nvme_reinsertions, r.hits() * bytes, r.stores * bytes,
      r.nvme_writes * bytes, r.nvme_hits * bytes, r.evictions, Seconds(r.eviction_age_p50_ns),
      Seconds(r.eviction_age_p90_ns), r.refused_stores, r.ghost_hits, r.fallbacks, JsonText(r.decided_by),
      r.requests, r.references, r.operations);
}

void PrintTable(const std::vector<ReplayResult>& results, const ReplayArguments& arguments) {
  const bool has_nvme = arguments.nvme_blocks > 0;
  std::vector<std::string> header = {"BLOCKS", "POLICY", "TOKEN HITS", "BLOCK HITS"};
  if (has_nvme) {
    for (const char* name : {"HOST", "NVME", "WRITES/100 HITS"}) header.push_back(name);
  }
  for (const char* name : {"LOADED", "STORED", "AGE P50", "AGE P90", "NOTE"}) header.push_back(name);
  Table table(header);
  const auto percent = [](double ratio) { return absl::StrFormat("%.2f %%", 100 * ratio); };
  for (const ReplayResult& r : results) {
    std::vector<std::string> row = {HumanCount(r.capacity_blocks), r.policy, percent(r.token_hit_rate()),
                                    percent(r.block_hit_rate())};
    if (has_nvme) {
      const auto tokens = static_cast<double>(std::max<uint64_t>(r.input_tokens, 1));
      row.push_back(percent(static_cast<double>(r.host_hit_tokens) / tokens));
      row.push_back(percent(static_cast<double>(r.nvme_hit_tokens) / tokens));
      row.push_back(absl::StrFormat("%.1f", r.nvme_writes_per_100_hits()));
    }
    row.push_back(HumanBytes(r.hits() * arguments.block_bytes));
    row.push_back(HumanBytes(r.stores * arguments.block_bytes));
    const bool has_age = r.eviction_age_p90_ns > 0;
    row.push_back(has_age ? HumanSeconds(Seconds(r.eviction_age_p50_ns)) : "-");
    row.push_back(has_age ? HumanSeconds(Seconds(r.eviction_age_p90_ns)) : "-");
    row.push_back(r.decided_by == r.policy ? "" : absl::StrCat("fell back to ", r.decided_by));
    table.Add(std::move(row));
  }
  std::cout << table.ToText(StandardOutputHasColour());
}

// What can be told before the trace was read.
absl::Status Check(const ReplayArguments& arguments) {
  RETURN_IF_ERROR(Policies(arguments.policies).status());
  RETURN_IF_ERROR(tiering::HintOptions::Parse(arguments.hints).status());
  return arguments.plot_path.empty() ? absl::OkStatus() : CheckReplayPlot(arguments.plot_path);
}

absl::Status Simulate(const Settings& settings, const ReplayArguments& arguments, const tiering::Trace& trace) {
  ASSIGN_OR_RETURN(const std::vector<std::string> policies, Policies(arguments.policies));
  ASSIGN_OR_RETURN(tiering::HintOptions hints, tiering::HintOptions::Parse(arguments.hints));
  hints.seed = arguments.seed;
  std::vector<ReplayResult> results;
  uint64_t operations = 0;
  const auto start = std::chrono::steady_clock::now();
  for (const uint64_t capacity : arguments.capacities) {
    for (const std::string& policy : policies) {
      ASSIGN_OR_RETURN(const ReplayResult result, RunOne(trace, policy, capacity, arguments, hints));
      operations += result.operations;
      if (settings.is_json) std::cout << Json(result, arguments) << std::endl;
      results.push_back(result);
    }
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (!settings.is_json) PrintTable(results, arguments);
  // Not part of the output, which is the same each time.
  std::cerr << absl::StreamFormat("%d requests, %d blocks; %.1f M block operations in %.2f s, %.2f M/s\n",
                                  trace.requests.size(), trace.references.size(),
                                  static_cast<double>(operations) / 1e6, seconds,
                                  static_cast<double>(operations) / 1e6 / seconds);
  if (arguments.plot_path.empty()) return absl::OkStatus();
  return WriteReplayPlot(arguments.plot_path, arguments.trace_path, results);
}

}  // namespace

int RunReplay(const Settings& settings, const ReplayArguments& arguments) {
  const auto refuse = [](const absl::Status& status) {
    Fail(status);
    return kExitUsage;
  };
  if (const absl::Status status = Check(arguments); !status.ok()) return refuse(status);
  const absl::StatusOr<tiering::Trace> trace = tiering::ReadTraceFile(arguments.trace_path);
  if (!trace.ok()) return refuse(trace.status());
  if (arguments.is_live) return RunLiveReplay(settings, arguments, *trace);
  const absl::Status status = Simulate(settings, arguments, *trace);
  return status.ok() ? kExitOk : refuse(status);
}

}  // namespace terrace::ctl
