// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "bench_daemon.h"

#include <fstream>
#include <sstream>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "cache_client.h"
#include "kvstore/base/status_macros.h"

namespace terrace::bench {

absl::StatusOr<std::unique_ptr<BenchDaemon>> BenchDaemon::Start(const Options& options) {
  auto daemon = absl::WrapUnique(new BenchDaemon());
  if (!options.socket.empty()) {
    daemon->socket_ = options.socket;
    return daemon;
  }
  const std::string& directory = daemon->directory_.path();
  daemon->socket_ = directory + "/engine.sock";
  ChildProcess::Options process;
  process.arguments = {options.terraced.empty() ? BesideSelf("terraced") : options.terraced};
  for (const std::string& setting :
       {absl::StrCat("run_dir=", directory), absl::StrCat("host.budget=", options.budget),
        std::string("http.listen="), absl::StrCat("engine.socket=", daemon->socket_),
        absl::StrCat("grpc.socket=", directory, "/grpc.sock"), std::string("log.level=warning")}) {
    process.arguments.push_back("--set");
    process.arguments.push_back(setting);
  }
  process.log_path = directory + "/terraced.log";
  process.pipes = false;
  ASSIGN_OR_RETURN(ChildProcess child, ChildProcess::Start(process));
  daemon->process_.emplace(std::move(child));
  const absl::StatusOr<std::unique_ptr<CacheClient>> client = CacheClient::Connect(daemon->socket_);
  if (!client.ok()) {
    std::ostringstream log;
    log << std::ifstream(process.log_path).rdbuf();
    return absl::UnavailableError(absl::StrCat(process.arguments[0], " did not start: ", client.status().message(),
                                               "\n", log.str()));
  }
  return daemon;
}

}  // namespace terrace::bench
