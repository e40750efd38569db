// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// TestStack: a TierStack with a clock that stands still, and the few steps that every test of it needs:
// open a key space, store a block whose bytes derive from its key, read it back, count.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "kvstore/base/metrics.h"
#include "kvstore/block_header.h"
#include "testing/fake_clock.h"
#include "testing/payload.h"
#include "tiering/tier_stack.h"

namespace terrace {
inline void PrintTo(Reason reason, std::ostream* out) { *out << ReasonName(reason); }
}  // namespace terrace

namespace terrace::testing {

inline tiering::TierStackOptions SmallStackOptions(uint64_t arena_bytes = 64 << 20) {
  tiering::TierStackOptions options;
  options.process_bytes = 1 << 20;
  // The arena takes 97 hundredths of what the process leaves.
  options.budget_bytes = options.process_bytes + arena_bytes / 97 * 100 + (4 << 20);
  options.prefault = false;
  options.huge_pages = false;
  options.store_threads = 2;
  options.gpu = false;
  options.eviction_policy = "lru";  // an order that tests can tell; the others have tests of their own
  return options;
}

// Owner: the test; sessions must end before it does. Threads: any.
class TestStack {
 public:
  explicit TestStack(const tiering::TierStackOptions& options = SmallStackOptions()) {
    auto made = tiering::TierStack::Create(options, &clock, &metrics);
    EXPECT_TRUE(made.ok()) << made.status();
    if (!made.ok()) std::abort();
    stack = *std::move(made);
  }

  tiering::TierStack* operator->() { return stack.get(); }

  static kv::KeySpaceIdentity Identity(uint64_t block_bytes, const std::string& extra = "") {
    kv::KeySpaceIdentity identity;
    identity.model = "model";
    identity.model_fingerprint = "weights";
    identity.kv_dtype = "bf16";
    identity.layout = "layout";
    identity.hash = "sha256";
    identity.extra = extra;
    identity.block_bytes = block_bytes;
    identity.tokens_per_block = 16;
    return identity;
  }
  static const kv::KeySpace& Open(tiering::Session* session, uint64_t block_bytes, const std::string& extra = "") {
    const auto opened = session->OpenKeySpace(Identity(block_bytes, extra));
    EXPECT_TRUE(opened.ok()) << opened.status();
    return **opened;
  }

  // A request to store the key's bytes; the payload lives in *payload until done was called.
  static tiering::PutRequest Request(const kv::KeySpace& space, const kv::BlockKey& key,
                                     std::optional<kv::BlockKey> parent, std::vector<std::byte>* payload,
                                     uint64_t variant = 0) {
    *payload = PayloadOf(key, space.identity.block_bytes, variant);
    tiering::PutRequest request;
    request.key_space = &space;
    request.key = key;
    request.parent = parent;
    request.source = *payload;
    request.checksums = ChecksumsOf(space.digest.data(), key, *payload);
    return request;
  }
  // Stores and waits for the answer.
  static Reason Store(tiering::Session* session, const kv::KeySpace& space, const kv::BlockKey& key,
                      std::optional<kv::BlockKey> parent = std::nullopt, uint64_t variant = 0) {
    std::vector<std::byte> payload;
    return Put(session, Request(space, key, parent, &payload, variant));
  }
  static Reason Put(tiering::Session* session, tiering::PutRequest request) {
    std::atomic<int> answer{-1};
    request.done = [&answer](Reason reason) {
      answer.store(static_cast<int>(reason));
      answer.notify_one();
    };
    session->Put(std::move(request));
    answer.wait(-1);
    return static_cast<Reason>(answer.load());
  }
  // Keys first, first + 1 ...: each the parent of the next. Expects all to be stored.
  static void StoreChain(tiering::Session* session, const kv::KeySpace& space, uint64_t first, size_t n,
                         std::optional<kv::BlockKey> parent = std::nullopt) {
    for (size_t i = 0; i < n; ++i) {
      ASSERT_EQ(Store(session, space, KeyOf(first + i), parent), Reason::kNone) << "block " << i;
      parent = KeyOf(first + i);
    }
  }
  // The reason why a key is not here; kNone when it is. Leases nothing.
  static Reason Ask(tiering::Session* session, const kv::KeySpace& space, const kv::BlockKey& key) {
    const auto answer = session->Lookup(space.id, {&key, 1}, tiering::LookupMode::kAll, tiering::Session::kNoLease);
    EXPECT_TRUE(answer.ok()) << answer.status();
    return answer->places[0].reason;
  }
  // Leases, reads through the checks and releases. True: here, and the bytes are the key's.
  bool Serves(tiering::Session* session, const kv::KeySpace& space, const kv::BlockKey& key, uint64_t variant = 0) {
    const auto answer = session->Lookup(space.id, {&key, 1}, tiering::LookupMode::kPrefix, tiering::Session::kNewLease);
    EXPECT_TRUE(answer.ok()) << answer.status();
    if (answer->n_here == 0) return false;
    std::vector<std::byte> out(space.identity.block_bytes);
    const absl::Status read = stack->ReadLeased(space, key, answer->places[0], out);
    EXPECT_TRUE(session->Release(answer->lease_id).ok());
    return read.ok() && IsPayloadOf(key, out, variant);
  }
  // The sum of all series of a family whose labels contain the given pair (empty: all).
  double Metric(const std::string& name, const std::string& label = "", const std::string& value = "") const {
    double sum = 0;
    bool known = false;
    for (const auto& family : metrics.Snapshot()) {
      if (family.name != name) continue;
      for (const auto& series : family.series) {
        bool matches = label.empty();
        for (const auto& [n, v] : series.labels) matches |= n == label && v == value;
        if (!matches) continue;
        known = true;
        if (series.counter != nullptr) sum += static_cast<double>(series.counter->Value());
        if (series.gauge != nullptr) sum += static_cast<double>(series.gauge->Value());
        if (series.read) sum += series.read();
      }
    }
    EXPECT_TRUE(known) << "no metric " << name << " with " << label << "=" << value;
    return sum;
  }

  FakeClock clock;
  MetricRegistry metrics;
  std::unique_ptr<tiering::TierStack> stack;
};

}  // namespace terrace::testing
