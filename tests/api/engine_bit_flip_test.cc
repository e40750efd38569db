// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Bits flip in the daemon's memory while it serves. Not one wrong byte may reach a reader; every block hit
// is found, dropped and counted; flips in free memory do no harm.
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <set>
#include <sstream>

#include "kvstore/block_header.h"
#include "testing/engine_rig.h"
#include "testing/raw_client.h"

namespace terrace::testing {
namespace {

struct Range {
  std::byte* data;
  uint64_t bytes;
};

// The daemon's own, writable mappings of the given memory file, found as the kernel lists them.
std::vector<Range> WritableMappings(const std::string& name) {
  std::vector<Range> ranges;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find("memfd:" + name) == std::string::npos || line.find(" rw-s ") == std::string::npos) continue;
    uint64_t start = 0, end = 0;
    char dash = 0;
    std::istringstream(line) >> std::hex >> start >> dash >> end;
    ranges.push_back({reinterpret_cast<std::byte*>(start), end - start});
  }
  return ranges;
}

// Where the blocks of one key space lie in the daemon's memory, found by what stands in the headers.
struct Live {
  std::byte* payload;
  std::byte* header;
};

class EngineBitFlipTest : public ::testing::Test {
 protected:
  EngineBitFlipTest() {
    client_ = rig_.Client();
    EXPECT_TRUE(client_->GetStaging(1 << 20).ok());
  }

  // One segment only, so that offsets of refs are offsets in the one mapping.
  Live At(const wire::Ref& ref) {
    const auto payloads = WritableMappings("terrace-payload");
    const auto headers = WritableMappings("terrace-headers");
    EXPECT_EQ(payloads.size(), 1u);
    EXPECT_EQ(headers.size(), 1u);
    return {payloads.at(0).data + ref.payload_offset, headers.at(0).data + ref.header_offset * kv::kHeaderUnit};
  }

  uint64_t Next() { return Mix(seed_++); }

  // flips over blocks of one size; returns how many blocks were hit in all.
  void Run(uint64_t block_bytes, size_t n_blocks, uint64_t flips);

  EngineRig rig_;
  std::unique_ptr<RawClient> client_;
  uint64_t seed_ = 4711;
};

void EngineBitFlipTest::Run(uint64_t block_bytes, size_t n_blocks, uint64_t flips) {
  const auto space = client_->Open(block_bytes);
  ASSERT_TRUE(space.ok()) << space.status();
  const std::vector<kv::BlockKey> keys = KeysOf(block_bytes, n_blocks);
  std::vector<std::vector<std::byte>> payloads;
  for (const kv::BlockKey& key : keys) payloads.push_back(PayloadOf(key, 0, block_bytes));
  const uint64_t header_bytes = sizeof(kv::BlockHeader) + 8 * ChecksumCount(block_bytes);
  const double counted_before = rig_.Metric("terrace_integrity_failures_total");
  uint64_t done = 0, hit = 0, served_wrong = 0, missed = 0, named = 0;
  for (uint64_t round = 0; done < flips; ++round) {
    for (size_t i = 0; i < n_blocks; ++i) ASSERT_TRUE(client_->Put(*space, keys[i], payloads[i]).ok());
    const auto found = client_->Lookup(*space, keys);
    ASSERT_EQ(found->done.n_here, n_blocks);
    // A flip in most blocks, at the payload or at the header with its checksums.
    std::set<size_t> damaged;
    const auto first = At(found->refs[0]);
    for (size_t i = 0; i < n_blocks && done < flips; ++i) {
      if (Next() % 8 == 0) continue;
      const std::byte* base = first.payload - found->refs[0].payload_offset;
      const std::byte* header_base = first.header - found->refs[0].header_offset * kv::kHeaderUnit;
      const bool in_header = Next() % 4 == 0;
      std::byte* target = const_cast<std::byte*>(
          in_header ? header_base + found->refs[i].header_offset * kv::kHeaderUnit + Next() % header_bytes
                    : base + found->refs[i].payload_offset + Next() % block_bytes);
      *target ^= std::byte{1} << (Next() % 8);
      damaged.insert(i);
      ++done;
    }
    hit += damaged.size();
    // Who finds it: a reading client that reports, the daemon's own read (streamed Get), or the scrubber.
    for (size_t i = 0; i < n_blocks; ++i) {
      std::vector<std::byte> bytes;
      const Verdict verdict = client_->Read(*space, keys[i], found->refs[i], &bytes);
      if (verdict == Verdict::kGood) {
        served_wrong += bytes != payloads[i];
        missed += damaged.contains(i);
      } else {
        ASSERT_TRUE(damaged.contains(i)) << "block " << i << " is refused but was not hit";
        if (round % 3 == 0) {
          ASSERT_TRUE(client_->Report(*space, keys[i], found->refs[i].generation).ok());
        }
      }
    }
    if (round % 3 == 1) {
      EXPECT_EQ(rig_.stack()->Verify().corrupt, damaged.size());
    }
    if (round % 3 == 2) {
      const kv::KeySpace* mine = nullptr;
      for (const kv::KeySpace* s : rig_.stack()->KeySpaces()) mine = s->id == space->id ? s : mine;
      ASSERT_NE(mine, nullptr);
      std::vector<std::byte> target(block_bytes);
      for (size_t i = 0; i < n_blocks; ++i) {
        tiering::BlockPlace place;
        place.generation = found->refs[i].generation;
        const absl::Status status = rig_.stack()->ReadLeased(*mine, keys[i], place, target);
        EXPECT_EQ(status.code(), damaged.contains(i) ? absl::StatusCode::kDataLoss : absl::StatusCode::kOk) << i;
        served_wrong += status.ok() && target != payloads[i];
      }
    }
    ASSERT_TRUE(client_->Release(found->done.lease_id).ok());
    // Whatever was hit is gone, with its reason; the rest is there.
    const auto after = client_->Lookup(*space, keys, wire::kLookupAll | wire::kLookupNoLease);
    for (size_t i = 0; i < n_blocks; ++i) {
      const auto reason = static_cast<Reason>(after->refs[i].reason);
      ASSERT_EQ(reason != Reason::kNone, damaged.contains(i)) << "round " << round << ", block " << i;
      named += reason == Reason::kCorrupt;
    }
    ASSERT_EQ(rig_.Metric("terrace_integrity_failures_total") - counted_before, static_cast<double>(hit));
  }
  EXPECT_EQ(done, flips);
  EXPECT_EQ(served_wrong, 0u);
  EXPECT_EQ(missed, 0u);
  EXPECT_GT(named * 100, hit * 95) << "the memory of reasons may forget some, not many";
}

TEST_F(EngineBitFlipTest, NinetyThousandFlipsInSmallBlocks) { Run(8 << 10, 512, 90'000); }

// Several checksums a block, the last of them over a part.
TEST_F(EngineBitFlipTest, TenThousandFlipsInLargerBlocks) { Run(150'000, 48, 10'000); }

// Also where nothing is: free frames, unused headers, headers of other sizes. Stores go on meanwhile.
TEST_F(EngineBitFlipTest, FlipsInFreeMemoryDoNoHarm) {
  EngineRig rig([](api::Config* config) { config->stack.budget_bytes = 96 << 20; });
  auto client = rig.Client();
  ASSERT_TRUE(client->GetStaging(1 << 20).ok());
  const OpenSpace spaces[] = {*client->Open(64 << 10), *client->Open(40'000), *client->Open(700'000)};
  uint64_t served = 0, wrong = 0, number = 0;
  for (int round = 0; round < 24; ++round) {
    const OpenSpace& space = spaces[round % 3];
    const uint64_t n = (40 << 20) / space.block_bytes;
    const uint64_t first = number;
    for (uint64_t i = 0; i < n; ++i) {
      const kv::BlockKey key = KeyOf(number++);
      const auto reason = client->Put(space, key, PayloadOf(key, 0, space.block_bytes));
      ASSERT_TRUE(reason.ok()) << reason.status();
      if (i % 64 != 0) continue;
      for (const char* name : {"terrace-payload", "terrace-headers"}) {
        for (const Range& range : WritableMappings(name)) {
          const uint64_t touched = name[8] == 'p' ? range.bytes : std::min<uint64_t>(range.bytes, 1 << 20);
          for (int flip = 0; flip < 32; ++flip) range.data[Next() % touched] ^= std::byte{1} << (Next() % 8);
        }
      }
    }
    for (uint64_t i = n > 200 ? n - 200 : 0; i < n; ++i) {
      const kv::BlockKey key = KeyOf(first + i);
      const auto found = client->Lookup(space, {&key, 1});
      ASSERT_TRUE(found.ok()) << found.status();
      if (found->done.n_here == 0) continue;
      std::vector<std::byte> bytes;
      if (client->Read(space, key, found->refs[0], &bytes) == Verdict::kGood) {
        ++served;
        wrong += bytes != PayloadOf(key, 0, space.block_bytes);
      }
      ASSERT_TRUE(client->Release(found->done.lease_id).ok());
    }
  }
  EXPECT_EQ(wrong, 0u);
  EXPECT_GT(served, 500u);
  rig.stack()->Verify();  // whatever it finds, it ends
  EXPECT_LE(rig.stack()->Stats().budget_used_bytes, rig.stack()->Stats().budget_bytes);
}

}  // namespace
}  // namespace terrace::testing
