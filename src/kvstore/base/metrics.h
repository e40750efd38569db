// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Counters, gauges and histograms for the hot path, and the registry that lists them. What they are
// called and how they are exported (Prometheus text) is src/api's matter; this room knows no format.
//
// A metric family has a name, a help text and label names; every label set that can occur is made at
// start, so that an exported series is never absent. Names: docs/metrics.md.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "kvstore/base/mutex.h"

namespace terrace {

// Any thread. Relaxed: a scrape may see two counters a moment apart.
class Counter {
 public:
  void Add(uint64_t n = 1) { value_.fetch_add(n, std::memory_order_relaxed); }
  uint64_t Value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

class Gauge {
 public:
  void Set(int64_t v) { value_.store(v, std::memory_order_relaxed); }
  void Add(int64_t n) { value_.fetch_add(n, std::memory_order_relaxed); }
  int64_t Value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> value_{0};
};

// Counts of values in nanoseconds in fixed exponential buckets, exported in seconds:
// 1 us, 2.5 us, 5 us, 10 us ... 10 s. Any thread.
class Histogram {
 public:
  static constexpr int kBuckets = 22;
  static const int64_t kBoundsNs[kBuckets];
  void ObserveNs(int64_t ns);
  uint64_t BucketCount(int i) const { return counts_[i].load(std::memory_order_relaxed); }  // i <= kBuckets
  int64_t SumNs() const { return sum_ns_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> counts_[kBuckets + 1] = {};
  std::atomic<int64_t> sum_ns_{0};
};

// Owns all metrics of one daemon. Add* hand out pointers that stay valid as long as the registry.
// Threads: any; the metrics themselves take no lock. Limits: made at start only, so bounded by code.
class MetricRegistry {
 public:
  using Labels = std::vector<std::pair<std::string, std::string>>;  // name, value; in declared order
  struct Series {
    Labels labels;
    const Counter* counter = nullptr;  // exactly one of the four is set
    const Gauge* gauge = nullptr;
    const Histogram* histogram = nullptr;
    std::function<double()> read;  // computed when scraped
  };
  enum class Type { kCounter, kGauge, kHistogram };
  struct Family {
    std::string name, help;
    Type type;
    std::vector<Series> series;
  };

  Counter* AddCounter(const std::string& name, const std::string& help, Labels labels = {});
  Gauge* AddGauge(const std::string& name, const std::string& help, Labels labels = {});
  Histogram* AddHistogram(const std::string& name, const std::string& help, Labels labels = {});
  // A value computed at scrape time. REQUIRES: read stays callable as long as the registry is scraped.
  void AddReader(const std::string& name, const std::string& help, Type type, Labels labels,
                 std::function<double()> read);

  // A copy of all families, in order of registration.
  std::vector<Family> Snapshot() const;

 private:
  Series* Add(const std::string& name, const std::string& help, Type type, Labels labels)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  mutable Mutex mu_;
  std::vector<Family> families_ ABSL_GUARDED_BY(mu_);
  std::deque<Counter> counters_ ABSL_GUARDED_BY(mu_);
  std::deque<Gauge> gauges_ ABSL_GUARDED_BY(mu_);
  std::deque<Histogram> histograms_ ABSL_GUARDED_BY(mu_);
};

}  // namespace terrace
