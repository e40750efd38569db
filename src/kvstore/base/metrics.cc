// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "kvstore/base/metrics.h"

#include "kvstore/base/check.h"

namespace terrace {

const int64_t Histogram::kBoundsNs[Histogram::kBuckets] = {
    1'000,       2'500,       5'000,       10'000,      25'000,        50'000,        100'000,   250'000,
    500'000,     1'000'000,   2'500'000,   5'000'000,   10'000'000,    25'000'000,    50'000'000, 100'000'000,
    250'000'000, 500'000'000, 1'000'000'000, 2'500'000'000, 5'000'000'000, 10'000'000'000};

void Histogram::ObserveNs(int64_t ns) {
  int i = 0;
  while (i < kBuckets && ns > kBoundsNs[i]) ++i;
  counts_[i].fetch_add(1, std::memory_order_relaxed);
  sum_ns_.fetch_add(ns, std::memory_order_relaxed);
}

MetricRegistry::Series* MetricRegistry::Add(const std::string& name, const std::string& help, Type type,
                                            Labels labels) {
  for (Family& family : families_) {
    if (family.name != name) continue;
    TERRACE_CHECK(family.type == type);
    for (const Series& series : family.series) TERRACE_CHECK(series.labels != labels);
    family.series.push_back({std::move(labels), nullptr, nullptr, nullptr, nullptr});
    return &family.series.back();
  }
  families_.push_back({name, help, type, {}});
  families_.back().series.push_back({std::move(labels), nullptr, nullptr, nullptr, nullptr});
  return &families_.back().series.back();
}

Counter* MetricRegistry::AddCounter(const std::string& name, const std::string& help, Labels labels) {
  MutexLock lock(&mu_);
  Counter* counter = &counters_.emplace_back();
  Add(name, help, Type::kCounter, std::move(labels))->counter = counter;
  return counter;
}

Gauge* MetricRegistry::AddGauge(const std::string& name, const std::string& help, Labels labels) {
  MutexLock lock(&mu_);
  Gauge* gauge = &gauges_.emplace_back();
  Add(name, help, Type::kGauge, std::move(labels))->gauge = gauge;
  return gauge;
}

Histogram* MetricRegistry::AddHistogram(const std::string& name, const std::string& help, Labels labels) {
  MutexLock lock(&mu_);
  Histogram* histogram = &histograms_.emplace_back();
  Add(name, help, Type::kHistogram, std::move(labels))->histogram = histogram;
  return histogram;
}

void MetricRegistry::AddReader(const std::string& name, const std::string& help, Type type, Labels labels,
                               std::function<double()> read) {
  MutexLock lock(&mu_);
  Add(name, help, type, std::move(labels))->read = std::move(read);
}

std::vector<MetricRegistry::Family> MetricRegistry::Snapshot() const {
  MutexLock lock(&mu_);
  return families_;
}

}  // namespace terrace
