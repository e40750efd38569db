// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Serialized by prometheus-cpp (https://github.com/jupp0r/prometheus-cpp): the escaping and number rules
// of the format are its matter.
#include "api/server/metrics_text.h"

#include <dirent.h>
#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>
#include <sys/resource.h>
#include <unistd.h>

#include <ctime>
#include <fstream>
#include <limits>
#include <sstream>
#include <vector>

#include "api/server/version.h"

namespace terrace::api {
namespace {

prometheus::ClientMetric::Histogram ConvertHistogram(const Histogram& source) {
  prometheus::ClientMetric::Histogram target;
  uint64_t total = 0;
  for (int i = 0; i <= Histogram::kBuckets; ++i) {
    total += source.BucketCount(i);
    const double bound = i < Histogram::kBuckets ? static_cast<double>(Histogram::kBoundsNs[i]) / 1e9
                                                 : std::numeric_limits<double>::infinity();
    target.bucket.push_back({total, bound});
  }
  target.sample_count = total;  // equal to the last bucket, whatever is counted meanwhile
  target.sample_sum = static_cast<double>(source.SumNs()) / 1e9;
  return target;
}

prometheus::ClientMetric Convert(const MetricRegistry::Series& series, MetricRegistry::Type type) {
  prometheus::ClientMetric metric;
  for (const auto& [name, value] : series.labels) metric.label.push_back({name, value});
  if (series.histogram != nullptr) {
    metric.histogram = ConvertHistogram(*series.histogram);
    return metric;
  }
  double value = 0;
  if (series.counter != nullptr) value = static_cast<double>(series.counter->Value());
  if (series.gauge != nullptr) value = static_cast<double>(series.gauge->Value());
  if (series.read) value = series.read();
  if (type == MetricRegistry::Type::kCounter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  return metric;
}

prometheus::MetricType ConvertType(MetricRegistry::Type type) {
  switch (type) {
    case MetricRegistry::Type::kCounter: return prometheus::MetricType::Counter;
    case MetricRegistry::Type::kGauge: return prometheus::MetricType::Gauge;
    case MetricRegistry::Type::kHistogram: return prometheus::MetricType::Histogram;
  }
  return prometheus::MetricType::Untyped;
}

double WallSeconds() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

// The n-th number of /proc/self/statm, in bytes: 0 virtual, 1 resident.
double StatmBytes(int n) {
  std::ifstream statm("/proc/self/statm");
  double pages = 0;
  for (int i = 0; i <= n; ++i) statm >> pages;
  return pages * static_cast<double>(sysconf(_SC_PAGESIZE));
}

double OpenFds() {
  DIR* dir = opendir("/proc/self/fd");
  if (dir == nullptr) return 0;
  double count = -3;  // ".", ".." and the directory's own
  while (readdir(dir) != nullptr) ++count;
  closedir(dir);
  return count;
}

double MaxFds() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  return static_cast<double>(limit.rlim_cur);
}

}  // namespace

std::string MetricsText(const MetricRegistry& registry) {
  std::vector<prometheus::MetricFamily> families;
  for (const MetricRegistry::Family& family : registry.Snapshot()) {
    prometheus::MetricFamily converted;
    converted.name = family.name;
    converted.help = family.help;
    converted.type = ConvertType(family.type);
    for (const MetricRegistry::Series& series : family.series) {
      converted.metric.push_back(Convert(series, family.type));
    }
    families.push_back(std::move(converted));
  }
  std::ostringstream text;
  prometheus::TextSerializer().Serialize(text, families);
  return text.str();
}

void AddProcessMetrics(MetricRegistry* registry) {
  using Type = MetricRegistry::Type;
  registry->AddGauge("terrace_build_info", "Always 1; the labels say what runs.",
                     {{"version", kVersion}, {"commit", kCommit}, {"cuda", kCuda}})
      ->Set(1);
  const double start = WallSeconds();
  const auto started = [start] { return start; };
  registry->AddReader("terrace_up_since_timestamp_seconds", "When this daemon started, Unix time.", Type::kGauge, {},
                      started);
  registry->AddReader("process_cpu_seconds_total", "User and system time spent.", Type::kCounter, {}, CpuSeconds);
  registry->AddReader("process_resident_memory_bytes", "Resident memory.", Type::kGauge, {},
                      [] { return StatmBytes(1); });
  registry->AddReader("process_virtual_memory_bytes", "Virtual memory.", Type::kGauge, {},
                      [] { return StatmBytes(0); });
  registry->AddReader("process_open_fds", "Open file descriptors.", Type::kGauge, {}, OpenFds);
  registry->AddReader("process_max_fds", "Limit of open file descriptors.", Type::kGauge, {}, MaxFds);
  registry->AddReader("process_start_time_seconds", "When this process started, Unix time.", Type::kGauge, {},
                      started);
}

}  // namespace terrace::api
