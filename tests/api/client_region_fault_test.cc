// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// libterrace's regions against a daemon that the test plays: what is asked of it, and what becomes
// of operations when it is busy, refuses, hangs, goes, or is of another release.
#include <stdlib.h>

#include <filesystem>
#include <numeric>

#include "api/client/ref.h"
#include "api/client_payload.h"
#include "api/fake_region_daemon.h"
#include "api/shared_pages.h"

namespace terrace::api {
namespace {

class RegionFaultTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kPageBytes = 300;

  RegionFaultTest() {
    std::string name = std::filesystem::temp_directory_path() / "terrace_region_XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    daemon_ = std::make_unique<FakeRegionDaemon>(folder_, 1);
  }
  ~RegionFaultTest() override {
    if (daemon_ != nullptr) daemon_->CloseHalfClosed();
    if (client_ != nullptr) terrace_close(client_);
    terrace_keyspace_free(key_space_);
    daemon_.reset();
    std::filesystem::remove_all(folder_);
  }
  void Connect(uint32_t request_timeout_ms = 1000, uint32_t load_timeout_ms = 5000) {
    const std::string path = folder_ + "/engine.sock";
    terrace_options options{};
    options.struct_bytes = sizeof(options);
    options.socket_path = path.c_str();
    options.request_timeout_ms = request_timeout_ms;
    options.load_timeout_ms = load_timeout_ms;
    ASSERT_EQ(terrace_connect(&options, &client_), TERRACE_OK) << terrace_error_text();
    terrace_keyspace_desc desc{};
    desc.struct_bytes = sizeof(desc);
    desc.model = "m";
    desc.block_bytes = kPageBytes;
    ASSERT_EQ(terrace_keyspace_open(client_, &desc, &key_space_), TERRACE_OK)
        << terrace_error_text();
  }
  static SharedPages& Memory() {
    static SharedPages memory({100, 150, 50}, 5000);
    return memory;
  }
  terrace_op* Store(terrace_pages* pages, const std::vector<uint8_t>& keys,
                    const std::vector<uint64_t>& ids, const uint8_t* parent = nullptr) {
    terrace_op* op = nullptr;
    EXPECT_EQ(terrace_store(client_, key_space_, parent, keys.data(),
                            static_cast<uint32_t>(ids.size()), 0, nullptr, pages, ids.data(), &op),
              TERRACE_OK)
        << terrace_error_text();
    return op;
  }
  terrace_op* Load(terrace_pages* pages, const std::vector<uint8_t>& keys,
                   const std::vector<uint64_t>& ids, uint64_t epoch = 1) {
    std::vector<terrace_ref> refs;
    for (size_t i = 0; i < ids.size(); ++i) {
      refs.push_back(client::EncodeRef({{1, 0, 0, 1, kPageBytes, 0}, epoch}));
    }
    terrace_op* op = nullptr;
    EXPECT_EQ(terrace_load(client_, key_space_, refs.data(), keys.data(),
                           static_cast<uint32_t>(ids.size()), pages, ids.data(), &op),
              TERRACE_OK)
        << terrace_error_text();
    return op;
  }
  static std::vector<uint8_t> Finish(terrace_op* op, terrace_status expected = TERRACE_OK) {
    EXPECT_EQ(terrace_op_wait(op, kLongUs), expected) << terrace_error_text();
    uint32_t n = 0;
    const uint8_t* reasons = terrace_op_reasons(op, &n);
    const std::vector<uint8_t> out(reasons, reasons + n);
    terrace_op_free(op);
    return out;
  }
  static std::vector<uint64_t> Range(uint64_t first, size_t n) {
    std::vector<uint64_t> ids(n);
    std::iota(ids.begin(), ids.end(), first);
    return ids;
  }
  static std::string Why(terrace_pages* pages, terrace_copier expected) {
    const char* text = nullptr;
    EXPECT_EQ(terrace_pages_copier(pages, &text), expected) << text;
    return text;
  }
  FakeRequest WaitRequest(size_t at = 0) {
    EXPECT_TRUE(Eventually([&] { return daemon_->requests().size() > at; }));
    const std::vector<FakeRequest> all = daemon_->requests();
    return all.size() > at ? all[at] : FakeRequest{};
  }
  void HoldRequests() {
    daemon_->With([](FakeRegionDaemon::Manners& m) {
      m.answer_requests = false;
      return 0;
    });
  }

  std::string folder_;
  std::unique_ptr<FakeRegionDaemon> daemon_;
  terrace_client* client_ = nullptr;
  terrace_keyspace* key_space_ = nullptr;
};

TEST_F(RegionFaultTest, TellsTheDaemonWhereThePagesLie) {
  Connect();
  terrace_pages* pages = Memory().Register(client_);
  EXPECT_EQ(Why(pages, TERRACE_COPIER_DAEMON), "");
  ASSERT_EQ(daemon_->regions().size(), 1u);
  const std::shared_ptr<FakeRegion> region = daemon_->regions()[0];
  EXPECT_EQ(region->said.n_pages, 5000u);
  EXPECT_EQ(region->said.n_events, 0u);
  ASSERT_EQ(region->planes.size(), 3u);
  const std::vector<std::byte> payload = PayloadOf(ChainKeys(1, 1).data(), kPageBytes);
  Memory().Fill(4999, payload);
  EXPECT_EQ(std::memcmp(region->Piece(0, 4999), payload.data(), 100), 0);
  EXPECT_EQ(std::memcmp(region->Piece(1, 4999), payload.data() + 100, 150), 0);
  EXPECT_EQ(std::memcmp(region->Piece(2, 4999), payload.data() + 250, 50), 0);
  terrace_pages_free(pages);
  EXPECT_EQ(daemon_->open_regions(), 0u);  // when it returns, the engine may free the memory
}

TEST_F(RegionFaultTest, LargeOperationsAreSplitAndChainsKeepTheirOrder) {
  Connect();
  terrace_pages* pages = Memory().Register(client_);
  const uint32_t n = 2 * wire::kMaxRegionBlocks + 100;
  const std::vector<uint8_t> keys = ChainKeys(3, n), parent = ChainKeys(4, 1);
  for (uint32_t i = 0; i < n; ++i) Memory().Fill(i, PayloadOf(&keys[i * 32], kPageBytes));
  std::vector<uint8_t> reasons = Finish(Store(pages, keys, Range(0, n), parent.data()));
  EXPECT_EQ(std::count(reasons.begin(), reasons.end(), TERRACE_REASON_NONE), n);
  const std::vector<FakeRequest> stores = daemon_->answered();
  ASSERT_EQ(stores.size(), 3u);
  EXPECT_EQ(stores[2].blocks.size(), 100u);
  EXPECT_EQ(std::memcmp(stores[0].store.parent, parent.data(), 32), 0);
  EXPECT_EQ(std::memcmp(stores[1].store.parent, &keys[(wire::kMaxRegionBlocks - 1) * 32], 32), 0);
  EXPECT_EQ(stores[1].store.flags, wire::kRegionStoreHasParent);
  // Back in another order, into other pages.
  Memory().Clear();
  std::vector<uint64_t> ids = Range(200, n);
  std::reverse(ids.begin(), ids.end());
  terrace_op* load = Load(pages, keys, ids);
  EXPECT_EQ(terrace_op_wait_planes(load, 3, kLongUs), TERRACE_OK);
  EXPECT_EQ(terrace_op_planes_done(load), 3u);
  reasons = Finish(load);
  EXPECT_EQ(std::count(reasons.begin(), reasons.end(), TERRACE_REASON_NONE), n);
  for (uint32_t i = 0; i < n; ++i)
    ASSERT_EQ(Memory().Get(ids[i]), PayloadOf(&keys[i * 32], kPageBytes)) << i;
  EXPECT_TRUE(Memory().GapsUntouched());
  terrace_pages_free(pages);
}

TEST_F(RegionFaultTest, PlanesAreDoneAsTheDaemonSaysAndNeverAllOfAFailedLoad) {
  Connect();
  terrace_pages* pages = Memory().Register(client_);
  HoldRequests();
  const std::vector<uint8_t> keys = ChainKeys(5, 2);
  daemon_->Put(keys.data(), PayloadOf(keys.data(), kPageBytes));
  terrace_op* op = Load(pages, keys, {1, 2});
  const FakeRequest request = WaitRequest();
  EXPECT_EQ(terrace_op_planes_done(op), 0u);
  EXPECT_EQ(terrace_op_wait_planes(op, 1, 1000), TERRACE_DEADLINE_EXCEEDED);
  request.region->SetProgress(request.slot(), request.header.request_id + 1,
                              3);  // another request's
  EXPECT_EQ(terrace_op_planes_done(op), 0u);
  request.region->SetProgress(request.slot(), request.header.request_id, 2);
  EXPECT_EQ(terrace_op_planes_done(op), 2u);
  EXPECT_EQ(terrace_op_wait_planes(op, 2, 0), TERRACE_OK);
  EXPECT_EQ(terrace_op_wait_planes(op, 4, 0), TERRACE_INVALID_ARGUMENT);
  daemon_->Answer(request);  // the second block is not there
  EXPECT_EQ(terrace_op_wait_planes(op, 3, kLongUs), TERRACE_DATA_LOSS);
  EXPECT_EQ(terrace_op_planes_done(op), 2u);
  EXPECT_EQ(Finish(op, TERRACE_DATA_LOSS),
            (std::vector<uint8_t>{TERRACE_REASON_NONE, TERRACE_REASON_COLD}));
  terrace_pages_free(pages);
}

TEST_F(RegionFaultTest, SourcesMayBeOverwrittenWhenTheDaemonSaysSo) {
  Connect();
  terrace_pages* pages = Memory().Register(client_);
  HoldRequests();
  terrace_op* op = Store(pages, ChainKeys(6, 1), {9});
  const FakeRequest request = WaitRequest();
  EXPECT_EQ(terrace_op_sources_read(op), 0);
  EXPECT_EQ(terrace_op_wait_sources(op, 1000), TERRACE_DEADLINE_EXCEEDED);
  request.region->SetProgress(request.slot(), request.header.request_id, 1);
  EXPECT_EQ(terrace_op_wait_sources(op, kLongUs), TERRACE_OK);
  EXPECT_EQ(terrace_op_done(op), 0);
  daemon_->Answer(request);
  EXPECT_EQ(Finish(op), std::vector<uint8_t>{TERRACE_REASON_NONE});
  terrace_pages_free(pages);
}

TEST_F(RegionFaultTest, RefsOfAnotherDaemonAreStaleAndNotAskedFor) {
  Connect();
  terrace_pages* pages = Memory().Register(client_);
  terrace_op* op = Load(pages, ChainKeys(7, 2), {1, 2}, /*epoch=*/2);
  EXPECT_EQ(terrace_op_planes_done(op), 0u);
  EXPECT_EQ(Finish(op, TERRACE_DATA_LOSS),
            (std::vector<uint8_t>{TERRACE_REASON_STALE, TERRACE_REASON_STALE}));
  EXPECT_TRUE(daemon_->answered().empty());
  terrace_op* twice = nullptr;
  const std::vector<terrace_ref> refs(2);
  const uint64_t ids[] = {3, 3};
  EXPECT_EQ(
      terrace_load(client_, key_space_, refs.data(), ChainKeys(7, 2).data(), 2, pages, ids, &twice),
      TERRACE_INVALID_ARGUMENT);
  terrace_pages_free(pages);
}

TEST_F(RegionFaultTest, ABusyDaemonIsAskedAgainForLoadsOnly) {
  Connect();
  terrace_pages* pages = Memory().Register(client_);
  const std::vector<uint8_t> keys = ChainKeys(8, 1);
  daemon_->Put(keys.data(), PayloadOf(keys.data(), kPageBytes));
  daemon_->With([](FakeRegionDaemon::Manners& m) { return m.busy_answers = 3; });
  EXPECT_EQ(Finish(Load(pages, keys, {4})), std::vector<uint8_t>{TERRACE_REASON_NONE});
  EXPECT_EQ(Memory().Get(4), PayloadOf(keys.data(), kPageBytes));
  EXPECT_EQ(daemon_->With([](FakeRegionDaemon::Manners& m) { return m.busy_answers; }), 0);
  daemon_->With([](FakeRegionDaemon::Manners& m) { return m.busy_answers = 1; });
  EXPECT_EQ(Finish(Store(pages, ChainKeys(9, 1), {5}), TERRACE_DATA_LOSS),
            std::vector<uint8_t>{TERRACE_REASON_OVERLOAD});
  terrace_pages_free(pages);
}

TEST_F(RegionFaultTest, ARegionThatTheDaemonHasNotAnyMoreIsLeftAlone) {
  Connect();
  terrace_pages* pages = Memory().Register(client_);
  daemon_->With([](FakeRegionDaemon::Manners& m) {
    m.request_error = TERRACE_NOT_FOUND;
    return 0;
  });
  EXPECT_EQ(Finish(Store(pages, ChainKeys(10, 1), {5}), TERRACE_DATA_LOSS),
            std::vector<uint8_t>{TERRACE_REASON_UNAVAILABLE});
  EXPECT_EQ(Why(pages, TERRACE_COPIER_LIBRARY), "the test says no");
  terrace_pages_free(pages);
}

TEST_F(RegionFaultTest, RefusedOrUnknownRegionsLeaveTheCopyingToTheLibrary) {
  daemon_->With([](FakeRegionDaemon::Manners& m) {
    m.refuse_regions = TERRACE_RESOURCE_EXHAUSTED;
    return 0;
  });
  Connect();
  terrace_pages* pages = Memory().Register(client_);
  EXPECT_EQ(Why(pages, TERRACE_COPIER_LIBRARY), "the test says no");
  terrace_pages_free(pages);
}

TEST_F(RegionFaultTest, ADaemonOfProtocol2IsSpokenToInItsVersion) {
  daemon_->With([](FakeRegionDaemon::Manners& m) { return m.version = 2; });
  Connect();  // the fake checks the version of every message
  terrace_pages* pages = Memory().Register(client_);
  EXPECT_NE(Why(pages, TERRACE_COPIER_LIBRARY).find("protocol 2"), std::string::npos);
  terrace_pages_free(pages);
}

// The daemon may still write to the pages: the operation must not end before its end of the
// connection does.
TEST_F(RegionFaultTest, AHangingDaemonIsFencedAndItsOperationsEndWhenThatIsCertain) {
  Connect(/*request_timeout_ms=*/200, /*load_timeout_ms=*/100);
  terrace_pages* pages = Memory().Register(client_);
  daemon_->With([](FakeRegionDaemon::Manners& m) {
    m.answer_requests = m.answer_pings = false;
    return 0;
  });
  terrace_op* load = Load(pages, ChainKeys(11, 1), {5});
  terrace_op* store = Store(pages, ChainKeys(12, 1), {6});
  WaitRequest(1);
  ASSERT_TRUE(Eventually([&] { return daemon_->half_closed() == 1; }));
  EXPECT_EQ(Why(pages, TERRACE_COPIER_LIBRARY), "the daemon hangs: it has not answered in time");
  EXPECT_EQ(terrace_op_wait(load, 50'000), TERRACE_DEADLINE_EXCEEDED);
  EXPECT_EQ(terrace_op_sources_read(store), 0);
  bool freed = false;
  std::thread freeing([&] {
    terrace_op_free(load);
    __atomic_store_n(&freed, true, __ATOMIC_RELEASE);
  });
  EXPECT_EQ(terrace_op_wait(store, 50'000), TERRACE_DEADLINE_EXCEEDED);
  EXPECT_FALSE(__atomic_load_n(&freed, __ATOMIC_ACQUIRE));
  daemon_->With([](FakeRegionDaemon::Manners& m) {
    m.answer_requests = m.answer_pings = true;
    return 0;
  });
  daemon_->CloseHalfClosed();
  freeing.join();
  EXPECT_EQ(Finish(store, TERRACE_DATA_LOSS), std::vector<uint8_t>{TERRACE_REASON_UNAVAILABLE});
  // And anew.
  EXPECT_TRUE(
      Eventually([&] { return terrace_pages_copier(pages, nullptr) == TERRACE_COPIER_DAEMON; }));
  EXPECT_EQ(Finish(Store(pages, ChainKeys(13, 1), {5})), std::vector<uint8_t>{TERRACE_REASON_NONE});
  terrace_pages_free(pages);
}

TEST_F(RegionFaultTest, ASlowDaemonThatAnswersPingsIsWaitedFor) {
  Connect(/*request_timeout_ms=*/100, /*load_timeout_ms=*/100);
  terrace_pages* pages = Memory().Register(client_);
  HoldRequests();
  terrace_op* op = Store(pages, ChainKeys(14, 1), {5});
  const FakeRequest request = WaitRequest();
  EXPECT_EQ(terrace_op_wait(op, 5 * kSecondUs),
            TERRACE_DEADLINE_EXCEEDED);  // longer than its patience with a hang
  EXPECT_EQ(daemon_->half_closed(), 0);
  daemon_->Answer(request);
  EXPECT_EQ(Finish(op), std::vector<uint8_t>{TERRACE_REASON_NONE});
  terrace_pages_free(pages);
}

TEST_F(RegionFaultTest, OperationsEndWithTheDaemonAndRegionsAreOpenedAtTheNext) {
  Connect();
  terrace_pages* pages = Memory().Register(client_);
  HoldRequests();
  terrace_op* load = Load(pages, ChainKeys(15, 1), {5});
  WaitRequest();
  daemon_.reset();
  EXPECT_EQ(Finish(load, TERRACE_DATA_LOSS), std::vector<uint8_t>{TERRACE_REASON_UNAVAILABLE});
  EXPECT_NE(Why(pages, TERRACE_COPIER_LIBRARY), "");
  daemon_ = std::make_unique<FakeRegionDaemon>(folder_, 2);
  EXPECT_TRUE(
      Eventually([&] { return terrace_pages_copier(pages, nullptr) == TERRACE_COPIER_DAEMON; }));
  const std::vector<uint8_t> keys = ChainKeys(16, 1);
  EXPECT_EQ(Finish(Store(pages, keys, {5})), std::vector<uint8_t>{TERRACE_REASON_NONE});
  EXPECT_EQ(daemon_->Get(keys.data()), Memory().Get(5));
  terrace_pages_free(pages);
}

TEST_F(RegionFaultTest, CloseEndsWhatIsUnderWay) {
  Connect();
  terrace_pages* pages = Memory().Register(client_);
  HoldRequests();
  terrace_op* op = Store(pages, ChainKeys(17, 1), {5});
  WaitRequest();
  std::thread closing([this] { terrace_close(client_); });
  ASSERT_TRUE(Eventually([&] { return daemon_->half_closed() == 1; }));
  EXPECT_EQ(terrace_op_done(op), 0);
  daemon_->CloseHalfClosed();
  closing.join();
  client_ = nullptr;
  EXPECT_EQ(Finish(op, TERRACE_DATA_LOSS), std::vector<uint8_t>{TERRACE_REASON_CANCELLED});
  terrace_pages_free(pages);
}

TEST_F(RegionFaultTest, RefusesMemoryThatIsNotWhatItSays) {
  Connect();
  const SharedPages& good = Memory();
  terrace_pages* pages = nullptr;
  const auto attempt = [&](std::vector<terrace_shared_memory> memory,
                           std::vector<terrace_plane> planes) {
    EXPECT_EQ(terrace_shared_pages_register(client_, memory.data(),
                                            static_cast<uint32_t>(memory.size()), planes.data(),
                                            static_cast<uint32_t>(planes.size()), 5000, &pages),
              TERRACE_INVALID_ARGUMENT);
    return std::string(terrace_error_text());
  };
  std::vector<terrace_plane> planes = good.planes();
  planes[1].stride += 1;
  EXPECT_NE(attempt(good.memory(), planes).find("planes[1]"), std::string::npos);
  std::vector<terrace_shared_memory> memory = good.memory();
  memory[0].bytes += 1;
  EXPECT_NE(attempt(memory, good.planes()).find("memory[0].bytes"), std::string::npos);
  memory = good.memory();
  memory[1].fd = 9999;
  EXPECT_NE(attempt(memory, good.planes()).find("memory[1].fd"), std::string::npos);
  memory[1].fd = memfd_create("unsealed", MFD_CLOEXEC);
  ASSERT_EQ(ftruncate(memory[1].fd, static_cast<off_t>(memory[1].bytes)), 0);
  EXPECT_NE(attempt(memory, good.planes()).find("sealed"), std::string::npos);
  close(memory[1].fd);
  EXPECT_NE(attempt({good.memory()[0]}, good.planes()).find("lies in none"), std::string::npos);
}

}  // namespace
}  // namespace terrace::api
