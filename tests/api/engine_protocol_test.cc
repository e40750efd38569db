// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What the engine socket answers to clients that break the protocol: other versions, wrong sizes, bodies
// that do not match their lengths, layouts that lie. After each of them a good client is served as before.
#include <gtest/gtest.h>

#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <map>

#include "testing/engine_rig.h"
#include "testing/raw_client.h"
#include "testing/region_client.h"

namespace terrace::testing {
namespace {

constexpr uint64_t kBlock = 64 << 10;

class EngineProtocolTest : public ::testing::Test {
 protected:
  // Stores a block and reads it back: the daemon is alive and right.
  void ExpectServes() {
    auto client = rig_.Client();
    const auto space = client->Open(kBlock);
    ASSERT_TRUE(space.ok()) << space.status();
    ASSERT_TRUE(client->GetStaging(0).ok());
    const kv::BlockKey key = KeyOf(++last_key_);
    const auto payload = PayloadOf(key, 0, kBlock);
    const auto reason = client->Put(*space, key, payload);
    ASSERT_TRUE(reason.ok()) << reason.status();
    EXPECT_EQ(*reason, Reason::kNone);
    const auto found = client->Lookup(*space, {&key, 1});
    ASSERT_TRUE(found.ok()) << found.status();
    ASSERT_EQ(found->done.n_here, 1u);
    std::vector<std::byte> bytes;
    EXPECT_EQ(client->Read(*space, key, found->refs[0], &bytes), Verdict::kGood);
    EXPECT_EQ(bytes, payload);
  }

  // The daemon answers the bytes with the given status and closes the connection.
  void ExpectAnswerAndClose(RawClient* client, std::span<const std::byte> packet, absl::StatusCode code) {
    ASSERT_TRUE(client->SendBytes(packet));
    const auto answer = client->Receive();
    ASSERT_TRUE(answer.has_value()) << "closed without a word";
    EXPECT_EQ(answer->header.status, static_cast<uint16_t>(code));
    EXPECT_EQ(answer->body.size(), sizeof(wire::ErrorBody));
    EXPECT_TRUE(client->WaitClosed());
  }

  EngineRig rig_;
  uint64_t last_key_ = 1'000'000;
};

TEST_F(EngineProtocolTest, OlderAndNewerClientsAreToldWhatToUpdate) {
  constexpr uint16_t kOlder = wire::kVersionMin - 1, kNewer = wire::kVersion + 1;
  for (const auto& [low, high] :
       {std::pair<uint16_t, uint16_t>{0, kOlder}, {kNewer, kNewer}, {kNewer + 4, 65535}, {1, 0}}) {
    RawClient client(rig_.path());
    wire::Hello hello = RawClient::HelloFor("default");
    hello.version_min = low;
    hello.version_max = high;
    const auto welcome = client.Hello(hello);
    EXPECT_EQ(welcome.status().code(), absl::StatusCode::kFailedPrecondition) << low << " to " << high;
    EXPECT_NE(welcome.status().message().find("update"), absl::string_view::npos) << welcome.status();
    EXPECT_TRUE(client.WaitClosed());
  }
  EXPECT_EQ(rig_.Metric("terrace_rejected_total", "version"), 4);
  ExpectServes();
}

TEST_F(EngineProtocolTest, ClientThatSpeaksMoreVersionsGetsTheHighestCommonOne) {
  RawClient client(rig_.path());
  wire::Hello hello = RawClient::HelloFor("default");
  hello.version_min = 0;
  hello.version_max = 65535;
  const auto welcome = client.Hello(hello);
  ASSERT_TRUE(welcome.ok()) << welcome.status();
  EXPECT_EQ(welcome->version, wire::kVersion);
  EXPECT_TRUE(client.Ping().ok());
}

TEST_F(EngineProtocolTest, MessageOfAnotherVersionEndsTheConnection) {
  for (const uint16_t version : std::initializer_list<uint16_t>{0, wire::kVersion + 1, 65535}) {
    auto client = rig_.Client();
    ExpectAnswerAndClose(client.get(), RawClient::Encode(wire::Type::kPing, 9, {}, 0, version),
                         absl::StatusCode::kFailedPrecondition);
  }
  EXPECT_EQ(rig_.Metric("terrace_rejected_total", "version"), 3);
  ExpectServes();
}

TEST_F(EngineProtocolTest, FirstMessageMustBeHello) {
  for (uint16_t type = 0; type < 70; ++type) {
    if (type == static_cast<uint16_t>(wire::Type::kHello)) continue;
    RawClient client(rig_.path());
    ExpectAnswerAndClose(&client, RawClient::Encode(static_cast<wire::Type>(type), 1, {}),
                         absl::StatusCode::kFailedPrecondition);
  }
  ExpectServes();
}

TEST_F(EngineProtocolTest, SecondHelloEndsTheConnection) {
  auto client = rig_.Client();
  const wire::Hello hello = RawClient::HelloFor("other");
  ExpectAnswerAndClose(client.get(), RawClient::Encode(wire::Type::kHello, 2, BytesOf(hello)),
                       absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(rig_.WhatIsLeft(), "");
}

TEST_F(EngineProtocolTest, UnknownTenantAndUnterminatedTextsAreRefused) {
  RawClient unknown(rig_.path());
  EXPECT_EQ(unknown.Hello(RawClient::HelloFor("nobody")).status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_TRUE(unknown.WaitClosed());
  RawClient endless(rig_.path());
  wire::Hello hello{};
  hello.version_min = hello.version_max = wire::kVersion;
  std::memset(hello.tenant, 'a', sizeof(hello.tenant));
  std::memset(hello.token, 'b', sizeof(hello.token));
  std::memset(hello.client_name, 'c', sizeof(hello.client_name));
  EXPECT_EQ(endless.Hello(hello).status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_TRUE(endless.WaitClosed());
  EXPECT_EQ(rig_.Metric("terrace_rejected_total", "auth"), 2);
  ExpectServes();
}

TEST_F(EngineProtocolTest, HeadersThatLieEndTheConnection) {
  const std::vector<std::byte> good = RawClient::Encode(wire::Type::kPing, 5, {});
  const auto broken = [&](auto change) {
    wire::Header header;
    std::memcpy(&header, good.data(), sizeof(header));
    change(&header);
    std::vector<std::byte> packet(good);
    std::memcpy(packet.data(), &header, sizeof(header));
    auto client = rig_.Client();
    ExpectAnswerAndClose(client.get(), packet, absl::StatusCode::kInvalidArgument);
  };
  broken([](wire::Header* h) { h->magic = 0; });
  broken([](wire::Header* h) { h->magic = ~h->magic; });
  for (const uint64_t bytes : {1ull, 1ull << 31, 1ull << 32, 1ull << 63, ~0ull, ~0ull - 23}) {
    broken([bytes](wire::Header* h) { h->body_bytes = bytes; });
  }
  for (const uint16_t type : std::initializer_list<uint16_t>{0, 16, 64, 65, 65535}) {
    broken([type](wire::Header* h) { h->type = type; });
  }
  ExpectServes();
}

TEST_F(EngineProtocolTest, PacketsTooShortForAHeaderEndTheConnection) {
  const std::vector<std::byte> good = RawClient::Encode(wire::Type::kPing, 5, {});
  for (size_t n = 1; n < good.size(); ++n) {
    auto client = rig_.Client();
    ExpectAnswerAndClose(client.get(), std::span(good).first(n), absl::StatusCode::kInvalidArgument);
  }
  auto client = rig_.Client();
  client->SendBytes({});
  EXPECT_TRUE(client->WaitClosed());
  ExpectServes();
}

TEST_F(EngineProtocolTest, PacketLongerThanTheLongestLegalOneEndsTheConnection) {
  const std::vector<std::byte> body(wire::kMaxPacketBytes - sizeof(wire::Header) + 1);
  auto client = rig_.Client();
  ExpectAnswerAndClose(client.get(), RawClient::Encode(wire::Type::kPing, 5, body),
                       absl::StatusCode::kInvalidArgument);
  ExpectServes();
}

// Every message, cut off at every length and with bytes behind its end: answered with an error, never
// understood as something else.
TEST_F(EngineProtocolTest, BodiesOfWrongLengthsAreRefused) {
  auto client = rig_.Client();
  const auto space = client->Open(kBlock);
  ASSERT_TRUE(space.ok()) << space.status();
  ASSERT_TRUE(client->GetStaging(0).ok());
  const kv::BlockKey key = KeyOf(1);
  const auto payload = PayloadOf(key, 0, kBlock);
  ASSERT_TRUE(client->Put(*space, key, payload).ok());
  const auto leased = client->Lookup(*space, {&key, 1});
  ASSERT_TRUE(leased.ok()) << leased.status();

  const wire::Lookup ask{space->id, 1, 0, 0, 0};
  std::vector<std::byte> lookup(sizeof(ask) + 32);
  std::memcpy(lookup.data(), &ask, sizeof(ask));
  std::memcpy(lookup.data() + sizeof(ask), key.bytes.data(), 32);
  const auto bytes_of = [](const auto& value) {
    const auto bytes = BytesOf(value);
    return std::vector<std::byte>(bytes.begin(), bytes.end());
  };
  const std::pair<wire::Type, std::vector<std::byte>> messages[] = {
      {wire::Type::kOpenKeySpace, RawClient::OpenBody(kBlock, {})},
      {wire::Type::kLookup, lookup},
      {wire::Type::kRelease, bytes_of(wire::Release{leased->done.lease_id})},
      {wire::Type::kGetSegment, bytes_of(wire::GetSegment{leased->refs[0].segment_id, 0})},
      {wire::Type::kGetStaging, bytes_of(wire::GetStaging{4096})},
      {wire::Type::kPut,
       RawClient::PutBody(*space, KeyOf(2), 0, RawClient::Checksums(*space, KeyOf(2), payload))},
      {wire::Type::kReport, bytes_of(wire::Report{space->id, 0, leased->refs[0].generation, {}})},
      {wire::Type::kLocate, RawClient::LocateBody(*space, {&key, 1}, 0)},
      {wire::Type::kHint, RawClient::HintBody(*space, {&key, 1}, {})},
      {wire::Type::kRegisterRegion, RegisterBody(RegionMemory())},
      {wire::Type::kUnregisterRegion, bytes_of(wire::UnregisterRegion{1, 0})},
      {wire::Type::kRegionStore, RegionStoreBody(1, *space, {&key, 1}, 0)},
      {wire::Type::kRegionLoad, RegionLoadBody(1, *space, {&key, 1}, 0)},
  };
  for (const auto& [type, body] : messages) {
    for (size_t n = 0; n <= body.size() + 9; ++n) {
      if (n == body.size()) continue;
      std::vector<std::byte> wrong(body);
      wrong.resize(n);
      const auto answer = client->Call(type, wrong);
      EXPECT_EQ(answer.status().code(), absl::StatusCode::kInvalidArgument)
          << "type " << static_cast<int>(type) << ", " << n << " of " << body.size() << " bytes: "
          << answer.status();
    }
  }
  // None of them had an effect.
  EXPECT_TRUE(client->Release(leased->done.lease_id).ok());
  EXPECT_EQ(client->Lookup(*space, {&key, 1}, wire::kLookupNoLease)->done.n_here, 1u);
  const kv::BlockKey second = KeyOf(2);
  EXPECT_EQ(client->Lookup(*space, {&second, 1}, wire::kLookupNoLease)->done.n_here, 0u);
}

TEST_F(EngineProtocolTest, LookupsOfWrongCountsAreRefused) {
  auto client = rig_.Client();
  const auto space = client->Open(kBlock);
  ASSERT_TRUE(space.ok()) << space.status();
  const auto call = [&](uint32_t claimed, size_t sent) {
    const wire::Lookup ask{space->id, claimed, 0, 0, 0};
    std::vector<std::byte> body(sizeof(ask) + sent * wire::kKeyBytes);
    std::memcpy(body.data(), &ask, sizeof(ask));
    return client->Call(wire::Type::kLookup, body).status().code();
  };
  // 2^27 * 32 is 2^32: a product in 32 bits would be 0.
  for (const uint32_t claimed : {0u, 4097u, 1u << 27, (1u << 27) + 1, 1u << 31, ~0u}) {
    for (const size_t sent : {size_t{0}, size_t{1}, size_t{4096}}) {
      EXPECT_EQ(call(claimed, sent), absl::StatusCode::kInvalidArgument) << claimed << ", " << sent;
    }
  }
  EXPECT_EQ(call(4096, 4096), absl::StatusCode::kOk);
}

TEST_F(EngineProtocolTest, StagingOfWrongSizesIsRefused) {
  auto client = rig_.Client();
  for (const uint64_t bytes : {rig_.config().staging_bytes_max + 1, uint64_t{1} << 31, uint64_t{1} << 63,
                               ~uint64_t{0}, ~uint64_t{0} - 4095}) {
    EXPECT_EQ(client->GetStaging(bytes).code(), absl::StatusCode::kInvalidArgument) << bytes;
  }
  // Allowed, but more than the budget has left.
  const uint64_t before = rig_.stack()->Stats().budget_used_bytes;
  EXPECT_EQ(client->GetStaging(rig_.config().staging_bytes_max).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(rig_.stack()->Stats().budget_used_bytes, before);
  EXPECT_TRUE(client->GetStaging(12345).ok());  // no multiple of a page
  EXPECT_EQ(client->staging()->bytes(), 12345u);
  EXPECT_EQ(client->GetStaging(4096).code(), absl::StatusCode::kFailedPrecondition);  // once per connection
  client.reset();
  EXPECT_EQ(rig_.WhatIsLeft(), "");
  EXPECT_EQ(rig_.stack()->Stats().budget_used_bytes, before);
  ExpectServes();
}

TEST_F(EngineProtocolTest, PutsOutsideOfTheStagingMemoryAreRefused) {
  auto client = rig_.Client();
  const auto space = client->Open(kBlock);
  ASSERT_TRUE(space.ok()) << space.status();
  const kv::BlockKey key = KeyOf(3);
  const auto payload = PayloadOf(key, 0, kBlock);
  const auto checksums = RawClient::Checksums(*space, key, payload);
  EXPECT_EQ(client->Call(wire::Type::kPut, RawClient::PutBody(*space, key, 0, checksums)).status().code(),
            absl::StatusCode::kFailedPrecondition);  // no staging memory at all
  ASSERT_TRUE(client->GetStaging(4 * kBlock).ok());
  for (const uint64_t offset : {3 * kBlock + 1, 4 * kBlock, 4 * kBlock + 1, uint64_t{1} << 31, uint64_t{1} << 32,
                                uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} - kBlock + 1}) {
    EXPECT_EQ(client->Call(wire::Type::kPut, RawClient::PutBody(*space, key, offset, checksums)).status().code(),
              absl::StatusCode::kInvalidArgument)
        << offset;
  }
  EXPECT_EQ(client->Lookup(*space, {&key, 1})->done.n_here, 0u);
  // Any alignment will do, up to the last byte.
  uint64_t number = 100;
  for (const uint64_t offset : {uint64_t{1}, uint64_t{4095}, uint64_t{63}, 3 * kBlock}) {
    const kv::BlockKey odd = KeyOf(++number);
    const auto odd_payload = PayloadOf(odd, 0, kBlock);
    EXPECT_EQ(*client->Put(*space, odd, odd_payload, offset), Reason::kNone) << offset;
    const auto found = client->Lookup(*space, {&odd, 1});
    std::vector<std::byte> bytes;
    EXPECT_EQ(client->Read(*space, odd, found->refs[0], &bytes), Verdict::kGood);
    EXPECT_EQ(bytes, odd_payload) << offset;
  }
}

TEST_F(EngineProtocolTest, OverlappingPutsAreBlocksOfTheirOwn) {
  auto client = rig_.Client();
  const auto space = client->Open(kBlock);
  ASSERT_TRUE(space.ok() && client->GetStaging(4 * kBlock).ok());
  for (size_t i = 0; i < 4 * kBlock; ++i) client->staging()->data()[i] = static_cast<std::byte>(Mix(i));
  // All from overlapping places, all asked for before the first answer.
  std::map<uint32_t, kv::BlockKey> keys;
  std::map<kv::BlockKey, uint64_t> offsets;
  for (uint64_t i = 0; i < 40; ++i) {
    const kv::BlockKey key = KeyOf(500 + i);
    const uint64_t offset = i * 4097;
    const auto checksums = RawClient::Checksums(*space, key, {client->staging()->data() + offset, kBlock});
    const uint32_t id = client->next_id();
    keys[id] = key;
    offsets[key] = offset;
    ASSERT_TRUE(client->SendBytes(
        RawClient::Encode(wire::Type::kPut, id, RawClient::PutBody(*space, key, offset, checksums))));
  }
  for (size_t i = 0; i < 40; ++i) {
    const auto answer = client->Receive();
    ASSERT_TRUE(answer.has_value());
    ASSERT_EQ(answer->header.status, 0);
    EXPECT_EQ(keys.erase(answer->header.request_id), 1u);
    EXPECT_EQ(static_cast<uint32_t>(answer->body[0]), 0u);
  }
  for (const auto& [key, offset] : offsets) {
    const auto found = client->Lookup(*space, {&key, 1});
    std::vector<std::byte> bytes;
    ASSERT_EQ(client->Read(*space, key, found->refs[0], &bytes), Verdict::kGood);
    EXPECT_EQ(std::memcmp(bytes.data(), client->staging()->data() + offset, kBlock), 0);
  }
}

TEST_F(EngineProtocolTest, LayoutThatLiesIsRefused) {
  auto client = rig_.Client();
  const auto space = client->Open(kBlock);
  ASSERT_TRUE(space.ok() && client->GetStaging(4 * kBlock).ok());
  const kv::BlockKey key = KeyOf(4);
  // The Put's size is not the key space's.
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{1}, kBlock - 1, kBlock + 1, 2 * kBlock, uint64_t{1} << 31,
                               uint64_t{1} << 63, ~uint64_t{0}}) {
    OpenSpace lie = *space;
    lie.block_bytes = bytes;
    const std::vector<uint64_t> checksums(1);
    EXPECT_EQ(client->Call(wire::Type::kPut, RawClient::PutBody(lie, key, 0, checksums)).status().code(),
              absl::StatusCode::kInvalidArgument)
        << bytes;
  }
  // The number of checksums does not fit the size.
  for (const size_t n : {0, 2, 17, 4096}) {
    const std::vector<uint64_t> checksums(n);
    EXPECT_EQ(client->Call(wire::Type::kPut, RawClient::PutBody(*space, key, 0, checksums)).status().code(),
              absl::StatusCode::kInvalidArgument)
        << n;
  }
  // Impossible key spaces.
  for (const uint64_t bytes : {uint64_t{0}, wire::kMaxBlockBytes + 1, uint64_t{1} << 63, ~uint64_t{0}}) {
    EXPECT_EQ(client->Open(bytes).status().code(), absl::StatusCode::kInvalidArgument) << bytes;
  }
  EXPECT_EQ(client->Open(kBlock, {.model = std::string(1025, 'x')}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(client->Lookup(*space, {&key, 1})->done.n_here, 0u);
}

TEST_F(EngineProtocolTest, IdentityLengthsThatLieAreRefused) {
  auto client = rig_.Client();
  const std::vector<std::byte> good = RawClient::OpenBody(kBlock, {});
  // Each of the eight length fields in turn (the texts are one character but "bf16" and "").
  size_t at = sizeof(wire::OpenKeySpace);
  for (int field = 0; field < 8; ++field) {
    uint32_t right;
    std::memcpy(&right, good.data() + at, 4);
    for (const uint32_t wrong : {right + 1, 16384u, 1u << 31, ~0u, ~0u - 3}) {
      std::vector<std::byte> body(good);
      std::memcpy(body.data() + at, &wrong, 4);
      EXPECT_EQ(client->Call(wire::Type::kOpenKeySpace, body).status().code(), absl::StatusCode::kInvalidArgument)
          << "field " << field << " says " << wrong;
    }
    at += 4 + right;
  }
  EXPECT_TRUE(client->Call(wire::Type::kOpenKeySpace, good).ok());
}

TEST_F(EngineProtocolTest, KeySpacesOfOthersAreOutOfReach) {
  auto victim = rig_.Client("other");
  const auto theirs = victim->Open(kBlock);
  ASSERT_TRUE(theirs.ok() && victim->GetStaging(0).ok());
  const kv::BlockKey key = KeyOf(5);
  const auto payload = PayloadOf(key, 0, kBlock);
  ASSERT_EQ(*victim->Put(*theirs, key, payload), Reason::kNone);
  const auto their_ref = victim->Lookup(*theirs, {&key, 1});
  ASSERT_EQ(their_ref->done.n_here, 1u);

  auto client = rig_.Client("default");
  ASSERT_TRUE(client->GetStaging(0).ok());
  // By its id: it looks exactly as if it did not exist.
  OpenSpace nowhere = *theirs;
  nowhere.id = theirs->id + 1000;
  EXPECT_EQ(client->Lookup(*theirs, {&key, 1}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(client->Lookup(nowhere, {&key, 1}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(client->Put(*theirs, key, payload).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(client->Put(nowhere, key, payload).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(client->Report(*theirs, key, their_ref->refs[0].generation).code(), absl::StatusCode::kNotFound);
  for (const uint32_t id : {0u, ~0u, 1u << 31}) {
    nowhere.id = id;
    EXPECT_EQ(client->Lookup(nowhere, {&key, 1}).status().code(), absl::StatusCode::kNotFound) << id;
    EXPECT_EQ(client->Put(nowhere, key, payload).status().code(), absl::StatusCode::kNotFound) << id;
  }
  // The same description is another key space for another tenant, and finds nothing.
  const auto mine = client->Open(kBlock);
  ASSERT_TRUE(mine.ok()) << mine.status();
  EXPECT_NE(mine->id, theirs->id);
  EXPECT_NE(std::memcmp(mine->digest, theirs->digest, 32), 0);
  const auto found = client->Lookup(*mine, {&key, 1});
  EXPECT_EQ(found->done.n_here, 0u);
  EXPECT_EQ(found->refs[0].reason, static_cast<uint32_t>(Reason::kKeySpaceEmpty));
  // Nor does their memory come by the segment's number.
  wire::SegmentInfo info;
  for (const uint32_t id : {their_ref->refs[0].segment_id, 0u, 12345u, ~0u}) {
    EXPECT_EQ(client->GetSegment(id, &info).status().code(), absl::StatusCode::kNotFound) << id;
  }
  EXPECT_EQ(rig_.Metric("terrace_corrupt_reports_total"), 0);
  EXPECT_EQ(victim->Read(*theirs, key, their_ref->refs[0], nullptr), Verdict::kGood);
}

// As wire.h promises: the id is the tenant's, so a client may open on one connection and store on another.
TEST_F(EngineProtocolTest, KeySpaceIdIsValidOnEveryConnectionOfTheTenant) {
  auto first = rig_.Client();
  const auto space = first->Open(kBlock);
  ASSERT_TRUE(space.ok());
  auto second = rig_.Client();
  ASSERT_TRUE(second->GetStaging(0).ok());
  const kv::BlockKey key = KeyOf(6);
  EXPECT_EQ(*second->Put(*space, key, PayloadOf(key, 0, kBlock)), Reason::kNone);
}

TEST_F(EngineProtocolTest, KeySpacesAreLimited) {
  EngineRig small([](api::Config* config) { config->stack.max_key_spaces = 3; });
  auto client = small.Client();
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(client->Open(kBlock, {.extra = std::to_string(i)}).ok());
  EXPECT_EQ(client->Open(kBlock, {.extra = "3"}).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(client->Open(kBlock, {.extra = "2"}).ok());  // known ones still open
}

TEST_F(EngineProtocolTest, DescriptorsSentToTheDaemonAreClosed) {
  auto client = rig_.Client();
  ASSERT_TRUE(client->Ping().ok());
  const size_t before = OpenDescriptors();
  for (int round = 0; round < 200; ++round) {
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    const Fd read_end(ends[0]);
    {
      const Fd write_end(ends[1]);
      const std::vector<int> fds(round % 2 == 0 ? 1 : 253, write_end.get());
      ASSERT_TRUE(client->SendBytes(RawClient::Encode(wire::Type::kPing, client->next_id(), {}), fds));
      const auto answer = client->Receive();
      ASSERT_TRUE(answer.has_value());
      EXPECT_EQ(answer->header.status, 0);
    }
    // Ours is closed: the end of the pipe is seen only when the daemon has none left either.
    char byte;
    EXPECT_EQ(read(read_end.get(), &byte, 1), 0);
  }
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST_F(EngineProtocolTest, NoReplyFlagIsObeyedForErrorsToo) {
  auto client = rig_.Client();
  const wire::Release forged{12345};
  ASSERT_TRUE(client->SendBytes(
      RawClient::Encode(wire::Type::kRelease, 77, BytesOf(forged), wire::kFlagNoReply)));
  const uint32_t id = client->next_id();
  ASSERT_TRUE(client->SendBytes(RawClient::Encode(wire::Type::kPing, id, {})));
  const auto answer = client->Receive();
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->header.request_id, id);
}

}  // namespace
}  // namespace terrace::testing
