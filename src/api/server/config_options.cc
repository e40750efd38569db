// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/server/config_options.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "api/server/config_value.h"
#include "kvstore/base/status_macros.h"
#include "tiering/nvme/nvme_format.h"
#include "tiering/policy/eviction_policy.h"

namespace terrace::api {
namespace {

constexpr uint64_t kMaxSize = std::numeric_limits<int64_t>::max();

std::string ToString(absl::string_view text) { return {text.data(), text.size()}; }

absl::Status SetSize(absl::string_view text, uint64_t min, uint64_t* target) {
  ASSIGN_OR_RETURN(const uint64_t value, ParseSize(text));
  if (value < min || value > kMaxSize) {
    return absl::InvalidArgumentError(absl::StrCat("a size of at least ", FormatSize(min)));
  }
  *target = value;
  return absl::OkStatus();
}

// 0, or what is large enough to be of use.
absl::Status SetSizeOrNone(absl::string_view text, uint64_t min, uint64_t* target) {
  ASSIGN_OR_RETURN(const uint64_t value, ParseSize(text));
  if ((value > 0 && value < min) || value > kMaxSize) {
    return absl::InvalidArgumentError(absl::StrCat("0, or a size of at least ", FormatSize(min)));
  }
  *target = value;
  return absl::OkStatus();
}

absl::Status SetUint(absl::string_view text, uint32_t min, uint32_t max, uint32_t* target) {
  ASSIGN_OR_RETURN(const uint64_t value, ParseUint(text, min, max));
  *target = static_cast<uint32_t>(value);
  return absl::OkStatus();
}

absl::Status SetBool(absl::string_view text, bool* target) {
  ASSIGN_OR_RETURN(*target, ParseBool(text));
  return absl::OkStatus();
}

absl::Status SetRatio(absl::string_view text, double* target) {
  ASSIGN_OR_RETURN(*target, ParseRatio(text));
  return absl::OkStatus();
}

absl::Status SetDuration(absl::string_view text, int64_t min_ns, int64_t* target) {
  ASSIGN_OR_RETURN(const int64_t ns, ParseDuration(text));
  if (ns < min_ns) return absl::InvalidArgumentError(absl::StrCat("a duration of at least ", FormatDuration(min_ns)));
  *target = ns;
  return absl::OkStatus();
}

// "/mnt/nvme0/terrace=800GiB, /dev/nvme1n1".
absl::Status SetDevices(absl::string_view text, std::vector<tiering::BlockDeviceOptions>* target) {
  std::vector<tiering::BlockDeviceOptions> devices;
  if (absl::StartsWith(text, "[") && absl::EndsWith(text, "]")) text = text.substr(1, text.size() - 2);
  for (absl::string_view part : absl::StrSplit(text, ',', absl::SkipWhitespace())) {
    part = absl::StripAsciiWhitespace(part);
    const size_t equals = part.rfind('=');
    tiering::BlockDeviceOptions device;
    device.path = ToString(part.substr(0, equals));
    const absl::StatusOr<uint64_t> bytes =
        equals == absl::string_view::npos ? absl::StatusOr<uint64_t>(0) : ParseSize(part.substr(equals + 1));
    const bool is_too_small = equals != absl::string_view::npos && bytes.ok() && *bytes < tiering::kNvmeMinBytes;
    if (device.path.empty() || device.path[0] != '/' || !bytes.ok() || *bytes > kMaxSize || is_too_small) {
      return absl::InvalidArgumentError(
          absl::StrCat("a list such as [/mnt/nvme0/terrace=800GiB, /dev/nvme1n1]: absolute paths, files with a size "
                       "of at least ",
                       FormatSize(tiering::kNvmeMinBytes)));
    }
    device.bytes = *bytes / tiering::kIoAlign * tiering::kIoAlign;
    devices.push_back(std::move(device));
  }
  *target = std::move(devices);
  return absl::OkStatus();
}

std::string DevicesText(const std::vector<tiering::BlockDeviceOptions>& devices) {
  return absl::StrJoin(devices, ",", [](std::string* out, const tiering::BlockDeviceOptions& device) {
    absl::StrAppend(out, device.path);
    if (device.bytes != 0) absl::StrAppend(out, "=", FormatSize(device.bytes));
  });
}

absl::Status SetWord(absl::string_view text, const std::vector<std::string>& words, std::string* target) {
  std::string accepted;
  for (const std::string& word : words) {
    if (text == word) {
      *target = word;
      return absl::OkStatus();
    }
    absl::StrAppend(&accepted, accepted.empty() ? "one of " : ", ", word);
  }
  return absl::InvalidArgumentError(accepted);
}

absl::Status SetPath(absl::string_view text, bool may_be_empty, std::string* target) {
  // A Unix socket's address holds 107 bytes; run_dir needs room for the socket's name behind it.
  if (text.empty() ? !may_be_empty : (text[0] != '/' || text.size() > 100)) {
    return absl::InvalidArgumentError("an absolute path of at most 100 bytes");
  }
  *target = ToString(text);
  return absl::OkStatus();
}

absl::Status SetAddress(absl::string_view text, std::string* target) {
  const size_t colon = text.rfind(':');
  if (!text.empty() && (colon == absl::string_view::npos || colon == 0 ||
                        !ParseUint(text.substr(colon + 1), 0, 65535).ok())) {
    return absl::InvalidArgumentError("ADDRESS:PORT such as 127.0.0.1:9464, or nothing for off");
  }
  *target = ToString(text);
  return absl::OkStatus();
}

absl::Status SetBudget(absl::string_view text, Config* config) {
  const absl::Status wrong =
      absl::InvalidArgumentError("a size such as 64GiB, or a share of the machine's memory such as 25%");
  if (!text.empty() && text.back() == '%') {
    const absl::StatusOr<double> ratio = ParseRatio(text);
    if (!ratio.ok() || *ratio <= 0) return wrong;
  } else {
    uint64_t ignored = 0;
    const absl::StatusOr<uint64_t> bytes = ParseSize(text);
    if (!bytes.ok()) return wrong;
    RETURN_IF_ERROR(SetSize(text, 64ull << 20, &ignored));
  }
  config->host_budget = ToString(text);
  return absl::OkStatus();
}

// "1000,1001"; nothing for an empty list.
absl::Status SetUids(absl::string_view text, std::vector<uint32_t>* target) {
  std::vector<uint32_t> uids;
  for (const absl::string_view part : absl::StrSplit(text, ',', absl::SkipWhitespace())) {
    const absl::StatusOr<uint64_t> uid = ParseUint(absl::StripAsciiWhitespace(part), 0, 4'294'967'294);
    if (!uid.ok()) return absl::InvalidArgumentError("a list of user ids such as [1000, 1001]");
    uids.push_back(static_cast<uint32_t>(*uid));
  }
  *target = std::move(uids);
  return absl::OkStatus();
}

std::string BoolText(bool value) { return value ? "true" : "false"; }

std::vector<ConfigOption> MakeOptions() {
  using tv = absl::string_view;
  return {
      {"run_dir", "path",
       "Directory of the lock file and the sockets, made with mode 0750. One daemon per directory.",
       [](tv t, Config* c) { return SetPath(t, false, &c->run_dir); }, [](const Config& c) { return c.run_dir; }},
      {"host.budget", "size or %",
       "Everything the daemon may use of the host's memory: payloads, tables, staging, the process itself. A share "
       "counts from physical memory, or from the control group's limit where that is lower.",
       [](tv t, Config* c) { return SetBudget(t, c); }, [](const Config& c) { return c.host_budget; }},
      {"host.process_bytes", "size",
       "Part of the budget set aside for code, gRPC, stacks and small allocations.",
       [](tv t, Config* c) { return SetSize(t, 8ull << 20, &c->stack.process_bytes); },
       [](const Config& c) { return FormatSize(c.stack.process_bytes); }},
      {"host.prefault", "bool",
       "Touch the memory in the background after the start, so that no store pays for page faults.",
       [](tv t, Config* c) { return SetBool(t, &c->stack.prefault); },
       [](const Config& c) { return BoolText(c.stack.prefault); }},
      {"host.huge_pages", "bool", "Use reserved huge pages (`vm.nr_hugepages`) for payloads as far as they reach.",
       [](tv t, Config* c) { return SetBool(t, &c->stack.huge_pages); },
       [](const Config& c) { return BoolText(c.stack.huge_pages); }},
      {"host.memory_dir", "path",
       "Memory file system (tmpfs) in which the blocks' memory outlives the daemon, so that the next one starts warm. "
       "Empty: anonymous memory, gone with the process.",
       [](tv t, Config* c) { return SetPath(t, true, &c->stack.memory_dir); },
       [](const Config& c) { return c.stack.memory_dir; }},
      {"host.eviction_policy", "word",
       "Order in which blocks make room: `terrace` (adapts), `lru`, `s3fifo`, `arc`, `lru2`. See docs/replay.md.",
       [](tv t, Config* c) { return SetWord(t, tiering::EvictionPolicyNames(), &c->stack.eviction_policy); },
       [](const Config& c) { return c.stack.eviction_policy; }},
      {"host.store_threads", "number", "Threads that copy stored blocks in. 0: 1 on up to 4 cores, else 2.",
       [](tv t, Config* c) { return SetUint(t, 0, 64, &c->stack.store_threads); },
       [](const Config& c) { return absl::StrCat(c.stack.store_threads); }},
      {"host.store_queue_depth", "number",
       "Blocks of all clients that may wait to be copied in; further stores are refused as `overload`.",
       [](tv t, Config* c) { return SetUint(t, 1, 1'000'000, &c->stack.store_queue_depth); },
       [](const Config& c) { return absl::StrCat(c.stack.store_queue_depth); }},
      {"host.max_key_spaces", "number", "Key spaces of all tenants that may be open.",
       [](tv t, Config* c) { return SetUint(t, 1, 1'000'000, &c->stack.max_key_spaces); },
       [](const Config& c) { return absl::StrCat(c.stack.max_key_spaces); }},
      {"host.max_leases_per_session", "number", "Leases that one client may hold.",
       [](tv t, Config* c) { return SetUint(t, 1, 100'000'000, &c->stack.max_leases_per_session); },
       [](const Config& c) { return absl::StrCat(c.stack.max_leases_per_session); }},
      {"host.max_leased_ratio", "ratio",
       "Share of the host tier that may be under lease; beyond it blocks are answered as `lease_limit`.",
       [](tv t, Config* c) -> absl::Status {
         ASSIGN_OR_RETURN(c->stack.max_leased_ratio, ParseRatio(t));
         return absl::OkStatus();
       },
       [](const Config& c) { return absl::StrCat(c.stack.max_leased_ratio); }},
      {"host.lease_max_age", "duration",
       "A lease not renewed for so long ends. The second line of defence: a client that dies loses its leases at "
       "once.",
       [](tv t, Config* c) -> absl::Status {
         return SetDuration(t, 1'000'000'000, &c->stack.lease_max_age_ns);
       },
       [](const Config& c) { return FormatDuration(c.stack.lease_max_age_ns); }},
      {"host.kv_floor", "ratio", "Share of the blocks' memory that training shards never take from KV blocks.",
       [](tv t, Config* c) { return SetRatio(t, &c->stack.class_floor[0]); },
       [](const Config& c) { return absl::StrCat(c.stack.class_floor[0]); }},
      {"host.shard_floor", "ratio", "Share of the blocks' memory that KV blocks never take from training shards.",
       [](tv t, Config* c) { return SetRatio(t, &c->stack.class_floor[1]); },
       [](const Config& c) { return absl::StrCat(c.stack.class_floor[1]); }},
      {"host.max_pin_ratio", "ratio",
       "Share of the blocks' memory that one tenant's retention hints may pin. Pins beyond it are left out.",
       [](tv t, Config* c) { return SetRatio(t, &c->stack.max_pin_ratio); },
       [](const Config& c) { return absl::StrCat(c.stack.max_pin_ratio); }},
      {"nvme.devices", "list",
       "Disks of the NVMe tier: PATH=SIZE, one file each, made and filled with reserved space at the start; or a raw "
       "block device (without =SIZE: all of it). Empty: no NVMe tier.",
       [](tv t, Config* c) { return SetDevices(t, &c->stack.nvme.devices); },
       [](const Config& c) { return DevicesText(c.stack.nvme.devices); }},
      {"nvme.io", "word", "How disks are driven: `auto` (io_uring where the kernel allows it), `io_uring`, `posix`.",
       [](tv t, Config* c) { return SetWord(t, {"auto", "io_uring", "posix"}, &c->nvme_io); },
       [](const Config& c) { return c.nvme_io; }},
      {"nvme.depth", "number", "Requests that a disk has in hand at a time.",
       [](tv t, Config* c) { return SetUint(t, 4, 1024, &c->nvme_depth); },
       [](const Config& c) { return absl::StrCat(c.nvme_depth); }},
      {"nvme.io_memory", "size",
       "Read and write buffers of a disk, charged to the budget. A block may be a quarter of it at most.",
       [](tv t, Config* c) { return SetSize(t, 8ull << 20, &c->stack.nvme.io_memory_bytes); },
       [](const Config& c) { return FormatSize(c.stack.nvme.io_memory_bytes); }},
      {"nvme.index_memory", "size",
       "Memory for the index of all disks, about 30 bytes a block, out of the budget. 0: enough for blocks of 48 KiB "
       "and more, at most a sixteenth of the budget.",
       [](tv t, Config* c) { return SetSize(t, 0, &c->stack.nvme_index_bytes); },
       [](const Config& c) { return FormatSize(c.stack.nvme_index_bytes); }},
      {"nvme.write_budget_per_day", "size",
       "Bytes that may be written to all disks in a day, for their endurance; kept over restarts. 0: no limit.",
       [](tv t, Config* c) { return SetSize(t, 0, &c->stack.nvme.write_bytes_per_day); },
       [](const Config& c) { return FormatSize(c.stack.nvme.write_bytes_per_day); }},
      {"nvme.admission_policy", "word",
       "Which blocks are worth a write: `adaptive`, `all`, `second_use`. See docs/replay.md.",
       [](tv t, Config* c) { return SetWord(t, {"adaptive", "all", "second_use"}, &c->stack.admission_policy); },
       [](const Config& c) { return c.stack.admission_policy; }},
      {"nvme.read_deadline", "duration",
       "A load from disk that takes longer is answered as a miss (`deadline`). A disk on which a request, a write too, "
       "takes twice as long is taken out of service: not below what a busy disk needs.",
       [](tv t, Config* c) { return SetDuration(t, 10'000'000, &c->stack.nvme.read_deadline_ns); },
       [](const Config& c) { return FormatDuration(c.stack.nvme.read_deadline_ns); }},
      {"nvme.retry", "duration", "How often a disk that is out of service is tried again.",
       [](tv t, Config* c) { return SetDuration(t, 100'000'000, &c->stack.nvme.retry_ns); },
       [](const Config& c) { return FormatDuration(c.stack.nvme.retry_ns); }},
      {"nvme.scrub_period", "duration", "Time in which everything on disk is read and checked once. 0s: never.",
       [](tv t, Config* c) { return SetDuration(t, 0, &c->stack.nvme.scrub_period_ns); },
       [](const Config& c) { return FormatDuration(c.stack.nvme.scrub_period_ns); }},
      {"nvme.checkpoint_interval", "duration",
       "Least time between two checkpoints of the index. A power loss costs what was written since.",
       [](tv t, Config* c) { return SetDuration(t, 100'000'000, &c->stack.nvme.checkpoint_ns); },
       [](const Config& c) { return FormatDuration(c.stack.nvme.checkpoint_ns); }},
      {"engine.socket", "path", "Socket of `libterrace`. Empty: `run_dir`/engine.sock.",
       [](tv t, Config* c) { return SetPath(t, true, &c->engine_socket); },
       [](const Config& c) { return c.engine_socket; }},
      {"engine.socket_mode", "mode", "Permission bits of both sockets: who may connect at all.",
       [](tv t, Config* c) -> absl::Status {
         ASSIGN_OR_RETURN(c->socket_mode, ParseMode(t));
         return absl::OkStatus();
       },
       [](const Config& c) { return FormatMode(c.socket_mode); }},
      {"engine.threads", "number", "Threads that answer the engine socket. 0: 1 on up to 4 cores, else 2.",
       [](tv t, Config* c) { return SetUint(t, 0, 64, &c->engine_threads); },
       [](const Config& c) { return absl::StrCat(c.engine_threads); }},
      {"engine.max_connections", "number", "Connections of the engine socket. A client uses two.",
       [](tv t, Config* c) { return SetUint(t, 1, 1'000'000, &c->max_connections); },
       [](const Config& c) { return absl::StrCat(c.max_connections); }},
      {"engine.max_connections_per_uid", "number", "The same for one user id.",
       [](tv t, Config* c) { return SetUint(t, 1, 1'000'000, &c->max_connections_per_uid); },
       [](const Config& c) { return absl::StrCat(c.max_connections_per_uid); }},
      {"engine.staging_bytes", "size",
       "Shared memory through which a client stores, if it asks for no other size. Charged to the budget. A block "
       "must fit in.",
       [](tv t, Config* c) { return SetSize(t, 64ull << 10, &c->staging_bytes); },
       [](const Config& c) { return FormatSize(c.staging_bytes); }},
      {"engine.staging_bytes_max", "size", "The most that a client may ask for.",
       [](tv t, Config* c) { return SetSize(t, 64ull << 10, &c->staging_bytes_max); },
       [](const Config& c) { return FormatSize(c.staging_bytes_max); }},
      {"engine.host_regions", "bool",
       "Engines may register pages in shared memory, from and to which the daemon then copies by itself.",
       [](tv t, Config* c) { return SetBool(t, &c->stack.host_regions); },
       [](const Config& c) { return BoolText(c.stack.host_regions); }},
      {"engine.region_threads", "number", "Threads that copy such pages. 0: as `host.store_threads`.",
       [](tv t, Config* c) { return SetUint(t, 0, 64, &c->stack.region_threads); },
       [](const Config& c) { return absl::StrCat(c.stack.region_threads); }},
      {"engine.max_regions", "number", "Regions (of host or GPU memory) that one connection may register.",
       [](tv t, Config* c) { return SetUint(t, 0, 4096, &c->max_regions); },
       [](const Config& c) { return absl::StrCat(c.max_regions); }},
      {"engine.region_bytes_max", "size", "The largest region, all its allocations together.",
       [](tv t, Config* c) { return SetSize(t, 4096, &c->region_bytes_max); },
       [](const Config& c) { return FormatSize(c.region_bytes_max); }},
      {"gpu.enabled", "bool", "Use the GPUs that the driver shows, where there is a driver.",
       [](tv t, Config* c) { return SetBool(t, &c->stack.gpu); },
       [](const Config& c) { return BoolText(c.stack.gpu); }},
      {"gpu.driver", "path", "The driver's library, as the dynamic linker finds it.",
       [](tv t, Config* c) -> absl::Status {
         if (t.empty()) return absl::InvalidArgumentError("a library's name or path");
         c->stack.gpu_options.driver = ToString(t);
         return absl::OkStatus();
       },
       [](const Config& c) { return c.stack.gpu_options.driver; }},
      {"gpu.staging_bytes", "size", "Memory of each GPU for gathering small pages into large copies. 0: none.",
       [](tv t, Config* c) { return SetSizeOrNone(t, 2ull << 20, &c->stack.gpu_options.staging_bytes); },
       [](const Config& c) { return FormatSize(c.stack.gpu_options.staging_bytes); }},
      {"gpu.max_sms", "number",
       "Multiprocessors of a GPU that copying small pages may use at a time. 0: no kernels, the processor computes "
       "checksums.",
       [](tv t, Config* c) { return SetUint(t, 0, 1024, &c->stack.gpu_options.max_sms); },
       [](const Config& c) { return absl::StrCat(c.stack.gpu_options.max_sms); }},
      {"gpu.batch_deadline", "duration", "A GPU that has not ended a copy by then is put out of service.",
       [](tv t, Config* c) { return SetDuration(t, 100'000'000, &c->stack.gpu_options.batch_deadline_ns); },
       [](const Config& c) { return FormatDuration(c.stack.gpu_options.batch_deadline_ns); }},
      {"gpu.tier_bytes", "size", "Memory of each GPU for blocks that many of its requests share. 0: none.",
       [](tv t, Config* c) { return SetSize(t, 0, &c->stack.gpu_tier_bytes); },
       [](const Config& c) { return FormatSize(c.stack.gpu_tier_bytes); }},
      {"grpc.socket", "path", "Unix socket of the gRPC API and of `terracectl`. Empty: `run_dir`/grpc.sock.",
       [](tv t, Config* c) { return SetPath(t, true, &c->grpc_socket); },
       [](const Config& c) { return c.grpc_socket; }},
      {"grpc.listen", "address", "Loopback TCP address of the gRPC API, without administration. Empty: off.",
       [](tv t, Config* c) { return SetAddress(t, &c->grpc_listen); },
       [](const Config& c) { return c.grpc_listen; }},
      {"grpc.admin_uids", "user ids",
       "User ids that may administer (`terracectl`) besides root and the daemon's own. Empty: everyone who may open "
       "the socket.",
       [](tv t, Config* c) { return SetUids(t, &c->grpc_admin_uids); },
       [](const Config& c) { return absl::StrJoin(c.grpc_admin_uids, ","); }},
      {"http.listen", "address", "Where /metrics, /healthz and /readyz are. Port 0: any free one. Empty: off.",
       [](tv t, Config* c) { return SetAddress(t, &c->http_listen); },
       [](const Config& c) { return c.http_listen; }},
      {"http.allow_remote", "bool",
       "Let `http.listen` be another address than loopback. There is no access control on it.",
       [](tv t, Config* c) { return SetBool(t, &c->http_allow_remote); },
       [](const Config& c) { return BoolText(c.http_allow_remote); }},
      {"log.level", "word", "`debug`, `info`, `warning` or `error`.",
       [](tv t, Config* c) { return SetWord(t, {"debug", "info", "warning", "error"}, &c->log_level); },
       [](const Config& c) { return c.log_level; }},
      {"log.format", "word", "`logfmt` or `json`, on standard error.",
       [](tv t, Config* c) { return SetWord(t, {"logfmt", "json"}, &c->log_format); },
       [](const Config& c) { return c.log_format; }},
  };
}

// Levenshtein's distance.
size_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replace = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replace, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

std::string ConfigOption::EnvironmentName() const {
  return absl::StrCat("TERRACE_", absl::AsciiStrToUpper(absl::StrReplaceAll(key, {{".", "_"}})));
}

std::string ConfigOption::FlagName() const {
  return absl::StrCat("--", absl::StrReplaceAll(key, {{".", "-"}, {"_", "-"}}));
}

const std::vector<ConfigOption>& ConfigOptions() {
  static const auto& options = *std::make_unique<std::vector<ConfigOption>>(MakeOptions()).release();
  return options;
}

const ConfigOption* FindConfigOption(absl::string_view key) {
  for (const ConfigOption& option : ConfigOptions()) {
    if (key == option.key) return &option;
  }
  return nullptr;
}

std::string NearestConfigKey(absl::string_view key) {
  key = key.substr(0, 100);
  std::string nearest = kTenantsKey;
  size_t distance = EditDistance(key, kTenantsKey);
  for (const ConfigOption& option : ConfigOptions()) {
    size_t d = EditDistance(key, option.key);
    // A key given without its section, or in a wrong one, is near as well.
    const absl::string_view name = absl::string_view(option.key).substr(absl::string_view(option.key).rfind('.') + 1);
    d = std::min(d, EditDistance(key.substr(key.rfind('.') + 1), name) + 1);
    if (d < distance) {
      distance = d;
      nearest = option.key;
    }
    const absl::string_view section = absl::string_view(option.key).substr(0, absl::string_view(option.key).find('.'));
    if (d = EditDistance(key, section); d > 0 && d < distance) {
      distance = d;
      nearest = ToString(section);
    }
  }
  return distance <= std::max<size_t>(2, key.size() / 2) ? nearest : "";
}

}  // namespace terrace::api
