// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// load, view and store: 32 MiB as 16 blocks of 2 MiB, against memcpy of as many bytes.
#include <bit>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cache_client.h"
#include "cases.h"
#include "kvstore/base/status_macros.h"
#include "machine.h"
#include "payload.h"
#include "stopwatch.h"

namespace terrace::bench {
namespace {

constexpr size_t kBlocks = 16;
constexpr size_t kBlockBytes = 2 << 20;
constexpr size_t kBytes = kBlocks * kBlockBytes;
constexpr double kGiga = 1e9;

// The limit: memcpy between two warm anonymous buffers, block by block, as a load and a store have it.
double MemcpySeconds(const Memory& source, const BlockPages& target) {
  return TimeOf([&] {
    for (size_t i = 0; i < kBlocks; ++i) {
      std::memcpy(target.block(i).data(), source.data() + i * kBlockBytes, kBlockBytes);
    }
  });
}

Measurement Against(const char* name, const char* what, double target, double aim) {
  Measurement m{.name = name, .what = what, .unit = "GB/s"};
  m.limit_name = "memcpy";
  m.target = target;
  m.aim = aim;
  return m;
}

// Checks all blocks in place and returns them. Empty: one failed.
std::vector<const void*> ViewAll(const CacheClient& client, terrace_keyspace* key_space, const Chain& chain,
                                 const std::vector<uint8_t>& keys) {
  std::vector<const void*> views(kBlocks);
  for (size_t i = 0; i < kBlocks; ++i) {
    uint64_t bytes = 0;
    terrace_reason reason{};
    if (terrace_view(client.handle(), key_space, &chain.refs[i], keys.data() + i * TERRACE_KEY_BYTES, &views[i], &bytes,
                     &reason) != TERRACE_OK ||
        bytes != kBlockBytes) {
      return {};
    }
  }
  return views;
}

// Stores until a block that was stored first has gone: from then on a store writes memory that was written
// before, as memcpy does. Asking makes that block hot, so the pauses between two questions double.
absl::Status FillCache(const CacheClient& client, terrace_keyspace* key_space, const BlockPages& pages) {
  constexpr uint64_t kFirstSeed = 1000, kMostStores = (64ull << 30) / kBytes;
  const std::vector<uint8_t> first = MakeKeys(kFirstSeed, kBlocks);
  for (uint64_t i = 0; i < kMostStores; ++i) {
    const std::vector<uint8_t> keys = MakeKeys(kFirstSeed + i, kBlocks);
    pages.Fill(keys);
    RETURN_IF_ERROR(client.Store(key_space, keys, pages));
    if (!std::has_single_bit(i)) continue;
    terrace_lookup_part part{};
    part.keyspace = key_space;
    part.keys = first.data() + (kBlocks - 1) * TERRACE_KEY_BYTES;
    part.n_keys = 1;
    RETURN_IF_ERROR(FromTerrace(terrace_lookup(client.handle(), &part, 1, TERRACE_LOOKUP_NO_LEASE, 0), "lookup"));
    if (part.n_here == 0) return absl::OkStatus();
  }
  return absl::ResourceExhaustedError("the daemon's budget is too large to be filled here");
}

}  // namespace

absl::Status RunLoadAndView(const CaseContext& context) {
  ASSIGN_OR_RETURN(const auto client, CacheClient::Connect(context.daemon->socket()));
  ASSIGN_OR_RETURN(terrace_keyspace * key_space, client->OpenKeySpace("copy", kBlockBytes));
  const std::vector<uint8_t> keys = MakeKeys(3, kBlocks);
  ASSIGN_OR_RETURN(const auto pages, BlockPages::Make(client->handle(), kBlocks, kBlockBytes));
  const Memory source(kBytes);
  RETURN_IF_ERROR(client->MakeResident(key_space, keys, *pages));
  ASSIGN_OR_RETURN(const Chain chain, client->Lookup(key_space, keys));
  const std::vector<const void*> views = ViewAll(*client, key_space, chain, keys);
  if (views.empty()) return absl::DataLossError("a view failed");
  for (size_t i = 0; i < kBlocks; ++i) {
    if (!IsPayload(keys.data() + i * 32, {static_cast<const std::byte*>(views[i]), kBlockBytes})) {
      return absl::DataLossError("a view showed other bytes than were stored");
    }
  }

  Measurement load = Against("load", "load of 16 x 2 MiB into the client's memory, verified on the way", 0.7, 0.9);
  Measurement view = Against("view", "the same as views into shared memory, verified in place", 1.1, 1.8);
  const OthersMeter meter({context.daemon->pid()});
  for (int round = 0; round < context.Rounds(60) + 2; ++round) {
    absl::Status status;
    double load_s = TimeOf([&] { status = client->Load(key_space, chain, keys, *pages); });
    RETURN_IF_ERROR(status);
    const double memcpy_s = MemcpySeconds(source, *pages);
    bool viewed = false;
    const double view_s = TimeOf([&] { viewed = !ViewAll(*client, key_space, chain, keys).empty(); });
    if (!viewed) return absl::DataLossError("a view failed");
    if (round < 2) continue;  // warm-up
    const double limit = kBytes / memcpy_s / kGiga;
    load.values.push_back(kBytes / load_s / kGiga);
    load.limits.push_back(limit);
    view.values.push_back(kBytes / view_s / kGiga);
    view.limits.push_back(limit);
  }
  RETURN_IF_ERROR(client->Load(key_space, chain, keys, *pages));
  if (!pages->Holds(keys)) return absl::DataLossError("the last load gave other bytes than were stored");
  RETURN_IF_ERROR(client->Release(chain));
  const double others = meter.Cores();
  context.report->Add(load, others);
  context.report->Add(view, others);
  return absl::OkStatus();
}

absl::Status RunStore(const CaseContext& context) {
  ASSIGN_OR_RETURN(const auto client, CacheClient::Connect(context.daemon->socket()));
  ASSIGN_OR_RETURN(terrace_keyspace * key_space, client->OpenKeySpace("copy", kBlockBytes));
  ASSIGN_OR_RETURN(const auto pages, BlockPages::Make(client->handle(), kBlocks, kBlockBytes));
  const Memory source(kBytes);
  ASSIGN_OR_RETURN(const auto copy_target, BlockPages::Make(client->handle(), kBlocks, kBlockBytes));

  Measurement m = Against("store", "store of 16 x 2 MiB under fresh keys, until all are acknowledged and visible; "
                          "the cache is full, so each store evicts", 0.5, 0.7);
  RETURN_IF_ERROR(FillCache(*client, key_space, *pages));
  uint64_t seed = 1'000'000;
  const OthersMeter meter({context.daemon->pid()});
  for (int round = 0; round < context.Rounds(40) + 2; ++round) {
    const std::vector<uint8_t> keys = MakeKeys(seed++, kBlocks);
    pages->Fill(keys);
    absl::Status status;
    const double store_s = TimeOf([&] { status = client->Store(key_space, keys, *pages); });
    RETURN_IF_ERROR(status);
    const double memcpy_s = MemcpySeconds(source, *copy_target);
    if (round < 2) continue;  // warm-up
    m.values.push_back(kBytes / store_s / kGiga);
    m.limits.push_back(kBytes / memcpy_s / kGiga);
  }
  const std::vector<uint8_t> keys = MakeKeys(seed - 1, kBlocks);
  ASSIGN_OR_RETURN(const Chain chain, client->Lookup(key_space, keys));
  RETURN_IF_ERROR(client->Load(key_space, chain, keys, *copy_target));
  RETURN_IF_ERROR(client->Release(chain));
  if (!copy_target->Holds(keys)) return absl::DataLossError("the last store holds other bytes than were given");
  context.report->Add(m, meter.Cores());
  return absl::OkStatus();
}

}  // namespace terrace::bench
