// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Over cpp-httplib (https://github.com/yhirose/cpp-httplib); the only file that includes it.
#include "api/server/http_server.h"

#include <httplib.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <thread>
#include <vector>

#include "absl/memory/memory.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/mutex.h"

namespace terrace::api {
namespace {

constexpr char kMetricsType[] = "text/plain; version=0.0.4; charset=utf-8";
constexpr char kTextType[] = "text/plain; charset=utf-8";

// Fixed threads and a bounded queue. httplib's own pool queues without bound; here a full queue makes
// the accepting thread wait.
class BoundedQueue : public httplib::TaskQueue {
 public:
  BoundedQueue() {
    for (int i = 0; i < HttpServer::kWorkers; ++i) workers_.emplace_back([this] { Work(); });
  }

  void enqueue(std::function<void()> task) override {
    MutexLock lock(&mu_);
    while (tasks_.size() >= HttpServer::kQueue) room_.Wait(&mu_);
    tasks_.push_back(std::move(task));
    work_.SignalOne();
  }

  // Finishes what is queued: each task owns a connection.
  void shutdown() override {
    {
      MutexLock lock(&mu_);
      stopping_ = true;
      work_.SignalAll();
    }
    for (std::thread& worker : workers_) worker.join();
  }

 private:
  void Work() {
    while (true) {
      std::function<void()> task;
      {
        MutexLock lock(&mu_);
        while (tasks_.empty() && !stopping_) work_.Wait(&mu_);
        if (tasks_.empty()) return;
        task = std::move(tasks_.front());
        tasks_.pop_front();
        room_.SignalOne();
      }
      task();
    }
  }

  Mutex mu_;
  CondVar work_, room_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> workers_;
};

void AnswerHealth(const std::function<HttpPages::Health()>& check, httplib::Response* response) {
  const HttpPages::Health health = check();
  response->status = health.ok ? 200 : 503;
  response->set_content(health.text + "\n", kTextType);
}

}  // namespace

class HttpServer::Impl {
 public:
  explicit Impl(HttpPages pages) : pages_(std::move(pages)) {
    server_.new_task_queue = [] { return std::make_unique<BoundedQueue>().release(); };  // httplib owns it
    // Not httplib's default: SO_REUSEPORT would let two daemons share a port without a word.
    server_.set_socket_options([](int fd) {
      const int yes = 1;
      setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    });
    server_.set_keep_alive_max_count(1);  // an idle connection must not hold one of few threads
    server_.set_keep_alive_timeout(1);    // the same for one that never speaks
    server_.set_read_timeout(2);
    server_.set_write_timeout(2);
    server_.set_payload_max_length(4096);
    server_.Get("/metrics", [this](const httplib::Request&, httplib::Response& response) {
      response.set_content(pages_.metrics(), kMetricsType);
    });
    server_.Get("/healthz", [this](const httplib::Request&, httplib::Response& response) {
      AnswerHealth(pages_.live, &response);
    });
    server_.Get("/readyz", [this](const httplib::Request&, httplib::Response& response) {
      AnswerHealth(pages_.ready, &response);
    });
    server_.Get("/", [this](const httplib::Request&, httplib::Response& response) {
      response.set_content(pages_.status(), kTextType);
    });
  }

  ~Impl() {
    if (!thread_.joinable()) return;
    server_.stop();
    thread_.join();
  }

  absl::Status Listen(const std::string& address) {
    const size_t colon = address.rfind(':');
    std::string host = address.substr(0, colon);
    const std::string shown_host = host;
    if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
    int port = 0;
    if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port)) {
      return absl::InvalidArgumentError(absl::StrCat("http.listen: \"", address, "\" is not ADDRESS:PORT"));
    }
    errno = 0;
    if (port == 0) {
      port = server_.bind_to_any_port(host);
    } else if (!server_.bind_to_port(host, port)) {
      port = -1;
    }
    if (port <= 0) {
      const int bind_errno = errno;
      return absl::UnavailableError(absl::StrCat(
          "http.listen: cannot listen on ", address, ": ",
          bind_errno == 0 ? "not an address of this machine" : std::strerror(bind_errno),
          "; set http.listen to a free port, to 127.0.0.1:0 for any, or to nothing for none"));
    }
    address_ = absl::StrCat(shown_host, ":", port);
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    // stop() does nothing before the loop runs, so a destructor must find it running.
    for (int i = 0; i < 5000 && !server_.is_running(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return absl::OkStatus();
  }

  const std::string& address() const { return address_; }

 private:
  const HttpPages pages_;
  httplib::Server server_;
  std::string address_;
  std::thread thread_;
};

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const std::string& address, HttpPages pages) {
  auto impl = std::make_unique<Impl>(std::move(pages));
  if (const absl::Status status = impl->Listen(address); !status.ok()) return status;
  return absl::WrapUnique(new HttpServer(std::move(impl)));
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;
const std::string& HttpServer::address() const { return impl_->address(); }

}  // namespace terrace::api
