// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// The bytes of the engine socket's messages about regions: clients of another release and in other languages depend
// on them. A change here is a new protocol version.
#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "absl/strings/escaping.h"
#include "api/engine/wire_region.h"

namespace terrace::wire {
namespace {

template <typename T>
std::string Hex(const T& value) {
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(&value), sizeof(T)));
}

std::string Zeros(size_t bytes) { return std::string(2 * bytes, '0'); }

TEST(WireRegionGoldenTest, Types) {
  EXPECT_EQ(static_cast<int>(Type::kRegisterRegion), 12);
  EXPECT_EQ(static_cast<int>(Type::kUnregisterRegion), 13);
  EXPECT_EQ(static_cast<int>(Type::kRegionStore), 14);
  EXPECT_EQ(static_cast<int>(Type::kRegionLoad), 15);
  EXPECT_EQ(kRegionSlots, 256u);
  EXPECT_EQ(kMaxRegionBlocks, 2048u);
  EXPECT_EQ(kNoRegionEvent, 0xffffffffu);
  EXPECT_EQ(kRegionStoreHasParent, 1u);
  EXPECT_EQ(kRegionStoreIndependent, 2u);
}

TEST(WireRegionGoldenTest, Registration) {
  RegisterRegion region{{0xaa, 0xbb}, 0x0102030405060708, 0x11, 0x12, 0x13, 0};
  region.device_uuid[15] = 0xcc;
  EXPECT_EQ(Hex(region), "aabb" + Zeros(13) + "cc" "0807060504030201" "11000000" "12000000" "13000000" "00000000");
  RegionAllocation allocation{2, 0, 0x1122334455667788, {0xee}};
  allocation.ipc[63] = 0xff;
  EXPECT_EQ(Hex(allocation), "02000000" "00000000" "8877665544332211" "ee" + Zeros(62) + "ff");
  EXPECT_EQ(Hex(RegionPlane{7, 0, 0x21, 0x22, 0x23}),
            "07000000" "00000000" "2100000000000000" "2200000000000000" "2300000000000000");
  EXPECT_EQ(Hex(RegionRegistered{5, 6, 0}), "05000000" "06000000" "0000000000000000");
  EXPECT_EQ(Hex(UnregisterRegion{5, 0}), "05000000" "00000000");
  EXPECT_EQ(Hex(RegionProgress{uint64_t{9} << 32 | 3}), "03000000" "09000000");
}

TEST(WireRegionGoldenTest, Operations) {
  RegionBlock block{{0xab}, 0x42};
  block.key[31] = 0xcd;
  EXPECT_EQ(Hex(block), "ab" + Zeros(30) + "cd" "4200000000000000");
  RegionStore store{1, 2, 3, kRegionStoreHasParent, 4, kNoRegionEvent, {0x99}, {10, 11, 1, 7, 0}, 0};
  store.parent[31] = 0x88;
  EXPECT_EQ(Hex(store), "01000000" "02000000" "03000000" "01000000" "04000000" "ffffffff" "99" + Zeros(30) +
                            "88" "0a000000" "0b000000" "01" "07" "0000" "00000000");
  EXPECT_EQ(Hex(RegionLoad{1, 2, 3, 4, 5, 6}), "01000000" "02000000" "03000000" "04000000" "05000000" "06000000");
  EXPECT_EQ(Hex(RegionDone{12, 0}), "0c000000" "00000000");
}

}  // namespace
}  // namespace terrace::wire
