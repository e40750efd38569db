// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Memory that was damaged, belongs to somebody else or does not fit any more: what is doubtful is dropped
// and counted, the rest is served.
#include <sys/wait.h>

#include "absl/strings/str_cat.h"
#include "kvstore/key_space_registry.h"
#include "testing/trials.h"
#include "testing/warm_fixture.h"

namespace terrace::testing {
namespace {

using kv::BlockHeader;
using kv::FrameId;
using tiering::HostMemoryDir;

constexpr uint64_t kRecords = 512;  // where a table's records begin

class WarmDamageTest : public WarmTest {
 protected:
  // What the directory holds now is what every later Restore brings back.
  void Keep() {
    End();
    std::filesystem::copy(path_, kept_, std::filesystem::copy_options::recursive);
  }
  void Restore() {
    End();
    std::filesystem::remove_all(path_);
    std::filesystem::copy(kept_, path_, std::filesystem::copy_options::recursive);
  }
  // Whole copies of the owner file, with another content.
  void RewriteOwner(const std::function<void(char*)>& change) {
    std::string text(std::filesystem::file_size(path_ + "/owner"), '\0');
    std::ifstream(path_ + "/owner", std::ios::binary).read(text.data(), static_cast<std::streamsize>(text.size()));
    const size_t bytes = text.size() / 2;
    for (const size_t at : {size_t{0}, bytes}) {
      change(text.data() + at);
      uint32_t magic;
      std::memcpy(&magic, text.data() + at, 4);
      const uint64_t checksum = Checksum64(text.data() + at, bytes - 8, magic);
      std::memcpy(text.data() + at + bytes - 8, &checksum, 8);
    }
    std::ofstream(path_ + "/owner", std::ios::binary) << text;
  }
  static void Flip(uint8_t* byte, uint64_t bit) { *byte = static_cast<uint8_t>(*byte ^ (1u << bit % 8)); }

  std::string kept_ = root_.path() + "/kept";
};

TEST_F(WarmDamageTest, EveryFlippedBitOfAHeaderIsSeen) {
  options_.segment_bytes = 2 << 20;
  Start();
  const FrameId damaged = Store(Space(65536), 1);
  const uint64_t at = tier_->pool().PlaceOf(damaged).header_offset * kv::kHeaderUnit;
  Store(Space(65536), 2);
  Keep();
  constexpr uint64_t kLive = sizeof(BlockHeader) + sizeof(uint64_t);
  for (uint64_t bit = 0; bit < kLive * 8; bit += Trials(1, 7)) {
    SCOPED_TRACE(bit);
    Restore();
    Patch(Files(".headers")[0], at + bit / 8, [bit](uint8_t* byte) { Flip(byte, bit); });
    Start();
    const auto blocks = Adopt();
    ASSERT_EQ(blocks.size(), 1u);
    ASSERT_EQ(blocks[0].key, KeyOf(2));
    ASSERT_EQ(tier_->adoption().damaged, 1u);
    ASSERT_EQ(tier_->pool().GetUsage().frames_in_use, 1u);
  }
  Restore();
  Start();
  EXPECT_EQ(CheckAll(Adopt(), 1, 2), 2u) << "without a flip both are there";
}

TEST_F(WarmDamageTest, EveryFlippedBitOfATableIsSeen) {
  options_.segment_bytes = 2 << 20;
  Start();
  Store(Space(65536), 1);
  Store(Space(1 << 20), 2);
  Keep();
  Random random(1);
  for (uint64_t byte = 0; byte < kRecords + 2 * 16; ++byte) {
    // The fields and records bit by bit (under a sanitizer one of each byte); of the room for the tenant's name some.
    const bool is_name = byte >= 64 && byte < kRecords - 8;
    if (is_name && byte % 13 != 0) continue;
    const bool one_bit = is_name || kSanitized;
    for (uint64_t bit = one_bit ? random.Below(8) : 0; bit < 8; bit += one_bit ? 8 : 1) {
      SCOPED_TRACE(absl::StrCat("byte ", byte, " bit ", bit));
      Restore();
      Patch(Files(".table")[0], byte, [bit](uint8_t* b) { Flip(b, bit); });
      Start();
      const auto blocks = Adopt();
      if (byte < kRecords) {
        ASSERT_EQ(blocks.size(), 0u);
        ASSERT_TRUE(Files(".payload").empty()) << "the segment is given back";
      } else {
        ASSERT_EQ(blocks.size(), 1u);
        ASSERT_EQ(tier_->adoption().damaged, 1u);
        ASSERT_TRUE(Holds(blocks[0].frame, *blocks[0].key_space, blocks[0].key));
      }
      // Nothing is in the way of new blocks, and they survive.
      ASSERT_NE(Store(Space(65536), 3), kv::kNoFrame);
      Start();
      ASSERT_EQ(Adopt().size(), byte < kRecords ? 1u : 2u);
    }
  }
}

TEST_F(WarmDamageTest, AnotherVersionIsNotRead) {
  options_.segment_bytes = 2 << 20;
  Start();
  Store(Space(65536), 1);
  Keep();
  // A whole table of another version: a new checksum over it.
  const auto table = Files(".table")[0];
  std::vector<char> head(kRecords);
  std::ifstream(table, std::ios::binary).read(head.data(), static_cast<std::streamsize>(head.size()));
  uint32_t magic;
  std::memcpy(&magic, head.data(), 4);
  head[4] = static_cast<char>(head[4] + 1);
  const uint64_t checksum = Checksum64(head.data(), kRecords - 8, magic);
  std::memcpy(head.data() + kRecords - 8, &checksum, 8);
  chmod(table.c_str(), 0600);
  std::fstream(table, std::ios::in | std::ios::out | std::ios::binary)
      .write(head.data(), static_cast<std::streamsize>(head.size()));
  Start();
  EXPECT_EQ(Adopt().size(), 0u);
  EXPECT_TRUE(Files(".payload").empty());
  // Another version of the directory: what generations it gave is unknown.
  Restore();
  RewriteOwner([](char* copy) { ++copy[4]; });
  Start();
  EXPECT_EQ(Adopt().size(), 0u);
  EXPECT_TRUE(Files(".payload").empty());
  EXPECT_EQ(dir_->first_generation() >> 40, 1u) << "it begins anew";
}

TEST_F(WarmDamageTest, MissingAndShortFilesCostTheirSegmentOnly) {
  options_.segment_bytes = 2 << 20;
  Start();
  const auto frames = Fill(Space(1 << 20), 0, 8);
  ASSERT_EQ(frames.size(), 8u);
  Keep();
  for (const char* part : {".payload", ".headers", ".table"}) {
    for (const bool is_gone : {true, false}) {
      SCOPED_TRACE(absl::StrCat(part, is_gone ? " gone" : " short"));
      Restore();
      const auto file = Files(part)[1];
      chmod(file.c_str(), 0600);
      if (is_gone) {
        std::filesystem::remove(file);
      } else {
        std::filesystem::resize_file(file, 4096 - 1);
      }
      Start();
      EXPECT_EQ(CheckAll(Adopt(), 0, 8), 6u);
      EXPECT_EQ(Files(".payload").size(), 3u);
    }
  }
}

TEST_F(WarmDamageTest, HolesAreFilledOrTheirBlocksFailTheirChecks) {
  options_.segment_bytes = 2 << 20;
  Start();
  const auto& space = Space(65536);
  Fill(space, 0, 20);
  End();
  // Both files replaced by ones without any memory.
  for (const char* part : {".payload", ".headers"}) {
    const auto file = Files(part)[0];
    chmod(file.c_str(), 0600);
    const auto size = std::filesystem::file_size(file);
    std::filesystem::resize_file(file, 0);
    std::filesystem::resize_file(file, size);
  }
  Start();
  EXPECT_EQ(Adopt().size(), 0u);
  EXPECT_EQ(Fill(Space(65536), 0, 20).size(), 20u);
}

TEST_F(WarmDamageTest, AnUnknownTenantsMemoryIsGivenBack) {
  Start();
  Fill(Space(65536, 0), 0, 50);
  Fill(Space(65536, 1), 100, 50);
  tenants_ = {"c", "a"};  // "b" is gone, "a" has another number
  Start();
  const auto blocks = Adopt();
  EXPECT_EQ(CheckAll(blocks, 0, 50), 50u);
  for (const Block& block : blocks) {
    EXPECT_EQ(block.key_space->tenant, 1);
    EXPECT_EQ(tier_->pool().TenantOf(block.frame), 1);
  }
  EXPECT_EQ(tier_->adoption().segments_dropped, 1u);
  EXPECT_EQ(Files(".payload").size(), 1u);
}

TEST_F(WarmDamageTest, ASmallerBudgetKeepsWhatFits) {
  Start();
  ASSERT_EQ(Fill(Space(1 << 20), 0, 50).size(), 50u);  // 4 segments, the last one hardly used
  options_.arena_bytes = 32 << 20;
  Start();
  EXPECT_EQ(CheckAll(Adopt(), 0, 50), 32u);
  EXPECT_EQ(tier_->adoption().segments_dropped, 2u);
  EXPECT_EQ(Files(".payload").size(), 2u);
  EXPECT_EQ(Store(Space(1 << 20), 60), kv::kNoFrame) << "the arena is full";
  budget_bytes_ = 20 << 20;
  Start();
  EXPECT_EQ(CheckAll(Adopt(), 0, 50), 16u);
  EXPECT_LE(budget_->used(), budget_bytes_);
}

TEST_F(WarmDamageTest, BlocksOfAnUnknownKeySpaceAreFreed) {
  Start();
  Fill(Space(65536), 0, 20);
  Fill(Space(70'000), 100, 20);
  Keep();
  Patch(path_ + "/key_spaces", 40, [](uint8_t* byte) { Flip(byte, 3); });  // the first record
  Start();
  EXPECT_EQ(CheckAll(Adopt(), 100, 20), 20u);
  EXPECT_EQ(tier_->adoption().foreign, 20u);
  EXPECT_EQ(tier_->pool().GetUsage().frames_in_use, 20u);
  Restore();
  std::filesystem::remove(path_ + "/key_spaces");
  Start();
  EXPECT_EQ(Adopt().size(), 0u);
  EXPECT_EQ(tier_->adoption().foreign, 40u);
}

// A header that is right in itself, but of another slab, tenant or time.
TEST_F(WarmDamageTest, AHeaderInAForeignPlaceIsNotTaken) {
  options_.segment_bytes = 2 << 20;
  Start();
  const FrameId mine = Store(Space(65536, 0), 1);
  const FrameId theirs = Store(Space(65536, 1), 2);
  const FrameId larger = Store(Space(1 << 20, 0), 3);
  const auto place_of = [this](FrameId frame) {
    const auto place = tier_->pool().PlaceOf(frame);
    return std::pair(absl::StrCat(absl::Hex(place.segment_id, absl::kZeroPad8), ".headers"),
                     place.header_offset * kv::kHeaderUnit);
  };
  const auto copy = [this](const std::pair<std::string, uint64_t>& from, const std::pair<std::string, uint64_t>& to) {
    std::vector<char> header(192);
    std::ifstream source(path_ + "/" + from.first, std::ios::binary);
    source.seekg(static_cast<std::streamoff>(from.second));
    source.read(header.data(), static_cast<std::streamsize>(header.size()));
    chmod((path_ + "/" + to.first).c_str(), 0600);
    std::fstream target(path_ + "/" + to.first, std::ios::in | std::ios::out | std::ios::binary);
    target.seekp(static_cast<std::streamoff>(to.second));
    target.write(header.data(), static_cast<std::streamsize>(header.size()));
    ASSERT_TRUE(source.good() && target.good());
  };
  const auto at_mine = place_of(mine), at_theirs = place_of(theirs), at_larger = place_of(larger);
  Keep();
  for (const auto& [from, to, what] : {std::tuple(at_theirs, at_mine, "of another tenant"),
                                       std::tuple(at_mine, at_larger, "of another size")}) {
    SCOPED_TRACE(what);
    Restore();
    copy(from, to);
    Start();
    EXPECT_EQ(Adopt().size(), 2u);
  }
}

TEST_F(WarmDamageTest, TheCountOfOpeningsSurvivesDamageToEitherCopy) {
  options_.segment_bytes = 2 << 20;
  Start();
  Store(Space(65536), 1);
  Start();
  Adopt();
  Store(Space(65536), 2);
  const uint64_t last = dir_->first_generation();
  Keep();
  const uint64_t bytes = std::filesystem::file_size(path_ + "/owner") / 2;
  Random random(3);
  for (uint64_t at = 0; at < 2 * bytes; at += at % bytes < 64 ? Trials(1, 5) : 97) {
    SCOPED_TRACE(at);
    Restore();
    Patch(path_ + "/owner", at, [&](uint8_t* byte) { Flip(byte, random.Below(8)); });
    Start();
    ASSERT_GT(dir_->first_generation(), last);
    ASSERT_EQ(CheckAll(Adopt(), 1, 2), 2u);
  }
  Restore();
  for (const uint64_t at : {uint64_t{20}, bytes + 20}) Patch(path_ + "/owner", at, [](uint8_t* byte) { ++*byte; });
  Start();
  EXPECT_EQ(Adopt().size(), 0u) << "what was given before is unknown";
}

// Ended between the two copies: the first was written, the second not; then the first was damaged.
TEST_F(WarmDamageTest, ADamagedCopyMightHaveBeenTheYounger) {
  Start();
  std::filesystem::copy(path_ + "/owner", root_.path() + "/older");
  Start();
  const uint64_t last = dir_->first_generation();
  End();
  std::filesystem::copy(root_.path() + "/older", path_ + "/owner", std::filesystem::copy_options::overwrite_existing);
  Patch(path_ + "/owner", 20, [](uint8_t* byte) { ++*byte; });
  Start();
  EXPECT_GT(dir_->first_generation(), last);
}

// An older `owner` file came back: generations of the process after it could be given again.
TEST_F(WarmDamageTest, AGenerationThatMayComeAgainIsNotTaken) {
  Start();
  Store(Space(65536), 1);
  std::filesystem::copy(path_ + "/owner", root_.path() + "/owner");
  Start();
  Adopt();
  Store(Space(65536), 2);
  End();
  std::filesystem::copy(root_.path() + "/owner", path_ + "/owner", std::filesystem::copy_options::overwrite_existing);
  Start();
  EXPECT_EQ(CheckAll(Adopt(), 1, 1), 1u) << "block 1 is older than all that can be given now";
  EXPECT_EQ(tier_->adoption().damaged, 1u);
}

}  // namespace
}  // namespace terrace::testing
