// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// libterrace when things go wrong: bad arguments, no daemon, a daemon that dies, returns, hangs or
// refuses, and use after fork().
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/client_fixture.h"
#include "api/engine/wire.h"
#include "kvstore/base/reason.h"

namespace terrace::api {
namespace {

bool TextHas(const char* part) {
  return std::string(terrace_error_text()).find(part) != std::string::npos;
}

// Listens and never answers, like a stopped daemon. With `greet`: answers Hello and OpenKeySpace.
class HangingDaemon {
 public:
  HangingDaemon(const std::string& path, bool greet) : path_(path), greet_(greet) {
    listen_fd_ = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    EXPECT_EQ(bind(listen_fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(listen_fd_, 16), 0);
    thread_ = std::thread([this] { Run(); });
  }
  ~HangingDaemon() {
    shutdown(listen_fd_, SHUT_RDWR);
    shutdown(fd_, SHUT_RDWR);
    thread_.join();
    close(listen_fd_);
    unlink(path_.c_str());
  }
  // From now on every request is answered as a failed one; first the oldest that was not.
  void Revive() {
    revived_ = true;
    if (last_id_ != 0) AnswerError(last_id_, last_type_);
  }

 private:
  void Run() {
    fd_ = accept4(listen_fd_, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd_ < 0) return;
    std::vector<std::byte> packet(wire::kMaxPacketBytes);
    for (;;) {
      const ssize_t n = recv(fd_, packet.data(), packet.size(), 0);
      if (n <= 0) break;
      wire::Header header;
      std::memcpy(&header, packet.data(), sizeof(header));
      if (greet_ && header.type == static_cast<uint16_t>(wire::Type::kHello)) {
        wire::Welcome welcome{};
        welcome.version = wire::kVersion;
        welcome.max_keys = 4096;
        welcome.epoch = 77;
        Answer(header.request_id, header.type, &welcome, sizeof(welcome));
      } else if (greet_ && header.type == static_cast<uint16_t>(wire::Type::kOpenKeySpace)) {
        const wire::KeySpaceOpened opened{1, wire::kSegmentBytes, {}};
        Answer(header.request_id, header.type, &opened, sizeof(opened));
      } else if (revived_) {
        AnswerError(header.request_id, header.type);
      } else if (last_id_ == 0) {
        last_type_ = header.type;
        last_id_ = header.request_id;
      }
    }
    close(fd_);
  }
  void Answer(uint32_t id, uint16_t type, const void* body, size_t bytes, uint16_t status = 0) {
    const wire::Header header{wire::kMagic, 1, type, wire::kFlagReply, status, id, bytes};
    std::vector<std::byte> packet(sizeof(header) + bytes);
    std::memcpy(packet.data(), &header, sizeof(header));
    std::memcpy(packet.data() + sizeof(header), body, bytes);
    EXPECT_EQ(send(fd_, packet.data(), packet.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(packet.size()));
  }
  void AnswerError(uint32_t id, uint16_t type) {
    const wire::ErrorBody error{0, 4, "busy"};
    Answer(id, type, &error, sizeof(error), TERRACE_RESOURCE_EXHAUSTED);
  }

  const std::string path_;
  const bool greet_;
  int listen_fd_ = -1;
  std::atomic<int> fd_{-1};
  std::atomic<bool> revived_{false};
  std::atomic<uint32_t> last_id_{0};
  std::atomic<uint16_t> last_type_{0};
  std::thread thread_;
};

TEST_F(ClientTest, NamesAreThoseOfTheContract) {
  EXPECT_STREQ(terrace_version(), "0.1.0");
  EXPECT_STREQ(terrace_status_name(TERRACE_DATA_LOSS), "DATA_LOSS");
  EXPECT_EQ(static_cast<int>(TERRACE_REASON_COUNT), kReasonCount);
  for (int i = 0; i < kReasonCount; ++i) {
    EXPECT_EQ(terrace_reason_name(static_cast<terrace_reason>(i)), kReasonNames[static_cast<size_t>(i)]);
  }
  EXPECT_STREQ(terrace_reason_name(static_cast<terrace_reason>(31)), "unknown");
}

TEST_F(ClientTest, ConnectRefusesBadOptions) {
  terrace_client* client = nullptr;
  EXPECT_EQ(terrace_connect(nullptr, &client), TERRACE_INVALID_ARGUMENT);
  terrace_options options = Options();
  EXPECT_EQ(terrace_connect(&options, nullptr), TERRACE_INVALID_ARGUMENT);
  options.struct_bytes = 8;
  EXPECT_EQ(terrace_connect(&options, &client), TERRACE_INVALID_ARGUMENT);
  EXPECT_TRUE(TextHas("struct_bytes is 8"));
  options = Options();
  const std::string long_path(200, 'x');
  options.socket_path = long_path.c_str();
  EXPECT_EQ(terrace_connect(&options, &client), TERRACE_INVALID_ARGUMENT);
  EXPECT_TRUE(TextHas("200 bytes"));
  options = Options();
  options.tenant = long_path.c_str();
  EXPECT_EQ(terrace_connect(&options, &client), TERRACE_INVALID_ARGUMENT);
  EXPECT_TRUE(TextHas("tenant is longer than 63"));
  options = Options();
  options.copy_threads = 17;
  EXPECT_EQ(terrace_connect(&options, &client), TERRACE_INVALID_ARGUMENT);
  EXPECT_EQ(client, nullptr);
}

TEST_F(ClientTest, KeySpacesPagesAndOperationsRefuseBadArguments) {
  StartDaemon(1);
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = nullptr;
  terrace_keyspace_desc desc = Desc();
  EXPECT_EQ(terrace_keyspace_open(client, nullptr, &keyspace), TERRACE_INVALID_ARGUMENT);
  EXPECT_EQ(terrace_keyspace_open(nullptr, &desc, &keyspace), TERRACE_INVALID_ARGUMENT);
  for (const uint64_t bytes : {uint64_t{0}, (uint64_t{1} << 30) + 1, uint64_t{1} << 63, ~uint64_t{0}}) {
    desc.block_bytes = bytes;
    EXPECT_EQ(terrace_keyspace_open(client, &desc, &keyspace), TERRACE_INVALID_ARGUMENT) << bytes;
    EXPECT_TRUE(TextHas("block_bytes is"));
  }
  desc = Desc();
  const std::string long_text(1025, 'x');
  desc.layout = long_text.c_str();
  EXPECT_EQ(terrace_keyspace_open(client, &desc, &keyspace), TERRACE_INVALID_ARGUMENT);
  EXPECT_TRUE(TextHas("layout is longer"));

  std::vector<std::byte> memory(1 << 20);
  terrace_pages* pages = nullptr;
  const auto refused = [&](void* base, uint64_t stride, uint64_t bytes, uint32_t n, uint64_t blocks) {
    const terrace_plane plane{base, stride, bytes};
    return terrace_pages_register(client, &plane, n, blocks, &pages) == TERRACE_INVALID_ARGUMENT &&
           pages == nullptr;
  };
  EXPECT_TRUE(refused(nullptr, 100, 100, 1, 10));
  EXPECT_TRUE(refused(memory.data(), 100, 0, 1, 10));
  EXPECT_TRUE(refused(memory.data(), 99, 100, 1, 10));  // overlapping
  EXPECT_TRUE(TextHas("overlap"));
  EXPECT_TRUE(refused(memory.data(), 100, 100, 0, 10));
  EXPECT_TRUE(refused(memory.data(), 100, 100, 1, 0));
  EXPECT_TRUE(refused(memory.data(), uint64_t{1} << 63, 100, 1, 3));  // overflow
  EXPECT_TRUE(refused(memory.data(), 100, 100, 1, ~uint64_t{0}));
  EXPECT_TRUE(TextHas("address space"));

  keyspace = Open(client, 100);
  const terrace_plane plane{memory.data(), 128, 100};
  ASSERT_EQ(terrace_pages_register(client, &plane, 1, 10, &pages), TERRACE_OK);
  const std::vector<uint8_t> keys = ChainKeys(1, 2);
  const uint64_t ids[] = {0, 10};
  terrace_op* op = nullptr;
  const auto store = [&](uint32_t n, uint32_t flags, const uint64_t* block_ids) {
    return terrace_store(client, keyspace, nullptr, keys.data(), n, flags, nullptr, pages, block_ids,
                         &op);
  };
  EXPECT_EQ(store(0, 0, ids), TERRACE_INVALID_ARGUMENT);
  EXPECT_EQ(store(1, 4, ids), TERRACE_INVALID_ARGUMENT);
  EXPECT_EQ(store(1, 0, nullptr), TERRACE_INVALID_ARGUMENT);
  EXPECT_EQ(store(2, 0, ids), TERRACE_INVALID_ARGUMENT);
  EXPECT_TRUE(TextHas("block_ids[1] is 10, but only 10 blocks"));
  terrace_keyspace* wider = Open(client, 101);
  EXPECT_EQ(terrace_store(client, wider, nullptr, keys.data(), 1, 0, nullptr, pages, ids, &op),
            TERRACE_INVALID_ARGUMENT);
  EXPECT_TRUE(TextHas("the planes hold 100 bytes per block"));
  const uint32_t two = 2;
  for (const uint64_t second : {uint64_t{40}, uint64_t{61}, ~uint64_t{0} - 8}) {
    const terrace_piece pieces[] = {{memory.data(), 40}, {memory.data(), second}};
    EXPECT_EQ(terrace_store_pieces(client, keyspace, nullptr, keys.data(), 1, 0, nullptr, pieces, &two,
                                   &op),
              TERRACE_INVALID_ARGUMENT);
  }
  terrace_ref ref{};
  EXPECT_EQ(terrace_load(client, keyspace, nullptr, keys.data(), 1, pages, ids, &op),
            TERRACE_INVALID_ARGUMENT);
  EXPECT_EQ(terrace_load(client, keyspace, &ref, nullptr, 1, pages, ids, &op),
            TERRACE_INVALID_ARGUMENT);
  EXPECT_EQ(op, nullptr);

  terrace_lookup_part part = Part(keyspace, keys.data(), 0);
  EXPECT_EQ(terrace_lookup(client, &part, 1, 0, 0), TERRACE_INVALID_ARGUMENT);
  part.n_keys = 1u << 31;
  EXPECT_EQ(terrace_lookup(client, &part, 1, 0, 0), TERRACE_INVALID_ARGUMENT);
  part.n_keys = 1;
  part.mode = 7;
  EXPECT_EQ(terrace_lookup(client, &part, 1, 0, 0), TERRACE_INVALID_ARGUMENT);
  part.mode = 0;
  EXPECT_EQ(terrace_lookup(client, &part, 0, 0, 0), TERRACE_INVALID_ARGUMENT);
  EXPECT_EQ(terrace_lookup(client, nullptr, 1, 0, 0), TERRACE_INVALID_ARGUMENT);
  EXPECT_EQ(terrace_lookup(client, &part, 1, 4, 0), TERRACE_INVALID_ARGUMENT);
  terrace_client* second_client = Connect();
  EXPECT_EQ(terrace_lookup(second_client, &part, 1, 0, 0), TERRACE_INVALID_ARGUMENT);
  EXPECT_TRUE(TextHas("another client's"));
  terrace_pages_free(pages);
  terrace_keyspace_free(wider);
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientTest, WithoutADaemonEverythingIsUnavailableAtOnceAndStartsByItselfLater) {
  terrace_client* client = Connect(TERRACE_UNAVAILABLE);
  EXPECT_TRUE(TextHas("is terraced running"));
  ASSERT_NE(client, nullptr);
  EXPECT_EQ(terrace_is_ready(client), 0);
  EXPECT_EQ(terrace_wait_ready(client, 20), TERRACE_UNAVAILABLE);
  terrace_keyspace* keyspace = Open(client, kBlockBytes, TERRACE_UNAVAILABLE);
  ASSERT_NE(keyspace, nullptr);
  uint8_t digest[32];
  EXPECT_EQ(terrace_keyspace_digest(keyspace, digest), TERRACE_UNAVAILABLE);
  const std::vector<uint8_t> keys = ChainKeys(1, 3);
  const Found found = Lookup(client, keyspace, keys);
  EXPECT_EQ(found.status, TERRACE_UNAVAILABLE);
  EXPECT_EQ(found.reasons, std::vector<uint8_t>(3, TERRACE_REASON_UNAVAILABLE));
  std::vector<std::byte> memory(kBlockBytes);
  const terrace_piece piece{memory.data(), kBlockBytes};
  const uint32_t one = 1;
  terrace_op* op = nullptr;
  EXPECT_EQ(terrace_store_pieces(client, keyspace, nullptr, keys.data(), 1, 0, nullptr, &piece, &one,
                                 &op),
            TERRACE_UNAVAILABLE);
  EXPECT_EQ(op, nullptr);
  EXPECT_EQ(terrace_release(client, 5), TERRACE_UNAVAILABLE);

  StartDaemon(1);
  EXPECT_EQ(terrace_wait_ready(client, 20'000), TERRACE_OK) << terrace_error_text();
  EXPECT_TRUE(WaitUsable(client, keyspace));
  EXPECT_EQ(Store(client, keyspace, keys), std::vector<uint8_t>(3, TERRACE_REASON_NONE));
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientTest, AfterARestartOldRefsAreStaleAndTheClientGoesOn) {
  StartDaemon(1);
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  const std::vector<uint8_t> keys = ChainKeys(2, 4);
  Store(client, keyspace, keys);
  const Found old = Lookup(client, keyspace, keys);
  ASSERT_EQ(old.n_prefix, 4u);
  const void* view = nullptr;
  ASSERT_EQ(terrace_view(client, keyspace, &old.refs[0], keys.data(), &view, nullptr, nullptr), TERRACE_OK);

  StopDaemon();
  ASSERT_TRUE(Eventually([&] { return terrace_is_ready(client) == 0; }));
  EXPECT_EQ(Lookup(client, keyspace, keys).status, TERRACE_UNAVAILABLE);
  StartDaemon(2);
  ASSERT_TRUE(WaitUsable(client, keyspace));
  EXPECT_EQ(Lookup(client, keyspace, keys).n_prefix, 0u);
  std::vector<std::vector<std::byte>> payloads;
  EXPECT_EQ(Load(client, keyspace, old.refs, keys, &payloads),
            std::vector<uint8_t>(4, TERRACE_REASON_STALE));
  EXPECT_EQ(terrace_release_sync(client, old.lease), TERRACE_NOT_FOUND);
  // A view of the old daemon stays readable and is known to be over.
  EXPECT_EQ(std::memcmp(view, PayloadOf(keys.data(), kBlockBytes).data(), kBlockBytes), 0);
  EXPECT_EQ(terrace_view_valid(client, &old.refs[0]), 0);
  // Stores and loads go on, with another client's help or not.
  EXPECT_EQ(Store(client, keyspace, keys), std::vector<uint8_t>(4, TERRACE_REASON_NONE));
  const Found found = Lookup(client, keyspace, keys);
  EXPECT_EQ(Load(client, keyspace, found.refs, keys, &payloads),
            std::vector<uint8_t>(4, TERRACE_REASON_NONE));
  EXPECT_EQ(payloads[3], PayloadOf(&keys[96], kBlockBytes));
  terrace_client_stats stats{};
  stats.struct_bytes = sizeof(stats);
  ASSERT_EQ(terrace_get_stats(client, &stats), TERRACE_OK);
  EXPECT_EQ(stats.connects, 2u);
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientTest, StoresAreEndedOneWayOrAnotherWhileTheDaemonComesAndGoes) {
  StartDaemon(1);
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  for (uint64_t round = 0; round < 6; ++round) {
    ASSERT_TRUE(WaitUsable(client, keyspace));
    const std::vector<uint8_t> keys = ChainKeys(300 + round, 200);  // 40 MB: several rings full
    std::vector<std::byte> memory(kBlockBytes);
    const std::vector<terrace_piece> pieces(200, {memory.data(), kBlockBytes});
    const std::vector<uint32_t> counts(200, 1);
    terrace_op* op = nullptr;
    ASSERT_EQ(terrace_store_pieces(client, keyspace, nullptr, keys.data(), 200, 0, nullptr,
                                   pieces.data(), counts.data(), &op),
              TERRACE_OK)
        << terrace_error_text();
    StartDaemon(10 + round);  // in the middle of it
    uint32_t ended = 0;
    for (const uint8_t reason : Reasons(op)) {
      ended += reason == TERRACE_REASON_NONE || reason == TERRACE_REASON_UNAVAILABLE ? 1 : 0;
    }
    EXPECT_EQ(ended, 200u);
  }
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientTest, ADaemonThatHangsCostsItsTimeLimitOnce) {
  StartDaemon(1);
  StopDaemon();
  HangingDaemon hanging(folder_ + "/engine.sock", /*greet=*/true);
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  const std::vector<uint8_t> keys = ChainKeys(1, 1);
  auto began = std::chrono::steady_clock::now();
  EXPECT_EQ(Lookup(client, keyspace, keys, 0, 0, 50'000).status, TERRACE_DEADLINE_EXCEEDED);
  auto took = std::chrono::steady_clock::now() - began;
  EXPECT_GE(took, std::chrono::milliseconds(50));
  EXPECT_LT(took, std::chrono::seconds(10));
  // From now on it is known to hang.
  began = std::chrono::steady_clock::now();
  EXPECT_EQ(Lookup(client, keyspace, keys).status, TERRACE_UNAVAILABLE);
  EXPECT_TRUE(TextHas("hangs"));
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(10));
  EXPECT_EQ(terrace_is_ready(client), 0);
  // A sign of life, and it is asked again.
  hanging.Revive();
  EXPECT_TRUE(Eventually([&] { return terrace_is_ready(client) == 1; }));
  EXPECT_EQ(Lookup(client, keyspace, keys).status, TERRACE_RESOURCE_EXHAUSTED);
  EXPECT_TRUE(TextHas("busy"));
  terrace_keyspace_free(keyspace);
  Close(client);
}

TEST_F(ClientTest, ADaemonThatDoesNotEvenGreetCostsTheRequestTimeoutAtMost) {
  HangingDaemon hanging(folder_ + "/engine.sock", /*greet=*/false);
  terrace_options options = Options();
  options.request_timeout_ms = 100;
  terrace_client* client = ConnectWith(options, TERRACE_UNAVAILABLE);
  ASSERT_NE(client, nullptr);
  Close(client);  // does not wait for it either
}

TEST_F(ClientTest, AnUnknownTenantIsRefusedForGood) {
  StartDaemon(1);
  terrace_options options = Options();
  options.tenant = "nobody";
  terrace_client* client = nullptr;
  EXPECT_EQ(terrace_connect(&options, &client), TERRACE_PERMISSION_DENIED) << terrace_error_text();
  EXPECT_EQ(client, nullptr);
  // Tenants do not see each other's blocks.
  options.tenant = "other";
  terrace_client* other = ConnectWith(options, TERRACE_OK);
  terrace_client* client_of_default = Connect();
  terrace_keyspace* theirs = Open(other);
  terrace_keyspace* ours = Open(client_of_default);
  const std::vector<uint8_t> keys = ChainKeys(3, 1);
  Store(client_of_default, ours, keys);
  EXPECT_EQ(Lookup(other, theirs, keys).n_here, 0u);
  terrace_keyspace_free(theirs);
  terrace_keyspace_free(ours);
}

TEST_F(ClientTest, BlocksLargerThanStagingAreRefusedWithTheLimitsName) {
  StartDaemon(1);
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client, 300ull << 20);
  const std::vector<uint8_t> keys = ChainKeys(4, 1);
  std::byte byte{};
  const terrace_piece piece{&byte, 300ull << 20};  // never read
  const uint32_t one = 1;
  terrace_op* op = nullptr;
  EXPECT_EQ(terrace_store_pieces(client, keyspace, nullptr, keys.data(), 1, 0, nullptr, &piece, &one,
                                 &op),
            TERRACE_RESOURCE_EXHAUSTED);
  EXPECT_TRUE(TextHas("engine.staging_bytes"));
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientTest, ClosingEndsWhatRunsAndHandlesMayBeFreedAfterwards) {
  StartDaemon(1);
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  TestPages memory({kBlockBytes}, 64);
  terrace_pages* pages = memory.Register(client);
  const std::vector<uint8_t> keys = ChainKeys(5, 64);
  std::vector<uint64_t> ids(64);
  for (uint64_t i = 0; i < 64; ++i) ids[i] = i;
  std::vector<terrace_op*> ops;
  for (int i = 0; i < 4; ++i) {
    terrace_op* op = nullptr;
    ASSERT_EQ(terrace_store(client, keyspace, nullptr, keys.data(), 64, 0, nullptr, pages, ids.data(),
                            &op),
              TERRACE_OK);
    ops.push_back(op);
  }
  Close(client);
  for (terrace_op* op : ops) {
    EXPECT_EQ(terrace_op_done(op), 1);
    uint32_t n = 0;
    ASSERT_NE(terrace_op_reasons(op, &n), nullptr);
    EXPECT_EQ(n, 64u);
    terrace_op_free(op);
  }
  terrace_pages_free(pages);
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientTest, FreedPagesAndAbandonedOperationsAreNotTouchedAnyMore) {
  StartDaemon(1);
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  const std::vector<uint8_t> keys = ChainKeys(6, 100);
  std::vector<uint64_t> ids(100);
  for (uint64_t i = 0; i < 100; ++i) ids[i] = i;
  for (int round = 0; round < 10; ++round) {
    auto memory = std::make_unique<TestPages>(std::vector<uint64_t>{kBlockBytes}, 100);
    terrace_pages* pages = memory->Register(client);
    terrace_op* op = nullptr;
    ASSERT_EQ(terrace_store(client, keyspace, nullptr, keys.data(), 100, 0, nullptr, pages, ids.data(),
                            &op),
              TERRACE_OK);
    if (round % 2 == 0) terrace_op_free(op);
    terrace_pages_free(pages);
    memory.reset();  // the sanitizer build sees any later access
    if (round % 2 == 1) {
      for (const uint8_t reason : Reasons(op)) {
        EXPECT_TRUE(reason == TERRACE_REASON_NONE || reason == TERRACE_REASON_DUPLICATE ||
                    reason == TERRACE_REASON_CANCELLED)
            << int{reason};
      }
    }
  }
  terrace_keyspace_free(keyspace);
}

TEST_F(ClientTest, AForkedChildIsRefusedAndDoesNotKeepTheConnection) {
  StartDaemon(1);
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client);
  const std::vector<uint8_t> keys = ChainKeys(7, 1);
  Store(client, keyspace, keys);
  Lookup(client, keyspace, keys);
  ASSERT_EQ(daemon_->stack().Stats().leases, 1u);
  int life[2];
  ASSERT_EQ(pipe(life), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    close(life[1]);
    int wrong = 0;
    terrace_lookup_part part = Part(keyspace, keys.data(), 1);
    wrong += terrace_lookup(client, &part, 1, 0, 0) == TERRACE_FAILED_PRECONDITION ? 0 : 1;
    wrong += TextHas("fork") ? 0 : 2;
    wrong += terrace_wait_ready(client, 0) == TERRACE_FAILED_PRECONDITION ? 0 : 4;
    wrong += terrace_is_ready(client) == 0 ? 0 : 8;
    wrong += terrace_release(client, 1) == TERRACE_FAILED_PRECONDITION ? 0 : 16;
    terrace_keyspace_free(keyspace);
    terrace_close(client);
    char byte;
    (void)!read(life[0], &byte, 1);  // lives until the parent has looked
    _exit(wrong);
  }
  close(life[0]);
  // The parent goes on as before, and what it held goes with it, child or not.
  EXPECT_EQ(Lookup(client, keyspace, keys).n_here, 1u);
  terrace_keyspace_free(keyspace);
  Close(client);
  EXPECT_TRUE(Eventually([&] { return daemon_->stack().Stats().leases == 0; }));
  close(life[1]);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace terrace::api
