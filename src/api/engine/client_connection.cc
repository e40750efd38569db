// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/engine/client_connection.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "api/engine/packet_body.h"
#include "kvstore/base/check.h"
#include "kvstore/base/log.h"

namespace terrace::api {

using tiering::Session;

namespace {

constexpr int kMaxFds = 4;             // that are sent
constexpr int kMaxFdsReceived = 253;   // SCM_RIGHTS takes no more

}  // namespace

ClientConnection::ClientConnection(const EngineContext* context, int fd, int epoll_fd, uint32_t pid,
                                   uint32_t uid)
    : context_(context),
      fd_(fd),
      epoll_fd_(epoll_fd),
      pid_(pid),
      uid_(uid),
      connected_ns_(context->clock->NowNs()),
      regions_(context->config->max_regions) {
  context_->metrics->connections->Add(1);
}

ClientConnection::~ClientConnection() {
  Close();
  close(fd_);
}

void ClientConnection::Close() {
  {
    MutexLock lock(&send_mu_);
    if (closed_) return;
    closed_ = true;
    waiting_.clear();
    // The client's pages are not its own again while a copy from or to them is under way: it must not see our end
    // before that. Who goes last closes the descriptor.
    shutdown(fd_, regions_.Close() ? SHUT_RD : SHUT_RDWR);
  }
  context_->metrics->connections->Add(-1);
  std::unique_ptr<Session> session;
  std::shared_ptr<Staging> staging;
  MutexLock lock(&mu_);
  session = std::move(session_);
  staging = std::move(staging_);
}

bool ClientConnection::OnReadable() {
  alignas(16) static thread_local std::byte packet[wire::kMaxPacketBytes];
  int64_t spent_ns = 0;
  for (int packets = 0; packets < kPacketsPerTurn && spent_ns < kTurnNs; ++packets) {
    {
      MutexLock lock(&send_mu_);
      if (closed_) return false;
      if (!waiting_.empty()) return true;  // answers first: who does not read is not read
    }
    iovec iov{packet, sizeof(packet)};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxFdsReceived)];
    msghdr message{};
    message.msg_iov = &iov;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t n = recvmsg(fd_, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    PacketFds fds;  // closes what no message takes
    for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
      if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
      for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
        int fd;
        std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
        fds.Add(fd);
      }
    }
    if (n == 0) return false;

    const int64_t started = context_->clock->NowNs();
    std::span<const std::byte> body(packet, static_cast<size_t>(n));
    wire::Header header{};
    absl::Status status;
    if (!Take(&body, &header) || header.magic != wire::kMagic || (message.msg_flags & MSG_TRUNC) != 0 ||
        header.body_bytes != body.size()) {
      status = Malformed("bad header, or a length that is not the packet's");
      malformed_ = true;
    } else {
      status = Handle(header, body, &fds);
    }
    const auto type = static_cast<wire::Type>(header.type);
    const int64_t took_ns = context_->clock->NowNs() - started;
    spent_ns += took_ns;
    context_->metrics->Request(type, status.code(), took_ns);
    if (!status.ok() && (header.flags & wire::kFlagNoReply) == 0) ReplyError(header, status);
    if (malformed_) {
      context_->metrics->rejected[EngineMetrics::kMalformed]->Add();
      Log(LogLevel::kWarning, "connection_closed", {{"pid", pid_}, {"uid", uid_}, {"why", status.message()}});
      return false;
    }
  }
  return true;  // level-triggered: the rest comes with the next turn
}

bool ClientConnection::OnWritable() {
  MutexLock lock(&send_mu_);
  if (closed_) return false;
  while (!waiting_.empty()) {
    if (!TrySend(waiting_.front(), {})) return true;
    waiting_.pop_front();
  }
  WatchLocked(EPOLLIN);
  return true;
}

// Any thread: answers to stores come from copy threads.
void ClientConnection::WatchLocked(uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd_;
  epoll_ctl(epoll_fd_, EPOLL_CTL_MOD, fd_, &event);
}

absl::Status ClientConnection::Handle(const wire::Header& header, Bytes body, PacketFds* fds) {
  const auto type = static_cast<wire::Type>(header.type);
  if (type == wire::Type::kHello) return OnHello(header, body);
  if (!greeted()) {
    malformed_ = true;
    return absl::FailedPreconditionError("the first message of a connection must be Hello");
  }
  if (header.version != version_) {
    malformed_ = true;
    context_->metrics->rejected[EngineMetrics::kVersion]->Add();
    return absl::FailedPreconditionError(
        absl::StrCat("message of protocol version ", header.version, " on a connection of version ", version_));
  }
  if (type >= wire::Type::kRegisterRegion && type <= wire::Type::kRegionLoad && version_ < 3) {
    malformed_ = true;
    return Malformed(absl::StrCat("type ", header.type, " on a connection of version ", version_));
  }
  switch (type) {
    case wire::Type::kOpenKeySpace:
      return OnOpenKeySpace(header, body);
    case wire::Type::kLookup:
      return OnLookup(header, body);
    case wire::Type::kRelease:
      return OnRelease(header, body);
    case wire::Type::kGetSegment:
      return OnGetSegment(header, body);
    case wire::Type::kGetStaging:
      return OnGetStaging(header, body);
    case wire::Type::kPut:
      return OnPut(header, body);
    case wire::Type::kReport:
      return OnReport(header, body);
    case wire::Type::kLocate:
      return OnLocate(header, body);
    case wire::Type::kHint:
      return OnHint(header, body);
    case wire::Type::kPing:
      Reply(header, {});
      return absl::OkStatus();
    case wire::Type::kRegisterRegion:
      return OnRegisterRegion(header, body, fds);
    case wire::Type::kUnregisterRegion:
      return OnUnregisterRegion(header, body);
    case wire::Type::kRegionStore:
      return OnRegionStore(header, body);
    case wire::Type::kRegionLoad:
      return OnRegionLoad(header, body);
    case wire::Type::kHello:
    case wire::Type::kSegmentGone:
      break;
  }
  malformed_ = true;
  return Malformed(absl::StrCat("unknown type ", header.type));
}

void ClientConnection::SendSegmentGone(kv::TenantId tenant, uint32_t segment_id) {
  {
    MutexLock lock(&mu_);
    if (session_ == nullptr || session_->tenant() != tenant) return;
  }
  wire::Header header{};
  header.type = static_cast<uint16_t>(wire::Type::kSegmentGone);
  Reply(header, AsBytes(wire::SegmentGone{segment_id, 0}));
}

void ClientConnection::Reply(const wire::Header& request, Bytes body, std::span<const int> fds) {
  wire::Header header{wire::kMagic, version_, request.type, wire::kFlagReply, 0, request.request_id, body.size()};
  static thread_local std::vector<std::byte> packet;
  packet.resize(sizeof(header) + body.size());
  std::memcpy(packet.data(), &header, sizeof(header));
  if (!body.empty()) std::memcpy(packet.data() + sizeof(header), body.data(), body.size());
  Send(packet, fds);
}

void ClientConnection::ReplyError(const wire::Header& request, const absl::Status& status) {
  wire::ErrorBody error{};
  const absl::string_view text = status.message().substr(0, sizeof(error.text));
  error.text_bytes = static_cast<uint32_t>(text.size());
  std::memcpy(error.text, text.data(), text.size());
  const wire::Header header{wire::kMagic,        version_, request.type, wire::kFlagReply,
                            static_cast<uint16_t>(status.code()), request.request_id, sizeof(error)};
  std::vector<std::byte> packet(sizeof(header) + sizeof(error));
  std::memcpy(packet.data(), &header, sizeof(header));
  std::memcpy(packet.data() + sizeof(header), &error, sizeof(error));
  Send(packet, {});
}

void ClientConnection::Send(Bytes packet, std::span<const int> fds) {
  MutexLock lock(&send_mu_);
  if (closed_) return;
  if (waiting_.empty() && TrySend(packet, fds)) return;
  // Answers with descriptors are not kept: their client asks one thing at a time and reads.
  if (waiting_.size() >= kMaxWaiting || !fds.empty()) {
    context_->metrics->rejected[EngineMetrics::kSlowReader]->Add();
    shutdown(fd_, SHUT_RDWR);  // the server thread sees it and closes
    return;
  }
  if (waiting_.empty()) WatchLocked(EPOLLOUT);
  waiting_.emplace_back(packet.begin(), packet.end());
}

bool ClientConnection::TrySend(Bytes packet, std::span<const int> fds) {
  iovec iov{const_cast<std::byte*>(packet.data()), packet.size()};
  msghdr message{};
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxFds)] = {};
  if (!fds.empty()) {
    TERRACE_CHECK(fds.size() <= kMaxFds);
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(c), fds.data(), fds.size_bytes());
  }
  while (sendmsg(fd_, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == ENOBUFS) return false;
    shutdown(fd_, SHUT_RDWR);  // gone: the server thread sees it and closes
    return true;
  }
  return true;
}

std::optional<EngineConnection> ClientConnection::Describe() const {
  MutexLock lock(&mu_);
  if (session_ == nullptr) return std::nullopt;
  EngineConnection d;
  d.session_id = session_->id();
  d.client_name = client_name_;
  d.tenant = context_->stack->TenantName(session_->tenant());
  d.pid = pid_;
  d.uid = uid_;
  d.leases = session_->lease_count();
  d.staging_bytes = staging_ == nullptr ? 0 : staging_->memory->bytes();
  d.regions = regions_.count();
  d.connected_seconds = static_cast<double>(context_->clock->NowNs() - connected_ns_) / 1e9;
  return d;
}

}  // namespace terrace::api
