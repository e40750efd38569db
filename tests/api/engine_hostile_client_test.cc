// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// A client of the right user that does with the memory it was given, and with its connections, what it
// must not: only its own staging memory is affected, and others are served.
#include <gtest/gtest.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>

#include "testing/engine_rig.h"
#include "testing/raw_client.h"

namespace terrace::testing {
namespace {

constexpr uint64_t kBlock = 64 << 10;

class EngineHostileClientTest : public ::testing::Test {
 protected:
  EngineHostileClientTest() {
    client_ = rig_.Client();
    space_ = *client_->Open(kBlock);
    EXPECT_TRUE(client_->GetStaging(8 * kBlock).ok());
    keys_ = KeysOf(1, 32);
    for (const kv::BlockKey& key : keys_) {
      EXPECT_EQ(*client_->Put(space_, key, PayloadOf(key, 0, kBlock)), Reason::kNone);
    }
    leased_ = *client_->Lookup(space_, keys_);
    EXPECT_EQ(leased_.done.n_here, keys_.size());
  }

  void ExpectAllIntact() {
    for (size_t i = 0; i < keys_.size(); ++i) {
      std::vector<std::byte> bytes;
      ASSERT_EQ(client_->Read(space_, keys_[i], leased_.refs[i], &bytes), Verdict::kGood);
      ASSERT_EQ(bytes, PayloadOf(keys_[i], 0, kBlock));
    }
    EXPECT_EQ(rig_.stack()->Verify().corrupt, 0u);
  }

  EngineRig rig_;
  std::unique_ptr<RawClient> client_;
  OpenSpace space_;
  std::vector<kv::BlockKey> keys_;
  LookupResult leased_;
};

// Everything that could change the file behind a descriptor fails.
void ExpectUntouchable(int fd, uint64_t bytes) {
  const char junk[64] = "scribble";
  EXPECT_EQ(ftruncate(fd, 0), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(ftruncate(fd, static_cast<off_t>(bytes * 2)), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(fallocate(fd, 0, static_cast<off_t>(bytes), 4096), -1);
  EXPECT_EQ(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
  EXPECT_EQ(fallocate(fd, FALLOC_FL_ZERO_RANGE, 0, 4096), -1);
  EXPECT_EQ(pwrite(fd, junk, sizeof(junk), 0), -1);
  EXPECT_EQ(errno, EPERM);
  lseek(fd, 0, SEEK_SET);
  EXPECT_EQ(write(fd, junk, sizeof(junk)), -1);
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const Fd read_end(ends[0]), write_end(ends[1]);
  ASSERT_EQ(write(write_end.get(), junk, sizeof(junk)), static_cast<ssize_t>(sizeof(junk)));
  off_t start = 0;
  EXPECT_EQ(splice(read_end.get(), nullptr, fd, &start, sizeof(junk), SPLICE_F_NONBLOCK), -1);
  EXPECT_EQ(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
  EXPECT_EQ(mmap(nullptr, bytes, PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
  void* mapped = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  ASSERT_NE(mapped, MAP_FAILED);
  EXPECT_EQ(mprotect(mapped, bytes, PROT_READ | PROT_WRITE), -1);
  EXPECT_EQ(madvise(mapped, bytes, MADV_REMOVE), -1);
  munmap(mapped, bytes);
  for (const int seal : {F_SEAL_WRITE, F_SEAL_SHRINK, F_SEAL_GROW}) {
    EXPECT_EQ(fcntl(fd, F_ADD_SEALS, seal), -1);
    EXPECT_EQ(errno, EPERM);
  }
  // A private mapping may be written: nobody else sees it.
  void* own = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
  ASSERT_NE(own, MAP_FAILED);
  std::memset(own, 0x5a, 4096);
  munmap(own, bytes);
}

TEST_F(EngineHostileClientTest, SegmentsCannotBeChangedThroughAnyDescriptor) {
  wire::SegmentInfo info;
  const auto fds = client_->GetSegment(leased_.refs[0].segment_id, &info);
  ASSERT_TRUE(fds.ok()) << fds.status();
  for (const auto& [fd, bytes] :
       {std::pair{fds->first.get(), info.payload_bytes}, {fds->second.get(), info.header_bytes}}) {
    ExpectUntouchable(fd, bytes);
    // The same through a description of its own, opened anew by a client with the daemon's user id.
    const std::string path = "/proc/self/fd/" + std::to_string(fd);
    const Fd again(open(path.c_str(), O_RDWR | O_CLOEXEC));
    if (again.get() >= 0) ExpectUntouchable(again.get(), bytes);
    const Fd truncating(open(path.c_str(), O_RDWR | O_TRUNC | O_CLOEXEC));
    EXPECT_LT(truncating.get(), 0);
    // Changing the mode locks nobody out who is in.
    fchmod(fd, 0);
    fcntl(fd, F_SETFL, O_APPEND | O_NONBLOCK);
    fchmod(fd, 0600);
  }
  ExpectAllIntact();
  auto other = rig_.Client();  // segments can still be had and stores go on
  EXPECT_TRUE(other->GetSegment(leased_.refs[0].segment_id, &info).ok());
  EXPECT_EQ(*client_->Put(space_, KeyOf(900), PayloadOf(KeyOf(900), 0, kBlock)), Reason::kNone);
}

TEST_F(EngineHostileClientTest, SegmentsHaveNoMoreThanTheirSize) {
  // Reading beyond the end ends the reader (SIGBUS or SIGSEGV), not the daemon: sizes are exact.
  wire::SegmentInfo info;
  const auto fds = client_->GetSegment(leased_.refs[0].segment_id, &info);
  ASSERT_TRUE(fds.ok());
  EXPECT_EQ(lseek(fds->first.get(), 0, SEEK_END), static_cast<off_t>(info.payload_bytes));
  EXPECT_EQ(lseek(fds->second.get(), 0, SEEK_END), static_cast<off_t>(info.header_bytes));
  for (const wire::Ref& ref : leased_.refs) {
    EXPECT_LE(ref.payload_offset + ref.payload_bytes, info.payload_bytes);
    EXPECT_LT(ref.header_offset * 64ull, info.header_bytes);
  }
}

TEST_F(EngineHostileClientTest, StagingMayBeAbusedByItsOwnerOnly) {
  Mapping* staging = client_->staging();
  const int fd = staging->fd();
  EXPECT_EQ(ftruncate(fd, 0), -1);  // else the daemon's copy would end in SIGBUS
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(ftruncate(fd, 1 << 30), -1);
  EXPECT_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
  // Holes: what the daemon reads there is zero, and the checksum says no.
  const kv::BlockKey key = KeyOf(700);
  const auto payload = PayloadOf(key, 0, kBlock);
  std::memcpy(staging->data(), payload.data(), kBlock);
  const auto checksums = RawClient::Checksums(space_, key, payload);
  EXPECT_EQ(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(staging->bytes())), 0);
  auto answer = client_->Call(wire::Type::kPut, RawClient::PutBody(space_, key, 0, checksums));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(static_cast<Reason>(answer->body[0]), Reason::kBadChecksum);
  // The same while holes come and go under the daemon's hands.
  for (uint64_t i = 0; i < 200; ++i) {
    const kv::BlockKey many = KeyOf(10'000 + i);
    const auto bytes = PayloadOf(many, 0, kBlock);
    std::memcpy(staging->data(), bytes.data(), kBlock);
    ASSERT_TRUE(client_->SendBytes(RawClient::Encode(
        wire::Type::kPut, client_->next_id(),
        RawClient::PutBody(space_, many, 0, RawClient::Checksums(space_, many, bytes)))));
    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kBlock);
    ASSERT_TRUE(client_->Receive().has_value());
    const auto found = client_->Lookup(space_, {&many, 1});
    if (found->done.n_here == 1) {
      std::vector<std::byte> read;
      ASSERT_EQ(client_->Read(space_, many, found->refs[0], &read), Verdict::kGood);
      ASSERT_EQ(read, bytes);
    }
  }
  // Scribbling over all of it touches no block that is stored.
  for (uint64_t i = 0; i < staging->bytes(); ++i) staging->data()[i] = static_cast<std::byte>(Mix(i));
  ExpectAllIntact();
}

TEST_F(EngineHostileClientTest, ConnectionsAreLimitedInAllAndPerUser) {
  for (const bool per_uid : {false, true}) {
    EngineRig rig([per_uid](api::Config* config) {
      (per_uid ? config->max_connections_per_uid : config->max_connections) = 5;
    });
    std::vector<std::unique_ptr<RawClient>> clients;
    for (int i = 0; i < 5; ++i) clients.push_back(rig.Client());
    for (int i = 0; i < 20; ++i) {
      RawClient refused(rig.path());
      ASSERT_TRUE(refused.is_connected());
      EXPECT_TRUE(refused.WaitClosed()) << i;
    }
    for (auto& client : clients) EXPECT_TRUE(client->Ping().ok());
    EXPECT_EQ(rig.Metric("terrace_rejected_total", "connections"), 20);
    clients.pop_back();
    // Its place is free again.
    EXPECT_TRUE(Eventually([&] {
      RawClient next(rig.path());
      return next.is_connected() && next.Hello().ok();
    }));
    clients.clear();
    EXPECT_EQ(rig.WhatIsLeft(), "");
  }
}

// Asks and never reads: what waits for it is bounded, others are served, and it costs no processor time.
TEST_F(EngineHostileClientTest, WhoDoesNotReadIsNotRead) {
  auto deaf = rig_.Client();
  const std::vector<kv::BlockKey> many = KeysOf(1'000'000, wire::kMaxKeysPerMessage);
  std::vector<std::byte> lookup(sizeof(wire::Lookup) + many.size() * 32);
  const wire::Lookup ask{space_.id, wire::kMaxKeysPerMessage, wire::kLookupAll, 0, 0};
  std::memcpy(lookup.data(), &ask, sizeof(ask));
  std::memcpy(lookup.data() + sizeof(ask), many.data(), many.size() * 32);
  const auto packet = RawClient::Encode(wire::Type::kLookup, 1, lookup);
  const uint64_t before = ResidentBytes();
  // Until the daemon takes no more: its answers fill our socket, then our questions fill its.
  int sent = 0;
  iovec iov{const_cast<std::byte*>(packet.data()), packet.size()};
  msghdr message{};
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  while (sent < 5000) {
    if (sendmsg(deaf->fd(), &message, MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {
      ++sent;
      continue;
    }
    ASSERT_EQ(errno, EAGAIN) << "after " << sent;
    const double requests = rig_.Metric("terrace_requests_total", "lookup");
    if (!Eventually([&] { return rig_.Metric("terrace_requests_total", "lookup") > requests; }, 100)) break;
  }
  EXPECT_LT(sent, 5000) << "650 MiB of answers wait in the daemon";
  EXPECT_LT(ResidentBytes(), before + (32 << 20));
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(client_->Ping().ok());
  ExpectAllIntact();
  // It goes on where it stopped as soon as it reads.
  for (int i = 0; i < sent; ++i) ASSERT_TRUE(deaf->Receive().has_value()) << i << " of " << sent;
  EXPECT_TRUE(deaf->Ping().ok());
}

// Descriptors that wait in a socket count against the daemon's user: a client that asks for segments and
// takes none of them must not use up that allowance.
TEST_F(EngineHostileClientTest, WhoTakesNoDescriptorsGetsNoMore) {
  auto deaf = rig_.Client();
  const auto packet =
      RawClient::Encode(wire::Type::kGetSegment, 1, BytesOf(wire::GetSegment{leased_.refs[0].segment_id, 0}));
  int sent = 0;
  while (sent < 3000 && deaf->SendBytes(packet)) ++sent;
  // Closed as one that does not read, or stopped; in any case few descriptors are under way.
  int received = 0;
  while (true) {
    const auto answer = deaf->Receive(200);
    if (!answer.has_value()) break;
    received += static_cast<int>(answer->fds.size());
  }
  EXPECT_LE(received, 256);
  wire::SegmentInfo info;
  auto other = rig_.Client();
  EXPECT_TRUE(other->GetSegment(leased_.refs[0].segment_id, &info).ok());
}

// Long work of one client does not keep the others waiting until all of it is done.
TEST_F(EngineHostileClientTest, LongWorkTakesTurns) {
  auto busy = rig_.Client();
  constexpr uint64_t kLarge = 48 << 20;
  const auto large = busy->Open(kLarge);
  ASSERT_TRUE(large.ok() && busy->GetStaging(kLarge).ok());
  const kv::BlockKey key = KeyOf(600);
  ASSERT_EQ(*busy->Put(*large, key, PayloadOf(key, 0, kLarge)), Reason::kNone);
  const auto found = busy->Lookup(*large, {&key, 1});
  ASSERT_EQ(found->done.n_here, 1u);
  wire::Report report{large->id, 0, found->refs[0].generation, {}};
  std::memcpy(report.key, key.bytes.data(), 32);
  constexpr int kReports = 60;  // each makes the daemon read 48 MiB
  for (int i = 0; i < kReports; ++i) {
    ASSERT_TRUE(busy->SendBytes(RawClient::Encode(wire::Type::kReport, static_cast<uint32_t>(i), BytesOf(report))));
  }
  ASSERT_TRUE(client_->Ping().ok());
  int done = 0;
  while (busy->Receive(0).has_value()) ++done;
  EXPECT_LT(done, kReports / 2) << "the other client was served after all of this";
  for (; done < kReports; ++done) ASSERT_TRUE(busy->Receive().has_value());
}

// Asking for what a key space without blocks lacks costs the same however many key spaces there are.
TEST_F(EngineHostileClientTest, ManyKeySpacesDoNotSlowDownMisses) {
  const std::vector<kv::BlockKey> keys = KeysOf(1'000'000, wire::kMaxKeysPerMessage);
  const auto time_of = [&](const OpenSpace& space) {
    auto best = std::chrono::steady_clock::duration::max();
    for (int i = 0; i < 20; ++i) {
      const auto start = std::chrono::steady_clock::now();
      const auto found = client_->Lookup(space, keys, wire::kLookupAll);
      best = std::min(best, std::chrono::steady_clock::now() - start);
      EXPECT_TRUE(found.ok()) << found.status();
      EXPECT_EQ(found->done.n_here, 0u);
    }
    return best;
  };
  const auto before = time_of(*client_->Open(kBlock, {.model_fingerprint = "empty"}));
  for (int i = 0; i < 3000; ++i) ASSERT_TRUE(client_->Open(kBlock, {.extra = std::to_string(i)}).ok());
  const auto after = time_of(*client_->Open(kBlock, {.model_fingerprint = "empty, too"}));
  EXPECT_LT(after, 10 * before) << std::chrono::duration<double, std::milli>(before).count() << " ms before, "
                                << std::chrono::duration<double, std::milli>(after).count() << " ms after";
}

TEST_F(EngineHostileClientTest, ReportsOfGoodBlocksDropNothing) {
  auto liar = rig_.Client();
  for (int round = 0; round < 20; ++round) {
    for (size_t i = 0; i < keys_.size(); ++i) {
      EXPECT_TRUE(liar->Report(space_, keys_[i], leased_.refs[i].generation).ok());
      EXPECT_TRUE(liar->Report(space_, keys_[i], leased_.refs[i].generation + 1).ok());
      EXPECT_TRUE(liar->Report(space_, KeyOf(12345), 1).ok());
    }
  }
  EXPECT_EQ(rig_.Metric("terrace_corrupt_reports_total"), 0);
  ExpectAllIntact();
}

}  // namespace
}  // namespace terrace::testing
