// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// clients_4: client processes that load at once, one against four; beside them four that only memcpy.
#include <cstdio>
#include <cstring>
#include <iostream>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cache_client.h"
#include "cases.h"
#include "kvstore/base/status_macros.h"
#include "machine.h"
#include "payload.h"
#include "process.h"
#include "stopwatch.h"

namespace terrace::bench {
namespace {

constexpr size_t kBlocks = 16;
constexpr size_t kBlockBytes = 2 << 20;
constexpr uint64_t kSeed = 4;
constexpr int kClients = 4;

// Child: one command a line on standard input, "SECONDS"; answers "BYTES SECONDS" after each.
absl::Status Work(const std::string& socket, bool plain_copy) {
  ASSIGN_OR_RETURN(const auto client, CacheClient::Connect(socket));
  ASSIGN_OR_RETURN(terrace_keyspace * key_space, client->OpenKeySpace("clients", kBlockBytes));
  const std::vector<uint8_t> keys = MakeKeys(kSeed, kBlocks);
  ASSIGN_OR_RETURN(const auto pages, BlockPages::Make(client->handle(), kBlocks, kBlockBytes));
  const Memory source(plain_copy ? kBlocks * kBlockBytes : 4096);
  absl::StatusOr<Chain> found = client->Lookup(key_space, keys);
  if (!found.ok()) {  // the first worker; those who only load need no staging memory
    RETURN_IF_ERROR(client->MakeResident(key_space, keys, *pages));
    found = client->Lookup(key_space, keys);
  }
  ASSIGN_OR_RETURN(const Chain chain, std::move(found));
  std::printf("ready\n");
  std::fflush(stdout);
  for (std::string line; std::getline(std::cin, line);) {
    double seconds = 0;
    if (!absl::SimpleAtod(line, &seconds)) return absl::InvalidArgumentError(line);
    const double begun = Seconds();
    double bytes = 0;
    while (Seconds() - begun < seconds) {
      if (plain_copy) {
        for (size_t i = 0; i < kBlocks; ++i) {
          std::memcpy(pages->block(i).data(), source.data() + i * kBlockBytes, kBlockBytes);
        }
      } else {
        RETURN_IF_ERROR(client->Load(key_space, chain, keys, *pages));
      }
      bytes += kBlocks * kBlockBytes;
    }
    std::printf("%.0f %.9f\n", bytes, Seconds() - begun);
    std::fflush(stdout);
  }
  if (!plain_copy && !pages->Holds(keys)) return absl::DataLossError("a load gave other bytes than were stored");
  return client->Release(chain);
}

// Lets the first n workers run at once; the sum of their rates in GB/s.
absl::StatusOr<double> RunWorkers(std::vector<ChildProcess>* workers, int n, double seconds) {
  for (int i = 0; i < n; ++i) RETURN_IF_ERROR((*workers)[static_cast<size_t>(i)].Write(absl::StrCat(seconds, "\n")));
  double rate = 0;
  for (int i = 0; i < n; ++i) {
    ASSIGN_OR_RETURN(const std::string line, (*workers)[static_cast<size_t>(i)].ReadLine(seconds + 30));
    double bytes = 0, took = 0;
    if (std::sscanf(line.c_str(), "%lf %lf", &bytes, &took) != 2) return absl::InternalError(line);
    rate += bytes / took / 1e9;
  }
  return rate;
}

absl::StatusOr<std::vector<ChildProcess>> StartWorkers(const std::string& socket, const char* command) {
  std::vector<ChildProcess> workers;
  for (int i = 0; i < kClients; ++i) {  // one after another: the first stores, the others find
    ASSIGN_OR_RETURN(ChildProcess worker, ChildProcess::StartSelf({command, socket}));
    ASSIGN_OR_RETURN(const std::string line, worker.ReadLine(30));
    if (line != "ready") return absl::InternalError(line);
    workers.push_back(std::move(worker));
  }
  return workers;
}

}  // namespace

int LoadWorkerMain(const std::string& socket, bool plain_copy) {
  const absl::Status status = Work(socket, plain_copy);
  if (status.ok()) return 0;
  std::fprintf(stderr, "terrace_bench: client process: %s\n", status.ToString().c_str());
  return 1;
}

absl::Status RunClients4(const CaseContext& context) {
  ASSIGN_OR_RETURN(std::vector<ChildProcess> loaders, StartWorkers(context.daemon->socket(), "child-load"));
  ASSIGN_OR_RETURN(std::vector<ChildProcess> copiers, StartWorkers(context.daemon->socket(), "child-memcpy"));
  Measurement m{.name = "clients_4",
                .what = "4 client processes load 16 x 2 MiB over and over, sum of their rates, against 1 client",
                .unit = "GB/s"};
  m.limit_name = "1 client";
  m.target = 1;
  std::vector<pid_t> children = {context.daemon->pid()};
  for (const ChildProcess& worker : loaders) children.push_back(worker.pid());
  for (const ChildProcess& worker : copiers) children.push_back(worker.pid());
  const OthersMeter meter(children);
  std::vector<double> memcpys;
  for (int round = 0; round < context.Rounds(7); ++round) {
    ASSIGN_OR_RETURN(const double one, RunWorkers(&loaders, 1, 0.5));
    ASSIGN_OR_RETURN(const double four, RunWorkers(&loaders, kClients, 0.5));
    ASSIGN_OR_RETURN(const double copies, RunWorkers(&copiers, kClients, 0.5));
    m.values.push_back(four);
    m.limits.push_back(one);
    memcpys.push_back(copies);
  }
  m.more = {{"memcpy_4_gbps", Median(memcpys)}, {"ratio_to_memcpy_4", Median(m.values) / Median(memcpys)}};
  const double others = meter.Cores();
  for (ChildProcess& worker : loaders) {
    worker.CloseInput();
    ASSIGN_OR_RETURN(const int code, worker.Wait(30));
    if (code != 0) return absl::DataLossError("a client process failed");
  }
  context.report->Add(m, others);
  return absl::OkStatus();
}

}  // namespace terrace::bench
