// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Clients in processes of their own: a C program that ends without closing anything, and one that is
// killed while it holds leases.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/client_fixture.h"

namespace terrace::api {
namespace {

// A running client_probe with a pipe from its output and one to its input.
class Probe {
 public:
  Probe(const std::string& socket, const char* mode) {
    EXPECT_EQ(pipe2(output_, O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(input_, O_CLOEXEC), 0);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(input_[0], STDIN_FILENO);
      dup2(output_[1], STDOUT_FILENO);
      execl(TERRACE_CLIENT_PROBE, "client_probe", socket.c_str(), mode, nullptr);
      _exit(127);
    }
    close(output_[1]);
    close(input_[0]);
  }
  ~Probe() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    close(output_[0]);
    close(input_[1]);
  }
  std::string ReadLine() {
    std::string line;
    for (char c; read(output_[0], &c, 1) == 1 && c != '\n';) line += c;
    return line;
  }
  void Kill() { kill(pid_, SIGKILL); }
  int Wait() {
    int status = -1;
    EXPECT_EQ(waitpid(pid_, &status, 0), pid_);
    pid_ = -1;
    return status;
  }

 private:
  int output_[2] = {-1, -1}, input_[2] = {-1, -1};
  pid_t pid_ = -1;
};

TEST_F(ClientTest, ACProgramMayEndWithAStoreUnderWayAndNothingClosed) {
  StartDaemon(1);
  for (int round = 0; round < 10; ++round) {
    Probe probe(Options().socket_path, "exit");
    const int status = probe.Wait();
    EXPECT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
    EXPECT_EQ(WEXITSTATUS(status), 0);
  }
  EXPECT_TRUE(Eventually([&] { return daemon_->server().Connections().empty(); }));
}

// A busy machine may make one end an exception, so several are tried.
TEST_F(ClientTest, AKilledClientHoldsNothingASecondLater) {
  StartDaemon(1);
  auto took = std::chrono::steady_clock::duration::max();
  for (int attempt = 0; attempt < 10 && took >= std::chrono::seconds(1); ++attempt) {
    Probe probe(Options().socket_path, "hold");
    ASSERT_EQ(probe.ReadLine(), "holding");
    EXPECT_EQ(daemon_->stack().Stats().leases, 1u);
    const auto killed = std::chrono::steady_clock::now();
    probe.Kill();
    EXPECT_TRUE(WIFSIGNALED(probe.Wait()));
    EXPECT_TRUE(Eventually([&] {
      return daemon_->stack().Stats().leases == 0 && daemon_->server().Connections().empty();
    }));
    took = std::chrono::steady_clock::now() - killed;
  }
  EXPECT_LT(took, std::chrono::seconds(1));
}

TEST_F(ClientTest, AStoppedClientWhoseLeaseEndedGetsStaleNeverOtherBytes) {
  // The lease's end and the frame's next use, without a stopped process: release, flush, fill again.
  StartDaemon(1, 64ull << 20);
  terrace_client* client = Connect();
  terrace_keyspace* keyspace = Open(client, 1 << 20);
  const std::vector<uint8_t> keys = ChainKeys(1, 4);
  Store(client, keyspace, keys, 1 << 20);
  const Found found = Lookup(client, keyspace, keys);
  ASSERT_EQ(found.n_prefix, 4u);
  const void* view = nullptr;
  ASSERT_EQ(terrace_view(client, keyspace, &found.refs[0], keys.data(), &view, nullptr, nullptr),
            TERRACE_OK);
  EXPECT_EQ(terrace_view_valid(client, &found.refs[0]), 1);
  ASSERT_EQ(terrace_release_sync(client, found.lease), TERRACE_OK);
  // More than fits: every frame is used again.
  const std::vector<uint8_t> others = ChainKeys(2, 120);
  Store(client, keyspace, others, 1 << 20);
  std::vector<std::vector<std::byte>> payloads;
  const std::vector<uint8_t> reasons = Load(client, keyspace, found.refs, keys, &payloads, 1 << 20);
  uint32_t stale = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    stale += reasons[i] == TERRACE_REASON_STALE ? 1 : 0;
    if (reasons[i] == TERRACE_REASON_NONE) {
      EXPECT_EQ(payloads[i], PayloadOf(&keys[i * 32], 1 << 20));
    }
  }
  EXPECT_EQ(stale, 4u);
  EXPECT_EQ(terrace_view_valid(client, &found.refs[0]), 0);
  terrace_keyspace_free(keyspace);
}

}  // namespace
}  // namespace terrace::api
