// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/replay_workloads.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "testing/payload.h"

namespace terrace::testing {
namespace {

constexpr uint32_t kBlockTokens = 512;
constexpr double kHour = 3600;

struct Draw {
  explicit Draw(uint64_t seed) : random(seed) {}
  double Uniform() { return static_cast<double>((random.Next() >> 11) + 1) * 0x1.0p-53; }
  double Exponential(double mean) { return -mean * std::log(Uniform()); }
  double LogNormal(double median, double sigma) {
    const double normal = std::sqrt(-2 * std::log(Uniform())) * std::cos(2 * std::numbers::pi * Uniform());
    return median * std::exp(sigma * normal);
  }
  uint64_t Blocks(double median, double sigma, double most) {
    return static_cast<uint64_t>(std::clamp(LogNormal(median, sigma), 1.0, most));
  }
  // 0 .. n-1, the first most often.
  uint64_t Zipf(uint64_t n, double exponent) {
    if (weights.size() != n) {
      weights.clear();
      double sum = 0;
      for (uint64_t i = 0; i < n; ++i) weights.push_back(sum += std::pow(static_cast<double>(i + 1), -exponent));
    }
    const double at = Uniform() * weights.back();
    return static_cast<uint64_t>(std::lower_bound(weights.begin(), weights.end(), at) - weights.begin());
  }
  Random random;
  std::vector<double> weights;
};

// Requests in any order of time; Finish sorts them.
class Maker {
 public:
  explicit Maker(uint64_t seed) : draw(seed) {}

  uint64_t NewId() { return next_id_++; }
  std::vector<uint64_t> NewIds(uint64_t n) {
    std::vector<uint64_t> ids(n);
    for (uint64_t& id : ids) id = NewId();
    return ids;
  }
  // The last block is part of a block: never asked for again, as in engines that do not store such.
  void Request(double seconds, std::vector<uint64_t> ids) {
    ids.push_back(NewId());
    requests_.push_back({seconds, std::move(ids)});
  }
  tiering::Trace Finish() {
    std::stable_sort(requests_.begin(), requests_.end(), [](const auto& a, const auto& b) { return a.at < b.at; });
    tiering::TraceBuilder builder;
    for (const Asked& request : requests_) {
      const uint64_t tokens = request.ids.size() * kBlockTokens - kBlockTokens / 2;
      if (!builder.Add(request.at * 1000, tokens, 200, request.ids).ok()) std::abort();
    }
    return builder.Finish();
  }
  Draw draw;

 private:
  struct Asked {
    double at;
    std::vector<uint64_t> ids;
  };
  std::vector<Asked> requests_;
  uint64_t next_id_ = 0;
};

using Chain = std::vector<uint64_t>;

Chain operator+(Chain chain, const Chain& more) {
  chain.insert(chain.end(), more.begin(), more.end());
  return chain;
}

// Conversations of people: a system prompt, turns with a pause to read, think and type.
void AddChats(Maker& maker, double from, double to, double per_second, double pause_s) {
  Draw& draw = maker.draw;
  std::vector<Chain> systems;
  for (int i = 0; i < 30; ++i) systems.push_back(maker.NewIds(draw.Blocks(3, 0.8, 20)));
  for (double at = from; at < to; at += draw.Exponential(1 / per_second)) {
    Chain chain = systems[draw.Zipf(systems.size(), 1.0)] + maker.NewIds(draw.Blocks(4, 1.2, 200));
    double now = at;
    do {
      maker.Request(now, chain);
      chain = chain + maker.NewIds(draw.Blocks(1.5, 0.8, 20));
      now += draw.LogNormal(pause_s, 0.9);
    } while (now < to && draw.Uniform() < 0.62);
  }
}

// Agents: long loops of tool calls that come back after seconds, sometimes after minutes.
void AddAgents(Maker& maker, double from, double to, double per_second) {
  Draw& draw = maker.draw;
  std::vector<Chain> tools;
  for (int i = 0; i < 6; ++i) tools.push_back(maker.NewIds(draw.Blocks(12, 0.4, 40)));
  for (double at = from; at < to; at += draw.Exponential(1 / per_second)) {
    Chain chain = tools[draw.Zipf(tools.size(), 0.8)] + maker.NewIds(draw.Blocks(6, 0.8, 60));
    double now = at;
    do {
      maker.Request(now, chain);
      chain = chain + maker.NewIds(draw.Blocks(1.5, 0.7, 20));
      now += draw.Uniform() < 0.1 ? draw.LogNormal(180, 0.7) : draw.LogNormal(6, 0.8);
    } while (now < to && draw.Uniform() < 0.93);
  }
}

// Long documents, each asked about a few times within minutes, or only once.
void AddDocuments(Maker& maker, double from, double to, double per_second) {
  Draw& draw = maker.draw;
  for (double at = from; at < to; at += draw.Exponential(1 / per_second)) {
    const Chain document = maker.NewIds(draw.Blocks(40, 0.7, 300));
    double now = at;
    do {
      maker.Request(now, document + maker.NewIds(1));
      now += draw.Exponential(90);
    } while (now < to && draw.Uniform() < 0.55);
  }
}

// Independent questions behind prefixes of very different popularity.
void AddZipf(Maker& maker, double from, double to, double per_second, double exponent) {
  Draw& draw = maker.draw;
  std::vector<Chain> prefixes;
  for (int i = 0; i < 2000; ++i) prefixes.push_back(maker.NewIds(draw.Blocks(8, 0.8, 60)));
  Draw popularity(draw.random.Next());
  for (double at = from; at < to; at += draw.Exponential(1 / per_second)) {
    maker.Request(at, prefixes[popularity.Zipf(prefixes.size(), exponent)] + maker.NewIds(draw.Blocks(4, 0.8, 30)));
  }
}

// The same documents again and again in the same order: an evaluation that runs in epochs.
void AddLoop(Maker& maker, double from, double to, double per_second, int documents) {
  std::vector<Chain> all;
  for (int i = 0; i < documents; ++i) all.push_back(maker.NewIds(maker.draw.Blocks(15, 0.5, 60)));
  size_t i = 0;
  for (double at = from; at < to; at += 1 / per_second) maker.Request(at, all[i++ % all.size()]);
}

// Batches of long prompts that nobody asks for again.
void AddScans(Maker& maker, double from, double to) {
  Draw& draw = maker.draw;
  for (double burst = from + 120; burst < to; burst += 300) {
    for (int i = 0; i < 100; ++i) maker.Request(burst + i * 0.6, maker.NewIds(draw.Blocks(50, 0.5, 200)));
  }
}

template <typename Fn>
Workload Of(const char* name, const char* what, Fn fill) {
  return {name, what, [fill](uint64_t seed) {
            Maker maker(seed);
            fill(maker);
            return maker.Finish();
          }};
}

}  // namespace

const std::vector<Workload>& Workloads() {
  static const std::vector<Workload> workloads = {
      Of("chats", "people, pauses of a minute", [](Maker& m) { AddChats(m, 0, kHour, 0.9, 60); }),
      Of("slow_chats", "people, pauses of five minutes", [](Maker& m) { AddChats(m, 0, kHour, 0.9, 300); }),
      Of("agents", "tool loops of seconds", [](Maker& m) { AddAgents(m, 0, kHour, 0.12); }),
      Of("documents", "long documents, asked about for minutes", [](Maker& m) { AddDocuments(m, 0, kHour, 0.7); }),
      Of("zipf", "prefixes of different popularity", [](Maker& m) { AddZipf(m, 0, kHour, 2.5, 0.8); }),
      Of("loop", "the same documents in a circle", [](Maker& m) { AddLoop(m, 0, kHour, 2, 700); }),
      Of("scans", "chats with batches of single prompts",
         [](Maker& m) {
           AddChats(m, 0, kHour, 0.5, 60);
           AddScans(m, 0, kHour);
         }),
      Of("mix", "all of them together",
         [](Maker& m) {
           AddChats(m, 0, kHour, 0.4, 90);
           AddAgents(m, 0, kHour, 0.05);
           AddDocuments(m, 0, kHour, 0.2);
           AddZipf(m, 0, kHour, 0.7, 0.8);
           AddLoop(m, 0, kHour, 0.4, 200);
         }),
      Of("shift", "documents, then agents, then chats",
         [](Maker& m) {
           AddDocuments(m, 0, kHour / 3, 0.7);
           AddAgents(m, kHour / 3, 2 * kHour / 3, 0.12);
           AddChats(m, 2 * kHour / 3, kHour, 0.9, 60);
         }),
  };
  return workloads;
}

}  // namespace terrace::testing
