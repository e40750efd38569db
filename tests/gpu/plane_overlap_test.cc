// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// CheckPlanesApart: layouts in use pass, any shared byte is found, compared with marking every byte of every piece.
#include "gpu/plane_overlap.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "contract/copy_rig.h"

namespace terrace::gpu {
namespace {

using ::testing::HasSubstr;

RegionLayout Layout(uint64_t n_pages, std::vector<Plane> planes) {
  RegionLayout layout;
  layout.n_pages = n_pages;
  layout.planes = std::move(planes);
  return layout;
}

// By the bytes themselves.
bool SharesAByte(const RegionLayout& layout) {
  std::vector<std::vector<bool>> taken(2);
  for (const Plane& plane : layout.planes) {
    std::vector<bool>& bytes = taken[plane.allocation];
    bytes.resize(std::max<size_t>(bytes.size(), plane.offset + layout.n_pages * plane.stride));
    for (uint64_t page = 0; page < layout.n_pages; ++page) {
      for (uint64_t i = 0; i < plane.bytes; ++i) {
        const uint64_t at = plane.offset + page * plane.stride + i;
        if (bytes[at]) return true;
        bytes[at] = true;
      }
    }
  }
  return false;
}

TEST(PlaneOverlap, LayoutsInUsePass) {
  for (const NamedLayout& named : layouts::All()) {
    SCOPED_TRACE(named.name);
    EXPECT_TRUE(CheckPlanesApart(named.layout).ok());
  }
  // A layer's planes among each other, layer after layer.
  RegionLayout layout = Layout(1000, {});
  for (uint64_t layer = 0; layer < 40; ++layer) {
    for (uint64_t head = 0; head < 8; ++head) layout.planes.push_back({0, layer * 8'000'000 + head * 1000, 8000, 1000});
  }
  EXPECT_TRUE(CheckPlanesApart(layout).ok());
  layout.planes[77].offset += 1;
  EXPECT_THAT(std::string(CheckPlanesApart(layout).message()), HasSubstr("planes 77 and 78 overlap"));
}

TEST(PlaneOverlap, OneByteIsFoundWhicheverPlaneStandsFirst) {
  for (const bool swapped : {false, true}) {
    for (const uint64_t offset : {50u, 51u}) {
      // Gaps of 50 bytes, two pages apart.
      std::vector<Plane> planes = {{0, 0, 100, 50}, {0, 200 + offset, 100, 50}, {1, 0, 100, 100}};
      if (swapped) std::swap(planes[0], planes[1]);
      const absl::Status status = CheckPlanesApart(Layout(10, planes));
      EXPECT_EQ(status.ok(), offset == 50) << status;
      if (!status.ok()) EXPECT_THAT(std::string(status.message()), HasSubstr("planes 0 and 1 overlap"));
    }
  }
  EXPECT_TRUE(CheckPlanesApart(Layout(2, {{0, 0, 100, 50}, {0, 251, 100, 50}})).ok()) << "it has no third page";
}

TEST(PlaneOverlap, AsMarkingEveryByteSays) {
  int overlapping = 0, apart = 0, apart_with_unequal_strides = 0;
  for (uint32_t seed = 0; seed < 30'000; ++seed) {
    std::mt19937 random(seed);
    const auto upto = [&](uint64_t most) { return random() % (most + 1); };
    RegionLayout layout = Layout(1 + upto(11), {});
    // Strides with common factors and without, pieces small beside them: both answers are frequent.
    const uint64_t unit = 1 + upto(5), common = 1 + upto(11);
    for (uint64_t i = 2 + upto(3); i > 0; --i) {
      const uint64_t stride = upto(2) != 0 ? unit * common : unit * (1 + upto(11));
      const uint64_t bytes = 1 + upto(upto(1) != 0 ? std::min(unit, stride) - 1 : stride - 1);
      layout.planes.push_back({static_cast<uint32_t>(upto(7) == 0), unit * upto(24) + upto(1), stride, bytes});
    }
    const bool shares = SharesAByte(layout);
    const absl::Status status = CheckPlanesApart(layout);
    ASSERT_EQ(status.ok(), !shares) << "seed " << seed << ": " << status;
    ++(shares ? overlapping : apart);
    const Plane& first = layout.planes[0];
    const auto is_unequal = [&](const Plane& p) {
      return p.stride != first.stride && p.allocation == first.allocation;
    };
    apart_with_unequal_strides += !shares && std::any_of(layout.planes.begin(), layout.planes.end(), is_unequal);
  }
  EXPECT_GT(overlapping, 3'000);
  EXPECT_GT(apart, 3'000);
  EXPECT_GT(apart_with_unequal_strides, 1'000);
}

// Numbers as large as they may be.
TEST(PlaneOverlap, ManyPagesAndFarOffsets) {
  constexpr uint64_t kPages = RegionLayout::kMaxPages, kStride = 1ull << 34;
  const Plane even{0, 0, kStride, 4096};
  EXPECT_TRUE(CheckPlanesApart(Layout(kPages, {even, {0, 4096, kStride * 2, 4096}})).ok());
  EXPECT_FALSE(CheckPlanesApart(Layout(kPages, {even, {0, 4095, kStride * 2, 4096}})).ok());
  // Steps that meet once in 2^34 pages: not in these.
  EXPECT_TRUE(CheckPlanesApart(Layout(kPages, {{0, 0, kStride, 1}, {0, 1, kStride + 1, 1}})).ok());
  // Here the pieces move against each other until they meet, after 2^27 pages.
  EXPECT_FALSE(CheckPlanesApart(Layout(kPages, {{0, 0, kStride, 1}, {0, kPages / 2, kStride - 1, 1}})).ok());
  EXPECT_TRUE(CheckPlanesApart(Layout(kPages / 2, {{0, 0, kStride, 1}, {0, kPages / 2, kStride - 1, 1}})).ok());
}

// What an engine may ask is bounded: 4,096 planes among each other whose strides all differ.
TEST(PlaneOverlap, TooManyUnequalStridesAreRefused) {
  RegionLayout layout = Layout(2, {});
  for (uint64_t i = 0; i < RegionLayout::kMaxPlanes; ++i) layout.planes.push_back({0, i, (1 << 20) + 2 * i, 1});
  EXPECT_FALSE(SharesAByte(layout));
  EXPECT_THAT(std::string(CheckPlanesApart(layout).message()), HasSubstr("pairs of planes"));
  layout.planes.resize(300);
  EXPECT_TRUE(CheckPlanesApart(layout).ok());
}

}  // namespace
}  // namespace terrace::gpu
