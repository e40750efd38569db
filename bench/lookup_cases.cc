// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// lookup_1 and lookup_1000.
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "api/engine/wire.h"
#include "cache_client.h"
#include "cases.h"
#include "kvstore/base/status_macros.h"
#include "machine.h"
#include "payload.h"
#include "process.h"
#include "redis_peer.h"
#include "stopwatch.h"

namespace terrace::bench {
namespace {

constexpr size_t kBlockBytes = 4096;  // a lookup moves no payload, so small blocks do

// What a lookup of one block sends and gets back; here both are 80 bytes.
constexpr size_t kAskBytes = sizeof(wire::Header) + sizeof(wire::Lookup) + wire::kKeyBytes;
constexpr size_t kAnswerBytes = sizeof(wire::Header) + sizeof(wire::LookupDone) + sizeof(wire::Ref);
static_assert(kAskBytes == kAnswerBytes);  // EchoMain answers with as much as it got

// Resident chain of n keys and the question for it.
struct Asked {
  std::vector<uint8_t> keys;
  std::vector<terrace_ref> refs;
  terrace_lookup_part part{};
};

absl::Status Prepare(const CacheClient& client, terrace_keyspace* key_space, uint64_t seed, size_t n, Asked* asked) {
  asked->keys = MakeKeys(seed, n);
  asked->refs.resize(n);
  asked->part.keyspace = key_space;
  asked->part.keys = asked->keys.data();
  asked->part.n_keys = static_cast<uint32_t>(n);
  asked->part.refs = asked->refs.data();
  ASSIGN_OR_RETURN(const auto pages, BlockPages::Make(client.handle(), n, kBlockBytes));
  return client.MakeResident(key_space, asked->keys, *pages);
}

// Lookup + lease + release. False if not all blocks were there.
bool AskOnce(terrace_client* client, Asked* asked) {
  return terrace_lookup(client, &asked->part, 1, 0, 0) == TERRACE_OK && asked->part.n_prefix == asked->part.n_keys &&
         terrace_release(client, asked->part.lease) == TERRACE_OK;
}

// Median seconds of n calls; negative if one failed.
template <typename Fn>
double MedianOf(int n, const Fn& fn) {
  std::vector<double> times(static_cast<size_t>(n));
  for (double& time : times) {
    bool good = false;
    time = TimeOf([&] { good = fn(); });
    if (!good) return -1;
  }
  return Median(times);
}

}  // namespace

int EchoMain(int fd) {
  char packet[kAskBytes];
  for (;;) {
    const ssize_t n = recv(fd, packet, sizeof(packet), 0);
    if (n <= 0) return n == 0 ? 0 : 1;
    if (send(fd, packet, static_cast<size_t>(n), MSG_NOSIGNAL) != n) return 1;
  }
}

absl::Status RunLookup1(const CaseContext& context) {
  ASSIGN_OR_RETURN(const auto client, CacheClient::Connect(context.daemon->socket()));
  ASSIGN_OR_RETURN(terrace_keyspace * key_space, client->OpenKeySpace("lookup", kBlockBytes));
  Asked asked;
  RETURN_IF_ERROR(Prepare(*client, key_space, 1, 1, &asked));

  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) != 0) {
    return absl::ResourceExhaustedError(absl::StrCat("socketpair: ", std::strerror(errno)));
  }
  absl::StatusOr<ChildProcess> echo = ChildProcess::StartSelf({"child-echo", absl::StrCat(ends[1])});
  close(ends[1]);
  if (!echo.ok()) {
    close(ends[0]);
    return echo.status();
  }
  const auto round_trip = [&] {
    char packet[kAskBytes] = {};
    return send(ends[0], packet, sizeof(packet), MSG_NOSIGNAL) == sizeof(packet) &&
           recv(ends[0], packet, sizeof(packet), 0) == sizeof(packet);
  };

  Measurement m{.name = "lookup_1",
                .what = "lookup + lease + release of 1 block, p50 of a round, against a bare round trip of 80 bytes",
                .unit = "us"};
  m.limit_name = "SOCK_SEQPACKET";
  m.lower_is_better = true;
  m.target = 2.0;
  m.aim = 1.2;
  const OthersMeter meter({context.daemon->pid(), echo->pid()});
  constexpr int kCalls = 2000;
  bool good = MedianOf(kCalls, [&] { return AskOnce(client->handle(), &asked); }) > 0 &&
              MedianOf(kCalls, round_trip) > 0;
  for (int round = 0; good && round < context.Rounds(15); ++round) {
    m.values.push_back(1e6 * MedianOf(kCalls, [&] { return AskOnce(client->handle(), &asked); }));
    m.limits.push_back(1e6 * MedianOf(kCalls, round_trip));
    good = m.values.back() > 0 && m.limits.back() > 0;
  }
  close(ends[0]);
  if (!good) return absl::InternalError("a lookup or a round trip failed");
  context.report->Add(m, meter.Cores());
  return absl::OkStatus();
}

absl::Status RunLookup1000(const CaseContext& context) {
  constexpr size_t kKeys = 1000;
  ASSIGN_OR_RETURN(const auto client, CacheClient::Connect(context.daemon->socket()));
  ASSIGN_OR_RETURN(terrace_keyspace * key_space, client->OpenKeySpace("lookup", kBlockBytes));
  Asked asked;
  RETURN_IF_ERROR(Prepare(*client, key_space, 2, kKeys, &asked));

  Measurement m{.name = "lookup_1000",
                .what = "lookup + lease + release of a 1,000-block chain, against EXISTS of the same 1,000 keys",
                .unit = "keys/s"};
  m.limit_name = "Redis EXISTS";
  m.target = 3;
  m.aim = 10;
  absl::StatusOr<std::unique_ptr<RedisPeer>> redis = RedisPeer::Start(context.options.redis);
  std::string request;
  std::vector<pid_t> children = {context.daemon->pid()};
  if (redis.ok()) {
    RETURN_IF_ERROR((*redis)->SetAll(asked.keys));
    request = RedisPeer::ExistsRequest(asked.keys);
    children.push_back((*redis)->pid());
  } else {
    m.note = absl::StrCat("no ratio: ", redis.status().message());
  }
  const OthersMeter meter(children);
  constexpr int kCalls = 200;
  for (int round = 0; round < context.Rounds(15) + 1; ++round) {
    const double ours = MedianOf(kCalls, [&] { return AskOnce(client->handle(), &asked); });
    double theirs = 1;
    if (redis.ok()) {
      theirs = MedianOf(kCalls, [&] {
        const absl::StatusOr<int64_t> count = (*redis)->Exists(request);
        return count.ok() && *count == kKeys;
      });
    }
    if (ours <= 0 || theirs <= 0) return absl::InternalError("a lookup or an EXISTS failed");
    if (round == 0) continue;  // warm-up
    m.values.push_back(kKeys / ours);
    if (redis.ok()) m.limits.push_back(kKeys / theirs);
  }
  context.report->Add(m, meter.Cores());
  return absl::OkStatus();
}

}  // namespace terrace::bench
