// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// terrace_gpu_bench: "terrace_bench gpu" as a program of its own, which needs neither daemon nor gRPC and so builds on
// a bare machine with a GPU. Exit codes: 0 measured, or no GPU and said so; 1 a case failed; 2 wrong usage; 4 measured
// but a target was missed (with --check).
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <string>

#include "gpu/gpus.h"
#include "gpu_cases.h"

namespace terrace::bench {

bool GpuBenchContext::Wants(const std::string& name) const {
  return options.cases.empty() || std::find(options.cases.begin(), options.cases.end(), name) != options.cases.end();
}

void GpuBenchContext::Add(Measurement measurement) const {
  if (!is_softcuda) {
    report->Add(measurement, 0);
    return;
  }
  report->Skip(measurement.name, "ran on softcuda, bytes compared; softcuda is not a GPU, so there are no figures");
}

namespace {

constexpr int kExitFailed = 1, kExitUsage = 2, kExitMissed = 4;

constexpr char kUsage[] =
    "Usage: terrace_gpu_bench [--json] [--check] [--case NAME]... [--scale X] [--device N]\n"
    "                         [--driver LIBRARY] [--allow-softcuda]\n"
    "Measures copies between a GPU's memory and pinned host memory beside plain copies of the driver.\n"
    "  --json            one JSON object a line\n"
    "  --check           exit with 4 if a target is missed\n"
    "  --case NAME       only this case: gpu_store gpu_load gpu_both gpu_pages_8k gpu_pages_32k gpu_interference\n"
    "                    gpu_latency gpu_checksum host_gather; may be repeated\n"
    "  --scale X         rounds times this; 0.1 for a quick look\n"
    "  --device N        which GPU (default 0)\n"
    "  --driver LIBRARY  the driver to open (default libcuda.so.1)\n"
    "  --allow-softcuda  run on the tests' stand-in for the driver: compares bytes, gives no figures\n"
    "Exit codes: 0 measured, or no GPU and said so; 1 a case failed; 2 wrong usage; 4 a target was missed "
    "(--check).\n"
    "What each case means: docs/benchmarks.md\n";

// False: wrong usage.
bool Parse(int argc, char** argv, GpuBenchOptions* options) {
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--json") {
      options->json = true;
    } else if (name == "--check") {
      options->check = true;
    } else if (name == "--allow-softcuda") {
      options->allow_softcuda = true;
    } else if (i + 1 == argc) {
      return false;
    } else if (const std::string value = argv[++i]; name == "--case") {
      const auto known = [&](const char* one) { return value == one; };
      if (value != "host_gather" && std::none_of(std::begin(kGpuCases), std::end(kGpuCases), known)) return false;
      options->cases.push_back(value);
    } else if (name == "--driver") {
      options->driver = value;
    } else if (name == "--device") {
      options->device = static_cast<unsigned>(std::strtoul(value.c_str(), nullptr, 10));
    } else if (name == "--scale") {
      options->scale = std::strtod(value.c_str(), nullptr);
      if (!(options->scale > 0)) return false;
    } else {
      return false;
    }
  }
  return true;
}

// Says what GPU there is. Empty: there is none that may be measured, and the text was given with every case.
bool FindGpu(GpuBenchContext* context) {
  const GpuBenchOptions& options = context->options;
  const bool wants_any =
      std::any_of(std::begin(kGpuCases), std::end(kGpuCases), [&](const char* name) { return context->Wants(name); });
  if (!wants_any) return false;
  std::string why;
  {
    const std::unique_ptr<gpu::Gpus> gpus = gpu::Gpus::Open({.driver = options.driver});
    if (gpus->devices().empty()) {
      why = gpus->why_none();
    } else if (options.device >= gpus->devices().size()) {
      why = "no device " + std::to_string(options.device) + "; there are " + std::to_string(gpus->devices().size());
    } else {
      const gpu::GpuInfo& info = gpus->devices()[options.device];
      context->is_softcuda = info.name == "softcuda";
      context->report->Note("gpu", {{"name", info.name},
                                    {"pci_bus", info.pci_bus},
                                    {"driver", gpus->driver_version()},
                                    {"numa_node", std::to_string(info.numa_node)}});
      if (context->is_softcuda && !options.allow_softcuda) {
        why =
            "the driver is softcuda, a stand-in for tests, not a GPU (--allow-softcuda runs the cases without "
            "figures)";
      }
    }
  }
  if (why.empty()) return true;
  for (const char* name : kGpuCases) {
    if (context->Wants(name)) context->report->Skip(name, why);
  }
  return false;
}

int Main(int argc, char** argv) {
  GpuBenchOptions options;
  if (argc == 2 && std::string(argv[1]) == "--help") {
    std::fputs(kUsage, stdout);
    return 0;
  }
  if (!Parse(argc, argv, &options)) {
    std::fputs(kUsage, stderr);
    return kExitUsage;
  }
  Report report(options.json);
  report.Machine(TERRACE_VERSION);
  GpuBenchContext context{options, &report};
  int exit_code = 0;
  const auto run = [&](const char* name, const absl::Status& status) {
    if (status.ok()) return;
    std::fprintf(stderr, "terrace_gpu_bench: %s: %s\n", name, status.ToString().c_str());
    exit_code = kExitFailed;
  };
  if (FindGpu(&context)) run("gpu", RunGpuCases(context));
  if (context.Wants("host_gather")) run("host_gather", RunHostGather(context));
  if (exit_code == 0 && options.check && !report.all_targets_reached()) exit_code = kExitMissed;
  return exit_code;
}

}  // namespace
}  // namespace terrace::bench

int main(int argc, char** argv) { return terrace::bench::Main(argc, argv); }
