// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// top: what happens now, as rates between two answers of GetStatus.
#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "api/ctl/admin_client.h"
#include "api/ctl/command.h"
#include "api/ctl/json.h"
#include "api/ctl/table.h"

namespace terrace::ctl {
namespace {

double Seconds(const google::protobuf::Duration& duration) {
  return static_cast<double>(duration.seconds()) + duration.nanos() / 1e9;
}

// Rates between two answers; since the daemon's start when `before` is empty.
struct Rates {
  double seconds = 0, lookups = 0, lookup_blocks = 0, hit_blocks = 0, stored_blocks = 0, stored_bytes = 0, evicted = 0;
};

Rates RatesBetween(const v1::GetStatusResponse& before, const v1::GetStatusResponse& now) {
  Rates rates;
  // A daemon that was restarted in between starts from nothing.
  const v1::GetStatusResponse nothing;
  const v1::GetStatusResponse& base = before.epoch() == now.epoch() ? before : nothing;
  rates.seconds = std::max(Seconds(now.uptime()) - Seconds(base.uptime()), 1e-3);
  const auto rate = [&](uint64_t new_value, uint64_t old_value) {
    return static_cast<double>(new_value - std::min(old_value, new_value)) / rates.seconds;
  };
  const v1::Counters &c = now.counters(), &b = base.counters();
  rates.lookups = rate(c.lookups(), b.lookups());
  rates.lookup_blocks = rate(c.lookup_blocks(), b.lookup_blocks());
  rates.hit_blocks = rate(c.hit_blocks(), b.hit_blocks());
  rates.stored_blocks = rate(c.stored_blocks(), b.stored_blocks());
  rates.stored_bytes = rate(c.stored_bytes(), b.stored_bytes());
  rates.evicted = rate(c.evicted_blocks(), b.evicted_blocks());
  return rates;
}

std::string Bar(uint64_t part, uint64_t whole) {
  constexpr uint64_t kWidth = 30;
  const uint64_t filled = whole == 0 ? 0 : std::min(kWidth, static_cast<uint64_t>(static_cast<double>(part) /
                                                                                  static_cast<double>(whole) * kWidth));
  return absl::StrCat("[", std::string(filled, '#'), std::string(kWidth - filled, '.'), "]");
}

std::string Picture(const v1::GetStatusResponse& now, const Rates& rates, bool has_colour) {
  std::string text = absl::StrCat("terraced ", Printable(now.version()), ", pid ", now.pid(), ", up ",
                                  HumanSeconds(Seconds(now.uptime())), "; rates over ", HumanSeconds(rates.seconds),
                                  "\n\n");
  for (const v1::TierStatus& tier : now.tiers()) {
    absl::StrAppend(&text, tier.tier(), "  ", Bar(tier.used_bytes(), tier.capacity_bytes()), " ",
                    HumanBytes(tier.used_bytes()), " of ", HumanBytes(tier.capacity_bytes()), ", ",
                    HumanCount(tier.block_count()), " blocks, ", HumanBytes(tier.pinned_bytes()), " leased\n");
  }
  const double hit_ratio = rates.lookup_blocks > 0 ? 100 * rates.hit_blocks / rates.lookup_blocks : 0;
  Table table({"LOOKUPS/S", "BLOCKS/S", "HIT", "STORES/S", "STORED/S", "EVICTED/S", "LEASES", "CLIENTS"});
  table.Add({absl::StrFormat("%.1f", rates.lookups), absl::StrFormat("%.1f", rates.lookup_blocks),
             rates.lookup_blocks > 0 ? absl::StrFormat("%.1f %%", hit_ratio) : "-",
             absl::StrFormat("%.1f", rates.stored_blocks), HumanBytes(static_cast<uint64_t>(rates.stored_bytes)),
             absl::StrFormat("%.1f", rates.evicted), HumanCount(now.lease_count()),
             absl::StrCat(now.engine_connections_size() + now.grpc_sessions_size())});
  absl::StrAppend(&text, "\n", table.ToText(has_colour));
  if (now.engine_connections_size() == 0) return text;
  Table clients({"CLIENT", "TENANT", "PID", "LEASES", "STAGING", "CONNECTED"});
  for (int i = 0; i < std::min(now.engine_connections_size(), 20); ++i) {
    const v1::EngineConnection& engine = now.engine_connections(i);
    clients.Add({Printable(engine.client_name()), Printable(engine.tenant()), absl::StrCat(engine.pid()),
                 HumanCount(engine.lease_count()), HumanBytes(engine.staging_bytes()),
                 HumanSeconds(Seconds(engine.connected()))});
  }
  absl::StrAppend(&text, "\n", clients.ToText(has_colour));
  if (now.engine_connections_size() > 20) absl::StrAppend(&text, "... ", now.engine_connections_size() - 20, " more\n");
  return text;
}

std::string Json(const v1::GetStatusResponse& now, const Rates& rates) {
  return absl::StrCat("{\"seconds\":", rates.seconds, ",\"lookups_per_second\":", rates.lookups,
                      ",\"lookup_blocks_per_second\":", rates.lookup_blocks,
                      ",\"hit_blocks_per_second\":", rates.hit_blocks,
                      ",\"stored_blocks_per_second\":", rates.stored_blocks,
                      ",\"stored_bytes_per_second\":", rates.stored_bytes,
                      ",\"evicted_blocks_per_second\":", rates.evicted, ",\"status\":", JsonMessage(now), "}");
}

// A descriptor that becomes readable on SIGINT or SIGTERM, which then no longer end the process.
int SignalDescriptor() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  return signalfd(-1, &signals, SFD_CLOEXEC);
}

}  // namespace

int RunTop(const Settings& settings, double interval_seconds, bool is_once) {
  const bool is_live = !is_once && !settings.is_json && isatty(STDOUT_FILENO) == 1;
  pollfd end = {is_once ? -1 : SignalDescriptor(), POLLIN, 0};
  AdminClient client(settings.grpc_socket);
  v1::GetStatusResponse before;
  while (true) {
    const absl::StatusOr<v1::GetStatusResponse> now = client.GetStatus();
    if (!now.ok() && (is_once || before.epoch() == 0)) return Fail(now.status());
    if (is_live) std::cout << "\x1b[H\x1b[2J";
    if (!now.ok()) {  // goes on: the daemon may come back
      std::cout << "no answer: " << Printable(std::string(now.status().message())) << "\n" << std::flush;
    } else {
      const Rates rates = RatesBetween(before, *now);
      std::cout << (settings.is_json ? Json(*now, rates) + "\n" : Picture(*now, rates, StandardOutputHasColour()))
                << std::flush;
      before = *now;
    }
    if (is_once) return kExitOk;
    if (poll(&end, 1, static_cast<int>(interval_seconds * 1000)) > 0 || !std::cout) return kExitOk;
  }
}

}  // namespace terrace::ctl
