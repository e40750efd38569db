// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/engine/client_connection.h"

#include <linux/sockios.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/block_copy.h"
#include "kvstore/base/check.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"

namespace terrace::api {

using tiering::LookupAnswer;
using tiering::Session;

namespace {

constexpr int kMaxFds = 4;

absl::Status Malformed(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("malformed message: ", what, "; see docs/engine_protocol.md"));
}

// A fixed struct at the start of a body. False when the body is too short.
template <typename T>
bool Take(std::span<const std::byte>* body, T* out) {
  if (body->size() < sizeof(T)) return false;
  std::memcpy(out, body->data(), sizeof(T));
  *body = body->subspan(sizeof(T));
  return true;
}

template <size_t n>
std::string Text(const char (&field)[n]) {
  return std::string(field, strnlen(field, n));
}

template <typename T>
std::span<const std::byte> AsBytes(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

}  // namespace

ClientConnection::ClientConnection(const EngineContext* context, int fd, int epoll_fd, uint32_t pid,
                                   uint32_t uid)
    : context_(context),
      fd_(fd),
      epoll_fd_(epoll_fd),
      pid_(pid),
      uid_(uid),
      connected_ns_(context->clock->NowNs()) {
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
    shutdown(fd_, SHUT_RDWR);
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
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxFds)];
    msghdr message{};
    message.msg_iov = &iov;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t n = recvmsg(fd_, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    // Clients have no reason to send descriptors: take them off our hands.
    for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
      if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
      for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
        int fd;
        std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
        close(fd);
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
      status = Handle(header, body);
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

absl::Status ClientConnection::Handle(const wire::Header& header, Bytes body) {
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
    case wire::Type::kPing:
      Reply(header, {});
      return absl::OkStatus();
    case wire::Type::kHello:
    case wire::Type::kSegmentGone:
      break;
  }
  malformed_ = true;
  return Malformed(absl::StrCat("unknown type ", header.type));
}

absl::Status ClientConnection::OnHello(const wire::Header& header, Bytes body) {
  wire::Hello hello;
  malformed_ = true;  // until it turns out well: a connection that was not let in is closed
  if (greeted() || !Take(&body, &hello) || !body.empty()) return Malformed("Hello");
  if (hello.version_min > wire::kVersion || hello.version_max < wire::kVersionMin) {
    context_->metrics->rejected[EngineMetrics::kVersion]->Add();
    return absl::FailedPreconditionError(absl::StrCat(
        "client speaks protocol versions ", hello.version_min, " to ", hello.version_max, ", this daemon ",
        wire::kVersionMin, " to ", wire::kVersion, "; update the older of libterrace and terraced"));
  }
  auto tenant = context_->access->Authenticate(Text(hello.tenant), Text(hello.token), uid_);
  if (!tenant.ok()) {
    context_->metrics->rejected[EngineMetrics::kAuth]->Add();
    Log(LogLevel::kWarning, "client_refused", {{"pid", pid_}, {"uid", uid_}, {"tenant", Text(hello.tenant)}});
    return tenant.status();
  }
  malformed_ = false;
  version_ = std::min(hello.version_max, wire::kVersion);
  wire::Welcome welcome{};
  {
    MutexLock lock(&mu_);
    session_ = context_->stack->OpenSession(*tenant);
    client_name_ = Text(hello.client_name);
    welcome.session_id = session_->id();
  }
  welcome.version = version_;
  welcome.max_keys = wire::kMaxKeysPerMessage;
  welcome.epoch = context_->epoch;
  welcome.staging_bytes_default = context_->config->staging_bytes;
  welcome.staging_bytes_max = context_->config->staging_bytes_max;
  greeted_.store(true, std::memory_order_release);
  context_->metrics->accepted->Add();
  Reply(header, AsBytes(welcome));
  return absl::OkStatus();
}

absl::Status ClientConnection::OnOpenKeySpace(const wire::Header& header, Bytes body) {
  wire::OpenKeySpace open;
  if (!Take(&body, &open) || open.identity_bytes != body.size() ||
      open.identity_bytes > wire::kMaxIdentityBytes) {
    return Malformed("OpenKeySpace");
  }
  kv::KeySpaceIdentity identity;
  for (std::string* field : {&identity.model, &identity.model_fingerprint, &identity.kv_dtype, &identity.layout,
                             &identity.parallel, &identity.hash, &identity.group, &identity.extra}) {
    uint32_t size;
    if (!Take(&body, &size) || size > body.size()) return Malformed("OpenKeySpace: identity");
    field->assign(reinterpret_cast<const char*>(body.data()), size);
    body = body.subspan(size);
  }
  if (!body.empty()) return Malformed("OpenKeySpace: bytes behind the identity");
  identity.block_bytes = open.block_bytes;
  identity.tokens_per_block = open.tokens_per_block;
  wire::KeySpaceOpened opened{};
  ASSIGN_OR_RETURN(const kv::KeySpace* key_space, session().OpenKeySpace(identity));
  opened.key_space_id = key_space->id;
  std::memcpy(opened.digest, key_space->digest.data(), 32);
  opened.segment_bytes = wire::kSegmentBytes;
  Reply(header, AsBytes(opened));
  return absl::OkStatus();
}

absl::Status ClientConnection::OnLookup(const wire::Header& header, Bytes body) {
  wire::Lookup lookup;
  if (!Take(&body, &lookup)) return Malformed("Lookup");
  if (lookup.n_keys == 0 || lookup.n_keys > wire::kMaxKeysPerMessage ||
      body.size() != lookup.n_keys * wire::kKeyBytes) {
    return Malformed(absl::StrCat("Lookup of ", lookup.n_keys, " keys (1 to ", wire::kMaxKeysPerMessage, ") in ",
                                  body.size(), " bytes"));
  }
  const std::span keys(reinterpret_cast<const kv::BlockKey*>(body.data()), lookup.n_keys);
  const bool lease = (lookup.flags & wire::kLookupNoLease) == 0;
  const auto mode = (lookup.flags & wire::kLookupProbe) != 0 ? tiering::LookupMode::kProbe
                    : (lookup.flags & wire::kLookupAll) != 0 ? tiering::LookupMode::kAll
                                                             : tiering::LookupMode::kPrefix;
  if (lease && lookup.lease_id == Session::kNoLease) return Malformed("Lookup: lease id");
  ASSIGN_OR_RETURN(const LookupAnswer answer, session().Lookup(lookup.key_space_id, keys, mode,
                                                               lease ? lookup.lease_id : Session::kNoLease));
  static thread_local std::vector<std::byte> reply;
  reply.resize(sizeof(wire::LookupDone) + answer.places.size() * sizeof(wire::Ref));
  const wire::LookupDone done{answer.lease_id, answer.n_prefix, answer.n_here,
                              static_cast<uint32_t>(answer.places.size()), 0};
  std::memcpy(reply.data(), &done, sizeof(done));
  auto* refs = reinterpret_cast<wire::Ref*>(reply.data() + sizeof(done));
  for (size_t i = 0; i < answer.places.size(); ++i) {
    const tiering::BlockPlace& p = answer.places[i];
    refs[i] = {p.segment_id, p.header_offset, p.payload_offset, p.generation, p.payload_bytes,
               static_cast<uint32_t>(p.reason)};
  }
  Reply(header, reply);
  return absl::OkStatus();
}

absl::Status ClientConnection::OnRelease(const wire::Header& header, Bytes body) {
  wire::Release release;
  if (!Take(&body, &release) || !body.empty()) return Malformed("Release");
  RETURN_IF_ERROR(session().Release(release.lease_id));
  if ((header.flags & wire::kFlagNoReply) == 0) Reply(header, {});
  return absl::OkStatus();
}

absl::Status ClientConnection::OnGetSegment(const wire::Header& header, Bytes body) {
  wire::GetSegment get;
  if (!Take(&body, &get) || !body.empty()) return Malformed("GetSegment");
  // Descriptors under way count against this process's user (ETOOMANYREFS): who does not take them must
  // not use up what the others need.
  int unread = 0;
  if (ioctl(fd_, SIOCOUTQ, &unread) == 0 && unread == 0) untaken_segments_ = 0;
  if (untaken_segments_ >= kMaxUntakenSegments) {
    return absl::ResourceExhaustedError("take the segments that were sent before you ask for more");
  }
  ASSIGN_OR_RETURN(const tiering::SegmentFds segment,
                   context_->stack->FindSegment(session().tenant(), get.segment_id));
  const wire::SegmentInfo info{get.segment_id, 0, segment.payload_bytes, segment.header_bytes};
  const int fds[] = {segment.payload_fd, segment.header_fd};
  ++untaken_segments_;
  Reply(header, AsBytes(info), fds);
  close(segment.payload_fd);
  close(segment.header_fd);
  return absl::OkStatus();
}

absl::Status ClientConnection::OnGetStaging(const wire::Header& header, Bytes body) {
  wire::GetStaging get;
  if (!Take(&body, &get) || !body.empty()) return Malformed("GetStaging");
  uint64_t bytes = get.bytes == 0 ? context_->config->staging_bytes : get.bytes;
  if (bytes > context_->config->staging_bytes_max) {
    return absl::InvalidArgumentError(absl::StrCat("staging memory of ", bytes, " bytes; at most ",
                                                   context_->config->staging_bytes_max,
                                                   " (engine.staging_bytes_max)"));
  }
  MutexLock lock(&mu_);
  if (staging_ != nullptr) return absl::FailedPreconditionError("this connection has its staging memory already");
  absl::Status charged = context_->stack->ChargeStaging(bytes);
  // Who leaves the size to us gets less when there is less: a smaller ring is slower, none stores nothing.
  for (int halvings = 0; get.bytes == 0 && !charged.ok() && halvings < 2; ++halvings) {
    bytes /= 2;
    charged = context_->stack->ChargeStaging(bytes);
  }
  if (!charged.ok()) {
    Log(LogLevel::kWarning, "staging_refused",
        {{"pid", pid_}, {"uid", uid_}, {"why", "this client cannot store"}, {"mend", charged.message()}});
    return charged;
  }
  auto memory = tiering::SharedMemory::Create("terrace-staging", bytes,
                                              tiering::SharedMemory::Clients::kMayWrite, false);
  if (!memory.ok()) {
    context_->stack->ReleaseStaging(bytes);
    return memory.status();
  }
  staging_ = std::make_shared<Staging>(context_->stack, *std::move(memory));
  const wire::StagingInfo info{bytes};
  const int fds[] = {staging_->memory->fd()};
  Reply(header, AsBytes(info), fds);
  return absl::OkStatus();
}

absl::Status ClientConnection::OnPut(const wire::Header& header, Bytes body) {
  wire::Put put;
  if (!Take(&body, &put)) return Malformed("Put");
  // Ids are the tenant's, not the connection's: a client opens on one connection and stores on another.
  const kv::KeySpace* key_space = context_->stack->FindKeySpace(session().tenant(), put.key_space_id);
  if (key_space == nullptr) {
    return absl::NotFoundError(absl::StrCat("no key space ", put.key_space_id, "; open it first"));
  }
  const uint64_t bytes = key_space->identity.block_bytes;
  if (put.payload_bytes != bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("payload of ", put.payload_bytes, " bytes in a key space of ", bytes, "-byte blocks"));
  }
  if (put.n_checksums != ChecksumCount(bytes) || body.size() != put.n_checksums * sizeof(uint64_t)) {
    return Malformed(absl::StrCat("Put with ", put.n_checksums, " checksums; ", ChecksumCount(bytes), " are needed"));
  }
  std::shared_ptr<Staging> staging;
  {
    MutexLock lock(&mu_);
    staging = staging_;
  }
  if (staging == nullptr) return absl::FailedPreconditionError("ask for staging memory (GetStaging) first");
  const uint64_t staging_bytes = staging->memory->bytes();
  if (put.staging_offset > staging_bytes || bytes > staging_bytes - put.staging_offset) {
    return absl::InvalidArgumentError(absl::StrCat("Put of ", bytes, " bytes at ", put.staging_offset,
                                                   " lies outside of the ", staging_bytes, " bytes of staging memory"));
  }
  tiering::PutRequest request;
  request.key_space = key_space;
  request.key = kv::BlockKey::FromBytes(put.key);
  if ((put.flags & wire::kPutHasParent) != 0) request.parent = kv::BlockKey::FromBytes(put.parent);
  request.source = {staging->memory->data() + put.staging_offset, bytes};
  request.checksums.resize(put.n_checksums);
  std::memcpy(request.checksums.data(), body.data(), body.size());
  // The store may outlive the connection: it holds what it reads from and whom it answers.
  request.done = [self = shared_from_this(), staging, header](Reason reason) {
    const wire::PutDone done{static_cast<uint32_t>(reason), 0};
    self->Reply(header, AsBytes(done));
  };
  session().Put(std::move(request));
  return absl::OkStatus();
}

absl::Status ClientConnection::OnReport(const wire::Header& header, Bytes body) {
  wire::Report report;
  if (!Take(&body, &report) || !body.empty()) return Malformed("Report");
  const kv::KeySpace* key_space = context_->stack->FindKeySpace(session().tenant(), report.key_space_id);
  if (key_space == nullptr) return absl::NotFoundError("no such key space; open it first");
  if (context_->stack->CheckReported(*key_space, kv::BlockKey::FromBytes(report.key), report.generation)) {
    context_->metrics->corrupt_reports->Add();
  }
  if ((header.flags & wire::kFlagNoReply) == 0) Reply(header, {});
  return absl::OkStatus();
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
  d.connected_seconds = static_cast<double>(context_->clock->NowNs() - connected_ns_) / 1e9;
  return d;
}

}  // namespace terrace::api
