// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// region_node: the core and the engine socket of a daemon in one program without gRPC, HTTP and configuration
// files, for end-to-end tests on machines that have a GPU and little else. Not a product.
//
//   region_node --run-dir DIR --host-budget NMiB [--driver LIBRARY] [--gpu-tier NMiB]
//
// Listens on DIR/engine.sock. Commands on standard input, one a line: `metrics` (answered with `name{labels}
// value` lines and `end`), `quit`. Ends in order with `quit` or when the input ends.
#include <sys/random.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "api/config.h"
#include "api/engine/engine_server.h"
#include "kvstore/base/check.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/metrics.h"
#include "kvstore/base/mutex.h"
#include "tiering/tier_stack.h"

namespace terrace {
namespace {

constexpr char kUsage[] = "usage: region_node --run-dir DIR --host-budget NMiB [--driver LIBRARY] [--gpu-tier NMiB]\n";

bool ParseMib(absl::string_view text, uint64_t* bytes) {
  uint64_t mib = 0;
  if (!absl::ConsumeSuffix(&text, "MiB") || !absl::SimpleAtoi(text, &mib)) return false;
  *bytes = mib << 20;
  return true;
}

bool ParseArguments(int argc, char** argv, api::Config* config) {
  config->stack.memory_dir = "";
  config->stack.tenants = {{"default"}};
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i], value = argv[i + 1];
    if (name == "--run-dir") {
      config->run_dir = value;
      config->engine_socket = value + "/engine.sock";
    } else if (name == "--host-budget") {
      if (!ParseMib(value, &config->stack.budget_bytes)) return false;
    } else if (name == "--gpu-tier") {
      if (!ParseMib(value, &config->stack.gpu_tier_bytes)) return false;
    } else if (name == "--driver") {
      config->stack.gpu_options.driver = value;
    } else {
      return false;
    }
  }
  return argc % 2 == 1 && !config->engine_socket.empty() && config->stack.budget_bytes != 0;
}

// Calls TierStack::Step as the daemon does. Owner: main. Ends in its destructor.
class Stepper {
 public:
  explicit Stepper(tiering::TierStack* stack) : stack_(stack), thread_([this] { Run(); }) {}
  ~Stepper() {
    {
      MutexLock lock(&mu_);
      stopping_ = true;
    }
    stop_.SignalAll();
    thread_.join();
  }

 private:
  void Run() {
    MutexLock lock(&mu_);
    while (!stopping_) {
      mu_.Unlock();
      stack_->Step();
      mu_.Lock();
      if (!stopping_) stop_.WaitFor(&mu_, std::chrono::milliseconds(20));
    }
  }

  tiering::TierStack* const stack_;
  Mutex mu_;
  CondVar stop_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

void PrintMetrics(const MetricRegistry& metrics) {
  std::string text;
  for (const MetricRegistry::Family& family : metrics.Snapshot()) {
    for (const MetricRegistry::Series& series : family.series) {
      double value = 0;
      if (series.counter != nullptr) value = static_cast<double>(series.counter->Value());
      if (series.gauge != nullptr) value = static_cast<double>(series.gauge->Value());
      if (series.read) value = series.read();
      if (series.histogram != nullptr) continue;
      std::string labels;
      for (const auto& [name, label] : series.labels) {
        absl::StrAppend(&labels, labels.empty() ? "" : ",", name, "=\"", label, "\"");
      }
      absl::StrAppend(&text, family.name, labels.empty() ? "" : absl::StrCat("{", labels, "}"), " ", value, "\n");
    }
  }
  std::cout << text << "end\n" << std::flush;
}

int Main(int argc, char** argv) {
  api::Config config;
  if (!ParseArguments(argc, argv, &config)) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  std::error_code error;
  std::filesystem::create_directories(config.run_dir, error);
  std::filesystem::remove(config.engine_socket, error);  // of a node that was killed
  uint64_t epoch = 0;
  while (epoch == 0) TERRACE_CHECK(getrandom(&epoch, sizeof(epoch), 0) == sizeof(epoch));
  MetricRegistry metrics;
  auto stack = tiering::TierStack::Create(config.stack, Clock::Real(), &metrics);
  if (!stack.ok()) {
    std::cerr << stack.status() << "\n";
    return 1;
  }
  const Stepper stepper(stack->get());
  auto server = api::EngineServer::Start(config, epoch, stack->get(), Clock::Real(), &metrics);
  if (!server.ok()) {
    std::cerr << server.status() << "\n";
    return 1;
  }
  std::string command;
  while (std::getline(std::cin, command) && command != "quit") {
    if (command == "metrics") PrintMetrics(metrics);
  }
  server->reset();
  return 0;
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) { return terrace::Main(argc, argv); }
