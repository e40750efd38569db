// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// doctor: the probes of the machine, then what the daemon says of itself.
#include <sys/socket.h>

#include <algorithm>
#include <iostream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "api/client/terrace.h"
#include "api/ctl/admin_client.h"
#include "api/ctl/command.h"
#include "api/ctl/doctor_probes.h"
#include "api/ctl/json.h"
#include "api/ctl/reason_help.h"
#include "api/ctl/table.h"

namespace terrace::ctl {
namespace {

const char* LevelName(Finding::Level level) {
  switch (level) {
    case Finding::kOk: return "ok";
    case Finding::kNote: return "note";
    case Finding::kProblem: return "problem";
  }
  return "problem";
}

const char* LevelColour(Finding::Level level) {
  switch (level) {
    case Finding::kOk: return "\x1b[32m";
    case Finding::kNote: return "\x1b[33m";
    case Finding::kProblem: return "\x1b[31m";
  }
  return "";
}

Finding CheckVersion(const std::string& name, const std::string& version) {
  if (version == TERRACE_VERSION) return {name, Finding::kOk, version, ""};
  return {name, Finding::kProblem, absl::StrCat(Printable(version), ", but terracectl ", TERRACE_VERSION),
          "install the parts of one release, then restart terraced"};
}

void CheckDaemon(const Settings& settings, std::vector<Finding>* findings) {
  const absl::StatusOr<v1::GetStatusResponse> status = AdminClient(settings.grpc_socket).GetStatus();
  if (!status.ok()) {
    findings->push_back({"daemon", Finding::kProblem, Printable(std::string(status.status().message())),
                         "systemctl start terraced; journalctl -u terraced tells why it ended"});
    return;
  }
  findings->push_back(CheckVersion("daemon version", status->version()));
  for (const v1::TierStatus& tier : status->tiers()) {
    if (tier.pinned_bytes() > tier.capacity_bytes() / 2) {
      findings->push_back({"leases", Finding::kNote,
                           absl::StrCat(HumanBytes(tier.pinned_bytes()), " of the ", Printable(tier.tier()),
                                        " tier is under lease"),
                           "terracectl status shows who holds it; raise host.budget"});
    }
  }
  if (status->gpus_size() == 0) {
    findings->push_back({"gpus", Finding::kOk, absl::StrCat("none: ", Printable(status->why_no_gpu())), ""});
  }
  for (const v1::GpuStatus& gpu : status->gpus()) {
    const bool is_good = gpu.state() == "online";
    findings->push_back({absl::StrCat("gpu ", gpu.number()), is_good ? Finding::kOk : Finding::kProblem,
                         absl::StrCat(Printable(gpu.name()), " at ", Printable(gpu.pci_bus()), ", ", gpu.state()),
                         is_good ? "" : Printable(gpu.detail())});
  }
  if (const uint64_t refused = status->counters().staging_refusals(); refused > 0) {
    findings->push_back({"staging", Finding::kNote,
                         absl::StrCat("clients were refused memory to store through ", refused,
                                      " times since the start: they could not store"),
                         "raise host.budget, or lower engine.staging_bytes"});
  }
  if (status->counters().corrupt_blocks() > 0) {
    findings->push_back({"integrity", Finding::kProblem,
                         absl::StrCat(status->counters().corrupt_blocks(), " blocks failed their check (and were "
                                      "dropped) since the start"),
                         absl::StrCat(CorruptHelp(status->counters().corrupt_blocks(),
                                                  status->counters().corrupt_blocks_on_disk()),
                                      "; terracectl verify re-reads everything")});
  }
}

}  // namespace

int RunDoctor(const Settings& settings, const std::string& python, const std::vector<std::string>& nvme_places) {
  std::vector<Finding> findings = {ProbeSealedMemory(), ProbeHugePages(),   ProbeTransparentHugePages(),
                                   ProbeLockedMemory(), ProbeDescriptors(), ProbeIoUring(),
                                   ProbeSharedMemory("/dev/shm")};
  for (const std::string& place : nvme_places) findings.push_back(ProbeNvmePlace(place));
  findings.push_back(CheckVersion("libterrace", terrace_version()));
  findings.push_back(ProbePlugin(python, TERRACE_VERSION));
  findings.push_back(ProbeSocket("engine socket", settings.engine_socket, SOCK_SEQPACKET));
  findings.push_back(ProbeSocket("grpc socket", settings.grpc_socket, SOCK_STREAM));
  if (findings.back().level == Finding::kOk) CheckDaemon(settings, &findings);

  int problems = 0;
  size_t width = 0;
  for (const Finding& finding : findings) {
    problems += finding.level == Finding::kProblem;
    width = std::max(width, finding.check.size());
  }
  if (settings.is_json) {
    std::cout << "{\"problems\":" << problems << ",\"findings\":[";
    for (size_t i = 0; i < findings.size(); ++i) {
      const Finding& f = findings[i];
      std::cout << (i == 0 ? "" : ",") << "{\"check\":" << JsonText(f.check) << ",\"level\":\"" << LevelName(f.level)
                << "\",\"text\":" << JsonText(f.text) << ",\"fix\":" << JsonText(f.fix) << "}";
    }
    std::cout << "]}\n";
  } else {
    const bool has_colour = StandardOutputHasColour();
    for (const Finding& f : findings) {
      std::string level = LevelName(f.level);
      level.resize(8, ' ');
      std::cout << (has_colour ? LevelColour(f.level) : "") << level << (has_colour ? "\x1b[0m" : "") << " "
                << f.check << std::string(width - f.check.size() + 2, ' ') << f.text << "\n";
      if (!f.fix.empty()) std::cout << std::string(9 + width + 2, ' ') << "mend: " << f.fix << "\n";
    }
    std::cout << (problems == 0 ? "\nno problems\n" : absl::StrCat("\n", problems, " problem(s)\n"));
  }
  return problems == 0 ? kExitOk : kExitFinding;
}

}  // namespace terrace::ctl
