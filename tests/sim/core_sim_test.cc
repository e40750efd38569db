// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Seeded histories of the whole core against a model: a few tenants, key spaces of several block sizes,
// sessions that come, lease, forget to release and die, memory that fails, time that jumps. After every
// few steps what the stack says is compared with what the model knows. The seed is part of the test's name,
// so that a failure names it.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "kvstore/frame_pool.h"
#include "testing/arena_access.h"
#include "testing/test_stack.h"

namespace terrace::tiering {
namespace {

using testing::ArenaAccess;
using testing::KeyOf;
using testing::Random;
using testing::SmallStackOptions;
using testing::TestStack;

class CoreSim : public ::testing::TestWithParam<uint64_t> {
 protected:
  struct Space {
    kv::TenantId tenant;
    uint64_t bytes, key_count;
    const kv::KeySpace* opened = nullptr;
  };
  // What the model knows of a block that was stored and not dropped for a known reason; it may have been
  // evicted since.
  struct Block {
    uint64_t variant;
    std::optional<uint64_t> parent;
    bool bad = false;  // a live bit was flipped
  };
  struct Leased {
    size_t space;
    uint64_t number, variant;
    BlockPlace place;
    bool bad;
  };
  struct Lease {
    std::vector<Leased> blocks;
    int64_t expires_ns;
  };
  struct Client {
    std::unique_ptr<Session> session;
    std::map<uint64_t, Lease> leases;
  };
  using Name = std::pair<size_t, uint64_t>;  // space, number

  static TierStackOptions Options() {
    auto options = SmallStackOptions(40 << 20);
    options.tenants = {{"a"}, {"b"}};
    options.store_threads = 1;
    options.lease_max_age_ns = 1'000'000;
    options.max_leased_ratio = 0.6;
    return options;
  }
  CoreSim() {
    for (kv::TenantId tenant = 0; tenant < 2; ++tenant) {
      auto session = stack_->OpenSession(tenant);
      for (Space& space : spaces_) {
        if (space.tenant == tenant) {
          space.opened = &TestStack::Open(session.get(), space.bytes, std::to_string(&space - spaces_.data()));
        }
      }
    }
  }
  size_t PickSpace(kv::TenantId tenant) {
    while (true) {
      const size_t s = random_.Below(spaces_.size());
      if (spaces_[s].tenant == tenant) return s;
    }
  }
  Client& PickClient() {
    while (true) {
      Client& client = clients_[random_.Below(clients_.size())];
      if (client.session != nullptr) return client;
    }
  }
  bool IsHere(const Name& name) { return stack_->Stat(*spaces_[name.first].opened, KeyOf(name.second)).has_value(); }

  void Store() {
    Client& client = PickClient();
    const size_t s = PickSpace(client.session->tenant());
    const uint64_t number = random_.Below(spaces_[s].key_count);
    const std::optional<uint64_t> parent = number % 10 == 0 ? std::nullopt : std::optional(number - 1);
    std::optional<kv::BlockKey> parent_key;
    if (parent.has_value()) parent_key = KeyOf(*parent);
    const bool was_here = IsHere({s, number});
    const bool parent_here = parent.has_value() && IsHere({s, *parent});
    const uint64_t variant = ++stores_;
    std::vector<std::byte> payload;
    PutRequest request = TestStack::Request(*spaces_[s].opened, KeyOf(number), parent_key, &payload, variant);
    const bool lie = random_.OneIn(10);
    if (lie) request.checksums[random_.Below(request.checksums.size())] ^= 1;
    const Reason reason = TestStack::Put(client.session.get(), std::move(request));
    if (was_here) {
      ASSERT_EQ(reason, Reason::kDuplicate);
    } else if (reason == Reason::kNone) {
      ASSERT_FALSE(lie);
      // The parent may have been evicted to make room: then the block has none.
      const bool linked = parent_here && IsHere({s, *parent});
      blocks_[{s, number}] = {variant, linked ? parent : std::nullopt};
      // Children of an earlier life of this block do not know it.
    } else {
      ASSERT_TRUE(reason == Reason::kBudget || (lie && reason == Reason::kBadChecksum)) << ReasonName(reason);
    }
  }

  void Lookup() {
    Client& client = PickClient();
    const size_t s = PickSpace(client.session->tenant());
    const uint64_t first = random_.Below(spaces_[s].key_count) / 10 * 10, n = 1 + random_.Below(10);
    const auto keys = testing::KeysOf(first, n);
    const auto mode = random_.OneIn(2) ? LookupMode::kPrefix : LookupMode::kAll;
    uint64_t lease_id = Session::kNewLease;
    if (!client.leases.empty() && random_.OneIn(3)) lease_id = client.leases.begin()->first;
    const auto answer = client.session->Lookup(spaces_[s].opened->id, keys, mode, lease_id);
    ASSERT_TRUE(answer.ok()) << answer.status();
    std::vector<Leased> leased;
    for (size_t i = 0; i < answer->places.size(); ++i) {
      const Name name{s, first + i};
      if (answer->places[i].reason == Reason::kNone) {
        const auto it = blocks_.find(name);
        ASSERT_NE(it, blocks_.end()) << "a block that was never stored, or dropped";
        leased.push_back({s, name.second, it->second.variant, answer->places[i], it->second.bad});
      } else if (blocks_.contains(name)) {
        ASSERT_TRUE(answer->places[i].reason == Reason::kEvicted || answer->places[i].reason == Reason::kLeaseLimit ||
                    answer->places[i].reason == Reason::kCold ||
                    (answer->places[i].reason == Reason::kCorrupt && blocks_.at(name).bad))
            << ReasonName(answer->places[i].reason);
      }
    }
    ASSERT_EQ(leased.size(), answer->n_here);
    if (answer->lease_id != 0) {
      Lease& lease = client.leases[answer->lease_id];
      lease.blocks.insert(lease.blocks.end(), leased.begin(), leased.end());
      lease.expires_ns = stack_.clock.NowNs() + Options().lease_max_age_ns;
    } else {
      ASSERT_TRUE(leased.empty());
    }
  }

  // What is under lease is readable, unchanged, also after flushes and evictions.
  void Read() {
    Client& client = PickClient();
    for (const auto& [id, lease] : client.leases) {
      for (const Leased& block : lease.blocks) {
        if (!random_.OneIn(4) || block.bad || WasHit(block)) continue;
        const Space& space = spaces_[block.space];
        const auto& segment = arena_.Find(space.tenant, block.place.segment_id);
        const auto payload = segment.payload.subspan(block.place.payload_offset, space.bytes);
        const auto* header = reinterpret_cast<const kv::BlockHeader*>(segment.headers.data() +
                                                                      block.place.header_offset * kv::kHeaderUnit);
        ASSERT_EQ(kv::CheckHeader(header, space.opened->digest.data(), KeyOf(block.number).bytes.data(),
                                  block.place.generation, space.bytes),
                  kv::HeaderVerdict::kOk);
        ASSERT_TRUE(testing::IsPayloadOf(KeyOf(block.number), payload, block.variant));
      }
    }
  }
  bool WasHit(const Leased& block) const { return hit_generations_.contains(block.place.generation); }

  void EndLease() {
    Client& client = PickClient();
    if (client.leases.empty()) return;
    const auto it = std::next(client.leases.begin(), static_cast<long>(random_.Below(client.leases.size())));
    ASSERT_TRUE(client.session->Release(it->first).ok());
    ASSERT_TRUE(absl::IsNotFound(client.session->Release(it->first)));
    client.leases.erase(it);
  }

  void PassTime() {
    stack_.clock.AdvanceNs(static_cast<int64_t>(random_.Below(400'000)));
    stack_->Step();
    for (Client& client : clients_) {
      for (auto it = client.leases.begin(); it != client.leases.end();) {
        if (it->second.expires_ns <= stack_.clock.NowNs()) {
          ASSERT_TRUE(absl::IsNotFound(client.session->Renew(it->first)));
          it = client.leases.erase(it);
        } else {
          if (random_.OneIn(3)) {
            ASSERT_TRUE(client.session->Renew(it->first).ok());
            it->second.expires_ns = stack_.clock.NowNs() + Options().lease_max_age_ns;
          }
          ++it;
        }
      }
    }
  }

  void Restart() {
    Client& client = PickClient();
    const kv::TenantId tenant = client.session->tenant();
    client.session.reset();
    client.leases.clear();
    client.session = stack_->OpenSession(tenant);
  }

  void FlipABit() {
    if (blocks_.empty()) return;
    auto it = std::next(blocks_.begin(), static_cast<long>(random_.Below(blocks_.size())));
    const Space& space = spaces_[it->first.first];
    const auto info = stack_->Stat(*space.opened, KeyOf(it->first.second));
    if (!info.has_value() || it->second.bad) return;
    auto session = stack_->OpenSession(space.tenant);
    const auto key = KeyOf(it->first.second);
    const auto answer = session->Lookup(space.opened->id, {&key, 1}, LookupMode::kPrefix, Session::kNewLease);
    ASSERT_TRUE(answer.ok());
    if (answer->n_here == 0) return;  // as much as may be is leased already
    const BlockPlace& place = answer->places[0];
    arena_.Find(space.tenant, place.segment_id).payload[place.payload_offset + random_.Below(space.bytes)] ^=
        std::byte{1} << static_cast<int>(random_.Below(8));
    it->second.bad = true;
    hit_generations_.insert(place.generation);
    ++flips_;
  }

  void Verify() {
    uint64_t bad_here = 0;
    for (const auto& [name, block] : blocks_) bad_here += block.bad && IsHere(name);
    ASSERT_EQ(stack_->Verify().corrupt, bad_here);
    for (auto it = blocks_.begin(); it != blocks_.end();) {
      if (it->second.bad) {
        ASSERT_FALSE(IsHere(it->first));
        OrphanChildrenOf(it->first);
        it = blocks_.erase(it);
      } else {
        ++it;
      }
    }
  }

  void Flush() {
    const size_t s = random_.Below(spaces_.size());
    stack_->Flush(spaces_[s].opened);
    std::erase_if(blocks_, [s](const auto& entry) { return entry.first.first == s; });
  }

  // A child whose parent was dropped has none in sight any more.
  void OrphanChildrenOf(const Name& parent) {
    for (auto& [name, block] : blocks_) {
      if (name.first == parent.first && block.parent == parent.second) block.parent.reset();
    }
  }

  // After each step. Evictions are what the model cannot know; it learns of them here, and checks that no
  // parent went before its child.
  void Compare() {
    std::vector<Name> evicted;
    std::set<Name> here;
    for (const auto& [name, block] : blocks_) {
      if (IsHere(name)) {
        here.insert(name);
      } else {
        evicted.push_back(name);
      }
    }
    for (const Name& name : here) {
      const auto& parent = blocks_.at(name).parent;
      if (parent.has_value() && !blocks_.at({name.first, *parent}).bad) {
        ASSERT_TRUE(here.contains({name.first, *parent}))
            << "block " << *parent << " of space " << name.first << " went before its child";
      }
    }
    for (const Name& name : evicted) {
      // Found bad when it was moved, or evicted; either way it is gone.
      OrphanChildrenOf(name);
      blocks_.erase(name);
    }
    const TierStackStats stats = stack_->Stats();
    ASSERT_EQ(stats.tiers[0].blocks, blocks_.size());
    ASSERT_LE(stats.budget_used_bytes, stats.budget_bytes);
    uint64_t leases = 0;
    std::map<uint64_t, uint64_t> pinned;  // generation, bytes
    for (const Client& client : clients_) {
      leases += client.leases.size();
      ASSERT_EQ(client.session->lease_count(), client.leases.size());
      for (const auto& [id, lease] : client.leases) {
        for (const Leased& block : lease.blocks) {
          pinned[block.place.generation] = kv::ShapeFor(spaces_[block.space].bytes).stride;
        }
      }
    }
    ASSERT_EQ(stats.leases, leases);
    uint64_t pinned_bytes = 0;
    for (const auto& [generation, bytes] : pinned) pinned_bytes += bytes;
    ASSERT_EQ(stats.tiers[0].pinned_bytes, pinned_bytes);
  }

  Random random_{GetParam() * 7919};
  std::vector<Space> spaces_ = {{0, 65536, 300}, {0, 1 << 20, 60}, {0, 4096, 500}, {1, 65536, 300}, {1, 3 << 20, 20}};
  TestStack stack_{Options()};
  ArenaAccess arena_{stack_.stack.get()};
  std::vector<Client> clients_ = std::vector<Client>(4);
  std::map<Name, Block> blocks_;
  std::set<uint64_t> hit_generations_;
  uint64_t stores_ = 0, flips_ = 0;
};

TEST_P(CoreSim, AgreesWithTheModel) {
  for (size_t i = 0; i < clients_.size(); ++i) clients_[i].session = stack_->OpenSession(i % 2);
  // A segment that moved to another tenant is mapped anew.
  stack_->SetSegmentGoneCallback([this](kv::TenantId, uint32_t segment_id) { arena_.Forget(segment_id); });
  for (int step = 0; step < 3000; ++step) {
    SCOPED_TRACE(::testing::Message() << "seed " << GetParam() << ", step " << step);
    const uint64_t what = random_.Below(1000);
    if (what < 550) {
      Store();
    } else if (what < 750) {
      Lookup();
    } else if (what < 850) {
      EndLease();
    } else if (what < 920) {
      Read();
    } else if (what < 960) {
      PassTime();
    } else if (what < 980) {
      FlipABit();
    } else if (what < 990) {
      Verify();
    } else if (what < 997) {
      Restart();
    } else {
      Flush();
    }
    if (HasFatalFailure()) return;
    if (step % 10 == 0) Compare();
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(stores_, 1000u);
  EXPECT_GT(flips_, 0u);
  EXPECT_GT(stack_.Metric("terrace_evictions_total"), 0);
  for (Client& client : clients_) {
    client.session.reset();
    client.leases.clear();
  }
  stack_->Flush(nullptr);
  const TierStackStats stats = stack_->Stats();
  EXPECT_EQ(stats.tiers[0].used_bytes, 0u) << "all frames are free after the end";
  EXPECT_EQ(stats.tiers[0].pinned_bytes, 0u);
  EXPECT_EQ(stats.leases, 0u);
  stack_->SetSegmentGoneCallback(nullptr);
}

INSTANTIATE_TEST_SUITE_P(Seeds, CoreSim, ::testing::Range<uint64_t>(1, 13),
                         [](const auto& info) { return "seed_" + std::to_string(info.param); });

}  // namespace
}  // namespace terrace::tiering
