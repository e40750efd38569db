// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The bytes on an NVMe device outlive the daemon that wrote them (docs/nvme_format.md): they are compared
// with nvme_format.txt. A deliberate change: raise kNvmeVersion, run this test with UPDATE_GOLDEN=1,
// commit both.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <vector>

#include "absl/strings/escaping.h"
#include "testing/payload.h"
#include "tiering/nvme/nvme_format.h"

namespace terrace::tiering {
namespace {

constexpr NvmeDeviceId kDevice = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

std::string Hex(std::span<const std::byte> bytes) {
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

// In lines of 32 bytes, up to the last that is not all zero.
void Dump(std::ostringstream& out, const std::string& name, std::span<const std::byte> bytes) {
  size_t end = bytes.size();
  while (end > 0 && bytes[end - 1] == std::byte{0}) --end;
  for (size_t at = 0; at < end; at += 32) out << name << " " << at << " " << Hex(bytes.subspan(at, 32)) << "\n";
  out << name << " bytes " << bytes.size() << "\n";
}

TEST(NvmeFormatGoldenTest, BytesAreThoseOfTheFormat) {
  std::ostringstream now;
  for (const uint64_t bytes : {64ull << 20, 10ull << 30, 1ull << 40}) {
    const NvmeGeometry g = NvmeGeometry::Make(bytes, 0);
    now << "geometry " << bytes << " segment " << g.segment_bytes << " segments " << g.segments << " slot "
        << g.slot_bytes << " data " << g.data_offset << " entries " << g.max_entries << "\n";
  }
  const NvmeGeometry geometry = NvmeGeometry::Make(64 << 20, 4 << 20);

  std::vector<std::byte> page(kNvmePage);
  NvmeSuperblock super{};
  super.magic = kNvmeSuperMagic;
  super.version = kNvmeVersion;
  super.device_id = kDevice;
  super.device_bytes = geometry.device_bytes;
  super.segment_bytes = geometry.segment_bytes;
  super.fingerprint_seed = 0x0123456789abcdef;
  EncodeSuperblock(super, page);
  Dump(now, "superblock", page);

  NvmeState state;
  state.device_id = kDevice;
  state.serial = 7;
  state.epoch = 3;
  state.written_bytes = 1'000'000;
  state.budget_bytes = -5;
  state.clean = true;
  state.blocks = 1234;
  state.tombstones = {{.space_tag = 0xaabbccdd, .all_spaces = 0, .sequence = 0x200000004, .page = 17}};
  std::vector<std::byte> room(kNvmeStateBytes);
  Dump(now, "state", std::span(room).first(EncodeState(state, room)));

  NvmeSlotHeader slot{};
  slot.device_id = kDevice;
  slot.segment = 2;
  slot.sequence = 0x300000001;
  slot.sealed = 1;
  slot.covered_pages = geometry.segment_pages();
  const NvmeEntry entries[] = {{.fingerprint = 0x1111111122222222, .space_tag = 5, .page = 0, .pages = 17},
                               {.fingerprint = 0x3333333344444444, .space_tag = 5, .page = 17, .pages = 2}};
  std::vector<std::byte> table(geometry.slot_bytes);
  Dump(now, "table", std::span(table).first(EncodeSlot(slot, entries, table)));

  NvmeBlock block;
  block.key_space_digest.fill(9);
  block.key = testing::KeyOf(1);
  block.payload_bytes = 100'000;
  const auto payload = testing::PayloadOf(block.key, block.payload_bytes);
  const auto sums = testing::ChecksumsOf(block.key_space_digest.data(), block.key, payload);
  EncodeRecordHeader(kDevice, {.segment = 2, .page = 19, .sequence = 0x300000001}, block, testing::KeyOf(0),
                     sums, page);
  Dump(now, "record", page);
  now << "fingerprint " << NvmeFingerprint(block, super.fingerprint_seed) << "\n";
  now << "space_tag " << NvmeSpaceTag(block.key_space_digest, super.fingerprint_seed) << "\n";

  const std::string path = std::string(TERRACE_GOLDEN_DIR) + "/nvme_format.txt";
  if (std::getenv("UPDATE_GOLDEN") != nullptr) {
    std::ofstream(path) << "# what, offset, bytes in hex; written by nvme_format_golden_test\n" << now.str();
  }
  std::ifstream file(path);
  std::string expected, line;
  while (std::getline(file, line)) {
    if (line.empty() || line[0] != '#') expected += line + "\n";
  }
  EXPECT_EQ(now.str(), expected) << "the format changed: see the top of this file";
}

// Every bit of everything that is written says so when it is wrong.
TEST(NvmeFormatTest, EveryFlippedBitIsNoticed) {
  const NvmeGeometry geometry = NvmeGeometry::Make(64 << 20, 4 << 20);
  std::vector<std::byte> page(kNvmePage);
  const auto flip = [](std::vector<std::byte>& bytes, size_t bit) { bytes[bit / 8] ^= std::byte(1 << bit % 8); };

  NvmeSuperblock super{}, read{};
  super.magic = kNvmeSuperMagic;
  super.version = kNvmeVersion;
  EncodeSuperblock(super, page);
  ASSERT_EQ(DecodeSuperblock(page, &read), SuperVerdict::kOk);
  for (size_t bit = 0; bit < kNvmePage * 8; ++bit) {
    flip(page, bit);
    ASSERT_NE(DecodeSuperblock(page, &read), SuperVerdict::kOk) << bit;
    flip(page, bit);
  }

  NvmeState state;
  state.device_id = kDevice;
  state.tombstones.resize(3);
  std::vector<std::byte> room(kNvmeStateBytes);
  EncodeState(state, room);
  ASSERT_TRUE(DecodeState(room, kDevice).has_value());
  for (size_t bit = 0; bit < (sizeof(NvmeStateHeader) + 3 * sizeof(NvmeTombstone)) * 8; ++bit) {
    flip(room, bit);
    ASSERT_FALSE(DecodeState(room, kDevice).has_value()) << bit;
    flip(room, bit);
  }

  NvmeSlotHeader slot{};
  slot.device_id = kDevice;
  slot.segment = 2;
  slot.sequence = 5;
  const std::vector<NvmeEntry> entries(20, NvmeEntry{.fingerprint = 1, .space_tag = 2, .page = 3, .pages = 4});
  std::vector<std::byte> table(geometry.slot_bytes);
  EncodeSlot(slot, entries, table);
  std::vector<NvmeEntry> out;
  for (size_t bit = 0; bit < (sizeof(NvmeSlotHeader) + 20 * sizeof(NvmeEntry)) * 8; ++bit) {
    flip(table, bit);
    const auto header = DecodeSlotHeader(table, kDevice, 2, geometry);
    ASSERT_FALSE(header && DecodeSlotEntries(*header, table, &out)) << bit;
    flip(table, bit);
  }
  const auto header = DecodeSlotHeader(table, kDevice, 2, geometry);
  ASSERT_TRUE(header && DecodeSlotEntries(*header, table, &out));
  EXPECT_EQ(out.size(), 20u);
  EXPECT_FALSE(DecodeSlotHeader(table, kDevice, 3, geometry).has_value()) << "another segment's";
}

TEST(NvmeFormatTest, GeometryFitsTheDevice) {
  for (uint64_t bytes = 8 << 20; bytes < 20ull << 40; bytes = bytes * 5 / 4 / kNvmePage * kNvmePage) {
    const NvmeGeometry g = NvmeGeometry::Make(bytes, 0);
    ASSERT_GE(g.segments, kNvmeMinSegments) << bytes;
    ASSERT_LE(g.segment_offset(g.segments), bytes);
    ASSERT_LE(g.slot_offset(g.segments), g.data_offset);
    ASSERT_LE(static_cast<uint64_t>(g.segments) * g.max_entries, UINT32_MAX) << bytes;
    ASSERT_GE(g.segments * g.segment_bytes, std::min<uint64_t>(bytes, 16ull << 40) / 2) << bytes;
  }
  EXPECT_EQ(NvmeGeometry::Make(1 << 20, 0).segments, 0u);
}

}  // namespace
}  // namespace terrace::tiering
