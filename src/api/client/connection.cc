// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/connection.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace terrace::client {
namespace {

// More leases cannot wait for a full socket: the daemon's limit of leases per session is as high.
constexpr size_t kMaxUnsentReleases = 65536;

template <size_t n>
void CopyText(char (&target)[n], const std::string& text) {
  std::memcpy(target, text.data(), std::min(text.size(), n - 1));
}

class HelloRequest : public Request {
 public:
  wire::Welcome welcome{};

 private:
  Result OnReply(Reply& reply) override {
    if (!reply.Read(&welcome)) return Fail(TERRACE_INTERNAL, "the daemon's welcome is too short");
    if (welcome.version < wire::kVersionMin || welcome.version > wire::kVersion) {
      return Fail(TERRACE_FAILED_PRECONDITION,
                  "the daemon speaks protocol %u, this library %u to %u: install the same release",
                  welcome.version, wire::kVersionMin, wire::kVersion);
    }
    return {};
  }
};

class StatusRequest : public Request {
 private:
  Result OnReply(Reply&) override { return {}; }
};

}  // namespace

Connection::Connection(Options options)
    : options_(std::move(options)),
      receive_buffer_(std::make_unique_for_overwrite<std::byte[]>(wire::kMaxPacketBytes)) {}

Connection::~Connection() = default;

Result Connection::Open(Deadline deadline) {
  {
    std::lock_guard lock(mu_);  // Break() finds a socket to shut down, or we find that it was called
    if (broken()) return BrokenResult();
    if (Result connected = socket_.Connect(options_.path); !connected.ok()) {
      broken_ = true;
      return connected;
    }
  }
  wire::Hello hello{};
  hello.version_min = wire::kVersionMin;
  hello.version_max = wire::kVersion;
  hello.pid = static_cast<uint32_t>(getpid());
  CopyText(hello.tenant, options_.tenant);
  CopyText(hello.token, options_.token);
  CopyText(hello.client_name, options_.client_name);
  HelloRequest request;
  Result said = Call(wire::Type::kHello, {{&hello, sizeof(hello)}}, &request, deadline);
  if (!said.ok()) {
    Break();
    return said;
  }
  welcome_ = request.welcome;
  return {};
}

PacketSocket::Io Connection::SendLocked(wire::Type type, std::initializer_list<iovec> parts,
                                        Request* request, uint16_t flags, std::span<const int> descriptors) {
  wire::Header header{};
  header.magic = wire::kMagic;
  header.version = welcome_.version == 0 ? wire::kVersion : welcome_.version;
  header.type = static_cast<uint16_t>(type);
  header.flags = flags;
  header.request_id = next_id_;
  iovec all[5];
  size_t count = 0;
  all[count++] = {&header, sizeof(header)};
  for (const iovec& part : parts) {
    header.body_bytes += part.iov_len;
    all[count++] = part;
  }
  const PacketSocket::Io io = socket_.Send({all, count}, descriptors);
  if (io != PacketSocket::Io::kDone) return io;
  ++next_id_;
  if (request != nullptr) {
    request->id_ = header.request_id;
    pending_.push_back(request);
  }
  return io;
}

Result Connection::Send(wire::Type type, std::initializer_list<iovec> parts, Request* request,
                        Deadline deadline, std::span<const int> descriptors) {
  const uint16_t flags = request == nullptr ? wire::kFlagNoReply : 0;
  std::unique_lock lock(mu_);
  for (;;) {
    if (broken()) return BrokenResult();
    FlushReleasesLocked();
    const PacketSocket::Io io = SendLocked(type, parts, request, flags, descriptors);
    if (io == PacketSocket::Io::kDone) return {};
    if (io == PacketSocket::Io::kBroken) {
      BreakLocked();
      return BrokenResult();
    }
    if (deadline.Passed()) {
      if (request != nullptr) {
        suspect_ = true;
        options_.on_trouble->Wake();
      }
      return Fail(TERRACE_DEADLINE_EXCEEDED, "the daemon did not take the request in time");
    }
    // Receive meanwhile: the daemon may be waiting to get rid of its replies.
    if (!receiving_) {
      receiving_ = true;
      if (ReceiveLocked(lock, POLLIN | POLLOUT, -1, deadline) == Received::kBroken) BreakLocked();
      receiving_ = false;
      if (followers_ > 0) changed_.notify_all();
    } else {
      lock.unlock();
      socket_.Wait(POLLOUT, -1, deadline);
      lock.lock();
    }
  }
}

Connection::Received Connection::ReceiveLocked(std::unique_lock<std::mutex>& lock, short events,
                                               int wake, Deadline deadline) {
  Descriptors descriptors;
  size_t bytes = 0;
  lock.unlock();
  std::byte* const buffer = receive_buffer_.get();
  PacketSocket::Io io;
  // The kernel's time limit for receiving is as coarse as its timer: near the deadline we poll instead.
  if (events == POLLIN && wake < 0 && deadline.LeftNs() > 2 * PacketSocket::kReceiveWaitNs) {
    io = socket_.ReceiveWaiting(buffer, wire::kMaxPacketBytes, &bytes, &descriptors);
  } else {
    if (events != 0) socket_.Wait(events, wake, deadline);
    io = socket_.Receive(buffer, wire::kMaxPacketBytes, &bytes, &descriptors);
  }
  lock.lock();
  if (io == PacketSocket::Io::kNotNow) return Received::kNothing;
  if (io == PacketSocket::Io::kBroken || !DispatchLocked(bytes, &descriptors)) {
    return Received::kBroken;
  }
  return Received::kPacket;
}

// False: the packet is not one of this protocol.
bool Connection::DispatchLocked(size_t bytes, Descriptors* descriptors) {
  wire::Header header;
  if (bytes < sizeof(header)) return false;
  std::memcpy(&header, receive_buffer_.get(), sizeof(header));
  if (header.magic != wire::kMagic || header.body_bytes != bytes - sizeof(header)) return false;
  suspect_.store(false, std::memory_order_relaxed);
  Reply reply{{receive_buffer_.get() + sizeof(header), bytes - sizeof(header)}, descriptors};
  const auto type = static_cast<wire::Type>(header.type);
  if (type == wire::Type::kSegmentGone) {
    wire::SegmentGone gone;
    if (reply.Read(&gone) && options_.on_segment_gone) options_.on_segment_gone(gone.segment_id);
    return true;
  }
  if ((header.flags & wire::kFlagReply) == 0) return true;  // news of later versions
  for (Request* request : pending_) {
    if (request->id_ == header.request_id) {
      FinishLocked(request, header, reply);
      ForgetLocked(request);
      if (followers_ > 0) changed_.notify_all();
      return true;
    }
  }
  // Nobody waits for it any more. What it leased is given back.
  wire::LookupDone late;
  if (type == wire::Type::kLookup && header.status == 0 && reply.Read(&late) && late.lease_id != 0) {
    leases_.erase(late.lease_id);
    ReleaseLaterLocked(late.lease_id);
    FlushReleasesLocked();
  }
  return true;
}

void Connection::FinishLocked(Request* request, const wire::Header& header, Reply& reply) {
  request->done_ = true;
  if (header.status == 0) {
    request->result_ = request->OnReply(reply);
    return;
  }
  request->result_.code = static_cast<terrace_status>(header.status);
  wire::ErrorBody error;
  if (!reply.Read(&error)) return;
  request->error_reason_ = error.reason;
  request->result_.text.assign(error.text, std::min<size_t>(error.text_bytes, sizeof(error.text)));
}

Result Connection::Wait(std::span<Request* const> requests, Deadline deadline) {
  const auto all_done = [&] {
    return std::all_of(requests.begin(), requests.end(), [](Request* r) { return r->done_; });
  };
  Result result;
  std::unique_lock lock(mu_);
  while (!all_done()) {
    if (broken()) {
      result = BrokenResult();
      break;
    }
    if (deadline.Passed()) {
      suspect_ = true;
      options_.on_trouble->Wake();
      result = Fail(TERRACE_DEADLINE_EXCEEDED, "the daemon did not answer within the time limit");
      break;
    }
    if (receiving_) {
      ++followers_;
      changed_.wait_until(lock, deadline.AsTimePoint());
      --followers_;
      continue;
    }
    receiving_ = true;
    const Received received = ReceiveLocked(lock, POLLIN, -1, deadline);
    receiving_ = false;
    if (received == Received::kBroken) BreakLocked();
  }
  if (!receiving_ && followers_ > 0) changed_.notify_all();  // one of them receives from now on
  for (Request* request : requests) {
    if (!request->done_) ForgetLocked(request);
  }
  return result;
}

Result Connection::Call(wire::Type type, std::initializer_list<iovec> parts, Request* request,
                        Deadline deadline, std::span<const int> descriptors) {
  if (Result sent = Send(type, parts, request, deadline, descriptors); !sent.ok()) return sent;
  Request* const requests[] = {request};
  if (Result waited = Wait(requests, deadline); !waited.ok()) return waited;
  return request->result();
}

void Connection::Forget(Request* request) {
  std::lock_guard lock(mu_);
  ForgetLocked(request);
}

void Connection::ForgetLocked(Request* request) {
  const auto it = std::find(pending_.begin(), pending_.end(), request);
  if (it == pending_.end()) return;
  *it = pending_.back();
  pending_.pop_back();
}

bool Connection::Drain() {
  std::unique_lock lock(mu_);
  bool any = false;
  while (!receiving_ && !broken()) {
    FlushReleasesLocked();
    receiving_ = true;
    const Received received = ReceiveLocked(lock, 0, -1, Deadline{});
    receiving_ = false;
    if (received == Received::kBroken) BreakLocked();
    if (received != Received::kPacket) break;
    any = true;
  }
  if (!receiving_ && followers_ > 0) changed_.notify_all();
  return any;
}

void Connection::WaitForEvents(bool receive, const WakeFd& wake, Deadline deadline) {
  // Without POLLIN the kernel does not wake us for replies that others are waiting for.
  socket_.Wait(receive ? POLLIN : POLLRDHUP, wake.fd(), deadline);
  wake.Clear();
  if (!receive && !broken()) Drain();
}

Result Connection::Release(uint64_t lease_id, bool wait, Deadline deadline) {
  const wire::Release release{lease_id};
  {
    std::lock_guard lock(mu_);
    if (broken()) return BrokenResult();
    if (leases_.erase(lease_id) == 0) {
      return Fail(TERRACE_NOT_FOUND,
                  "lease %llx is not held by this client: released, of another daemon, or forged",
                  static_cast<unsigned long long>(lease_id));
    }
    if (!wait) {
      ReleaseLaterLocked(lease_id);
      FlushReleasesLocked();
      return {};
    }
  }
  StatusRequest request;
  return Call(wire::Type::kRelease, {{const_cast<wire::Release*>(&release), sizeof(release)}}, &request,
              deadline);
}

void Connection::ReleaseLaterLocked(uint64_t lease_id) {
  // What is dropped here ends with the connection or by its age.
  if (unsent_releases_.size() < kMaxUnsentReleases) unsent_releases_.push_back(lease_id);
}

void Connection::FlushReleasesLocked() {
  while (!unsent_releases_.empty() && !broken()) {
    wire::Release release{unsent_releases_.back()};
    const PacketSocket::Io io = SendLocked(wire::Type::kRelease, {{&release, sizeof(release)}},
                                           nullptr, wire::kFlagNoReply);
    if (io == PacketSocket::Io::kNotNow) return;
    if (io == PacketSocket::Io::kBroken) BreakLocked();
    unsent_releases_.pop_back();
  }
}

void Connection::Ping() {
  std::lock_guard lock(mu_);
  // Its reply has no request, which is fine: that something arrives is all that counts.
  if (!broken()) (void)SendLocked(wire::Type::kPing, {}, nullptr, 0);
}

void Connection::Break() {
  std::lock_guard lock(mu_);
  BreakLocked();
}

void Connection::BreakLocked() {
  if (broken_.exchange(true)) return;
  socket_.Shutdown(options_.watch_end ? SHUT_WR : SHUT_RDWR);
  changed_.notify_all();
  options_.on_trouble->Wake();
}

bool Connection::AtEnd() {
  for (;;) {
    Descriptors descriptors;
    size_t bytes = 0;
    const PacketSocket::Io io =
        socket_.Receive(receive_buffer_.get(), wire::kMaxPacketBytes, &bytes, &descriptors);
    if (io == PacketSocket::Io::kNotNow) return false;
    if (io == PacketSocket::Io::kBroken) return socket_.PeerHasClosed();
  }
}

Result Connection::BrokenResult() const {
  return Fail(TERRACE_UNAVAILABLE, "the connection to the daemon at %s is gone; reconnecting",
              options_.path.c_str());
}

}  // namespace terrace::client
