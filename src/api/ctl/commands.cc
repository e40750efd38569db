// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The commands that ask AdminService once and print the answer.
#include <unistd.h>

#include <iostream>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "api/ctl/admin_client.h"
#include "api/ctl/command.h"
#include "api/ctl/json.h"
#include "api/ctl/reason_help.h"
#include "api/ctl/table.h"
#include "kvstore/block_key.h"

namespace terrace::ctl {
namespace {

double Seconds(const google::protobuf::Duration& duration) {
  return static_cast<double>(duration.seconds()) + duration.nanos() / 1e9;
}

std::string Percent(uint64_t part, uint64_t whole) {
  if (whole == 0) return "-";
  return absl::StrFormat("%.1f %%", 100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

std::string Bold(const std::string& text) {
  return StandardOutputHasColour() ? absl::StrCat("\x1b[1m", text, "\x1b[0m") : text;
}

void Print(const Table& table) { std::cout << table.ToText(StandardOutputHasColour()); }

void PrintDevices(const v1::GetStatusResponse& status) {
  if (status.devices_size() == 0) return;
  std::cout << "\n";
  Table devices({"DEVICE", "STATE", "IO", "USED", "BLOCKS", "READ", "WRITTEN", "READ RATE", "RECOVERED", "SCRUBBED"});
  for (const v1::DeviceStatus& device : status.devices()) {
    const double rate = device.read_bytes_per_second();
    devices.Add({Printable(device.path()), device.state(), device.backend(), HumanBytes(device.used_bytes()),
                 HumanCount(device.block_count()), HumanBytes(device.read_bytes()), HumanBytes(device.written_bytes()),
                 rate > 0 ? absl::StrCat(HumanBytes(static_cast<uint64_t>(rate)), "/s") : "-",
                 absl::StrFormat("%.0f %%", 100 * device.recovery_ratio()),
                 absl::StrFormat("%.0f %%", 100 * device.scrub_ratio())});
  }
  Print(devices);
  for (const v1::DeviceStatus& device : status.devices()) {
    if (!device.detail().empty()) std::cout << Printable(device.path()) << ": " << Printable(device.detail()) << "\n";
  }
  if (status.has_write_budget()) {
    std::cout << "write budget left: " << HumanBytes(status.write_budget_bytes()) << "\n";
  }
}

void PrintGpus(const v1::GetStatusResponse& status) {
  if (status.gpus_size() == 0) {
    std::cout << "\ngpus      none: " << Printable(status.why_no_gpu()) << "\n";
  } else {
    std::cout << "\n";
    Table gpus({"GPU", "NAME", "BUS", "STATE", "MEMORY", "STORED", "LOADED", "TIER", "TIER USED"});
    for (const v1::GpuStatus& gpu : status.gpus()) {
      gpus.Add({absl::StrCat(gpu.number()), Printable(gpu.name()), Printable(gpu.pci_bus()), gpu.state(),
                HumanBytes(gpu.total_bytes()), HumanBytes(gpu.store_bytes()), HumanBytes(gpu.load_bytes()),
                HumanBytes(gpu.tier_capacity_bytes()), HumanBytes(gpu.tier_used_bytes())});
    }
    Print(gpus);
    for (const v1::GpuStatus& gpu : status.gpus()) {
      if (!gpu.detail().empty()) std::cout << "gpu " << gpu.number() << ": " << Printable(gpu.detail()) << "\n";
    }
  }
  std::cout << "regions   " << status.gpu_region_count() << " of GPU memory, " << status.host_region_count()
            << " of host memory\n";
}

void PrintStatus(const v1::GetStatusResponse& status) {
  std::cout << Bold("terraced ") << Printable(status.version()) << ", pid " << status.pid() << ", up "
            << HumanSeconds(Seconds(status.uptime())) << absl::StrFormat(", epoch %016x", status.epoch()) << "\n\n";
  std::cout << "budget    " << HumanBytes(status.budget_used_bytes()) << " of " << HumanBytes(status.budget_bytes())
            << " in use, index " << HumanBytes(status.index_bytes()) << ", prefaulted "
            << HumanBytes(status.prefaulted_bytes()) << "\n";
  const v1::Counters& c = status.counters();
  std::cout << "lookups   " << HumanCount(c.lookups()) << " for " << HumanCount(c.lookup_blocks()) << " blocks, "
            << HumanCount(c.hit_blocks()) << " hit (" << Percent(c.hit_blocks(), c.lookup_blocks()) << ")\n";
  std::cout << "stores    " << HumanCount(c.stored_blocks()) << " blocks, " << HumanBytes(c.stored_bytes())
            << "; evicted " << HumanCount(c.evicted_blocks()) << ", corrupt " << HumanCount(c.corrupt_blocks())
            << "\n";
  std::cout << "clients   " << status.session_count() << " sessions, " << status.lease_count() << " leases, "
            << status.key_space_count() << " key spaces\n";
  if (c.staging_refusals() > 0) {
    std::cout << "staging   refused " << HumanCount(c.staging_refusals())
              << " times since the start: clients could not store for want of memory (terracectl doctor)\n";
  }
  std::cout << "\n";
  if (status.host_recovery_ratio() < 1) {
    std::cout << absl::StrFormat("recovery  host memory of the last daemon: %.0f %% taken over, ",
                                 100 * status.host_recovery_ratio())
              << HumanCount(status.recovered_blocks()) << " blocks\n\n";
  }
  Table tiers({"TIER", "STATE", "CAPACITY", "USED", "FILL", "LEASED", "BLOCKS"});
  for (const v1::TierStatus& tier : status.tiers()) {
    tiers.Add({tier.tier(), tier.state(), HumanBytes(tier.capacity_bytes()), HumanBytes(tier.used_bytes()),
               Percent(tier.used_bytes(), tier.capacity_bytes()), HumanBytes(tier.pinned_bytes()),
               HumanCount(tier.block_count())});
  }
  Print(tiers);
  PrintDevices(status);
  PrintGpus(status);
  if (status.engine_connections_size() + status.grpc_sessions_size() == 0) return;
  std::cout << "\n";
  Table clients({"CLIENT", "DOOR", "TENANT", "PID", "UID", "LEASES", "STAGING", "REGIONS", "CONNECTED"});
  for (const v1::EngineConnection& engine : status.engine_connections()) {
    clients.Add({Printable(engine.client_name()), "engine", Printable(engine.tenant()), absl::StrCat(engine.pid()),
                 absl::StrCat(engine.uid()), HumanCount(engine.lease_count()), HumanBytes(engine.staging_bytes()),
                 absl::StrCat(engine.region_count()), HumanSeconds(Seconds(engine.connected()))});
  }
  for (const v1::GrpcSession& session : status.grpc_sessions()) {
    clients.Add({Printable(session.client_name()), "grpc", Printable(session.tenant()), "-", "-",
                 HumanCount(session.lease_count()), "-", "-", "-"});
  }
  Print(clients);
}

void PrintBlocks(const google::protobuf::RepeatedPtrField<v1::Block>& blocks) {
  Table table({"KEY", "KEYSPACE", "BYTES", "GENERATION", "PINS", "CHILDREN", "TIER"});
  for (const v1::Block& block : blocks) {
    table.Add({absl::BytesToHexString(block.key()), absl::StrCat(block.key_space_id()),
               absl::StrCat(block.payload_bytes()), absl::StrCat(block.generation()), absl::StrCat(block.pin_count()),
               block.has_children() ? "yes" : "no", block.tier()});
  }
  Print(table);
}

std::string OrDash(const std::string& text) { return text.empty() ? "-" : Printable(text); }

int ListKeySpaces(AdminClient* client, bool is_json) {
  const absl::StatusOr<v1::ListKeySpacesResponse> answer = client->ListKeySpaces(v1::ListKeySpacesRequest());
  if (!answer.ok()) return Fail(answer.status());
  if (is_json) {
    std::cout << JsonMessage(*answer) << "\n";
    return kExitOk;
  }
  Table table({"ID", "TENANT", "MODEL", "FINGERPRINT", "DTYPE", "PARALLEL", "GROUP", "HASH", "LAYOUT", "BLOCK",
               "TOKENS", "BLOCKS", "STORED"});
  for (const v1::KeySpace& space : answer->key_spaces()) {
    const v1::KeySpaceIdentity& id = space.identity();
    table.Add({absl::StrCat(space.key_space_id()), Printable(space.tenant()), OrDash(id.model()),
               OrDash(id.model_fingerprint().substr(0, 12)), OrDash(id.kv_dtype()), OrDash(id.parallel()),
               OrDash(id.group()), OrDash(id.hash().substr(0, 24)), OrDash(id.layout().substr(0, 24)),
               HumanBytes(id.block_bytes()), absl::StrCat(id.tokens_per_block()), HumanCount(space.resident_blocks()),
               HumanCount(space.stored_blocks())});
  }
  Print(table);
  return kExitOk;
}

}  // namespace

int Fail(const absl::Status& status) {
  std::cerr << "terracectl: " << Printable(std::string(status.message().data(), status.message().size())) << "\n";
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded: return kExitUnreachable;
    case absl::StatusCode::kInvalidArgument: return kExitUsage;
    case absl::StatusCode::kNotFound: return kExitFinding;
    default: return kExitRefused;
  }
}

int RunStatus(const Settings& settings) {
  const absl::StatusOr<v1::GetStatusResponse> status = AdminClient(settings.grpc_socket).GetStatus();
  if (!status.ok()) return Fail(status.status());
  if (settings.is_json) {
    std::cout << JsonMessage(*status) << "\n";
  } else {
    PrintStatus(*status);
  }
  return kExitOk;
}

int RunReasons(const Settings& settings) {
  const absl::StatusOr<v1::GetStatusResponse> status = AdminClient(settings.grpc_socket).GetStatus();
  if (!status.ok()) return Fail(status.status());
  uint64_t misses[kReasonCount] = {}, stores[kReasonCount] = {};
  for (const v1::ReasonCount& entry : status->counters().miss_reasons()) {
    if (entry.reason() < kReasonCount) misses[entry.reason()] = entry.count();
  }
  for (const v1::ReasonCount& entry : status->counters().store_reasons()) {
    if (entry.reason() < kReasonCount) stores[entry.reason()] = entry.count();
  }
  Table table({"REASON", "LOOKUPS", "STORES", "MEANING"});
  std::string json;
  for (int i = 1; i < kReasonCount; ++i) {
    const auto reason = static_cast<Reason>(i);
    const std::string name(ReasonName(reason));
    table.Add({name, HumanCount(misses[i]), HumanCount(stores[i]), ReasonHelp(reason)});
    absl::StrAppend(&json, i == 1 ? "" : ",", "{\"reason\":", JsonText(name), ",\"lookup_blocks\":", misses[i],
                    ",\"store_blocks\":", stores[i], ",\"meaning\":", JsonText(ReasonHelp(reason)), "}");
  }
  if (settings.is_json) {
    std::cout << "{\"reasons\":[" << json << "]}\n";
  } else {
    Print(table);
  }
  return kExitOk;
}

int RunList(const Settings& settings, uint32_t key_space, uint32_t limit) {
  AdminClient client(settings.grpc_socket);
  if (key_space == 0) return ListKeySpaces(&client, settings.is_json);
  v1::ListBlocksRequest request;
  request.set_key_space_id(key_space);
  request.set_limit(limit);
  const absl::StatusOr<v1::ListBlocksResponse> answer = client.ListBlocks(request);
  if (!answer.ok()) return Fail(answer.status());
  if (settings.is_json) {
    std::cout << JsonMessage(*answer) << "\n";
    return kExitOk;
  }
  PrintBlocks(answer->blocks());
  if (answer->truncated()) std::cerr << "terracectl: there are more; see --limit\n";
  return kExitOk;
}

int RunStat(const Settings& settings, const std::string& key_hex) {
  const absl::StatusOr<kv::BlockKey> key = kv::BlockKey::Parse(key_hex);
  if (!key.ok()) return Fail(absl::InvalidArgumentError("stat: a key is 64 hex digits, as `terracectl ls ID` shows"));
  v1::StatBlockRequest request;
  request.set_key(key->bytes.data(), key->bytes.size());
  const absl::StatusOr<v1::StatBlockResponse> answer = AdminClient(settings.grpc_socket).StatBlock(request);
  if (!answer.ok()) return Fail(answer.status());
  if (settings.is_json) {
    std::cout << JsonMessage(*answer) << "\n";
  } else if (answer->blocks_size() > 0) {
    PrintBlocks(answer->blocks());
  }
  if (answer->blocks_size() > 0) return kExitOk;
  std::cerr << "terracectl: no such block in any key space\n";
  return kExitFinding;
}

int RunFlush(const Settings& settings, uint32_t key_space, bool is_all, bool is_confirmed) {
  if ((key_space != 0) == is_all) {
    return Fail(absl::InvalidArgumentError("flush: say what: a key space's id (see `terracectl ls`) or --all"));
  }
  if (!is_confirmed) {
    return Fail(absl::InvalidArgumentError("flush: engines will have to recompute these blocks; add --yes"));
  }
  v1::FlushRequest request;
  if (is_all) {
    request.set_all(true);
  } else {
    request.set_key_space_id(key_space);
  }
  const absl::StatusOr<v1::FlushResponse> answer = AdminClient(settings.grpc_socket).Flush(request);
  if (!answer.ok()) return Fail(answer.status());
  if (settings.is_json) {
    std::cout << JsonMessage(*answer) << "\n";
  } else {
    std::cout << "flushed " << HumanCount(answer->flushed_blocks()) << " blocks\n";
  }
  return kExitOk;
}

int RunVerify(const Settings& settings) {
  const bool shows_progress = isatty(STDERR_FILENO) == 1;
  const absl::StatusOr<v1::VerifyResponse> answer =
      AdminClient(settings.grpc_socket).Verify([&](const v1::VerifyResponse& progress) {
        if (!shows_progress) return;
        std::cerr << "\rchecking, " << HumanSeconds(Seconds(progress.elapsed())) << " " << std::flush;
      });
  if (shows_progress) std::cerr << "\r\x1b[K";
  if (!answer.ok()) return Fail(answer.status());
  if (settings.is_json) {
    std::cout << JsonMessage(*answer) << "\n";
  } else {
    std::cout << "checked " << HumanCount(answer->checked_blocks()) << " blocks, "
              << HumanBytes(answer->checked_bytes()) << " in " << HumanSeconds(Seconds(answer->elapsed())) << ": "
              << (answer->corrupt_blocks() == 0
                      ? "all good"
                      : absl::StrCat(HumanCount(answer->corrupt_blocks()),
                                     " corrupt and dropped; ",
                                     CorruptHelp(answer->corrupt_blocks(), answer->corrupt_blocks_on_disk())))
              << "\n";
  }
  return answer->corrupt_blocks() == 0 ? kExitOk : kExitFinding;
}

}  // namespace terrace::ctl
