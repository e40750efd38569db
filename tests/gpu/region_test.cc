// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "gpu/region.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "contract/copy_rig.h"

namespace terrace::gpu {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();

// Two planes of 100 bytes a page, 10 pages, in allocations of 1,000 and 2,000 bytes.
RegionLayout Good() {
  RegionLayout layout;
  layout.n_pages = 10;
  layout.planes = {{0, 0, 100, 100}, {1, 1000, 100, 100}};
  return layout;
}
std::string WhyRefused(const RegionLayout& layout, std::vector<uint64_t> sizes = {1000, 2000}) {
  const absl::Status status = layout.Validate(sizes);
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  return std::string(status.message());
}

TEST(RegionLayout, LayoutsInUseAreValidAndTight) {
  for (const NamedLayout& named : layouts::All()) {
    SCOPED_TRACE(named.name);
    EXPECT_TRUE(named.layout.Validate(named.allocation_bytes).ok());
    uint64_t bytes = 0;
    for (const Plane& plane : named.layout.planes) bytes += plane.bytes;
    EXPECT_EQ(named.layout.PageBytes(), bytes);
    RegionLayout one_more = named.layout;
    one_more.n_pages *= 4;
    EXPECT_FALSE(one_more.Validate(named.allocation_bytes).ok());
  }
}

TEST(RegionLayout, TheLastByteCounts) {
  EXPECT_TRUE(Good().Validate(std::vector<uint64_t>{1000, 2000}).ok());
  EXPECT_THAT(WhyRefused(Good(), {999, 2000}), HasSubstr("plane 0"));
  EXPECT_THAT(WhyRefused(Good(), {1000, 1999}), HasSubstr("plane 1"));
  RegionLayout layout = Good();
  layout.planes[1].offset = 1001;
  EXPECT_THAT(WhyRefused(layout), HasSubstr("plane 1"));
  layout = Good();
  layout.planes[0].stride = 101;
  EXPECT_THAT(WhyRefused(layout), HasSubstr("plane 0"));
  layout.planes[0].bytes = 91;  // the stride behind the last page need not be there
  EXPECT_TRUE(layout.Validate(std::vector<uint64_t>{1000, 2000}).ok());
}

TEST(RegionLayout, NoSumOverflows) {
  for (const uint64_t offset : {kMax, kMax - 899, kMax - 999, kMax - 1000, kMax / 2}) {
    RegionLayout layout = Good();
    layout.planes[1].offset = offset;
    EXPECT_THAT(WhyRefused(layout), HasSubstr("plane 1"));
  }
  for (const uint64_t stride : {kMax, kMax / 9, kMax / 9 + 1, kMax / 9 + 112}) {
    RegionLayout layout = Good();
    layout.planes[0].stride = stride;
    EXPECT_THAT(WhyRefused(layout), HasSubstr("plane 0"));
  }
  RegionLayout layout = Good();
  layout.planes[0].bytes = layout.planes[0].stride = kMax;
  layout.n_pages = 1;
  EXPECT_THAT(WhyRefused(layout), HasSubstr("plane 0"));
  // The planes' sum, where each alone fits.
  layout.planes = {{0, 0, kMax, kMax}, {0, 0, kMax, kMax}};
  EXPECT_THAT(WhyRefused(layout, {kMax}), HasSubstr("add up"));
}

TEST(RegionLayout, EveryNumberIsChecked) {
  RegionLayout layout = Good();
  layout.planes.clear();
  EXPECT_THAT(WhyRefused(layout), HasSubstr("0 planes"));
  layout.planes.assign(RegionLayout::kMaxPlanes + 1, {0, 0, 100, 100});
  EXPECT_THAT(WhyRefused(layout), HasSubstr("4097 planes"));
  layout.planes.pop_back();
  for (size_t i = 0; i < layout.planes.size(); ++i) layout.planes[i].offset = 1000 * i;
  EXPECT_TRUE(layout.Validate(std::vector<uint64_t>{1000 * RegionLayout::kMaxPlanes}).ok());
  EXPECT_THAT(WhyRefused(Good(), {}), HasSubstr("0 allocations"));
  EXPECT_THAT(WhyRefused(Good(), std::vector<uint64_t>(1025, 2000)), HasSubstr("1025 allocations"));
  layout = Good();
  layout.n_pages = 0;
  EXPECT_THAT(WhyRefused(layout), HasSubstr("0 pages"));
  layout.n_pages = RegionLayout::kMaxPages + 1;
  EXPECT_THAT(WhyRefused(layout), HasSubstr("pages"));
  layout = Good();
  layout.planes[1].allocation = 2;
  EXPECT_THAT(WhyRefused(layout), HasSubstr("allocation 2 of 2"));
  layout = Good();
  layout.planes[1].bytes = 0;
  EXPECT_THAT(WhyRefused(layout), HasSubstr("plane 1: pieces of 0 bytes"));
  layout = Good();
  layout.planes[1].bytes = 101;  // pieces of neighbouring pages would overlap
  EXPECT_THAT(WhyRefused(layout), HasSubstr("plane 1: pieces of 101 bytes every 100"));
}

}  // namespace
}  // namespace terrace::gpu
