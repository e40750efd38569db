// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// NcclLink between two processes: this one and nccl_peer. On softcuda and softnccl with every fault; with
// TERRACE_TEST_DRIVER on a real GPU and the real NCCL, which refuses two ranks on one GPU: each then gets a host
// identity of its own (NCCL_HOSTID), so that NCCL goes over the loopback network.
#include "gpu/nccl_link.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gpu/nccl_rig.h"
#include "gpu/softcuda/control.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/mutex.h"

extern char** environ;

namespace terrace::gpu {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kSecond = 1'000'000'000;
// Far more than any fault's deadline here: whoever waits for this has hung.
constexpr auto kForEver = std::chrono::seconds(60);

// Copies of softcuda are slow under sanitizers.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define SLOW_BUILD 1
#endif
#endif
#ifdef SLOW_BUILD
constexpr uint64_t kBatches = 3;
#else
constexpr uint64_t kBatches = 40;
#endif

std::string TestNccl() {
  const char* const library = std::getenv("TERRACE_TEST_NCCL");
  if (library != nullptr) return library;
  return OnRealDriver() ? "libnccl.so.2" : SOFTNCCL_LIBRARY;
}

// Rank 1. Ends with this object.
class Peer {
 public:
  Peer(const NcclUniqueId& id, const LinkPlan& plan, const std::string& end, const std::string& fault = "") {
    std::string hex;
    for (const std::byte byte : id) {
      hex += "0123456789abcdef"[static_cast<int>(byte) >> 4];
      hex += "0123456789abcdef"[static_cast<int>(byte) & 15];
    }
    const std::string memory = plan.memory == LinkMemory::kHost     ? "host"
                               : plan.memory == LinkMemory::kPinned ? "pinned"
                                                                    : "device";
    std::vector<std::string> words = {NCCL_PEER, TestDriver(), TestNccl(), hex, memory,
                                      std::to_string(plan.batches), std::to_string(plan.frames),
                                      plan.both_ways ? "1" : "0", end};
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    std::vector<std::string> settings;
    for (char** setting = environ; *setting != nullptr; ++setting) {
      const std::string text = *setting;
      if (text.rfind("SOFTNCCL_FAULT=", 0) != 0 && text.rfind("NCCL_HOSTID=", 0) != 0) settings.push_back(text);
    }
    settings.push_back("SOFTNCCL_FAULT=" + fault);
    settings.push_back("NCCL_HOSTID=terrace-test-1");
    std::vector<char*> environment;
    for (std::string& setting : settings) environment.push_back(setting.data());
    environment.push_back(nullptr);
    int ends[2];
    EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[0], STDIN_FILENO);
    EXPECT_EQ(posix_spawn(&pid_, NCCL_PEER, &actions, nullptr, arguments.data(), environment.data()), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[0]);
    input_ = ends[1];
  }
  ~Peer() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    close(input_);
  }
  Peer(const Peer&) = delete;

  // Lets it end: its exit status, 128 + signal where it was killed.
  int Join() {
    close(input_);
    input_ = -1;
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  }

 private:
  pid_t pid_ = -1;
  int input_ = -1;
};

class NcclLinkTest : public ::testing::Test {
 protected:
  void SetUp() override {
    setenv("NCCL_HOSTID", "terrace-test-0", 1);
    options_.driver = TestDriver();
    options_.library = TestNccl();
    options_.stall_deadline_ns = 2 * kSecond;  // on a busy machine a thread may be put aside for long
    if (OnRealDriver()) {
      options_.stall_deadline_ns = 20 * kSecond;
      setenv("NCCL_SOCKET_IFNAME", "lo", 0);
      std::string why;
      if (Driver::Load(options_.driver, &why) == nullptr) GTEST_SKIP() << why;
      const absl::StatusOr<NcclUniqueId> id = NcclLink::MakeUniqueId(options_);
      if (!id.ok()) GTEST_SKIP() << id.status();
    } else {
      soft_ = std::make_unique<Softcuda>();
      library_ = dlopen(options_.library.c_str(), RTLD_NOW);
      ASSERT_NE(library_, nullptr) << dlerror();
      for (size_t i = 0; i < 3; ++i) alive_[i] = soft_->Counter(kAlive[i]);
    }
  }
  void TearDown() override {
    link_.reset();
    rig_.reset();
    if (soft_ == nullptr) return;
    Fault("");
    if (leaks_) return;
    for (size_t i = 0; i < 3; ++i) EXPECT_LE(soft_->Counter(kAlive[i]), alive_[i]) << kAlive[i];
  }
  // Of this process's softnccl.
  void Fault(const char* faults) {
    reinterpret_cast<void (*)(const char*)>(dlsym(library_, "softnccl_fault"))(faults);
  }
  void NeedsFaults() {
    if (OnRealDriver()) GTEST_SKIP() << "a fault that only softnccl can be asked for";
  }
  void Open(const LinkPlan& plan) {
    plan_ = plan;
    rig_ = std::make_unique<LinkRig>(options_.driver, plan);
    const absl::StatusOr<NcclUniqueId> id = NcclLink::MakeUniqueId(options_);
    ASSERT_TRUE(id.ok()) << id.status();
    id_ = *id;
    auto link = NcclLink::Open(options_, id_, 0);
    ASSERT_TRUE(link.ok()) << link.status();
    link_ = *std::move(link);
  }
  // How one batch of the plan ends.
  struct Ended {
    absl::Status status = absl::InternalError("did not end");
    LinkBatch batch;
  };
  Ended RunOne(uint64_t number, std::function<void(LinkBatch&)> change = nullptr) {
    LinkRig::Made made = rig_->MakeBatch(number);
    if (change) change(made.batch);
    Ended ended;
    Mutex mu;
    CondVar changed;
    bool is_done = false;
    made.batch.done = [&](LinkBatch& batch, const absl::Status& status) {
      const MutexLock lock(&mu);
      ended.batch.frames = batch.frames;
      ended.batch.frames_lost = batch.frames_lost;
      ended.status = status;
      is_done = true;
      changed.SignalAll();
    };
    const absl::Status submitted = link_->Submit(made.batch);
    if (submitted.ok()) {
      MutexLock lock(&mu);
      const auto limit = std::chrono::steady_clock::now() + kForEver;
      while (!is_done && std::chrono::steady_clock::now() < limit) changed.WaitFor(&mu, std::chrono::seconds(1));
      if (!is_done) ADD_FAILURE() << "the batch hangs";
    } else {
      ended.status = submitted;
    }
    static auto& lost = *new std::vector<std::vector<std::byte*>>;  // may still be touched: stays for ever
    if (ended.batch.frames_lost) {
      lost.push_back(made.memory);
    } else {
      rig_->Free(made.memory);
    }
    return ended;
  }
  void WaitForState(LinkState state) {
    const auto limit = std::chrono::steady_clock::now() + kForEver;
    while (link_->state() != state && std::chrono::steady_clock::now() < limit) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));  // poll
    }
    EXPECT_EQ(link_->state(), state) << link_->health();
  }

  NcclLinkOptions options_;
  std::unique_ptr<Softcuda> soft_;
  void* library_ = nullptr;
  LinkPlan plan_;
  NcclUniqueId id_{};
  std::unique_ptr<LinkRig> rig_;
  std::unique_ptr<NcclLink> link_;
  // What a thread that was left behind by another test holds may still be there.
  static constexpr const char* kAlive[3] = {"live_bytes", "live_streams", "live_events"};
  uint64_t alive_[3] = {};
  bool leaks_ = false;  // a thread is left behind
};

class NcclLinkMemoryTest : public NcclLinkTest, public ::testing::WithParamInterface<LinkMemory> {};

TEST_P(NcclLinkMemoryTest, ExchangesThousandsOfBlocks) {
  const LinkPlan plan{.memory = GetParam(), .batches = kBatches, .frames = 64};
  Open(plan);
  Peer peer(id_, plan, "stay");
  EXPECT_EQ(rig_->RunAll(*link_, 4), absl::OkStatus());
  EXPECT_EQ(peer.Join(), 0);
  const NcclLinkStats stats = link_->Stats();
  EXPECT_EQ(stats.batches, plan.batches);
  EXPECT_EQ(stats.damaged_frames, 0u);
  uint64_t received = 0, sent = 0;
  for (uint64_t i = 0; i < plan.frames; ++i) (rig_->Receives(i) ? received : sent) += plan.batches * LinkRig::Length(i);
  EXPECT_EQ(stats.received_bytes, received);
  EXPECT_EQ(stats.sent_bytes, sent);
}

TEST_P(NcclLinkMemoryTest, ReceivesOneWay) {
  const LinkPlan plan{.memory = GetParam(), .batches = kBatches / 3, .frames = 150, .both_ways = false};
  Open(plan);
  Peer peer(id_, plan, "stay");
  EXPECT_EQ(rig_->RunAll(*link_, 1), absl::OkStatus());
  EXPECT_EQ(peer.Join(), 0);
}

TEST_P(NcclLinkMemoryTest, BytesOfAnotherIdentityAreNotIntact) {
  const LinkPlan plan{.memory = GetParam(), .frames = 32, .both_ways = false};
  Open(plan);
  Peer peer(id_, plan, "stay");
  const Ended ended = RunOne(0, [](LinkBatch& batch) {
    batch.frames[3].identity_seed ^= 1;
    batch.frames[7].checksums.back() ^= 1;
    batch.frames[31].checksums.front() ^= 1;
  });
  ASSERT_EQ(ended.status, absl::OkStatus());
  for (size_t i = 0; i < plan.frames; ++i) {
    EXPECT_EQ(ended.batch.frames[i].intact, i != 3 && i != 7 && i != 31) << i;
  }
  EXPECT_EQ(link_->Stats().damaged_frames, 3u);
  EXPECT_EQ(peer.Join(), 0);
}

TEST_P(NcclLinkMemoryTest, WrongBitIsFound) {
  NeedsFaults();
  if (IsSkipped()) return;
  const LinkPlan plan{.memory = GetParam(), .frames = 16, .both_ways = false};
  Open(plan);
  Fault("flips=6");
  Peer peer(id_, plan, "stay");
  const Ended ended = RunOne(0);
  ASSERT_EQ(ended.status, absl::OkStatus());
  for (size_t i = 0; i < plan.frames; ++i) EXPECT_EQ(ended.batch.frames[i].intact, i != 5) << i;
}

INSTANTIATE_TEST_SUITE_P(Memory, NcclLinkMemoryTest,
                         ::testing::Values(LinkMemory::kHost, LinkMemory::kPinned, LinkMemory::kDevice),
                         [](const auto& info) {
                           return info.param == LinkMemory::kHost     ? "Host"
                                  : info.param == LinkMemory::kPinned ? "Pinned"
                                                                      : "Device";
                         });

TEST_F(NcclLinkTest, PeerThatNeverComes) {
  Open({.deadline_ns = kSecond / 5});
  const Ended ended = RunOne(0);
  EXPECT_TRUE(absl::IsDeadlineExceeded(ended.status)) << ended.status;
  EXPECT_FALSE(ended.batch.frames_lost);
  WaitForState(LinkState::kDown);
  EXPECT_TRUE(absl::IsUnavailable(RunOne(1).status));
}

TEST_F(NcclLinkTest, ConnectingHasAnEndOfItsOwn) {
  options_.connect_deadline_ns = kSecond / 5;
  Open({});
  WaitForState(LinkState::kDown);
  EXPECT_TRUE(absl::IsDeadlineExceeded(link_->health())) << link_->health();
}

TEST_F(NcclLinkTest, ClosesWhileItConnects) {
  Open({});
  EXPECT_EQ(link_->state(), LinkState::kConnecting);
  link_.reset();
}

TEST_F(NcclLinkTest, InitialisationThatFails) {
  NeedsFaults();
  if (IsSkipped()) return;
  Fault("init_fails");
  Open({});
  const Ended ended = RunOne(0);
  EXPECT_TRUE(absl::IsUnavailable(ended.status)) << ended.status;
  EXPECT_THAT(std::string(link_->health().message()), HasSubstr("unhandled system error"));
}

TEST_F(NcclLinkTest, PeerThatDiesInMidTransfer) {
  NeedsFaults();
  if (IsSkipped()) return;
  const LinkPlan plan{.batches = 10, .frames = 64};
  Open(plan);
  Peer peer(id_, plan, "stay", "dies_after=4");
  const absl::Status status = rig_->RunAll(*link_, 4);
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;  // noticed, long before the deadline
  EXPECT_THAT(std::string(status.message()), HasSubstr("remote process exited"));
  EXPECT_EQ(peer.Join(), 128 + SIGKILL);
}

TEST_F(NcclLinkTest, PeerThatDiesUnnoticed) {
  NeedsFaults();
  if (IsSkipped()) return;
  Fault("silent");
  const LinkPlan plan{.memory = LinkMemory::kDevice, .batches = 1, .frames = 16};
  Open(plan);
  Peer peer(id_, plan, "kill");
  EXPECT_EQ(RunOne(0).status, absl::OkStatus());
  EXPECT_EQ(peer.Join(), 128 + SIGKILL);
  const Ended ended = RunOne(1, [](LinkBatch& batch) { batch.deadline_ns = Clock::Real()->NowNs() + kSecond / 4; });
  EXPECT_TRUE(absl::IsDeadlineExceeded(ended.status)) << ended.status;
  EXPECT_FALSE(ended.batch.frames_lost);
}

TEST_F(NcclLinkTest, PeerThatDiesBetweenBatches) {
  const LinkPlan plan{.batches = 1, .frames = 16};
  Open(plan);
  Peer peer(id_, plan, "kill");
  ASSERT_EQ(RunOne(0).status, absl::OkStatus());
  const int64_t limit_ns = OnRealDriver() ? 10 * kSecond : 2 * kSecond;
  const Ended ended =
      RunOne(1, [&](LinkBatch& batch) { batch.deadline_ns = Clock::Real()->NowNs() + limit_ns; });
  EXPECT_TRUE(absl::IsUnavailable(ended.status) || absl::IsDeadlineExceeded(ended.status)) << ended.status;
  EXPECT_FALSE(ended.batch.frames_lost);
}

TEST_F(NcclLinkTest, PeerThatHangs) {
  const LinkPlan plan{.batches = 1, .frames = 16};
  Open(plan);
  Peer peer(id_, plan, "freeze");
  ASSERT_EQ(RunOne(0).status, absl::OkStatus());
  const int64_t limit_ns = OnRealDriver() ? 5 * kSecond : kSecond / 4;
  const Ended ended =
      RunOne(1, [&](LinkBatch& batch) { batch.deadline_ns = Clock::Real()->NowNs() + limit_ns; });
  EXPECT_TRUE(absl::IsDeadlineExceeded(ended.status)) << ended.status;
  EXPECT_FALSE(ended.batch.frames_lost);
  for (const LinkFrame& frame : ended.batch.frames) EXPECT_FALSE(frame.intact);
}

TEST_F(NcclLinkTest, OneThatMissesItsDeadlineEndsAll) {
  Open({});
  std::atomic<int> deadline_exceeded{0}, unavailable{0};
  std::vector<LinkRig::Made> batches;
  for (uint64_t i = 0; i < 3; ++i) batches.push_back(rig_->MakeBatch(i));
  for (size_t i = 0; i < 3; ++i) {
    LinkBatch& batch = batches[i].batch;
    batch.deadline_ns = Clock::Real()->NowNs() + (i == 1 ? kSecond / 4 : 600 * kSecond);
    batch.done = [&](LinkBatch&, const absl::Status& status) {
      deadline_exceeded += absl::IsDeadlineExceeded(status) ? 1 : 0;
      unavailable += absl::IsUnavailable(status) ? 1 : 0;
    };
    ASSERT_EQ(link_->Submit(batch), absl::OkStatus());
  }
  WaitForState(LinkState::kDown);
  link_.reset();
  EXPECT_EQ(deadline_exceeded, 1);
  EXPECT_EQ(unavailable, 2);
  for (const LinkRig::Made& made : batches) rig_->Free(made.memory);
}

TEST_F(NcclLinkTest, ClosingEndsWhatRuns) {
  const LinkPlan plan{.batches = 1, .frames = 16};
  Open(plan);
  Peer peer(id_, plan, "freeze");
  ASSERT_EQ(RunOne(0).status, absl::OkStatus());
  LinkRig::Made made = rig_->MakeBatch(1);
  absl::Status ended;
  made.batch.done = [&](LinkBatch& batch, const absl::Status& status) {
    ended = status;
    EXPECT_FALSE(batch.frames_lost);
  };
  ASSERT_EQ(link_->Submit(made.batch), absl::OkStatus());
  link_.reset();
  EXPECT_TRUE(absl::IsCancelled(ended)) << ended;
  rig_->Free(made.memory);
}

// What cannot be ended is left behind: nobody waits for it, and nobody uses its frames again.
TEST_F(NcclLinkTest, AbortThatDoesNotReturn) {
  NeedsFaults();
  if (IsSkipped()) return;
  leaks_ = true;
  const LinkPlan plan{.batches = 1, .frames = 4};
  Open(plan);
  Peer peer(id_, plan, "freeze");
  ASSERT_EQ(RunOne(0).status, absl::OkStatus());
  Fault("abort_hangs");
  const Ended ended = RunOne(1, [](LinkBatch& batch) { batch.deadline_ns = Clock::Real()->NowNs() + kSecond / 4; });
  EXPECT_FALSE(ended.status.ok());
  EXPECT_TRUE(ended.batch.frames_lost);
  EXPECT_THAT(std::string(ended.status.message()), HasSubstr("ncclCommAbort does not return"));
  link_.reset();
}

TEST_F(NcclLinkTest, CallThatDoesNotReturn) {
  NeedsFaults();
  if (IsSkipped()) return;
  leaks_ = true;
  const LinkPlan plan{.batches = 1, .frames = 4};
  Open(plan);
  Peer peer(id_, plan, "stay");
  WaitForState(LinkState::kUp);
  Fault("group_hangs");
  const Ended ended = RunOne(0);
  EXPECT_TRUE(absl::IsUnavailable(ended.status)) << ended.status;
  EXPECT_TRUE(ended.batch.frames_lost);
  EXPECT_THAT(std::string(link_->health().message()), HasSubstr("ncclGroupEnd does not return"));
  link_.reset();
}

TEST_F(NcclLinkTest, GpuThatBreaks) {
  NeedsFaults();
  if (IsSkipped()) return;
  leaks_ = true;  // as the driver does
  const LinkPlan plan{.batches = 1, .frames = 4};
  Open(plan);
  Peer peer(id_, plan, "stay");
  WaitForState(LinkState::kUp);
  soft_->BreakDevice(0, CUDA_ERROR_ECC_UNCORRECTABLE);
  LinkBatch batch;
  std::vector<std::byte> memory(4096);
  batch.frames.push_back({.data = memory.data(), .bytes = memory.size()});
  batch.deadline_ns = Clock::Real()->NowNs() + 600 * kSecond;
  std::atomic<bool> ended{false};
  batch.done = [&](LinkBatch&, const absl::Status& status) {
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    ended = true;
  };
  if (link_->Submit(batch).ok()) WaitForState(LinkState::kDown);
  link_.reset();
  soft_->BreakDevice(0, 0);
}

TEST_F(NcclLinkTest, RefusesWhatItCannotDo) {
  options_.queue_depth = 2;
  Open({});
  LinkRig::Made made = rig_->MakeBatch(0);
  LinkBatch empty;
  empty.done = [](LinkBatch&, const absl::Status&) { FAIL(); };
  EXPECT_TRUE(absl::IsInvalidArgument(link_->Submit(empty)));
  LinkBatch& batch = made.batch;
  EXPECT_TRUE(absl::IsInvalidArgument(link_->Submit(batch))) << "without done";
  std::atomic<int> ends{0};
  const auto done = [&](LinkBatch&, const absl::Status&) { ++ends; };
  batch.done = done;
  for (LinkFrame& frame : batch.frames) {
    if (!frame.receive) continue;
    frame.checksums.push_back(1);
    EXPECT_TRUE(absl::IsInvalidArgument(link_->Submit(batch)));
    frame.checksums.pop_back();
  }
  const uint64_t bytes = batch.frames[0].bytes;
  batch.frames[0].bytes = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(link_->Submit(batch)));
  batch.frames[0].bytes = bytes;
  EXPECT_EQ(batch.frames.size(), plan_.frames) << "left as it was";
  for (int i = 0; i < 2; ++i) {
    LinkRig::Made another = rig_->MakeBatch(1);
    rig_->Free(another.memory);  // nobody comes: it is never touched
    another.batch.done = done;
    EXPECT_EQ(link_->Submit(another.batch), absl::OkStatus());
  }
  EXPECT_TRUE(absl::IsResourceExhausted(link_->Submit(batch)));
  link_.reset();
  EXPECT_EQ(ends, 2);
  rig_->Free(made.memory);
}

TEST_F(NcclLinkTest, SaysWhatIsMissing) {
  NcclLinkOptions options = options_;
  options.library = "/nowhere/libnccl.so.2";
  EXPECT_THAT(NcclLink::MakeUniqueId(options).status().ToString(), HasSubstr("install libnccl2"));
  EXPECT_TRUE(absl::IsUnavailable(NcclLink::Open(options, {}, 0).status()));
  options = options_;
  options.driver = "/nowhere/libcuda.so.1";
  EXPECT_THAT(NcclLink::Open(options, {}, 0).status().ToString(), HasSubstr("no NVIDIA driver"));
  options = options_;
  options.device.fill(std::byte{1});
  EXPECT_THAT(NcclLink::Open(options, {}, 0).status().ToString(), HasSubstr("not visible"));
  EXPECT_TRUE(absl::IsInvalidArgument(NcclLink::Open(options_, {}, 2).status()));
}

TEST_F(NcclLinkTest, RefusesAnOldLibrary) {
  NeedsFaults();
  if (IsSkipped()) return;
  Fault("version=21703");
  EXPECT_THAT(NcclLink::Open(options_, {}, 0).status().ToString(), HasSubstr("2.17.3; 2.18.0 or later is needed"));
}

}  // namespace
}  // namespace terrace::gpu
