// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// replay --live: a trace against a running daemon, as one engine would ask it: look up, load what is
// there, store the rest. Every byte that was loaded is compared with what its key says it must be.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <functional>
#include <iostream>
#include <memory>
#include <random>
#include <span>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "api/client/terrace.h"
#include "api/ctl/json.h"
#include "api/ctl/replay.h"
#include "api/ctl/table.h"
#include "kvstore/base/status_macros.h"

namespace terrace::ctl {
namespace {

using SteadyClock = std::chrono::steady_clock;
constexpr uint32_t kOpLimitUs = 60'000'000;
constexpr uint64_t kMaxMemory = uint64_t{8} << 30;  // as of bench

struct Close {
  void operator()(terrace_client* client) const { terrace_close(client); }
  void operator()(terrace_pages* pages) const { terrace_pages_free(pages); }
  void operator()(terrace_keyspace* keyspace) const { terrace_keyspace_free(keyspace); }
  void operator()(terrace_op* op) const { terrace_op_free(op); }
};
template <typename T>
using Owned = std::unique_ptr<T, Close>;

uint64_t Mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ x >> 27) * 0x94D049BB133111EBull;
  return x ^ x >> 31;
}

absl::Status LastError(const char* what, terrace_status status) {
  return absl::Status(static_cast<absl::StatusCode>(status),
                      absl::StrCat("replay: ", what, ": ", terrace_error_text()));
}

double Percentile(std::vector<double>& values, double share) {
  if (values.empty()) return 0;
  const auto at = static_cast<size_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(at), values.end());
  return values[at];
}

// One run with keys of its own. Threads: one, beside libterrace's.
class LiveReplay {
 public:
  LiveReplay(const ReplayArguments& arguments, const std::string& socket, const tiering::Trace& trace)
      : arguments_(arguments),
        socket_(socket),
        trace_(trace),
        requests_(std::span(trace.requests)
                      .first(arguments.max_requests == 0
                                 ? trace.requests.size()
                                 : std::min<size_t>(arguments.max_requests, trace.requests.size()))),
        block_bytes_(arguments.block_bytes) {}

  absl::Status Run() {
    RETURN_IF_ERROR(SizeUp());
    RETURN_IF_ERROR(Connect());
    const auto start = SteadyClock::now();
    const int64_t first_ns = requests_[0].time_ns;
    for (const tiering::Trace::Request& request : requests_) {
      const auto due = start + std::chrono::nanoseconds(static_cast<int64_t>(
                                   static_cast<double>(request.time_ns - first_ns) / arguments_.speed));
      std::this_thread::sleep_until(due);
      lag_seconds_ = std::max(lag_seconds_, std::chrono::duration<double>(SteadyClock::now() - due).count());
      RETURN_IF_ERROR(RunRequest(request));
    }
    seconds_ = std::chrono::duration<double>(SteadyClock::now() - start).count();
    return absl::OkStatus();
  }
  uint64_t wrong_blocks() const { return wrong_blocks_; }
  void Print(bool is_json);

 private:
  // The longest chain, and whether memory for it may be asked for.
  absl::Status SizeUp();
  absl::Status Connect();
  absl::Status RunRequest(const tiering::Trace::Request& request);
  // Loads and checks the first n blocks of the chain.
  absl::Status Load(const std::vector<terrace_ref>& refs, uint32_t n);
  absl::Status Store(uint32_t from, uint32_t n);
  void FillKey(uint32_t number, uint8_t* key) const;
  void FillBlock(const uint8_t* key, uint8_t* block) const;
  absl::Status Wait(terrace_op* op, const char* what, uint64_t* good);
  static double MicrosOf(const std::function<void()>& work);

  const ReplayArguments& arguments_;
  const std::string socket_;
  const tiering::Trace& trace_;
  const std::span<const tiering::Trace::Request> requests_;  // those that are played
  const uint64_t block_bytes_;
  uint32_t longest_ = 1;  // blocks of a request
  const uint64_t run_ = std::random_device{}() | uint64_t{std::random_device{}()} << 32;
  std::vector<uint8_t> source_, target_, expected_, keys_;
  std::vector<uint64_t> ids_;
  std::vector<double> lookup_us_, load_us_;
  uint64_t references_ = 0, hits_ = 0, failed_loads_ = 0, stored_ = 0, refused_ = 0, wrong_blocks_ = 0;
  uint64_t pending_ = 0, input_tokens_ = 0, hit_tokens_ = 0;
  double lag_seconds_ = 0, seconds_ = 0;
  // Declared last: their ends wait for copies into the memory above.
  Owned<terrace_client> client_;
  Owned<terrace_keyspace> keyspace_;
  Owned<terrace_pages> source_pages_, target_pages_;
};

absl::Status LiveReplay::SizeUp() {
  for (const tiering::Trace::Request& request : requests_) longest_ = std::max(longest_, request.count);
  if (longest_ <= kMaxMemory / 2 / block_bytes_) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("replay: the longest request has ", longest_, " blocks, which at --block-bytes ",
                   HumanBytes(block_bytes_), " takes more than ", HumanBytes(kMaxMemory),
                   " to load and store; at most ", HumanBytes(kMaxMemory / 2 / longest_), " a block would do"));
}

absl::Status LiveReplay::Connect() {
  terrace_options options{};
  options.struct_bytes = sizeof(options);
  options.socket_path = socket_.c_str();
  options.client_name = "terracectl replay";
  terrace_client* client = nullptr;
  terrace_status status = terrace_connect(&options, &client);
  client_.reset(client);
  if (client != nullptr) status = terrace_wait_ready(client, 2000);
  if (status != TERRACE_OK) return LastError("connect", status);
  terrace_keyspace_desc desc{};
  desc.struct_bytes = sizeof(desc);
  desc.model = "terracectl-replay";
  desc.block_bytes = block_bytes_;
  terrace_keyspace* keyspace = nullptr;
  status = terrace_keyspace_open(client, &desc, &keyspace);
  keyspace_.reset(keyspace);
  if (status != TERRACE_OK) return LastError("open key space", status);
  source_.resize(longest_ * block_bytes_);
  target_.resize(longest_ * block_bytes_);
  expected_.resize(block_bytes_);
  keys_.resize(uint64_t{longest_} * TERRACE_KEY_BYTES);
  for (uint64_t i = 0; i < longest_; ++i) ids_.push_back(i);
  for (const bool is_source : {true, false}) {
    const terrace_plane plane{is_source ? source_.data() : target_.data(), block_bytes_, block_bytes_};
    terrace_pages* pages = nullptr;
    status = terrace_pages_register(client, &plane, 1, longest_, &pages);
    (is_source ? source_pages_ : target_pages_).reset(pages);
    if (status != TERRACE_OK) return LastError("register memory", status);
  }
  return absl::OkStatus();
}

// Keys of one run are not those of another: what the daemon holds of an earlier one is not counted.
void LiveReplay::FillKey(uint32_t number, uint8_t* key) const {
  for (uint64_t i = 0; i < TERRACE_KEY_BYTES; i += 8) {
    const uint64_t word = Mix(run_ + (uint64_t{number} + 1) * 0x9E3779B97F4A7C15ull + i);
    std::memcpy(key + i, &word, 8);
  }
}

void LiveReplay::FillBlock(const uint8_t* key, uint8_t* block) const {
  uint64_t seed;
  std::memcpy(&seed, key, 8);
  for (uint64_t i = 0; i < block_bytes_; i += 8) {
    const uint64_t word = Mix(seed + i * 0x9E3779B97F4A7C15ull);
    std::memcpy(block + i, &word, std::min<uint64_t>(8, block_bytes_ - i));
  }
}

double LiveReplay::MicrosOf(const std::function<void()>& work) {
  const auto start = SteadyClock::now();
  work();
  return std::chrono::duration<double, std::micro>(SteadyClock::now() - start).count();
}

// good: how many of the leading blocks went well, NULL: not of interest.
absl::Status LiveReplay::Wait(terrace_op* op, const char* what, uint64_t* good) {
  const terrace_status status = terrace_op_wait(op, kOpLimitUs);
  if (status != TERRACE_OK && status != TERRACE_DATA_LOSS) return LastError(what, status);
  uint32_t n = 0;
  const uint8_t* reasons = terrace_op_reasons(op, &n);
  const auto is_bad = [](uint8_t reason) {
    return reason != TERRACE_REASON_NONE && reason != TERRACE_REASON_DUPLICATE;
  };
  *good = static_cast<uint64_t>(std::find_if(reasons, reasons + n, is_bad) - reasons);
  return absl::OkStatus();
}

absl::Status LiveReplay::RunRequest(const tiering::Trace::Request& request) {
  const std::span<const uint32_t> chain = trace_.BlocksOf(request);
  if (chain.empty()) return absl::OkStatus();
  for (uint32_t i = 0; i < request.count; ++i) FillKey(chain[i], &keys_[uint64_t{i} * TERRACE_KEY_BYTES]);
  std::vector<terrace_ref> refs(chain.size());
  terrace_lookup_part part{};
  part.keyspace = keyspace_.get();
  part.keys = keys_.data();
  part.n_keys = request.count;
  part.refs = refs.data();
  terrace_status status = TERRACE_OK;
  lookup_us_.push_back(
      MicrosOf([&] { status = terrace_lookup(client_.get(), &part, 1, TERRACE_LOOKUP_MAY_WAIT, 0); }));
  if (status != TERRACE_OK) return LastError("lookup", status);
  pending_ += part.n_pending;
  const uint64_t hits_before = hits_;
  absl::Status loaded;
  if (part.n_prefix > 0) loaded = Load(refs, part.n_prefix);
  terrace_release(client_.get(), part.lease);
  RETURN_IF_ERROR(loaded);
  const auto n_hit = static_cast<uint32_t>(hits_ - hits_before);
  references_ += chain.size();
  input_tokens_ += request.input_tokens;
  hit_tokens_ += std::min<uint64_t>(uint64_t{n_hit} * arguments_.block_tokens, request.input_tokens);
  return n_hit < request.count ? Store(n_hit, request.count) : absl::OkStatus();
}

absl::Status LiveReplay::Load(const std::vector<terrace_ref>& refs, uint32_t n) {
  terrace_op* started = nullptr;
  uint64_t good = 0;
  absl::Status result;
  load_us_.push_back(MicrosOf([&] {
    const terrace_status status = terrace_load(client_.get(), keyspace_.get(), refs.data(), keys_.data(), n,
                                               target_pages_.get(), ids_.data(), &started);
    result = status == TERRACE_OK ? Wait(started, "load", &good) : LastError("load", status);
  }));
  const Owned<terrace_op> op(started);
  RETURN_IF_ERROR(result);
  for (uint64_t i = 0; i < good; ++i) {
    FillBlock(&keys_[i * TERRACE_KEY_BYTES], expected_.data());
    if (std::memcmp(expected_.data(), &target_[i * block_bytes_], block_bytes_) != 0) ++wrong_blocks_;
  }
  hits_ += good;
  failed_loads_ += n - good;
  return absl::OkStatus();
}

absl::Status LiveReplay::Store(uint32_t from, uint32_t end) {
  for (uint64_t i = from; i < end; ++i) FillBlock(&keys_[i * TERRACE_KEY_BYTES], &source_[i * block_bytes_]);
  terrace_op* started = nullptr;
  const uint8_t* parent = from == 0 ? nullptr : &keys_[uint64_t{from - 1} * TERRACE_KEY_BYTES];
  const terrace_status status =
      terrace_store(client_.get(), keyspace_.get(), parent, &keys_[uint64_t{from} * TERRACE_KEY_BYTES], end - from,
                    TERRACE_STORE_CHAIN, nullptr, source_pages_.get(), &ids_[from], &started);
  const Owned<terrace_op> op(started);
  if (status != TERRACE_OK) return LastError("store", status);
  uint64_t good = 0;
  RETURN_IF_ERROR(Wait(op.get(), "store", &good));
  stored_ += good;
  refused_ += end - from - good;
  return absl::OkStatus();
}

void LiveReplay::Print(bool is_json) {
  const auto rate = [](uint64_t part, uint64_t whole) {
    return static_cast<double>(part) / static_cast<double>(std::max<uint64_t>(whole, 1));
  };
  const double lookup_p50 = Percentile(lookup_us_, 0.5), lookup_p99 = Percentile(lookup_us_, 0.99);
  const double load_p50 = Percentile(load_us_, 0.5), load_p99 = Percentile(load_us_, 0.99);
  if (is_json) {
    std::cout << absl::StreamFormat(
        "{\"policy\": \"live\", \"requests\": %d, \"references\": %d, \"token_hit_rate\": %.6f, "
        "\"block_hit_rate\": %.6f, \"pending_blocks\": %d, \"failed_load_blocks\": %d, \"wrong_blocks\": %d, "
        "\"stored_blocks\": %d, \"refused_blocks\": %d, \"lookup_us_p50\": %.1f, \"lookup_us_p99\": %.1f, "
        "\"load_us_p50\": %.1f, \"load_us_p99\": %.1f, \"seconds\": %.3f, \"lag_seconds_max\": %.3f}\n",
        lookup_us_.size(), references_, rate(hit_tokens_, input_tokens_), rate(hits_, references_), pending_,
        failed_loads_, wrong_blocks_, stored_, refused_, lookup_p50, lookup_p99, load_p50, load_p99, seconds_,
        lag_seconds_);
    return;
  }
  Table table({"WHAT", "VALUE"});
  table.Add({"requests", HumanCount(lookup_us_.size())});
  table.Add({"blocks asked for", HumanCount(references_)});
  table.Add({"token hit rate", absl::StrFormat("%.2f %%", 100 * rate(hit_tokens_, input_tokens_))});
  table.Add({"block hit rate", absl::StrFormat("%.2f %%", 100 * rate(hits_, references_))});
  table.Add({"of them from a lower tier, blocks", HumanCount(pending_)});
  table.Add({"loads that failed, blocks", HumanCount(failed_loads_)});
  table.Add({"wrong blocks", HumanCount(wrong_blocks_)});
  table.Add({"stored, blocks", HumanCount(stored_)});
  table.Add({"refused, blocks", HumanCount(refused_)});
  table.Add({"lookup p50 / p99", absl::StrFormat("%.0f / %.0f us", lookup_p50, lookup_p99)});
  table.Add({"load p50 / p99", absl::StrFormat("%.0f / %.0f us", load_p50, load_p99)});
  table.Add({"took", HumanSeconds(seconds_)});
  table.Add({"latest request too late by", HumanSeconds(lag_seconds_)});
  std::cout << table.ToText(StandardOutputHasColour());
}

}  // namespace

int RunLiveReplay(const Settings& settings, const ReplayArguments& arguments, const tiering::Trace& trace) {
  LiveReplay replay(arguments, arguments.socket.empty() ? settings.engine_socket : arguments.socket, trace);
  if (const absl::Status status = replay.Run(); !status.ok()) return Fail(status);
  replay.Print(settings.is_json);
  return replay.wrong_blocks() == 0 ? kExitOk : kExitFinding;
}

}  // namespace terrace::ctl
