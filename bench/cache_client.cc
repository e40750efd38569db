// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "cache_client.h"

#include <sys/mman.h>

#include <cstring>
#include <numeric>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/check.h"
#include "kvstore/base/status_macros.h"
#include "payload.h"

namespace terrace::bench {
namespace {

constexpr uint32_t kWaitUs = 30'000'000;

uint32_t Count(std::span<const uint8_t> keys) { return static_cast<uint32_t>(keys.size() / TERRACE_KEY_BYTES); }

// Waits for the operation and frees it.
absl::Status Finish(terrace_op* op, const char* what) {
  const terrace_status status = terrace_op_wait(op, kWaitUs);
  absl::Status result = FromTerrace(status, what);
  if (status == TERRACE_DATA_LOSS) {
    uint32_t n = 0;
    const uint8_t* reasons = terrace_op_reasons(op, &n);
    for (uint32_t i = 0; i < n; ++i) {
      const auto reason = static_cast<terrace_reason>(reasons[i]);
      if (reason == TERRACE_REASON_NONE || reason == TERRACE_REASON_DUPLICATE) continue;
      result = absl::DataLossError(absl::StrCat(what, ": block ", i, " of ", n, ": ", terrace_reason_name(reason)));
      break;
    }
  }
  terrace_op_free(op);
  return result;
}

}  // namespace

absl::Status FromTerrace(terrace_status status, const char* what) {
  if (status == TERRACE_OK) return absl::OkStatus();
  return {static_cast<absl::StatusCode>(status), absl::StrCat(what, ": ", terrace_error_text())};
}

Memory::Memory(size_t bytes) : size_(bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  TERRACE_CHECK(memory != MAP_FAILED);
  data_ = static_cast<std::byte*>(memory);
  std::memset(data_, 0x5a, bytes);
}
Memory::~Memory() { munmap(data_, size_); }

BlockPages::BlockPages(size_t blocks, size_t block_bytes)
    : memory_(blocks * block_bytes), block_bytes_(block_bytes), ids_(blocks) {
  std::iota(ids_.begin(), ids_.end(), 0);
}

absl::StatusOr<std::unique_ptr<BlockPages>> BlockPages::Make(terrace_client* client, size_t blocks,
                                                             size_t block_bytes) {
  auto pages = absl::WrapUnique(new BlockPages(blocks, block_bytes));
  const terrace_plane plane{.base = pages->data(), .stride = block_bytes, .bytes = block_bytes};
  RETURN_IF_ERROR(FromTerrace(terrace_pages_register(client, &plane, 1, blocks, &pages->handle_), "pages"));
  return pages;
}

BlockPages::~BlockPages() {
  if (handle_ != nullptr) terrace_pages_free(handle_);
}

void BlockPages::Fill(std::span<const uint8_t> keys) const {
  for (size_t i = 0; i < Count(keys); ++i) FillPayload(keys.data() + i * TERRACE_KEY_BYTES, block(i));
}

bool BlockPages::Holds(std::span<const uint8_t> keys) const {
  for (size_t i = 0; i < Count(keys); ++i) {
    if (!IsPayload(keys.data() + i * TERRACE_KEY_BYTES, block(i))) return false;
  }
  return true;
}

absl::StatusOr<std::unique_ptr<CacheClient>> CacheClient::Connect(const std::string& socket) {
  auto client = absl::WrapUnique(new CacheClient());
  terrace_options options{};
  options.struct_bytes = sizeof(options);
  options.socket_path = socket.c_str();
  options.client_name = "terrace_bench";
  options.request_timeout_ms = 10'000;  // a machine that is busy for a second is slow, not broken
  const terrace_status status = terrace_connect(&options, &client->client_);
  if (client->client_ == nullptr) return FromTerrace(status, "connect");
  RETURN_IF_ERROR(FromTerrace(terrace_wait_ready(client->client_, 10'000), "connect"));
  return client;
}

CacheClient::~CacheClient() {
  if (client_ != nullptr) terrace_close(client_);
  for (terrace_keyspace* key_space : key_spaces_) terrace_keyspace_free(key_space);
}

absl::StatusOr<terrace_keyspace*> CacheClient::OpenKeySpace(const std::string& name, size_t block_bytes) {
  terrace_keyspace_desc desc{};
  desc.struct_bytes = sizeof(desc);
  desc.model = name.c_str();
  desc.model_fingerprint = "terrace_bench";
  desc.layout = "bytes";
  desc.block_bytes = block_bytes;
  terrace_keyspace* key_space = nullptr;
  const terrace_status status = terrace_keyspace_open(client_, &desc, &key_space);
  if (key_space != nullptr) key_spaces_.push_back(key_space);
  RETURN_IF_ERROR(FromTerrace(status, "key space"));
  return key_space;
}

absl::Status CacheClient::Store(terrace_keyspace* key_space, std::span<const uint8_t> keys,
                                const BlockPages& pages) const {
  terrace_op* op = nullptr;
  RETURN_IF_ERROR(FromTerrace(terrace_store(client_, key_space, nullptr, keys.data(), Count(keys),
                                            TERRACE_STORE_CHAIN, nullptr, pages.handle(), pages.ids(), &op),
                              "store"));
  return Finish(op, "store");
}

absl::StatusOr<Chain> CacheClient::Lookup(terrace_keyspace* key_space, std::span<const uint8_t> keys) const {
  Chain chain;
  chain.refs.resize(Count(keys));
  terrace_lookup_part part{};
  part.keyspace = key_space;
  part.keys = keys.data();
  part.n_keys = Count(keys);
  part.refs = chain.refs.data();
  RETURN_IF_ERROR(FromTerrace(terrace_lookup(client_, &part, 1, 0, kWaitUs), "lookup"));
  chain.lease = part.lease;
  if (part.n_prefix != part.n_keys) {
    Release(chain).IgnoreError();  // the miss is the news
    return absl::NotFoundError(absl::StrCat("only ", part.n_prefix, " of ", part.n_keys, " blocks are here"));
  }
  return chain;
}

absl::Status CacheClient::Load(terrace_keyspace* key_space, const Chain& chain, std::span<const uint8_t> keys,
                               const BlockPages& pages) const {
  terrace_op* op = nullptr;
  RETURN_IF_ERROR(FromTerrace(terrace_load(client_, key_space, chain.refs.data(), keys.data(), Count(keys),
                                           pages.handle(), pages.ids(), &op),
                              "load"));
  return Finish(op, "load");
}

absl::Status CacheClient::Release(const Chain& chain) const {
  return FromTerrace(terrace_release(client_, chain.lease), "release");
}

absl::Status CacheClient::MakeResident(terrace_keyspace* key_space, std::span<const uint8_t> keys,
                                       const BlockPages& pages) const {
  pages.Fill(keys);
  RETURN_IF_ERROR(Store(key_space, keys, pages));
  ASSIGN_OR_RETURN(const Chain chain, Lookup(key_space, keys));
  for (size_t i = 0; i < Count(keys); ++i) std::memset(pages.block(i).data(), 0, pages.block(i).size());
  RETURN_IF_ERROR(Load(key_space, chain, keys, pages));
  RETURN_IF_ERROR(Release(chain));
  if (!pages.Holds(keys)) return absl::DataLossError("a load gave other bytes than were stored");
  return absl::OkStatus();
}

}  // namespace terrace::bench
