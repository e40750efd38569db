// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Regions at the engine socket: registered memory is copied from and to, byte by byte; what a client may not do is
// refused; what it leaves behind when it goes is nothing.
#include <gtest/gtest.h>

#include <algorithm>

#include "testing/engine_rig.h"
#include "testing/region_client.h"

namespace terrace::testing {
namespace {

class EngineRegionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    client_ = rig_.Client();
    const auto space = client_->Open(memory_.page_bytes());
    ASSERT_TRUE(space.ok()) << space.status();
    space_ = *space;
    auto registered = regions_().Register(memory_);
    ASSERT_TRUE(registered.ok()) << registered.status();
    region_ = *std::move(registered);
  }
  void TearDown() override {
    client_.reset();
    EXPECT_EQ(rig_.WhatIsLeft(20'000), "");
    EXPECT_TRUE(Eventually([this] { return rig_.Metric("terrace_regions") == 0; }));
  }
  RegionClient regions_() { return RegionClient(client_.get()); }
  void FillPages(uint64_t first_key, size_t n) {
    for (size_t i = 0; i < n; ++i) memory_.Write(i, PayloadOf(KeyOf(first_key + i), 0, memory_.page_bytes()));
  }
  bool Holds(uint64_t page, uint64_t key) const {
    return memory_.Read(page) == PayloadOf(KeyOf(key), 0, memory_.page_bytes());
  }
  std::vector<Reason> Run(wire::Type type, std::span<const std::byte> body) {
    const auto reasons = regions_().Run(type, body);
    EXPECT_TRUE(reasons.ok()) << reasons.status();
    return reasons.ok() ? *reasons : std::vector<Reason>();
  }
  std::vector<Reason> StoreKeys(uint64_t first, size_t n, uint32_t slot = 0) {
    return Run(wire::Type::kRegionStore, RegionStoreBody(region_.id, space_, KeysOf(first, n), 0, slot));
  }
  std::vector<Reason> LoadKeys(uint64_t first, size_t n, uint32_t slot = 0) {
    return Run(wire::Type::kRegionLoad, RegionLoadBody(region_.id, space_, KeysOf(first, n), 0, slot));
  }
  static std::vector<Reason> All(size_t n, Reason reason = Reason::kNone) { return std::vector<Reason>(n, reason); }

  RegionMemory memory_;
  EngineRig rig_;
  std::unique_ptr<RawClient> client_;
  OpenSpace space_;
  RegionClient::Registered region_;
};

TEST_F(EngineRegionTest, WhatIsStoredComesBackByteByByte) {
  FillPages(0, 20);
  EXPECT_EQ(StoreKeys(0, 20), All(20));
  memory_.Clear();
  EXPECT_EQ(LoadKeys(0, 20), All(20));
  for (uint64_t i = 0; i < 20; ++i) EXPECT_TRUE(Holds(i, i)) << i;
  // The same blocks for one who maps them.
  const auto found = client_->Lookup(space_, KeysOf(0, 20));
  ASSERT_EQ(found->done.n_here, 20u);
  std::vector<std::byte> bytes;
  EXPECT_EQ(client_->Read(space_, KeyOf(7), found->refs[7], &bytes), Verdict::kGood);
  EXPECT_EQ(bytes, PayloadOf(KeyOf(7), 0, memory_.page_bytes()));
}

TEST_F(EngineRegionTest, SlotsSayHowFarAnOperationIs) {
  FillPages(0, 4);
  RegionClient regions = regions_();
  const uint32_t store =
      regions.Send(wire::Type::kRegionStore, RegionStoreBody(region_.id, space_, KeysOf(0, 4), 0, 9));
  ASSERT_TRUE(regions.Answer(store).ok());
  EXPECT_EQ(region_.Progress(9), uint64_t{store} << 32 | 1);
  const uint32_t load = regions.Send(wire::Type::kRegionLoad, RegionLoadBody(region_.id, space_, KeysOf(0, 4), 0, 255));
  ASSERT_TRUE(regions.Answer(load).ok());
  EXPECT_EQ(region_.Progress(255), uint64_t{load} << 32 | memory_.layout().planes.size());
  EXPECT_EQ(region_.Progress(0), 0u);
  // Not to be written by the client.
  EXPECT_EQ(Mapping(Fd(dup(region_.progress->fd())), 4096, PROT_READ | PROT_WRITE).data(), nullptr);
}

TEST_F(EngineRegionTest, ManyOperationsAtOnce) {
  FillPages(0, 64);
  RegionClient regions = regions_();
  std::vector<uint32_t> stores;
  for (uint32_t i = 0; i < 32; ++i) {
    const uint64_t first = i * 2;
    stores.push_back(regions.Send(wire::Type::kRegionStore,
                                  RegionStoreBody(region_.id, space_, KeysOf(first, 2), first, i)));
  }
  size_t answered = 0;
  while (answered < stores.size()) {
    auto packet = client_->Receive();
    ASSERT_TRUE(packet.has_value());
    EXPECT_EQ(*RegionClient::Reasons(*std::move(packet)), All(2));
    ++answered;
  }
  memory_.Clear();
  EXPECT_EQ(LoadKeys(0, 64), All(64));
  for (uint64_t i = 0; i < 64; ++i) EXPECT_TRUE(Holds(i, i)) << i;
}

TEST_F(EngineRegionTest, ParentsAndFlags) {
  FillPages(0, 4);
  auto body = RegionStoreBody(region_.id, space_, KeysOf(0, 2), 0);
  EXPECT_EQ(Run(wire::Type::kRegionStore, body), All(2));
  wire::RegionStore store;
  body = RegionStoreBody(region_.id, space_, KeysOf(2, 2), 2);
  std::memcpy(&store, body.data(), sizeof(store));
  store.flags = wire::kRegionStoreHasParent;
  std::memcpy(store.parent, KeyOf(1).bytes.data(), 32);
  std::memcpy(body.data(), &store, sizeof(store));
  EXPECT_EQ(Run(wire::Type::kRegionStore, body), All(2));
  const kv::KeySpace* space = rig_.stack()->FindKeySpace(0, space_.id);
  EXPECT_TRUE(rig_.stack()->Stat(*space, KeyOf(1))->has_children);
  for (const uint32_t flags : {3u, 4u, 0x80000000u}) {
    store.flags = flags;
    std::memcpy(body.data(), &store, sizeof(store));
    EXPECT_EQ(regions_().Run(wire::Type::kRegionStore, body).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(EngineRegionTest, WhatDoesNotFitIsRefusedAndTheSlotIsFreeAgain) {
  FillPages(0, 4);
  const auto refusal = [&](wire::Type type, std::vector<std::byte> body) {
    return regions_().Run(type, body).status().code();
  };
  using enum absl::StatusCode;
  const auto keys = KeysOf(0, 4);
  EXPECT_EQ(refusal(wire::Type::kRegionLoad, RegionLoadBody(region_.id + 1, space_, keys, 0)), kNotFound);
  OpenSpace unknown = space_;
  unknown.id = 77;
  EXPECT_EQ(refusal(wire::Type::kRegionLoad, RegionLoadBody(region_.id, unknown, keys, 0)), kNotFound);
  EXPECT_EQ(refusal(wire::Type::kRegionStore, RegionStoreBody(region_.id, unknown, keys, 0)), kNotFound);
  EXPECT_EQ(refusal(wire::Type::kRegionLoad, RegionLoadBody(region_.id, space_, keys, 61)), kInvalidArgument);
  EXPECT_EQ(refusal(wire::Type::kRegionStore, RegionStoreBody(region_.id, space_, keys, ~0ull)), kInvalidArgument);
  EXPECT_EQ(refusal(wire::Type::kRegionLoad, RegionLoadBody(region_.id, space_, keys, 0, 256)), kInvalidArgument);
  EXPECT_EQ(refusal(wire::Type::kRegionLoad, RegionLoadBody(region_.id, space_, keys, 0, 0, 60'000'001)),
            kInvalidArgument);
  EXPECT_EQ(refusal(wire::Type::kRegionLoad, RegionLoadBody(region_.id, space_, {}, 0)), kInvalidArgument);
  EXPECT_EQ(refusal(wire::Type::kRegionLoad, RegionLoadBody(region_.id, space_, KeysOf(0, 2049), 0)),
            kInvalidArgument);
  auto cut = RegionLoadBody(region_.id, space_, keys, 0);
  cut.pop_back();
  EXPECT_EQ(refusal(wire::Type::kRegionLoad, cut), kInvalidArgument);
  const auto other = client_->Open(memory_.page_bytes() + 512, {.extra = "larger"});
  EXPECT_EQ(refusal(wire::Type::kRegionStore, RegionStoreBody(region_.id, *other, keys, 0)), kInvalidArgument);
  EXPECT_EQ(StoreKeys(0, 4), All(4));
  EXPECT_EQ(LoadKeys(0, 4), All(4));
}

TEST_F(EngineRegionTest, RegistrationsThatDoNotFitAreRefused) {
  const size_t before = OpenDescriptors();
  const auto good = RegisterBody(memory_);
  const int fd = memory_.fd();
  const std::vector<int> none, one{fd}, two{fd, fd}, many(253, fd);
  const auto refusal = [&](std::vector<std::byte> body, std::span<const int> fds) {
    const auto registered = regions_().Register(body, fds);
    EXPECT_FALSE(registered.ok());
    return registered.status().code();
  };
  const auto with = [&](size_t offset, auto value) {
    std::vector<std::byte> body = good;
    std::memcpy(body.data() + offset, &value, sizeof(value));
    return body;
  };
  using enum absl::StatusCode;
  constexpr size_t kAllocation = sizeof(wire::RegisterRegion);
  constexpr size_t kPlane = kAllocation + sizeof(wire::RegionAllocation);
  EXPECT_EQ(refusal(good, none), kInvalidArgument);
  EXPECT_EQ(refusal(good, two), kInvalidArgument);
  EXPECT_EQ(refusal(good, many), kInvalidArgument);
  for (const size_t field : {24u, 28u, 32u}) {  // counts
    for (const uint32_t n : {0u, 2u, 7u, 1025u, 4097u, ~0u}) {
      if (field != 32 || n != 0) EXPECT_EQ(refusal(with(field, n), one), kInvalidArgument) << field << " " << n;
    }
  }
  EXPECT_EQ(refusal(with(16, uint64_t{0}), one), kInvalidArgument);  // pages
  EXPECT_EQ(refusal(with(16, ~uint64_t{0}), one), kInvalidArgument);
  EXPECT_EQ(refusal(with(16, uint64_t{65}), one), kInvalidArgument);
  EXPECT_EQ(refusal(with(36, uint32_t{1}), one), kInvalidArgument);   // reserved
  EXPECT_EQ(refusal(with(0, uint8_t{1}), one), kInvalidArgument);     // a GPU, but host memory
  EXPECT_EQ(refusal(with(kAllocation, uint32_t{1}), none), kInvalidArgument);  // CUDA IPC in host memory
  EXPECT_EQ(refusal(with(kAllocation, uint32_t{9}), one), kInvalidArgument);
  EXPECT_EQ(refusal(with(kAllocation + 8, memory_.bytes() + 1), one), kInvalidArgument);
  EXPECT_EQ(refusal(with(kAllocation + 8, ~uint64_t{0}), one), kInvalidArgument);
  EXPECT_EQ(refusal(with(kPlane, uint32_t{1}), one), kInvalidArgument);
  EXPECT_EQ(refusal(with(kPlane + 8, ~uint64_t{0}), one), kInvalidArgument);
  EXPECT_EQ(refusal(with(kPlane + 16, ~uint64_t{0} / 64), one), kInvalidArgument);
  EXPECT_EQ(refusal(with(kPlane + 24, ~uint64_t{0}), one), kInvalidArgument);
  RegionMemory::Shape shape;
  shape.sealed = false;
  const RegionMemory unsealed(shape);
  EXPECT_EQ(regions_().Register(unsealed).status().code(), kInvalidArgument);
  EXPECT_TRUE(Eventually([&] { return OpenDescriptors() <= before + 1; })) << OpenDescriptors() << " " << before;
  EXPECT_TRUE(client_->Ping().ok());
}

TEST_F(EngineRegionTest, DescriptorsWithOtherMessagesAreClosed) {
  const size_t before = OpenDescriptors();
  const std::vector<int> fds(200, memory_.fd());
  for (int i = 0; i < 20; ++i) {
    RegionClient regions = regions_();
    ASSERT_TRUE(regions.Answer(regions.Send(wire::Type::kPing, {}, fds)).ok());
  }
  EXPECT_TRUE(Eventually([&] { return OpenDescriptors() <= before; })) << OpenDescriptors() << " " << before;
}

TEST_F(EngineRegionTest, AGpuThatIsNotThereIsSaidSo) {
  auto body = RegisterBody(memory_);
  const uint8_t uuid = 7;
  std::memcpy(body.data(), &uuid, 1);
  const uint32_t ipc = 1;
  std::memcpy(body.data() + sizeof(wire::RegisterRegion), &ipc, sizeof(ipc));
  EXPECT_EQ(regions_().Register(body, {}).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(EngineRegionTest, RegionsAreLimited) {
  EngineRig rig([](api::Config* config) {
    config->max_regions = 3;
    config->region_bytes_max = RegionMemory().bytes();
  });
  auto client = rig.Client();
  RegionClient regions(client.get());
  std::vector<RegionClient::Registered> open;
  for (int i = 0; i < 3; ++i) {
    auto registered = regions.Register(memory_);
    ASSERT_TRUE(registered.ok()) << registered.status();
    open.push_back(*std::move(registered));
  }
  EXPECT_EQ(regions.Register(memory_).status().code(), absl::StatusCode::kResourceExhausted);
  const wire::UnregisterRegion unregister{open[1].id, 0};
  ASSERT_TRUE(client->Call(wire::Type::kUnregisterRegion, BytesOf(unregister)).ok());
  EXPECT_EQ(client->Call(wire::Type::kUnregisterRegion, BytesOf(unregister)).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_TRUE(regions.Register(memory_).ok());
  RegionMemory::Shape larger;
  larger.n_pages = 65;
  auto other = rig.Client();
  EXPECT_EQ(RegionClient(other.get()).Register(RegionMemory(larger)).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(EngineRegionTest, AnUnregisteredRegionIsLeftAlone) {
  FillPages(0, 8);
  ASSERT_EQ(StoreKeys(0, 8), All(8));
  const wire::UnregisterRegion unregister{region_.id, 0};
  RegionClient regions = regions_();
  // Loads under way at the same time end first, one way or the other.
  std::vector<uint32_t> loads;
  for (uint32_t slot = 0; slot < 16; ++slot) {
    loads.push_back(regions.Send(wire::Type::kRegionLoad, RegionLoadBody(region_.id, space_, KeysOf(0, 8), 0, slot)));
  }
  const uint32_t closing = regions.Send(wire::Type::kUnregisterRegion, BytesOf(unregister));
  size_t ended = 0;
  while (true) {
    const auto packet = client_->Receive();
    ASSERT_TRUE(packet.has_value());
    if (packet->header.request_id == closing) break;
    ++ended;
  }
  EXPECT_EQ(ended, loads.size()) << "the region was said to be closed before its operations ended";
  memory_.Clear();
  EXPECT_EQ(regions.Run(wire::Type::kRegionLoad, RegionLoadBody(region_.id, space_, KeysOf(0, 8), 0)).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_TRUE(std::all_of(memory_.data(), memory_.data() + memory_.bytes(),
                          [](std::byte b) { return b == std::byte{0xA5}; }));
}

TEST_F(EngineRegionTest, AnotherConnectionDoesNotKnowTheRegion) {
  auto other = rig_.Client();
  EXPECT_EQ(RegionClient(other.get())
                .Run(wire::Type::kRegionLoad, RegionLoadBody(region_.id, space_, KeysOf(0, 1), 0))
                .status()
                .code(),
            absl::StatusCode::kNotFound);
  auto stranger = rig_.Client("other");
  auto registered = RegionClient(stranger.get()).Register(memory_);
  ASSERT_TRUE(registered.ok());
  EXPECT_EQ(RegionClient(stranger.get())  // this key space is another tenant's
                .Run(wire::Type::kRegionLoad, RegionLoadBody(registered->id, space_, KeysOf(0, 1), 0))
                .status()
                .code(),
            absl::StatusCode::kNotFound);
}

TEST_F(EngineRegionTest, AnOldClientKnowsNoRegions) {
  auto old = std::make_unique<RawClient>(rig_.path());
  auto hello = RawClient::HelloFor("default");
  hello.version_max = 2;
  ASSERT_EQ(old->Hello(hello)->version, 2);
  const int fd = memory_.fd();
  ASSERT_TRUE(old->SendBytes(RawClient::Encode(wire::Type::kRegisterRegion, 1, RegisterBody(memory_), 0, 2), {&fd, 1}));
  EXPECT_TRUE(old->WaitClosed());
}

TEST_F(EngineRegionTest, WhoGoesInMidCopyCostsNothingButHisOwnOperations) {
  auto good = rig_.Client();
  const auto space = good->Open(memory_.page_bytes());
  FillPages(0, 64);
  ASSERT_EQ(StoreKeys(0, 64), All(64));
  for (int round = 0; round < (kSanitized ? 10 : 40); ++round) {
    auto dying = rig_.Client();
    const RegionMemory memory;
    auto registered = RegionClient(dying.get()).Register(memory);
    ASSERT_TRUE(registered.ok());
    RegionClient regions(dying.get());
    for (uint32_t slot = 0; slot < 8; ++slot) {
      regions.Send(wire::Type::kRegionLoad, RegionLoadBody(registered->id, space_, KeysOf(0, 64), 0, slot));
      regions.Send(wire::Type::kRegionStore,
                   RegionStoreBody(registered->id, space_, KeysOf(1000 + slot * 4, 4), 0, 100 + slot));
    }
    if (round % 2 == 0) {
      const uint64_t started = region_.Progress(0);
      EXPECT_TRUE(Eventually([&] { return registered->Progress(0) != 0 || started != 0; }));
    }
    dying->Disconnect();
    ASSERT_TRUE(good->Ping().ok());
  }
  // What the last of them had begun takes its room until it has ended.
  EXPECT_TRUE(Eventually([&] {
    return regions_().Run(wire::Type::kRegionLoad, RegionLoadBody(region_.id, space_, KeysOf(0, 1), 0)).ok();
  }));
  EXPECT_TRUE(Eventually([&] { return rig_.Metric("terrace_regions", "engine") == 1; }));
  memory_.Clear();
  EXPECT_EQ(LoadKeys(0, 64), All(64));
  for (uint64_t i = 0; i < 64; ++i) EXPECT_TRUE(Holds(i, i)) << i;
}

TEST_F(EngineRegionTest, TheServerEndsWithOperationsUnderWay) {
  FillPages(0, 64);
  RegionClient regions = regions_();
  for (uint32_t slot = 0; slot < 16; ++slot) {
    regions.Send(wire::Type::kRegionStore, RegionStoreBody(region_.id, space_, KeysOf(slot * 100, 64), 0, slot));
  }
  rig_.StopServer();
  EXPECT_TRUE(client_->WaitClosed());
}

}  // namespace
}  // namespace terrace::testing
