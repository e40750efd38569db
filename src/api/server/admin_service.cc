// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/server/admin_service.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "api/server/proto_convert.h"
#include "api/server/status_convert.h"
#include "kvstore/base/log.h"
#include "kvstore/base/mutex.h"
#include "kvstore/base/status_macros.h"
#include "terrace/v1/admin.grpc.pb.h"

namespace terrace::api {
namespace {

constexpr uint32_t kListLimitDefault = 1000;
constexpr uint32_t kListLimitMax = 10000;
constexpr std::chrono::milliseconds kVerifyTick{100};  // how soon a cancelled Verify stops
constexpr int kVerifyTicksPerMessage = 10;

// Sum over a family's series, or over those with one value of one label.
class CounterSums {
 public:
  explicit CounterSums(const MetricRegistry& metrics) : families_(metrics.Snapshot()) {}

  uint64_t Sum(const std::string& name) const {
    return SumOf(name, {});
  }
  uint64_t SumOf(const std::string& name, const std::string& label, std::string_view value) const {
    return SumOf(name, {{label, std::string(value)}});
  }
  // Of the series with all of these labels.
  uint64_t SumOf(const std::string& name, const MetricRegistry::Labels& wanted) const {
    uint64_t sum = 0;
    for (const MetricRegistry::Family& family : families_) {
      if (family.name != name) continue;
      for (const MetricRegistry::Series& series : family.series) {
        const bool is_wanted = std::all_of(wanted.begin(), wanted.end(), [&](const auto& label) {
          return std::find(series.labels.begin(), series.labels.end(), label) != series.labels.end();
        });
        if (!is_wanted) continue;
        if (series.counter != nullptr) sum += series.counter->Value();
        if (series.read) sum += static_cast<uint64_t>(series.read());
      }
    }
    return sum;
  }

 private:
  const std::vector<MetricRegistry::Family> families_;
};

// A TierStack::Verify on a thread of its own, so that the call can report and be cancelled
// meanwhile. Owner: the call; the destructor stops and joins it.
class VerifyRun {
 public:
  explicit VerifyRun(tiering::TierStack* stack)
      : thread_([this, stack] {
          const tiering::VerifyReport report = stack->Verify(&stop_);
          MutexLock lock(&mu_);
          report_ = report;
          done_.SignalAll();
        }) {}
  ~VerifyRun() {
    stop_.store(true);
    thread_.join();
  }
  VerifyRun(const VerifyRun&) = delete;

  // Waits one tick; the report when it is done.
  std::optional<tiering::VerifyReport> Wait() {
    MutexLock lock(&mu_);
    if (!report_.has_value()) done_.WaitFor(&mu_, kVerifyTick);
    return report_;
  }

 private:
  std::atomic<bool> stop_{false};
  Mutex mu_;
  CondVar done_;
  std::optional<tiering::VerifyReport> report_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;  // last: uses all of the above
};

void BlockToProto(const tiering::BlockInfo& info, v1::Block* block) {
  const absl::string_view key = KeyToProto(info.key);
  block->set_key(key.data(), key.size());
  block->set_key_space_id(info.key_space->id);
  block->set_payload_bytes(info.payload_bytes);
  block->set_generation(info.generation);
  block->set_pin_count(info.pins);
  block->set_has_children(info.has_children);
  block->set_tier(info.tier);
}

const char* TierStateName(tiering::TierState state) {
  switch (state) {
    case tiering::TierState::kStarting:
      return "starting";
    case tiering::TierState::kOnline:
      return "online";
    case tiering::TierState::kReadOnly:
      return "readonly";
    case tiering::TierState::kOffline:
      return "offline";
  }
  return "unknown";
}

uint64_t Resident(const kv::KeySpace& key_space) {
  return static_cast<uint64_t>(std::max<int64_t>(0, key_space.blocks_resident.load()));
}

class AdminService final : public v1::AdminService::Service {
 public:
  AdminService(const GrpcContext* context, GrpcSessions* sessions, GrpcMetrics* metrics,
               std::vector<uint32_t> admin_uids, UidOfPeer uid_of_peer)
      : context_(*context),
        sessions_(*sessions),
        metrics_(*metrics),
        admin_uids_(std::move(admin_uids)),
        uid_of_peer_(std::move(uid_of_peer)),
        started_ns_(context->clock->NowNs()) {}

  grpc::Status GetStatus(grpc::ServerContext* call, const v1::GetStatusRequest*,
                         v1::GetStatusResponse* response) override {
    return Answer(*call, [&] { return DoGetStatus(response); });
  }
  grpc::Status ListTenants(grpc::ServerContext* call, const v1::ListTenantsRequest*,
                           v1::ListTenantsResponse* response) override {
    return Answer(*call, [&] { return DoListTenants(response); });
  }
  grpc::Status ListKeySpaces(grpc::ServerContext* call, const v1::ListKeySpacesRequest* request,
                             v1::ListKeySpacesResponse* response) override {
    return Answer(*call, [&] { return DoListKeySpaces(*request, response); });
  }
  grpc::Status ListBlocks(grpc::ServerContext* call, const v1::ListBlocksRequest* request,
                          v1::ListBlocksResponse* response) override {
    return Answer(*call, [&] { return DoListBlocks(*request, response); });
  }
  grpc::Status StatBlock(grpc::ServerContext* call, const v1::StatBlockRequest* request,
                         v1::StatBlockResponse* response) override {
    return Answer(*call, [&] { return DoStatBlock(*request, response); });
  }
  grpc::Status Flush(grpc::ServerContext* call, const v1::FlushRequest* request,
                     v1::FlushResponse* response) override {
    return Answer(*call, [&] { return DoFlush(*request, response); });
  }
  grpc::Status Verify(grpc::ServerContext* call, const v1::VerifyRequest*,
                      grpc::ServerWriter<v1::VerifyResponse>* writer) override {
    return Answer(*call, [&] { return DoVerify(call, writer); });
  }

 private:
  // Admits the caller, runs the call, counts it, and converts its status.
  template <typename Work>
  grpc::Status Answer(const grpc::ServerContext& call, const Work& work) {
    const int64_t begin_ns = metrics_.NowNs();
    absl::Status status = Admit(call);
    if (status.ok()) {
      status = work();
    } else {
      metrics_.rejected_auth->Add();
    }
    metrics_.Answered(GrpcOp::kAdmin, status, begin_ns);
    return ToGrpcStatus(status);
  }

  absl::Status Admit(const grpc::ServerContext& call) const {
    if (admin_uids_.empty()) return absl::OkStatus();
    const std::optional<uint32_t> uid = uid_of_peer_(call.peer());
    if (uid.has_value() &&
        (*uid == 0 || *uid == geteuid() ||
         std::find(admin_uids_.begin(), admin_uids_.end(), *uid) != admin_uids_.end())) {
      return absl::OkStatus();
    }
    Log(LogLevel::kWarning, "admin_call_refused",
        {{"uid", uid.has_value() ? absl::StrCat(*uid) : "unknown"}});
    return absl::PermissionDeniedError(
        "this user may not administer the daemon; add its id to grpc.admin_uids or use root");
  }

  // nullptr for id 0.
  absl::StatusOr<const kv::KeySpace*> FindKeySpace(uint32_t id) const {
    if (id == 0) return nullptr;
    for (const kv::KeySpace* key_space : context_.stack->KeySpaces()) {
      if (key_space->id == id) return key_space;
    }
    return absl::NotFoundError(absl::StrCat(
        "no key space ", id, "; ids are those of ListKeySpaces of this daemon process"));
  }

  absl::Status DoGetStatus(v1::GetStatusResponse* response) const {
    FillDaemon(response);
    FillConnections(response);
    FillCounters(response->mutable_counters());
    return absl::OkStatus();
  }

  void FillDaemon(v1::GetStatusResponse* response) const {
    response->set_version(context_.version);
    response->set_epoch(context_.epoch);
    response->set_pid(static_cast<uint32_t>(getpid()));
    DurationToProto(context_.clock->NowNs() - started_ns_, response->mutable_uptime());
    const tiering::TierStackStats stats = context_.stack->Stats();
    for (const tiering::TierUsage& usage : stats.tiers) {
      v1::TierStatus* tier = response->add_tiers();
      tier->set_tier(usage.tier);
      tier->set_capacity_bytes(usage.capacity_bytes);
      tier->set_used_bytes(usage.used_bytes);
      tier->set_pinned_bytes(usage.pinned_bytes);
      tier->set_block_count(usage.blocks);
      tier->set_state(TierStateName(usage.state));
      tier->set_detail(usage.detail);
    }
    FillDevices(stats, response);
    FillGpus(stats, response);
    for (int c = 0; c < tiering::kBlockClasses; ++c) {
      v1::ClassStatus* of_class = response->add_classes();
      of_class->set_block_class(c == 0 ? "kv" : "shard");
      of_class->set_used_bytes(stats.classes[c].used_bytes);
      of_class->set_floor_bytes(stats.classes[c].floor_bytes);
      of_class->set_block_count(stats.classes[c].blocks);
    }
    response->set_eviction_policy(stats.policy);
    response->set_host_recovery_ratio(stats.host_recovery_ratio);
    response->set_recovered_blocks(stats.recovered_blocks);
    response->set_budget_bytes(stats.budget_bytes);
    response->set_budget_used_bytes(stats.budget_used_bytes);
    response->set_index_bytes(stats.index_bytes);
    response->set_prefaulted_bytes(stats.prefaulted_bytes);
    response->set_session_count(stats.sessions);
    response->set_lease_count(stats.leases);
    response->set_key_space_count(stats.key_spaces);
  }

  static void FillDevices(const tiering::TierStackStats& stats, v1::GetStatusResponse* response) {
    if (!stats.nvme.has_value()) return;
    for (const tiering::NvmeTier::DeviceStats& stat : stats.nvme->devices) {
      v1::DeviceStatus* device = response->add_devices();
      device->set_path(stat.path);
      device->set_backend(stat.backend);
      device->set_state(TierStateName(stat.state));
      device->set_detail(stat.detail);
      device->set_capacity_bytes(stat.capacity_bytes);
      device->set_used_bytes(stat.used_bytes);
      device->set_block_count(stat.blocks);
      device->set_read_bytes(stat.read_bytes);
      device->set_written_bytes(stat.written_bytes);
      device->set_recovery_ratio(stat.recovery_ratio);
      device->set_scrub_ratio(stat.scrub_ratio);
      device->set_read_bytes_per_second(stat.read_bytes_per_s);
    }
    response->set_has_write_budget(stats.nvme->has_write_budget);
    response->set_write_budget_bytes(stats.nvme->write_budget_bytes);
  }

  static void FillGpus(const tiering::TierStackStats& stats, v1::GetStatusResponse* response) {
    response->set_why_no_gpu(stats.why_no_gpu);
    response->set_host_region_count(stats.host_regions);
    response->set_gpu_region_count(stats.gpu_regions);
    for (const tiering::GpuUsage& usage : stats.gpus) {
      v1::GpuStatus* gpu = response->add_gpus();
      gpu->set_number(static_cast<uint32_t>(response->gpus_size() - 1));
      gpu->set_name(usage.info.name);
      gpu->set_pci_bus(usage.info.pci_bus);
      gpu->set_state(usage.health.ok() ? "online" : "offline");
      gpu->set_detail(std::string(usage.health.message()));
      gpu->set_total_bytes(usage.info.total_bytes);
      gpu->set_store_bytes(usage.copies.store_bytes);
      gpu->set_load_bytes(usage.copies.load_bytes);
      gpu->set_tier_capacity_bytes(usage.tier_capacity_bytes);
      gpu->set_tier_used_bytes(usage.tier_used_bytes);
      gpu->set_tier_block_count(usage.tier_blocks);
    }
  }

  void FillConnections(v1::GetStatusResponse* response) const {
    for (const EngineConnection& connection : context_.engine_connections()) {
      v1::EngineConnection* message = response->add_engine_connections();
      message->set_session_id(connection.session_id);
      message->set_client_name(connection.client_name);
      message->set_tenant(connection.tenant);
      message->set_pid(connection.pid);
      message->set_uid(connection.uid);
      message->set_lease_count(connection.leases);
      message->set_staging_bytes(connection.staging_bytes);
      message->set_region_count(connection.regions);
      DurationToProto(static_cast<int64_t>(connection.connected_seconds * 1e9),
                      message->mutable_connected());
    }
    for (const GrpcSessionInfo& session : sessions_.List()) {
      v1::GrpcSession* message = response->add_grpc_sessions();
      message->set_client_name(session.client_name);
      message->set_tenant(context_.stack->TenantName(session.tenant));
      message->set_lease_count(session.leases);
      DurationToProto(session.remaining_ns, message->mutable_remaining());
      message->set_stream_count(session.streams);
    }
  }

  void FillCounters(v1::Counters* counters) const {
    const CounterSums sums(*context_.metrics);
    counters->set_lookups(sums.SumOf("terrace_requests_total", "op", "lookup"));
    counters->set_lookup_blocks(sums.Sum("terrace_lookup_blocks_total"));
    counters->set_hit_blocks(sums.Sum("terrace_hit_blocks_total"));
    counters->set_stored_blocks(
        sums.SumOf("terrace_store_blocks_total", "reason", ReasonName(Reason::kNone)));
    uint64_t stored_bytes = 0;
    for (const char* from : {"client", "engine", "gpu"}) {
      stored_bytes += sums.SumOf("terrace_transfer_bytes_total", "src", from);
    }
    counters->set_stored_bytes(stored_bytes);
    counters->set_staging_refusals(
        sums.SumOf("terrace_requests_total", {{"op", "get_staging"}, {"code", "RESOURCE_EXHAUSTED"}}));
    counters->set_evicted_blocks(sums.Sum("terrace_evictions_total"));
    counters->set_corrupt_blocks(sums.Sum("terrace_integrity_failures_total"));
    counters->set_corrupt_blocks_on_disk(sums.SumOf("terrace_integrity_failures_total", "tier", "nvme"));
    for (int i = 1; i < kReasonCount; ++i) {
      const auto reason = static_cast<Reason>(i);
      const std::string name(ReasonName(reason));
      for (const auto& [family, list] :
           {std::pair{"terrace_miss_blocks_total", counters->mutable_miss_reasons()},
            std::pair{"terrace_store_blocks_total", counters->mutable_store_reasons()}}) {
        v1::ReasonCount* entry = list->Add();
        entry->set_reason(ReasonToProto(reason));
        entry->set_name(name);
        entry->set_count(sums.SumOf(family, "reason", name));
      }
    }
  }

  absl::Status DoListTenants(v1::ListTenantsResponse* response) const {
    for (const std::string& name : context_.tenants) response->add_tenants()->set_name(name);
    for (const kv::KeySpace* key_space : context_.stack->KeySpaces()) {
      if (key_space->tenant >= response->tenants_size()) continue;
      v1::Tenant* tenant = response->mutable_tenants(key_space->tenant);
      const uint64_t blocks = Resident(*key_space);
      tenant->set_key_space_count(tenant->key_space_count() + 1);
      tenant->set_resident_blocks(tenant->resident_blocks() + blocks);
      tenant->set_resident_bytes(tenant->resident_bytes() +
                                 blocks * key_space->identity.block_bytes);
    }
    return absl::OkStatus();
  }

  absl::Status DoListKeySpaces(const v1::ListKeySpacesRequest& request,
                               v1::ListKeySpacesResponse* response) const {
    for (const kv::KeySpace* key_space : context_.stack->KeySpaces()) {
      const std::string tenant = context_.stack->TenantName(key_space->tenant);
      if (!request.tenant().empty() && request.tenant() != tenant) continue;
      v1::KeySpace* message = response->add_key_spaces();
      message->set_key_space_id(key_space->id);
      message->set_tenant(tenant);
      IdentityToProto(key_space->identity, message->mutable_identity());
      message->set_digest(key_space->digest.data(), key_space->digest.size());
      message->set_resident_blocks(Resident(*key_space));
      message->set_stored_blocks(key_space->blocks_stored.load());
    }
    return absl::OkStatus();
  }

  absl::Status DoListBlocks(const v1::ListBlocksRequest& request,
                            v1::ListBlocksResponse* response) const {
    ASSIGN_OR_RETURN(const kv::KeySpace* key_space, FindKeySpace(request.key_space_id()));
    const uint32_t limit = request.limit() == 0 ? kListLimitDefault : request.limit();
    if (limit > kListLimitMax) {
      return absl::InvalidArgumentError(absl::StrCat("limit is at most ", kListLimitMax));
    }
    std::vector<tiering::BlockInfo> blocks = context_.stack->List(key_space, limit + 1);
    response->set_truncated(blocks.size() > limit);
    if (blocks.size() > limit) blocks.resize(limit);
    for (const tiering::BlockInfo& info : blocks) BlockToProto(info, response->add_blocks());
    return absl::OkStatus();
  }

  absl::Status DoStatBlock(const v1::StatBlockRequest& request,
                           v1::StatBlockResponse* response) const {
    ASSIGN_OR_RETURN(const kv::BlockKey key, KeyFromProto(request.key(), "key"));
    ASSIGN_OR_RETURN(const kv::KeySpace* only, FindKeySpace(request.key_space_id()));
    for (const kv::KeySpace* key_space : context_.stack->KeySpaces()) {
      if (only != nullptr && key_space != only) continue;
      const auto info = context_.stack->Stat(*key_space, key);
      if (info.has_value()) BlockToProto(*info, response->add_blocks());
    }
    return absl::OkStatus();
  }

  absl::Status DoFlush(const v1::FlushRequest& request, v1::FlushResponse* response) const {
    const kv::KeySpace* key_space = nullptr;
    if (request.target_case() == v1::FlushRequest::kKeySpaceId && request.key_space_id() != 0) {
      ASSIGN_OR_RETURN(key_space, FindKeySpace(request.key_space_id()));
    } else if (!request.all()) {
      return absl::InvalidArgumentError("say what to flush: key_space_id, or all = true");
    }
    const uint64_t blocks = context_.stack->Flush(key_space);
    Log(LogLevel::kInfo, "flushed",
        {{"key_space", key_space == nullptr ? 0 : key_space->id}, {"blocks", blocks}});
    response->set_flushed_blocks(blocks);
    return absl::OkStatus();
  }

  absl::Status DoVerify(grpc::ServerContext* call, grpc::ServerWriter<v1::VerifyResponse>* writer) {
    if (is_verifying_.exchange(true)) {
      return absl::ResourceExhaustedError("another verify is running; wait for its end");
    }
    struct Running {
      std::atomic<bool>& flag;
      ~Running() { flag.store(false); }
    } const running{is_verifying_};
    const int64_t begin_ns = context_.clock->NowNs();
    VerifyRun run(context_.stack);
    for (int tick = 1;; ++tick) {
      const std::optional<tiering::VerifyReport> report = run.Wait();
      if (call->IsCancelled()) return absl::CancelledError("verify was stopped");
      if (!report.has_value() && tick % kVerifyTicksPerMessage != 0) continue;
      v1::VerifyResponse message;
      DurationToProto(context_.clock->NowNs() - begin_ns, message.mutable_elapsed());
      if (report.has_value()) {
        message.set_done(true);
        message.set_checked_blocks(report->blocks);
        message.set_checked_bytes(report->bytes);
        message.set_corrupt_blocks(report->corrupt);
        message.set_corrupt_blocks_on_disk(report->corrupt_on_disk);
      }
      writer->Write(message);  // a client that is gone shows as cancelled
      if (report.has_value()) return absl::OkStatus();
    }
  }

  const GrpcContext& context_;
  GrpcSessions& sessions_;
  GrpcMetrics& metrics_;
  const std::vector<uint32_t> admin_uids_;
  const UidOfPeer uid_of_peer_;
  const int64_t started_ns_;
  std::atomic<bool> is_verifying_{false};
};

}  // namespace

std::unique_ptr<grpc::Service> MakeAdminService(const GrpcContext* context, GrpcSessions* sessions,
                                                GrpcMetrics* metrics,
                                                std::vector<uint32_t> admin_uids,
                                                UidOfPeer uid_of_peer) {
  return std::make_unique<AdminService>(context, sessions, metrics, std::move(admin_uids),
                                        std::move(uid_of_peer));
}

}  // namespace terrace::api
