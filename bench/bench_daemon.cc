// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "bench_daemon.h"

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "cache_client.h"
#include "kvstore/base/status_macros.h"

namespace terrace::bench {

absl::StatusOr<std::unique_ptr<BenchDaemon>> BenchDaemon::Start(const Options& options,
                                                                std::vector<std::string> settings) {
  auto daemon = absl::WrapUnique(new BenchDaemon());
  if (!options.socket.empty()) {
    if (!settings.empty()) return absl::InvalidArgumentError("this case needs a daemon of its own, not --socket");
    daemon->socket_ = options.socket;
    return daemon;
  }
  const std::string& directory = daemon->directory_.path();
  daemon->socket_ = directory + "/engine.sock";
  settings.insert(settings.begin(),
                  {absl::StrCat("run_dir=", directory), absl::StrCat("host.budget=", options.budget),
                   "host.memory_dir=", "http.listen=", absl::StrCat("engine.socket=", daemon->socket_),
                   absl::StrCat("grpc.socket=", directory, "/grpc.sock"), "log.level=warning"});
  daemon->arguments_ = {options.terraced.empty() ? BesideSelf("terraced") : options.terraced};
  for (const std::string& setting : settings) {
    daemon->arguments_.push_back("--set");
    daemon->arguments_.push_back(setting);
  }
  RETURN_IF_ERROR(daemon->Launch());
  const absl::StatusOr<std::unique_ptr<CacheClient>> client = CacheClient::Connect(daemon->socket_);
  if (!client.ok()) {
    std::ostringstream log;
    log << std::ifstream(directory + "/terraced.log").rdbuf();
    return absl::UnavailableError(absl::StrCat(daemon->arguments_[0], " did not start: ", client.status().message(),
                                               "\n", log.str()));
  }
  return daemon;
}

absl::Status BenchDaemon::Launch() {
  ChildProcess::Options process;
  process.arguments = arguments_;
  process.log_path = directory_.path() + "/terraced.log";
  process.pipes = false;
  ASSIGN_OR_RETURN(ChildProcess child, ChildProcess::Start(process));
  process_.reset();
  process_.emplace(std::move(child));
  return absl::OkStatus();
}

void BenchDaemon::Kill() {
  kill(process_->pid(), SIGKILL);
  process_->Wait(30).status().IgnoreError();  // what it ends with is known
}

absl::StatusOr<double> BenchDaemon::StatusNumber(const std::string& section, const std::string& key) const {
  ASSIGN_OR_RETURN(ChildProcess status,
                   ChildProcess::Start({.arguments = {BesideSelf("terracectl"), "--socket",
                                                      directory_.path() + "/grpc.sock", "-o", "json", "status"}}));
  std::string text;
  for (auto line = status.ReadLine(10); line.ok(); line = status.ReadLine(10)) text += *line;
  const size_t at_section = text.find("\"" + section + "\"");
  const size_t at = at_section == std::string::npos ? at_section : text.find("\"" + key + "\"", at_section);
  if (at == std::string::npos) return absl::InternalError(absl::StrCat("terracectl status has no ", key, ": ", text));
  const char* number = text.c_str() + text.find(':', at) + 1;
  while (*number == '"' || *number == ' ') ++number;  // 64-bit numbers are texts in JSON
  return std::atof(number);
}

}  // namespace terrace::bench
