// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "api/server/http_server.h"
#include "api/server/metrics_text.h"

namespace terrace::api {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

int Connect(const std::string& address) {
  sockaddr_in target{};
  int port = 0;
  EXPECT_TRUE(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port));
  target.sin_family = AF_INET;
  target.sin_port = htons(static_cast<uint16_t>(port));
  target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&target), sizeof(target)), 0);
  return fd;
}

// The whole answer to a request text, until the server closes.
std::string Talk(const std::string& address, const std::string& request) {
  const int fd = Connect(address);
  EXPECT_EQ(send(fd, request.data(), request.size(), MSG_NOSIGNAL), static_cast<ssize_t>(request.size()));
  std::string answer;
  char text[4096];
  for (ssize_t n = 0; (n = read(fd, text, sizeof(text))) > 0;) answer.append(text, static_cast<size_t>(n));
  close(fd);
  return answer;
}

std::string Get(const std::string& address, const std::string& path) {
  return Talk(address, absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
}

HttpPages Pages(const std::atomic<bool>* ready) {
  HttpPages pages;
  pages.metrics = [] { return "m 1\n"; };
  pages.status = [] { return "status\n"; };
  pages.live = [] { return HttpPages::Health{true, "ok"}; };
  pages.ready = [ready] { return HttpPages::Health{*ready, *ready ? "ready" : "draining"}; };
  return pages;
}

class HttpTest : public testing::Test {
 protected:
  void SetUp() override {
    auto server = HttpServer::Start("127.0.0.1:0", Pages(&ready_));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  std::atomic<bool> ready_{true};
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpTest, Pages) {
  EXPECT_THAT(Get(server_->address(), "/metrics"), HasSubstr("\r\n\r\nm 1\n"));
  EXPECT_THAT(Get(server_->address(), "/metrics"), HasSubstr("text/plain; version=0.0.4"));
  EXPECT_THAT(Get(server_->address(), "/healthz"), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Get(server_->address(), "/readyz"), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Get(server_->address(), "/"), HasSubstr("status\n"));
  EXPECT_THAT(Get(server_->address(), "/other"), StartsWith("HTTP/1.1 404"));
}

TEST_F(HttpTest, NotReadyIs503) {
  ready_ = false;
  EXPECT_THAT(Get(server_->address(), "/readyz"), StartsWith("HTTP/1.1 503"));
  EXPECT_THAT(Get(server_->address(), "/readyz"), HasSubstr("draining"));
  EXPECT_THAT(Get(server_->address(), "/healthz"), StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpTest, NothingButReading) {
  EXPECT_THAT(Talk(server_->address(), "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"
                                       "Connection: close\r\n\r\n"),
              StartsWith("HTTP/1.1 4"));
  EXPECT_THAT(Talk(server_->address(), "garbage\r\n\r\n"), StartsWith("HTTP/1.1 400"));
}

TEST_F(HttpTest, ATakenPortIsAnErrorThatNamesTheOption) {
  const auto second = HttpServer::Start(server_->address(), Pages(&ready_));
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("http.listen: cannot listen on 127.0.0.1:"));
}

TEST_F(HttpTest, SilentConnectionsDoNotStarveTheProbe) {
  std::vector<int> silent;
  for (int i = 0; i < 2 * HttpServer::kWorkers; ++i) silent.push_back(Connect(server_->address()));
  EXPECT_THAT(Get(server_->address(), "/healthz"), StartsWith("HTTP/1.1 200"));  // after their time limit
  for (const int fd : silent) close(fd);
}

TEST_F(HttpTest, ManyAtOnce) {
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int i = 0; i < 16; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < 20; ++k) good += Get(server_->address(), "/healthz").find("200") == 9;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, 320);
}

TEST(MetricsTextTest, CountersGaugesAndHistograms) {
  MetricRegistry registry;
  registry.AddCounter("terrace_a_total", "Help.", {{"tenant", "x\"y"}})->Add(3);
  registry.AddGauge("terrace_b", "Help.")->Set(-5);
  registry.AddReader("terrace_c", "Help.", MetricRegistry::Type::kGauge, {}, [] { return 0.5; });
  Histogram* histogram = registry.AddHistogram("terrace_d_seconds", "Help.");
  histogram->ObserveNs(1'500);
  histogram->ObserveNs(99'000'000'000);  // beyond the last bound
  const std::string text = MetricsText(registry);
  EXPECT_THAT(text, HasSubstr("# TYPE terrace_a_total counter\nterrace_a_total{tenant=\"x\\\"y\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("terrace_b -5\n"));
  EXPECT_THAT(text, HasSubstr("terrace_c 0.5\n"));
  EXPECT_THAT(text, HasSubstr("terrace_d_seconds_bucket{le=\"2.5"));
  EXPECT_THAT(text, HasSubstr("terrace_d_seconds_bucket{le=\"10\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("terrace_d_seconds_bucket{le=\"+Inf\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("terrace_d_seconds_count 2\n"));
}

TEST(MetricsTextTest, TheProcessIsMeasured) {
  MetricRegistry registry;
  AddProcessMetrics(&registry);
  const std::string text = MetricsText(registry);
  EXPECT_THAT(text, HasSubstr("terrace_build_info{version=\""));
  for (const MetricRegistry::Family& family : registry.Snapshot()) {
    if (family.series[0].read) {
      EXPECT_GT(family.series[0].read(), 0) << family.name;
    }
  }
}

}  // namespace
}  // namespace terrace::api
