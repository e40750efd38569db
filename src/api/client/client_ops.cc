// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The C entry points for loads and stores.
#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "api/client/core.h"
#include "api/client/load_op.h"
#include "api/client/retention.h"
#include "api/client/store_op.h"

namespace terrace::client {
namespace {

constexpr uint32_t kMaxBlocksPerOperation = 1'048'576;

// Where the caller's bytes are, as given: either pages and block_ids, or pieces and counts.
struct MemoryArguments {
  terrace_pages* pages = nullptr;
  const uint64_t* block_ids = nullptr;
  const terrace_piece* pieces = nullptr;
  const uint32_t* piece_counts = nullptr;
  bool is_pages = false;
};

// What every call about blocks of a key space is refused for.
Result CheckBlocks(const terrace_client* client, const terrace_keyspace* keyspace, const uint8_t* keys,
                   uint32_t n) {
  if (client == nullptr) return Fail(TERRACE_INVALID_ARGUMENT, "client is NULL");
  if (Result checked = CheckFork(client->core->fork_generation); !checked.ok()) return checked;
  if (keyspace == nullptr || keyspace->core != client->core) {
    return Fail(TERRACE_INVALID_ARGUMENT, "keyspace is %s",
                keyspace == nullptr ? "NULL" : "another client's");
  }
  if (keys == nullptr) return Fail(TERRACE_INVALID_ARGUMENT, "keys is NULL");
  if (n == 0 || n > kMaxBlocksPerOperation) {
    return Fail(TERRACE_INVALID_ARGUMENT, "n is %u, must be 1 to %u", n, kMaxBlocksPerOperation);
  }
  return {};
}

// What every load and store checks, and the connection it needs.
Result Prepare(terrace_client* client, terrace_keyspace* keyspace, const uint8_t* keys, uint32_t n,
               const MemoryArguments& memory, terrace_op** op, Op::Work* work,
               std::shared_ptr<Connection>* connection) {
  if (op == nullptr) return Fail(TERRACE_INVALID_ARGUMENT, "op is NULL");
  *op = nullptr;
  if (Result checked = CheckBlocks(client, keyspace, keys, n); !checked.ok()) return checked;
  work->key_space = keyspace->key_space;
  work->stats = client->core->stats;
  const uint64_t block_bytes = work->key_space->block_bytes();
  Result placed;
  if (!memory.is_pages) {
    placed = BlockMemory::FromPieces(memory.pieces, memory.piece_counts, n, block_bytes,
                                     &work->memory);
  } else if (memory.pages == nullptr || memory.pages->core != client->core) {
    placed = Fail(TERRACE_INVALID_ARGUMENT, "pages is %s",
                  memory.pages == nullptr ? "NULL" : "another client's");
  } else {
    placed = BlockMemory::FromPages(memory.pages->pages, memory.block_ids, n, block_bytes,
                                    &work->memory);
  }
  if (!placed.ok()) return placed;
  if (Result usable = client->core->link.Use(connection); !usable.ok()) return usable;
  work->opened = work->key_space->opened();
  if (work->opened.epoch != (*connection)->welcome().epoch) {
    return Fail(TERRACE_UNAVAILABLE, "the key space is not open at this daemon yet");
  }
  work->keys.resize(n);
  std::memcpy(work->keys.data(), keys, size_t{n} * sizeof(KeyBytes));
  return {};
}

// The region of the pages, if the daemon has it open that the key space was opened at.
std::shared_ptr<OpenRegion> UsableRegion(const Op::Work& work) {
  const std::shared_ptr<Pages>& pages = work.memory.pages();
  if (pages == nullptr || pages->region == nullptr) return nullptr;
  std::shared_ptr<OpenRegion> opened = pages->region->opened();
  return opened != nullptr && opened->epoch() == work.opened.epoch ? opened : nullptr;
}

// Two blocks at a time into one page leave a mixture of both there.
Result CheckDistinct(const std::vector<uint64_t>& block_ids) {
  std::vector<uint64_t> sorted = block_ids;
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice == sorted.end()) return {};
  return Fail(TERRACE_INVALID_ARGUMENT, "block_ids names %llu twice", static_cast<unsigned long long>(*twice));
}

Result SubmitToRegion(terrace_client* client, Op::Work work, std::shared_ptr<OpenRegion> region,
                      RegionOp::Options options, terrace_op** op) {
  const std::shared_ptr<DevicePages>& device = work.memory.pages()->device;
  if (device != nullptr) {
    if (Result recorded = device->Record(&options.after_event); !recorded.ok()) return recorded;
  }
  auto made = std::make_shared<RegionOp>(std::move(work), std::move(region), options);
  if (Result queued = client->core->regions.Submit(made); !queued.ok()) return queued;
  *op = new terrace_op{client->core, std::move(made)};
  return {};
}

bool IsDevice(const Op::Work& work) {
  return work.memory.pages() != nullptr && work.memory.pages()->device != nullptr;
}

Result SubmitToCopier(terrace_client* client, Op::Work work, const DeviceOp::Options& options, terrace_op** op) {
  CUevent_st* mark = nullptr;
  if (Result taken = work.memory.pages()->device->TakeMark(&mark); !taken.ok()) return taken;
  auto made = std::make_shared<DeviceOp>(std::move(work), options, mark);
  if (Result queued = client->core->copier.Submit(made); !queued.ok()) return queued;
  *op = new terrace_op{client->core, std::move(made)};
  return {};
}

Result Load(terrace_client* client, terrace_keyspace* keyspace, const terrace_ref* refs,
            const uint8_t* keys, uint32_t n, const MemoryArguments& memory, terrace_op** op) {
  Op::Work work;
  std::shared_ptr<Connection> connection;
  Result prepared = Prepare(client, keyspace, keys, n, memory, op, &work, &connection);
  if (!prepared.ok()) return prepared;
  if (refs == nullptr) return Fail(TERRACE_INVALID_ARGUMENT, "refs is NULL");
  const bool may_be_elsewhere =
      memory.is_pages && (memory.pages->pages->region != nullptr || memory.pages->pages->device != nullptr);
  if (may_be_elsewhere) {
    if (Result distinct = CheckDistinct(work.memory.block_ids()); !distinct.ok()) return distinct;
  }
  Core& core = *client->core;
  if (std::shared_ptr<OpenRegion> region = UsableRegion(work); region != nullptr) {
    return SubmitToRegion(client, std::move(work), std::move(region),
                          {.is_load = true, .refs = refs, .load_timeout_ns = int64_t{core.load_timeout_ms} * 1'000'000},
                          op);
  }
  if (IsDevice(work)) {
    return SubmitToCopier(client, std::move(work), {.is_load = true, .refs = refs}, op);
  }
  auto load = std::make_shared<LoadOp>(std::move(work), refs, std::move(connection),
                                       core.link.segments(), core.link.request_timeout_ms());
  if (!load->pending().empty()) {
    if (Result queued = core.locator.Submit(load); !queued.ok()) return queued;
  }
  if (Result queued = core.copies.Submit(load); !queued.ok()) {
    load->Abandon();
    return queued;
  }
  *op = new terrace_op{client->core, std::move(load)};
  return {};
}

Result Store(terrace_client* client, terrace_keyspace* keyspace, const uint8_t* parent_key,
             const uint8_t* keys, uint32_t n, uint32_t flags, const terrace_retention* retention,
             const MemoryArguments& memory, terrace_op** op) {
  Op::Work work;
  std::shared_ptr<Connection> connection;
  Result prepared = Prepare(client, keyspace, keys, n, memory, op, &work, &connection);
  if (!prepared.ok()) return prepared;
  wire::Retention wire_retention{};
  if (Result read = ReadRetention(retention, &wire_retention); !read.ok()) return read;
  if (flags != TERRACE_STORE_CHAIN && flags != TERRACE_STORE_INDEPENDENT) {
    return Fail(TERRACE_INVALID_ARGUMENT, "flags is 0x%x, must be TERRACE_STORE_*", flags);
  }
  const bool independent = flags == TERRACE_STORE_INDEPENDENT;
  if (independent && parent_key != nullptr) {
    return Fail(TERRACE_INVALID_ARGUMENT, "parent_key is given for independent blocks");
  }
  std::optional<KeyBytes> parent;
  if (parent_key != nullptr) {
    parent.emplace();
    std::memcpy(parent->data(), parent_key, parent->size());
  }
  if (std::shared_ptr<OpenRegion> region = UsableRegion(work); region != nullptr) {
    return SubmitToRegion(client, std::move(work), std::move(region),
                          {.parent = parent, .independent = independent, .retention = wire_retention}, op);
  }
  const uint64_t most = connection->welcome().staging_bytes_max;
  if (work.key_space->block_bytes() > most) {
    return Fail(TERRACE_RESOURCE_EXHAUSTED,
                "a block of %llu bytes does not fit into the daemon's staging memory of %llu: raise "
                "engine.staging_bytes_max there",
                static_cast<unsigned long long>(work.key_space->block_bytes()),
                static_cast<unsigned long long>(most));
  }
  if (IsDevice(work)) {
    return SubmitToCopier(client, std::move(work),
                          {.parent = parent, .independent = independent, .retention = wire_retention}, op);
  }
  auto store = std::make_shared<StoreOp>(std::move(work), parent, independent, wire_retention);
  if (Result queued = client->core->stores.Submit(store); !queued.ok()) return queued;
  *op = new terrace_op{client->core, std::move(store)};
  return {};
}

Result Hint(terrace_client* client, terrace_keyspace* keyspace, const uint8_t* keys, uint32_t n,
            const terrace_retention* retention) {
  if (Result checked = CheckBlocks(client, keyspace, keys, n); !checked.ok()) return checked;
  if (retention == nullptr) return Fail(TERRACE_INVALID_ARGUMENT, "retention is NULL");
  wire::Retention wire_retention{};
  if (Result read = ReadRetention(retention, &wire_retention); !read.ok()) return read;
  std::shared_ptr<Connection> connection;
  if (Result usable = client->core->link.Use(&connection); !usable.ok()) return usable;
  const KeySpace::Opened opened = keyspace->key_space->opened();
  if (opened.epoch != connection->welcome().epoch) {
    return Fail(TERRACE_UNAVAILABLE, "the key space is not open at this daemon yet");
  }
  return SendHints(connection.get(), opened.id, keys, n, wire_retention);
}

Result CheckOp(const terrace_op* op) {
  if (op == nullptr) return Fail(TERRACE_INVALID_ARGUMENT, "op is NULL");
  return CheckFork(op->core->fork_generation);
}

Result Wait(terrace_op* op, uint32_t timeout_us) {
  if (Result checked = CheckOp(op); !checked.ok()) return checked;
  const Deadline deadline = Deadline::AfterUs(timeout_us);
  op->op->Help(deadline);
  if (!op->op->WaitDone(deadline)) {
    return Fail(TERRACE_DEADLINE_EXCEEDED, "the operation still runs");
  }
  if (op->op->all_fine()) return {};
  return Fail(TERRACE_DATA_LOSS, "some blocks were not served or stored: terrace_op_reasons says why");
}

Result WaitPlanes(terrace_op* op, uint32_t n_planes, uint32_t timeout_us) {
  if (Result checked = CheckOp(op); !checked.ok()) return checked;
  const uint32_t all = op->op->work.memory.n_planes();
  if (n_planes > all) return Fail(TERRACE_INVALID_ARGUMENT, "n_planes is %u, the pages have %u", n_planes, all);
  const Deadline deadline = Deadline::AfterUs(timeout_us);
  op->op->Help(deadline);
  if (op->op->WaitPlanes(n_planes, deadline)) return {};
  if (op->op->done() && op->op->PlanesDone() < n_planes) {
    return Fail(TERRACE_DATA_LOSS, "some blocks were not served: terrace_op_reasons says why");
  }
  return Fail(TERRACE_DEADLINE_EXCEEDED, "the planes are not all there yet");
}

}  // namespace
}  // namespace terrace::client

using namespace terrace::client;  // NOLINT: the entry points are outside of any namespace

extern "C" {

terrace_status terrace_load(terrace_client* client, terrace_keyspace* keyspace,
                            const terrace_ref* refs, const uint8_t* keys, uint32_t n,
                            terrace_pages* pages, const uint64_t* block_ids, terrace_op** op) {
  const MemoryArguments memory{.pages = pages, .block_ids = block_ids, .is_pages = true};
  return Answer(Load(client, keyspace, refs, keys, n, memory, op));
}

terrace_status terrace_load_pieces(terrace_client* client, terrace_keyspace* keyspace,
                                   const terrace_ref* refs, const uint8_t* keys, uint32_t n,
                                   const terrace_piece* pieces, const uint32_t* piece_counts,
                                   terrace_op** op) {
  const MemoryArguments memory{.pieces = pieces, .piece_counts = piece_counts};
  return Answer(Load(client, keyspace, refs, keys, n, memory, op));
}

terrace_status terrace_store(terrace_client* client, terrace_keyspace* keyspace,
                             const uint8_t* parent_key, const uint8_t* keys, uint32_t n,
                             uint32_t flags, const terrace_retention* retention,
                             terrace_pages* pages, const uint64_t* block_ids, terrace_op** op) {
  const MemoryArguments memory{.pages = pages, .block_ids = block_ids, .is_pages = true};
  return Answer(Store(client, keyspace, parent_key, keys, n, flags, retention, memory, op));
}

terrace_status terrace_store_pieces(terrace_client* client, terrace_keyspace* keyspace,
                                    const uint8_t* parent_key, const uint8_t* keys, uint32_t n,
                                    uint32_t flags, const terrace_retention* retention,
                                    const terrace_piece* pieces, const uint32_t* piece_counts,
                                    terrace_op** op) {
  const MemoryArguments memory{.pieces = pieces, .piece_counts = piece_counts};
  return Answer(Store(client, keyspace, parent_key, keys, n, flags, retention, memory, op));
}

terrace_status terrace_hint(terrace_client* client, terrace_keyspace* keyspace, const uint8_t* keys,
                            uint32_t n, const terrace_retention* retention) {
  return Answer(Hint(client, keyspace, keys, n, retention));
}

int terrace_op_done(const terrace_op* op) {
  return op != nullptr && !op->core->InForkedChild() && op->op->done() ? 1 : 0;
}

int terrace_op_sources_read(const terrace_op* op) {
  return op != nullptr && !op->core->InForkedChild() && op->op->sources_read() ? 1 : 0;
}

terrace_status terrace_op_wait(terrace_op* op, uint32_t timeout_us) {
  return Answer(Wait(op, timeout_us));
}

terrace_status terrace_op_wait_sources(terrace_op* op, uint32_t timeout_us) {
  if (Result checked = CheckOp(op); !checked.ok()) return Answer(checked);
  if (op->op->WaitSourcesRead(Deadline::AfterUs(timeout_us))) return TERRACE_OK;
  return Answer(Fail(TERRACE_DEADLINE_EXCEEDED, "not all sources are read yet"));
}

uint32_t terrace_op_planes_done(const terrace_op* op) {
  return op != nullptr && !op->core->InForkedChild() ? op->op->PlanesDone() : 0;
}

terrace_status terrace_op_wait_planes(terrace_op* op, uint32_t n_planes, uint32_t timeout_us) {
  return Answer(WaitPlanes(op, n_planes, timeout_us));
}

const uint8_t* terrace_op_reasons(const terrace_op* op, uint32_t* n) {
  if (n != nullptr) *n = 0;
  if (terrace_op_done(op) == 0) return nullptr;
  if (n != nullptr) *n = op->op->n();
  return op->op->reasons().data();
}

void terrace_op_free(terrace_op* op) {
  if (op == nullptr || op->core->InForkedChild()) return;
  op->op->Abandon();
  delete op;
}

}  // extern "C"
