// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// bench: lookups, stores and loads through libterrace against the running daemon, beside this machine's
// memcpy. A quick look, not the benchmark of bench/: one client, few rounds, medians.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <iostream>
#include <memory>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "api/client/terrace.h"
#include "api/ctl/admin_client.h"
#include "api/ctl/command.h"
#include "api/ctl/json.h"
#include "api/ctl/table.h"

namespace terrace::ctl {
namespace {

constexpr uint32_t kOpLimitUs = 60'000'000;

using Keys = std::vector<std::array<uint8_t, TERRACE_KEY_BYTES>>;

struct ClientClose {
  void operator()(terrace_client* client) const { terrace_close(client); }
};
struct PagesFree {
  void operator()(terrace_pages* pages) const { terrace_pages_free(pages); }
};
struct KeySpaceFree {
  void operator()(terrace_keyspace* keyspace) const { terrace_keyspace_free(keyspace); }
};
struct OpFree {
  void operator()(terrace_op* op) const { terrace_op_free(op); }
};

double SecondsOf(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

absl::Status LastError(const char* what, terrace_status status) {
  const std::string text = absl::StrCat("bench: ", what, ": ", terrace_error_text());
  return absl::Status(static_cast<absl::StatusCode>(status), text);
}

struct Figure {
  std::string name;
  double value = 0;
  std::string unit;
  double ratio = 0;  // to memcpy; 0: none
};

// One run. Everything it makes in the cache has keys of its own and is flushed at the end.
class Bench {
 public:
  Bench(const Settings& settings, const BenchOptions& options)
      : settings_(settings), options_(options), bytes_(options.blocks * options.block_bytes) {}

  absl::Status Run() {
    if (const absl::Status status = Connect(); !status.ok()) return status;
    MeasureMemcpy();
    absl::Status status = MeasureStores();
    if (status.ok()) status = MeasureLoads();
    if (status.ok()) status = MeasureLookups();
    Flush();
    return status;
  }
  const std::vector<Figure>& figures() const { return figures_; }

 private:
  absl::Status Connect() {
    terrace_options options{};
    options.struct_bytes = sizeof(options);
    options.socket_path = settings_.engine_socket.c_str();
    options.client_name = "terracectl bench";
    terrace_client* client = nullptr;
    terrace_status status = terrace_connect(&options, &client);
    client_.reset(client);
    if (client != nullptr) status = terrace_wait_ready(client, 2000);
    if (status != TERRACE_OK) return LastError("connect", status);

    terrace_keyspace_desc desc{};
    desc.struct_bytes = sizeof(desc);
    desc.model = "terracectl-bench";
    desc.block_bytes = options_.block_bytes;
    terrace_keyspace* keyspace = nullptr;
    status = terrace_keyspace_open(client_.get(), &desc, &keyspace);
    keyspace_.reset(keyspace);
    if (status != TERRACE_OK) return LastError("open key space", status);

    source_.assign(bytes_, 0);
    target_.assign(bytes_, 0);
    for (size_t i = 0; i < bytes_; i += 8) {
      const uint64_t word = random_();
      std::memcpy(&source_[i], &word, std::min<size_t>(8, bytes_ - i));
    }
    const terrace_plane source{source_.data(), options_.block_bytes, options_.block_bytes};
    const terrace_plane target{target_.data(), options_.block_bytes, options_.block_bytes};
    terrace_pages *source_pages = nullptr, *target_pages = nullptr;
    status = terrace_pages_register(client_.get(), &source, 1, options_.blocks, &source_pages);
    if (status == TERRACE_OK) {
      status = terrace_pages_register(client_.get(), &target, 1, options_.blocks, &target_pages);
    }
    source_pages_.reset(source_pages);
    target_pages_.reset(target_pages);
    if (status != TERRACE_OK) return LastError("register memory", status);
    for (uint64_t i = 0; i < options_.blocks; ++i) block_ids_.push_back(i);
    keys_ = MakeKeys(options_.blocks);
    return absl::OkStatus();
  }

  Keys MakeKeys(size_t n) {
    Keys keys(n);
    for (auto& key : keys) {
      for (size_t i = 0; i < key.size(); i += 8) {
        const uint64_t word = random_();
        std::memcpy(&key[i], &word, 8);
      }
    }
    return keys;
  }

  void AddRate(const char* name, const std::vector<double>& seconds) {
    const double rate = static_cast<double>(bytes_) / Median(seconds) / 1e9;
    if (memcpy_rate_ == 0) {
      memcpy_rate_ = rate;
      figures_.push_back({name, rate, "GB/s", 0});
    } else {
      figures_.push_back({name, rate, "GB/s", rate / memcpy_rate_});
    }
  }

  void MeasureMemcpy() {
    std::vector<double> seconds;
    for (uint32_t i = 0; i <= options_.rounds; ++i) {
      const double s = SecondsOf([&] { std::memcpy(target_.data(), source_.data(), bytes_); });
      if (i > 0) seconds.push_back(s);  // the first pays for page faults
    }
    AddRate("memcpy", seconds);
  }

  absl::Status Finish(terrace_op* started, const char* what) {
    const std::unique_ptr<terrace_op, OpFree> op(started);
    const terrace_status status = terrace_op_wait(op.get(), kOpLimitUs);
    if (status == TERRACE_OK) return absl::OkStatus();
    if (status != TERRACE_DATA_LOSS) return LastError(what, status);
    uint32_t n = 0;
    const uint8_t* reasons = terrace_op_reasons(op.get(), &n);
    for (uint32_t i = 0; i < n; ++i) {
      if (reasons[i] != TERRACE_REASON_NONE && reasons[i] != TERRACE_REASON_DUPLICATE) {
        return absl::ResourceExhaustedError(absl::StrCat(
            "bench: ", what, ": ", terrace_reason_name(static_cast<terrace_reason>(reasons[i]))));
      }
    }
    return absl::OkStatus();
  }

  absl::Status MeasureStores() {
    std::vector<double> seconds;
    for (uint32_t i = 0; i <= options_.rounds; ++i) {
      keys_ = MakeKeys(options_.blocks);
      absl::Status result;
      const double s = SecondsOf([&] {
        terrace_op* op = nullptr;
        const terrace_status status =
            terrace_store(client_.get(), keyspace_.get(), nullptr, keys_[0].data(), options_.blocks,
                          TERRACE_STORE_CHAIN, nullptr, source_pages_.get(), block_ids_.data(), &op);
        result = status == TERRACE_OK ? Finish(op, "store") : LastError("store", status);
      });
      if (!result.ok()) return result;
      if (i > 0) seconds.push_back(s);
      if (i < options_.rounds) Flush();  // each round finds the same room; the last one's blocks stay for the loads
    }
    AddRate("store", seconds);
    return absl::OkStatus();
  }

  absl::Status MeasureLoads() {
    std::vector<terrace_ref> refs(options_.blocks);
    terrace_lookup_part part{};
    part.keyspace = keyspace_.get();
    part.keys = keys_[0].data();
    part.n_keys = options_.blocks;
    part.refs = refs.data();
    const terrace_status looked = terrace_lookup(client_.get(), &part, 1, 0, 0);
    if (looked != TERRACE_OK) return LastError("lookup", looked);
    if (part.n_here != options_.blocks) {
      terrace_release(client_.get(), part.lease);
      return absl::NotFoundError("bench: other clients evict what was just stored; raise host.budget");
    }
    std::vector<double> seconds;
    absl::Status result;
    for (uint32_t i = 0; i <= options_.rounds && result.ok(); ++i) {
      std::fill(target_.begin(), target_.end(), uint8_t{0});
      const double s = SecondsOf([&] {
        terrace_op* op = nullptr;
        const terrace_status status = terrace_load(client_.get(), keyspace_.get(), refs.data(), keys_[0].data(),
                                                   options_.blocks, target_pages_.get(), block_ids_.data(), &op);
        result = status == TERRACE_OK ? Finish(op, "load") : LastError("load", status);
      });
      if (i > 0) seconds.push_back(s);
    }
    terrace_release(client_.get(), part.lease);
    if (!result.ok()) return result;
    if (target_ != source_) return absl::DataLossError("bench: loaded bytes differ from the stored ones");
    AddRate("load", seconds);
    return absl::OkStatus();
  }

  // Lookup, lease and release of the chain's first n keys.
  absl::Status MeasureLookup(const char* name, uint32_t n) {
    std::vector<double> seconds;
    for (uint32_t i = 0; i < 200 + options_.rounds; ++i) {
      terrace_lookup_part part{};
      part.keyspace = keyspace_.get();
      part.keys = keys_[0].data();
      part.n_keys = n;
      terrace_status status = TERRACE_OK;
      const double s = SecondsOf([&] {
        status = terrace_lookup(client_.get(), &part, 1, 0, 0);
        terrace_release(client_.get(), part.lease);
      });
      if (status != TERRACE_OK) return LastError("lookup", status);
      if (part.n_here != n) return absl::NotFoundError("bench: other clients evict what was just stored");
      seconds.push_back(s);
    }
    figures_.push_back({name, Median(seconds) * 1e6, "us", 0});
    return absl::OkStatus();
  }

  absl::Status MeasureLookups() {
    const absl::Status status = MeasureLookup("lookup of 1 block, median", 1);
    if (!status.ok() || options_.blocks == 1) return status;
    return MeasureLookup(absl::StrCat("lookup of ", options_.blocks, " blocks, median").c_str(), options_.blocks);
  }

  // Best effort: who may use the engine socket need not be an administrator.
  void Flush() {
    std::array<uint8_t, 32> digest{};
    if (keyspace_ == nullptr || terrace_keyspace_digest(keyspace_.get(), digest.data()) != TERRACE_OK) return;
    const auto spaces = admin_.ListKeySpaces(v1::ListKeySpacesRequest());
    if (!spaces.ok()) return;
    for (const v1::KeySpace& space : spaces->key_spaces()) {
      if (space.digest().size() == digest.size() &&
          std::memcmp(space.digest().data(), digest.data(), digest.size()) == 0) {
        v1::FlushRequest request;
        request.set_key_space_id(space.key_space_id());
        admin_.Flush(request).IgnoreError();  // the blocks are then evicted like any other
      }
    }
  }

  const Settings& settings_;
  const BenchOptions options_;
  const size_t bytes_;
  AdminClient admin_{settings_.grpc_socket};
  std::mt19937_64 random_{std::random_device{}()};
  std::vector<uint8_t> source_, target_;
  std::vector<uint64_t> block_ids_;
  Keys keys_;
  double memcpy_rate_ = 0;
  std::vector<Figure> figures_;
  // Destroyed first to last in reverse: operations, pages, key space, client.
  std::unique_ptr<terrace_client, ClientClose> client_;
  std::unique_ptr<terrace_keyspace, KeySpaceFree> keyspace_;
  std::unique_ptr<terrace_pages, PagesFree> source_pages_, target_pages_;
};

}  // namespace

int RunBench(const Settings& settings, const BenchOptions& options) {
  if (options.blocks * options.block_bytes > (uint64_t{8} << 30)) {
    return Fail(absl::InvalidArgumentError("bench: --blocks times --block-bytes is at most 8 GiB"));
  }
  Bench bench(settings, options);
  const absl::Status status = bench.Run();
  if (!status.ok()) return Fail(status);
  if (settings.is_json) {
    for (const Figure& f : bench.figures()) {
      std::cout << "{\"case\":" << JsonText(f.name) << ",\"value\":" << f.value << ",\"unit\":\"" << f.unit << "\""
                << (f.ratio > 0 ? absl::StrCat(",\"ratio\":", f.ratio) : "") << "}\n";
    }
    return kExitOk;
  }
  std::cout << options.blocks << " blocks of " << HumanBytes(options.block_bytes) << ", median of " << options.rounds
            << " rounds\n";
  Table table({"CASE", "VALUE", "UNIT", "OF MEMCPY"});
  for (const Figure& f : bench.figures()) {
    table.Add({f.name, absl::StrFormat("%.2f", f.value), f.unit,
               f.ratio > 0 ? absl::StrFormat("%.0f %%", 100 * f.ratio) : "-"});
  }
  std::cout << table.ToText(StandardOutputHasColour());
  return kExitOk;
}

}  // namespace terrace::ctl
