// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The bytes of a block's header in shared memory, of its key space's digest and of its checksums are a
// format that other processes read (docs/block_format.md): they are compared with block_header.txt.
// A deliberate change: raise kBlockHeaderVersion, run this test with UPDATE_GOLDEN=1, commit both.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "absl/strings/escaping.h"
#include "kvstore/block_header.h"
#include "testing/arena_access.h"
#include "testing/test_stack.h"

namespace terrace {
namespace {

using testing::KeyOf;
using testing::TestStack;

// One line a field, so that a difference names what changed.
std::string Describe(const std::byte* header, uint64_t n_checksums) {
  std::ostringstream out;
  const auto line = [&](const char* name, size_t offset, size_t bytes) {
    out << name << " " << offset << " "
        << absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(header) + offset, bytes)) << "\n";
  };
  line("magic", 0, 4);
  line("version", 4, 2);
  line("reserved0", 6, 2);
  line("generation", 8, 8);
  line("payload_bytes", 16, 8);
  line("segment_bytes", 24, 4);
  line("n_checksums", 28, 4);
  line("key_space_digest", 32, 32);
  line("key", 64, 32);
  line("header_checksum", 96, 8);
  line("parent_tag", 104, 24);
  for (uint64_t i = 0; i < n_checksums; ++i) line("checksum", 128 + i * 8, 8);
  return out.str();
}

TEST(BlockHeaderGoldenTest, BytesAreThoseOfTheFormat) {
  constexpr uint64_t kBlock = 2 * kChecksumSegmentBytes + 1000;
  TestStack stack;
  auto session = stack->OpenSession(0);
  kv::KeySpaceIdentity identity;
  identity.model = "example/model";
  identity.model_fingerprint = "0123456789abcdef";
  identity.kv_dtype = "bfloat16";
  identity.layout = "layout v1";
  identity.parallel = "tp=1 rank=0";
  identity.hash = "sha256 seed 0";
  identity.group = "0";
  identity.extra = "";
  identity.block_bytes = kBlock;
  identity.tokens_per_block = 32;
  const auto space = session->OpenKeySpace(identity);
  ASSERT_TRUE(space.ok());
  ASSERT_EQ(TestStack::Store(session.get(), **space, KeyOf(1)), Reason::kNone);
  const auto key = KeyOf(1);
  const auto answer = session->Lookup((*space)->id, {&key, 1}, tiering::LookupMode::kPrefix,
                                      tiering::Session::kNewLease);
  ASSERT_EQ(answer->n_here, 1u);
  const tiering::BlockPlace& place = answer->places[0];
  EXPECT_EQ(place.generation, 1u);
  testing::ArenaAccess arena(stack.stack.get());
  const std::byte* header =
      arena.Find(0, place.segment_id).headers.data() + place.header_offset * kv::kHeaderUnit;
  const std::string now = Describe(header, 3);

  const std::string path = std::string(TERRACE_GOLDEN_DIR) + "/block_header.txt";
  if (std::getenv("UPDATE_GOLDEN") != nullptr) {
    std::ofstream(path) << "# field, offset, bytes in hex; written by block_header_golden_test\n" << now;
  }
  std::ifstream file(path);
  std::string expected, line;
  while (std::getline(file, line)) {
    if (line.empty() || line[0] != '#') expected += line + "\n";
  }
  EXPECT_EQ(now, expected) << "the block format changed: see the top of this file";
}

}  // namespace
}  // namespace terrace
