// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// host_p99_busy and restart: a real terraced with an NVMe tier, seen by a client.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench_tier.h"
#include "cache_client.h"
#include "cases.h"
#include "fio_peer.h"
#include "kvstore/base/status_macros.h"
#include "machine.h"
#include "payload.h"
#include "process.h"
#include "stopwatch.h"

namespace terrace::bench {
namespace {

// The keys of blocks [first, first + n) of a chain of all.
std::span<const uint8_t> Slice(const std::vector<uint8_t>& keys, uint64_t first, uint64_t n) {
  return std::span<const uint8_t>(keys).subspan(first * TERRACE_KEY_BYTES, n * TERRACE_KEY_BYTES);
}

uint32_t Count(std::span<const uint8_t> keys) { return static_cast<uint32_t>(keys.size() / TERRACE_KEY_BYTES); }

// Offers chains of `chain` blocks each, one after another.
absl::Status StoreChains(const CacheClient& client, terrace_keyspace* key_space, std::span<const uint8_t> keys,
                         uint64_t chain, const BlockPages& pages) {
  for (uint64_t first = 0; first < Count(keys); first += chain) {
    const auto part = keys.subspan(first * TERRACE_KEY_BYTES,
                                   std::min<uint64_t>(chain, Count(keys) - first) * TERRACE_KEY_BYTES);
    pages.Fill(part);
    const absl::Status status = client.Store(key_space, part, pages);
    if (!status.ok() && !absl::IsDataLoss(status)) return status;  // some blocks were refused: a cache may
  }
  return absl::OkStatus();
}

struct Counted {
  uint64_t host = 0, nvme = 0;
};

// Where blocks are, without asking for any of them.
absl::StatusOr<Counted> CountHere(const CacheClient& client, terrace_keyspace* key_space,
                                  std::span<const uint8_t> keys) {
  Counted counted;
  constexpr size_t kBatch = 4096 * TERRACE_KEY_BYTES;
  std::vector<uint8_t> reasons(4096);
  for (size_t at = 0; at < keys.size(); at += kBatch) {
    const auto batch = keys.subspan(at, std::min(kBatch, keys.size() - at));
    terrace_lookup_part part{};
    part.keyspace = key_space;
    part.keys = batch.data();
    part.n_keys = Count(batch);
    part.mode = TERRACE_MODE_ALL;
    part.reasons = reasons.data();
    RETURN_IF_ERROR(FromTerrace(
        terrace_lookup(client.handle(), &part, 1, TERRACE_LOOKUP_NO_LEASE, 10'000'000), "lookup"));
    for (uint32_t i = 0; i < part.n_keys; ++i) {
      counted.host += reasons[i] == TERRACE_REASON_NONE;
      counted.nvme += reasons[i] == TERRACE_REASON_PENDING;
    }
  }
  return counted;
}

// A hit from wherever the blocks lie: lookup, load with all checks, release. False: a miss.
absl::StatusOr<bool> LoadOnce(const CacheClient& client, terrace_keyspace* key_space, std::span<const uint8_t> keys,
                              const BlockPages& pages, uint32_t flags) {
  Chain chain;
  chain.refs.resize(Count(keys));
  terrace_lookup_part part{};
  part.keyspace = key_space;
  part.keys = keys.data();
  part.n_keys = Count(keys);
  part.refs = chain.refs.data();
  const terrace_status status = terrace_lookup(client.handle(), &part, 1, flags, 5'000'000);
  if (status != TERRACE_OK) return false;
  chain.lease = part.lease;
  const bool is_hit = part.n_prefix == part.n_keys && client.Load(key_space, chain, keys, pages).ok();
  if (chain.lease != 0) client.Release(chain).IgnoreError();  // a dead daemon has released it
  if (is_hit && !pages.Holds(keys)) return absl::DataLossError("a load gave other bytes than were stored");
  return is_hit;
}

// p99 of n hits on one block in host memory, seconds.
absl::StatusOr<double> HitP99(const CacheClient& client, terrace_keyspace* key_space, std::span<const uint8_t> key,
                              const BlockPages& pages, int n) {
  std::vector<double> times(static_cast<size_t>(n));
  for (double& time : times) {
    const double begun = Seconds();
    ASSIGN_OR_RETURN(const bool is_hit, LoadOnce(client, key_space, key, pages, 0));
    time = Seconds() - begun;
    if (!is_hit) return absl::InternalError("the block in host memory was not served");
  }
  return Quantile(times, 0.99);
}

}  // namespace

absl::Status RunHostP99Busy(const CaseContext& context) {
  constexpr size_t kBlockBytes = 64 << 10;
  constexpr uint64_t kBlocks = 16'000, kChain = 100;  // three times what the daemon's memory holds
  constexpr uint64_t kFileBytes = 2ull << 30;
  constexpr int kHits = 3000;
  const TemporaryDirectory directory(context.options.directory);
  ASSIGN_OR_RETURN(const auto fio, FioPeer::Start(context.options.fio, directory.path(), kFileBytes));
  Options options = context.options;
  options.budget = "512MiB";
  ASSIGN_OR_RETURN(const auto daemon,
                   BenchDaemon::Start(options, {absl::StrCat("nvme.devices=", directory.path(), "/nvme.data=2GiB"),
                                                "nvme.admission_policy=all",
                                                "host.eviction_policy=lru", "nvme.read_deadline=60s"}));
  ASSIGN_OR_RETURN(const auto client, CacheClient::Connect(daemon->socket()));
  ASSIGN_OR_RETURN(terrace_keyspace * key_space, client->OpenKeySpace("busy", kBlockBytes));
  ASSIGN_OR_RETURN(const auto pages, BlockPages::Make(client->handle(), kChain, kBlockBytes));
  const std::vector<uint8_t> keys = MakeKeys(21, kBlocks), hot = MakeKeys(22, 1);
  RETURN_IF_ERROR(StoreChains(*client, key_space, keys, kChain, *pages));
  RETURN_IF_ERROR(client->MakeResident(key_space, hot, *pages));

  // One more client loads from the disk all the time, so that the daemon waits for it, too.
  std::atomic<bool> stop{false}, is_busy{false};
  std::atomic<uint64_t> loaded{0};
  absl::Status loader_status;
  std::thread loader([&] {
    const auto work = [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const auto other, CacheClient::Connect(daemon->socket()));
      ASSIGN_OR_RETURN(terrace_keyspace * space, other->OpenKeySpace("busy", kBlockBytes));
      ASSIGN_OR_RETURN(const auto target, BlockPages::Make(other->handle(), kChain, kBlockBytes));
      for (uint64_t first = 0; !stop.load(); first = (first + 8) % kBlocks) {
        while (!is_busy.load() && !stop.load()) usleep(1000);
        const auto result = LoadOnce(*other, space, Slice(keys, first, 8), *target, TERRACE_LOOKUP_MAY_WAIT);
        RETURN_IF_ERROR(result.status());
        loaded += *result ? 8 : 0;
      }
      return absl::OkStatus();
    };
    loader_status = work();
  });

  Measurement m{.name = "host_p99_busy",
                .what = "p99 of lookup + load + release of a 64 KiB block in host memory: disk saturated, against idle",
                .unit = "us"};
  m.limit_name = "idle disk";
  m.lower_is_better = true;
  m.target = 2;
  m.aim = 1.2;
  const OthersMeter meter({daemon->pid()});
  const auto measure = [&]() -> absl::Status {
    for (int round = 0; round < context.Rounds(9); ++round) {
      ASSIGN_OR_RETURN(const double idle, HitP99(*client, key_space, hot, *pages, kHits));
      ASSIGN_OR_RETURN(ChildProcess load, fio->RunBeside({.pattern = "randrw", .block_bytes = 2 << 20, .depth = 16,
                                                          .seconds = 60}));
      is_busy.store(true);
      usleep(500'000);  // until fio is at full speed
      const absl::StatusOr<double> busy = HitP99(*client, key_space, hot, *pages, kHits);
      is_busy.store(false);
      load.Stop();
      RETURN_IF_ERROR(busy.status());
      m.values.push_back(1e6 * *busy);
      m.limits.push_back(1e6 * idle);
    }
    return absl::OkStatus();
  };
  const absl::Status status = measure();
  stop.store(true);
  loader.join();
  RETURN_IF_ERROR(status);
  RETURN_IF_ERROR(loader_status);
  m.more = {{"blocks_loaded_meanwhile", static_cast<double>(loaded.load())}};
  context.report->Add(m, meter.Cores());
  return absl::OkStatus();
}

namespace {

// What one restart took, seconds since the new process was started.
struct Restarted {
  double connected = 0, nvme_hit = 0, host_hit = 0, reconnected = 0;
};

// Tries until fn gives true; how long since begun.
template <typename Fn>
absl::StatusOr<double> Until(double begun, const Fn& fn) {
  while (Seconds() - begun < 60) {
    ASSIGN_OR_RETURN(const bool is_done, fn());
    if (is_done) return Seconds() - begun;
    usleep(1000);
  }
  return absl::DeadlineExceededError("nothing was served for a minute after the restart");
}

class RestartBench {
 public:
  static constexpr size_t kBlockBytes = 4096;
  static constexpr uint64_t kChain = 1000, kProbe = 16;

  // The disk is filled by the tier itself: quicker than through a daemon, whose memory comes first.
  absl::Status Prepare(const Options& options, uint64_t blocks, const std::string& directory,
                       const std::string& memory) {
    const uint64_t file_bytes = blocks * 8192 * 5 / 4 / (1 << 20) * (1 << 20) + (256 << 20);
    {
      ASSIGN_OR_RETURN(const auto tier, BenchTier::Open(directory, file_bytes, kBlockBytes));
      tier->UseKeySpaceOf("restart");
      tier->UseOwnPayloads();
      for (uint64_t first = 0; first < blocks; first += kChain) RETURN_IF_ERROR(tier->Append(first, kChain));
    }
    for (uint64_t i = 0; i < blocks; ++i) {
      const std::vector<uint8_t> key = MakeKeys(i, 1);
      keys_.insert(keys_.end(), key.begin(), key.end());
    }
    ASSIGN_OR_RETURN(daemon_, BenchDaemon::Start(options, {absl::StrCat("nvme.devices=", directory, "/nvme.data=",
                                                                        file_bytes >> 20, "MiB"),
                                                           absl::StrCat("host.memory_dir=", memory),
                                                           "nvme.index_memory=48MiB"}));
    ASSIGN_OR_RETURN(client_, CacheClient::Connect(daemon_->socket()));
    ASSIGN_OR_RETURN(key_space_, client_->OpenKeySpace("restart", kBlockBytes));
    ASSIGN_OR_RETURN(pages_, BlockPages::Make(client_->handle(), kChain, kBlockBytes));
    hot_ = MakeKeys(1ull << 40, kProbe);
    return client_->MakeResident(key_space_, hot_, *pages_);
  }

  absl::StatusOr<Restarted> Restart() {
    daemon_->Kill();
    const double begun = Seconds();
    RETURN_IF_ERROR(daemon_->Launch());
    std::unique_ptr<CacheClient> fresh;
    std::unique_ptr<BlockPages> target;
    terrace_keyspace* space = nullptr;
    const auto load = [&](std::span<const uint8_t> keys) -> absl::StatusOr<bool> {
      if (fresh == nullptr) {
        auto connected = CacheClient::Connect(daemon_->socket());
        if (!connected.ok()) return false;  // the old socket is there, with nobody behind it
        fresh = std::move(*connected);
        ASSIGN_OR_RETURN(space, fresh->OpenKeySpace("restart", kBlockBytes));
        ASSIGN_OR_RETURN(target, BlockPages::Make(fresh->handle(), kProbe, kBlockBytes));
      }
      return LoadOnce(*fresh, space, keys, *target, TERRACE_LOOKUP_MAY_WAIT);
    };
    probe_ += 7777;  // blocks that no round before has brought up from the disk
    const auto probe = Slice(keys_, probe_ % (Count(keys_) - kProbe), kProbe);
    Restarted took;
    ASSIGN_OR_RETURN(took.nvme_hit, Until(begun, [&]() -> absl::StatusOr<bool> {
      if (took.host_hit == 0) {
        ASSIGN_OR_RETURN(const bool is_hit, load(hot_));
        if (is_hit) took.host_hit = Seconds() - begun;
      }
      if (took.connected == 0 && fresh != nullptr) took.connected = Seconds() - begun;
      return load(probe);
    }));
    if (took.host_hit == 0) {
      ASSIGN_OR_RETURN(took.host_hit, Until(begun, [&] { return load(hot_); }));
    }
    ASSIGN_OR_RETURN(took.reconnected, Until(begun, [&] {
      return LoadOnce(*client_, key_space_, probe, *pages_, TERRACE_LOOKUP_MAY_WAIT);
    }));
    return took;
  }

  // How many blocks are here; once nothing more comes back.
  absl::StatusOr<Counted> CountAll() {
    Counted counted;
    for (int unchanged = 0; unchanged < 3;) {
      ASSIGN_OR_RETURN(const Counted now, CountHere(*client_, key_space_, keys_));
      unchanged = now.host + now.nvme == counted.host + counted.nvme ? unchanged + 1 : 0;
      counted = now;
      usleep(200'000);
    }
    return counted;
  }
  pid_t pid() const { return daemon_->pid(); }

 private:
  std::unique_ptr<BenchDaemon> daemon_;
  std::unique_ptr<CacheClient> client_;
  terrace_keyspace* key_space_ = nullptr;
  std::unique_ptr<BlockPages> pages_;
  std::vector<uint8_t> keys_, hot_;  // of the disk, of host memory
  uint64_t probe_ = 0;
};

}  // namespace

absl::Status RunRestart(const CaseContext& context) {
  const uint64_t blocks = static_cast<uint64_t>(1e3 * std::min(1.0, context.options.scale)) * 1000;
  const TemporaryDirectory directory(context.options.directory), memory("/dev/shm");
  Options options = context.options;
  options.budget = "2GiB";
  RestartBench bench;
  RETURN_IF_ERROR(bench.Prepare(options, blocks, directory.path(), memory.path()));
  ASSIGN_OR_RETURN(const Counted before, bench.CountAll());
  Measurement m{.name = "restart",
                .what = "kill -9, then from the start of the new process to the first hit on the disk, checked",
                .unit = "s"};
  m.lower_is_better = true;
  m.target = 1;
  m.aim = 0.3;
  m.target_is_absolute = true;
  const OthersMeter meter({bench.pid()});
  std::vector<double> connects, host_hits, reconnects;
  for (int round = 0; round < std::min(5, context.Rounds(5)); ++round) {
    ASSIGN_OR_RETURN(const Restarted took, bench.Restart());
    m.values.push_back(took.nvme_hit);
    connects.push_back(took.connected);
    host_hits.push_back(took.host_hit);
    reconnects.push_back(took.reconnected);
  }
  ASSIGN_OR_RETURN(const Counted after, bench.CountAll());
  const auto sum = [](const Counted& c) { return static_cast<double>(c.host + c.nvme); };
  m.more = {{"blocks_nvme", static_cast<double>(before.nvme)}, {"blocks_host", static_cast<double>(before.host)},
            {"kept_ratio", sum(after) / sum(before)},          {"host_hit_s", Median(host_hits)},
            {"connected_s", Median(connects)},                 {"old_client_hit_s", Median(reconnects)}};
  context.report->Add(m, meter.Cores());
  return absl::OkStatus();
}

}  // namespace terrace::bench
