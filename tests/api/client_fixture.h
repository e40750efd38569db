// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// A daemon without its process (TierStack + EngineServer on a temporary socket) and helpers around the C
// API of libterrace. Payloads derive from the key, so that any byte served can be checked without a
// stored copy.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "api/client/terrace.h"
#include "api/client_payload.h"
#include "api/config.h"
#include "api/engine/engine_server.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/metrics.h"
#include "tiering/tier_stack.h"

namespace terrace::api {

// One run of the daemon's engine door. A restart is a new object with another epoch on the same socket.
class TestDaemon {
 public:
  using Adjust = std::function<void(tiering::TierStackOptions*)>;
  TestDaemon(const std::string& folder, uint64_t epoch, uint64_t budget_bytes = 512ull << 20,
             const Adjust& adjust = {}) {
    config_.run_dir = folder;
    config_.engine_socket = folder + "/engine.sock";
    config_.tenants = {TenantConfig{"default", {}, {}}, TenantConfig{"other", {}, {}}};
    config_.stack.tenants = {{"default"}, {"other"}};
    config_.stack.budget_bytes = budget_bytes;
    config_.stack.process_bytes = 16ull << 20;
    config_.stack.prefault = false;
    config_.stack.huge_pages = false;
    config_.stack.memory_dir = "";  // nothing outlives a test
    config_.stack.eviction_policy = "lru";  // an order that tests can tell
    if (adjust) adjust(&config_.stack);
    auto stack = tiering::TierStack::Create(config_.stack, Clock::Real(), &metrics_);
    EXPECT_TRUE(stack.ok()) << stack.status();
    stack_ = std::move(*stack);
    auto server = EngineServer::Start(config_, epoch, stack_.get(), Clock::Real(), &metrics_);
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = std::move(*server);
    steps_ = std::thread([this] {
      while (!stopping_.load()) {
        stack_->Step();
        std::this_thread::sleep_for(std::chrono::milliseconds(5));  // tidy: sleep: as the daemon's thread
      }
    });
  }
  ~TestDaemon() {
    stopping_ = true;
    steps_.join();
  }

  tiering::TierStack& stack() { return *stack_; }
  EngineServer& server() { return *server_; }
  void StopServer() { server_.reset(); }  // the door closes; the core goes on

 private:
  Config config_;
  MetricRegistry metrics_;
  std::unique_ptr<tiering::TierStack> stack_;
  std::unique_ptr<EngineServer> server_;  // goes first
  std::atomic<bool> stopping_{false};
  std::thread steps_;
};

// The engine's memory: planes with gaps between the blocks, as paged KV caches have them.
class TestPages {
 public:
  TestPages(std::vector<uint64_t> plane_bytes, uint64_t n_blocks, uint64_t gap = 48)
      : n_blocks_(n_blocks) {
    for (const uint64_t bytes : plane_bytes) {
      memory_.emplace_back((bytes + gap) * n_blocks, std::byte{0x5a});
      planes_.push_back({memory_.back().data(), bytes + gap, bytes});
    }
  }
  void Fill(uint64_t block, const std::vector<std::byte>& payload) {
    size_t at = 0;
    for (const terrace_plane& plane : planes_) {
      std::memcpy(PieceAt(plane, block), payload.data() + at, plane.bytes);
      at += plane.bytes;
    }
  }
  std::vector<std::byte> Get(uint64_t block) const {
    std::vector<std::byte> payload;
    for (const terrace_plane& plane : planes_) {
      const std::byte* piece = PieceAt(plane, block);
      payload.insert(payload.end(), piece, piece + plane.bytes);
    }
    return payload;
  }
  // Nothing was written between the blocks.
  bool GapsUntouched() const {
    for (const terrace_plane& plane : planes_) {
      for (uint64_t b = 0; b < n_blocks_; ++b) {
        for (uint64_t i = plane.bytes; i < plane.stride; ++i) {
          if (PieceAt(plane, b)[i] != std::byte{0x5a}) return false;
        }
      }
    }
    return true;
  }
  terrace_pages* Register(terrace_client* client) const {
    terrace_pages* pages = nullptr;
    EXPECT_EQ(terrace_pages_register(client, planes_.data(), static_cast<uint32_t>(planes_.size()),
                                     n_blocks_, &pages),
              TERRACE_OK)
        << terrace_error_text();
    return pages;
  }

 private:
  static std::byte* PieceAt(const terrace_plane& plane, uint64_t block) {
    return static_cast<std::byte*>(plane.base) + block * plane.stride;
  }
  const uint64_t n_blocks_;
  std::vector<std::vector<std::byte>> memory_;
  std::vector<terrace_plane> planes_;
};

// A folder for the socket, and the lives of daemons and clients in it.
class ClientTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kBlockBytes = 200'000;  // four checksum segments, the last one short

  ClientTest() {
    std::string name = std::filesystem::temp_directory_path() / "terrace_client_XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  ~ClientTest() override {
    for (terrace_client* client : clients_) terrace_close(client);
    daemon_.reset();
    std::filesystem::remove_all(folder_);
  }

  void StartDaemon(uint64_t epoch, uint64_t budget_bytes = 512ull << 20,
                   const TestDaemon::Adjust& adjust = {}) {
    daemon_.reset();
    daemon_ = std::make_unique<TestDaemon>(folder_, epoch, budget_bytes, adjust);
  }
  void StopDaemon() { daemon_.reset(); }

  terrace_options Options() {
    socket_path_ = folder_ + "/engine.sock";
    terrace_options options{};
    options.struct_bytes = sizeof(options);
    options.socket_path = socket_path_.c_str();
    options.client_name = "client_test";
    return options;
  }
  // Closed by the test's end, unless Close() is called.
  terrace_client* Connect(terrace_status expected = TERRACE_OK) {
    return ConnectWith(Options(), expected);
  }
  terrace_client* ConnectWith(const terrace_options& options, terrace_status expected) {
    terrace_client* client = nullptr;
    EXPECT_EQ(terrace_connect(&options, &client), expected) << terrace_error_text();
    if (client != nullptr) clients_.push_back(client);
    return client;
  }
  void Close(terrace_client* client) {
    std::erase(clients_, client);
    terrace_close(client);
  }
  // Waits until the client is (again) connected to the daemon and has opened the key space there.
  static bool WaitUsable(terrace_client* client, terrace_keyspace* keyspace) {
    return Eventually([&] {
      const std::vector<uint8_t> key = ChainKeys(999'999, 1);
      terrace_lookup_part part = Part(keyspace, key.data(), 1);
      return terrace_lookup(client, &part, 1, TERRACE_LOOKUP_NO_LEASE, kSecondUs) == TERRACE_OK;
    });
  }

  static terrace_keyspace_desc Desc(uint64_t block_bytes = kBlockBytes) {
    terrace_keyspace_desc desc{};
    desc.struct_bytes = sizeof(desc);
    desc.model = "test/model";
    desc.model_fingerprint = "f00d";
    desc.kv_dtype = "bfloat16";
    desc.layout = "flat";
    desc.hash = "sha256:0";
    desc.block_bytes = block_bytes;
    desc.tokens_per_block = 32;
    return desc;
  }
  static terrace_keyspace* Open(terrace_client* client, uint64_t block_bytes = kBlockBytes,
                                terrace_status expected = TERRACE_OK) {
    const terrace_keyspace_desc desc = Desc(block_bytes);
    terrace_keyspace* keyspace = nullptr;
    EXPECT_EQ(terrace_keyspace_open(client, &desc, &keyspace), expected) << terrace_error_text();
    return keyspace;
  }

  // Stores blocks from flat memory with the payloads of their keys; returns their reasons.
  static std::vector<uint8_t> Store(terrace_client* client, terrace_keyspace* keyspace,
                                    const std::vector<uint8_t>& keys,
                                    uint64_t block_bytes = kBlockBytes, uint64_t variant = 0) {
    const auto n = static_cast<uint32_t>(keys.size() / 32);
    std::vector<std::vector<std::byte>> payloads;
    std::vector<terrace_piece> pieces;
    for (uint32_t i = 0; i < n; ++i) {
      payloads.push_back(PayloadOf(&keys[size_t{i} * 32], block_bytes, variant));
      pieces.push_back({payloads.back().data(), block_bytes});
    }
    const std::vector<uint32_t> counts(n, 1);
    terrace_op* op = nullptr;
    const terrace_status started = terrace_store_pieces(client, keyspace, nullptr, keys.data(), n, 0,
                                                        nullptr, pieces.data(), counts.data(), &op);
    EXPECT_EQ(started, TERRACE_OK) << terrace_error_text();
    if (started != TERRACE_OK) return {};
    return Reasons(op);
  }
  // Waits for the operation, frees it, returns its reasons.
  static std::vector<uint8_t> Reasons(terrace_op* op) {
    const terrace_status waited = terrace_op_wait(op, kLongUs);
    EXPECT_TRUE(waited == TERRACE_OK || waited == TERRACE_DATA_LOSS)
        << terrace_status_name(waited) << ": " << terrace_error_text();
    uint32_t n = 0;
    const uint8_t* reasons = terrace_op_reasons(op, &n);
    std::vector<uint8_t> out(reasons, reasons + n);
    terrace_op_free(op);
    return out;
  }

  static terrace_lookup_part Part(terrace_keyspace* keyspace, const uint8_t* keys, uint32_t n) {
    terrace_lookup_part part{};
    part.keyspace = keyspace;
    part.keys = keys;
    part.n_keys = n;
    return part;
  }

  struct Found {
    terrace_status status = TERRACE_OK;
    std::vector<terrace_ref> refs;
    std::vector<uint8_t> reasons;
    uint32_t n_prefix = 0, n_here = 0, n_pending = 0;
    uint64_t lease = 0;
  };
  static Found Lookup(terrace_client* client, terrace_keyspace* keyspace,
                      const std::vector<uint8_t>& keys, uint32_t mode = TERRACE_MODE_PREFIX,
                      uint32_t flags = 0, uint32_t timeout_us = kLongUs) {
    Found found;
    terrace_lookup_part part =
        Part(keyspace, keys.data(), static_cast<uint32_t>(keys.size() / 32));
    part.mode = mode;
    found.refs.resize(part.n_keys);
    found.reasons.resize(part.n_keys, 255);
    part.refs = found.refs.data();
    part.reasons = found.reasons.data();
    found.status = terrace_lookup(client, &part, 1, flags, timeout_us);
    found.n_prefix = part.n_prefix;
    found.n_here = part.n_here;
    found.n_pending = part.n_pending;
    found.lease = part.lease;
    return found;
  }
  // Loads blocks into flat memory.
  static std::vector<uint8_t> Load(terrace_client* client, terrace_keyspace* keyspace,
                                   const std::vector<terrace_ref>& refs,
                                   const std::vector<uint8_t>& keys,
                                   std::vector<std::vector<std::byte>>* payloads,
                                   uint64_t block_bytes = kBlockBytes) {
    const auto n = static_cast<uint32_t>(keys.size() / 32);
    payloads->assign(n, std::vector<std::byte>(block_bytes, std::byte{0}));
    std::vector<terrace_piece> pieces;
    for (auto& payload : *payloads) pieces.push_back({payload.data(), block_bytes});
    const std::vector<uint32_t> counts(n, 1);
    terrace_op* op = nullptr;
    const terrace_status started = terrace_load_pieces(client, keyspace, refs.data(), keys.data(), n,
                                                       pieces.data(), counts.data(), &op);
    EXPECT_EQ(started, TERRACE_OK) << terrace_error_text();
    if (started != TERRACE_OK) return {};
    return Reasons(op);
  }

  std::string folder_, socket_path_;
  std::unique_ptr<TestDaemon> daemon_;
  std::vector<terrace_client*> clients_;
};

}  // namespace terrace::api
