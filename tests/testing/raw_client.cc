// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "testing/raw_client.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "kvstore/base/block_copy.h"
#include "kvstore/base/check.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/block_header.h"

namespace terrace::testing {
namespace {

constexpr size_t kMaxFds = 8;

int64_t NowMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

template <typename T>
absl::StatusOr<T> Fixed(const Packet& packet) {
  if (packet.body.size() != sizeof(T)) return absl::InternalError("answer of a wrong size");
  T value;
  std::memcpy(&value, packet.body.data(), sizeof(T));
  return value;
}

template <size_t n>
void SetText(char (&field)[n], const std::string& text) {
  TERRACE_CHECK(text.size() < n);
  std::memcpy(field, text.data(), text.size());
}

void Append(std::vector<std::byte>* target, std::span<const std::byte> bytes) {
  target->insert(target->end(), bytes.begin(), bytes.end());
}

}  // namespace

Fd::~Fd() {
  if (fd_ >= 0) close(fd_);
}

Fd& Fd::operator=(Fd&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) close(fd_);
    fd_ = other.Take();
  }
  return *this;
}

int Fd::Take() { return std::exchange(fd_, -1); }

Mapping::Mapping(Fd fd, uint64_t bytes, int protection) : fd_(std::move(fd)), bytes_(bytes) {
  void* data = mmap(nullptr, bytes, protection, MAP_SHARED, fd_.get(), 0);
  if (data != MAP_FAILED) data_ = static_cast<std::byte*>(data);
}

Mapping::~Mapping() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

RawClient::RawClient(const std::string& socket_path) {
  Fd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  TERRACE_CHECK(socket_path.size() < sizeof(address.sun_path));
  std::memcpy(address.sun_path, socket_path.data(), socket_path.size());
  if (fd.get() < 0) return;
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) fd_ = std::move(fd);
}

RawClient::~RawClient() = default;

bool RawClient::SendBytes(std::span<const std::byte> packet, std::span<const int> fds) {
  iovec iov{const_cast<std::byte*>(packet.data()), packet.size()};
  msghdr message{};
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 253)] = {};
  if (!fds.empty()) {
    TERRACE_CHECK(fds.size() <= 253);
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(c), fds.data(), fds.size_bytes());
  }
  pollfd writable{fd_.get(), POLLOUT, 0};
  if (poll(&writable, 1, kWaitMs) != 1) return false;
  return sendmsg(fd_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT) == static_cast<ssize_t>(packet.size());
}

std::optional<Packet> RawClient::Receive(int wait_ms) {
  pollfd readable{fd_.get(), POLLIN, 0};
  if (poll(&readable, 1, wait_ms) != 1) return std::nullopt;
  static thread_local std::vector<std::byte> buffer(wire::kMaxPacketBytes);
  iovec iov{buffer.data(), buffer.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxFds)];
  msghdr message{};
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t n = recvmsg(fd_.get(), &message, MSG_CMSG_CLOEXEC);
  if (n <= 0) return std::nullopt;
  Packet packet;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
      packet.fds.emplace_back(fd);
    }
  }
  if (static_cast<size_t>(n) < sizeof(wire::Header)) return std::nullopt;
  std::memcpy(&packet.header, buffer.data(), sizeof(wire::Header));
  packet.body.assign(buffer.data() + sizeof(wire::Header), buffer.data() + n);
  return packet;
}

bool RawClient::WaitClosed(int wait_ms) {
  const int64_t end = NowMs() + wait_ms;
  while (true) {
    pollfd readable{fd_.get(), POLLIN, 0};
    const int64_t left = end - NowMs();
    if (left <= 0 || poll(&readable, 1, static_cast<int>(left)) != 1) return false;
    std::byte sink[64];
    const ssize_t n = recv(fd_.get(), sink, sizeof(sink), MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return true;
  }
}

std::vector<std::byte> RawClient::Encode(wire::Type type, uint32_t request_id, std::span<const std::byte> body,
                                         uint16_t flags, uint16_t version) {
  const wire::Header header{wire::kMagic, version, static_cast<uint16_t>(type), flags, 0, request_id, body.size()};
  std::vector<std::byte> packet;
  Append(&packet, BytesOf(header));
  Append(&packet, body);
  return packet;
}

absl::StatusOr<Packet> RawClient::Call(wire::Type type, std::span<const std::byte> body) {
  const uint32_t id = next_id();
  if (!SendBytes(Encode(type, id, body))) return absl::UnavailableError("not sent");
  while (true) {
    auto packet = Receive();
    if (!packet.has_value()) return absl::UnavailableError("no answer");
    if (packet->header.type == static_cast<uint16_t>(wire::Type::kSegmentGone)) continue;
    if (packet->header.request_id != id || packet->header.type != static_cast<uint16_t>(type) ||
        packet->header.magic != wire::kMagic || packet->header.flags != wire::kFlagReply ||
        packet->header.body_bytes != packet->body.size()) {
      return absl::InternalError("an answer to something else");
    }
    if (packet->header.status != 0) {
      ASSIGN_OR_RETURN(const wire::ErrorBody error, Fixed<wire::ErrorBody>(*packet));
      if (error.text_bytes > sizeof(error.text)) return absl::InternalError("text_bytes beyond the text");
      return absl::Status(static_cast<absl::StatusCode>(packet->header.status),
                          absl::string_view(error.text, error.text_bytes));
    }
    return *std::move(packet);
  }
}

wire::Hello RawClient::HelloFor(const std::string& tenant, const std::string& token) {
  wire::Hello hello{};
  hello.version_min = wire::kVersionMin;
  hello.version_max = wire::kVersion;
  hello.pid = static_cast<uint32_t>(getpid());
  SetText(hello.tenant, tenant);
  SetText(hello.token, token);
  SetText(hello.client_name, "raw-client");
  return hello;
}

absl::StatusOr<wire::Welcome> RawClient::Hello(const wire::Hello& hello) {
  ASSIGN_OR_RETURN(const Packet packet, Call(wire::Type::kHello, BytesOf(hello)));
  return Fixed<wire::Welcome>(packet);
}

std::vector<std::byte> RawClient::OpenBody(uint64_t block_bytes, const SpaceText& text) {
  std::vector<std::byte> identity;
  for (const std::string* field : {&text.model, &text.model_fingerprint, &text.kv_dtype, &text.layout,
                                   &text.parallel, &text.hash, &text.group, &text.extra}) {
    Append(&identity, BytesOf(static_cast<uint32_t>(field->size())));
    Append(&identity, std::as_bytes(std::span(*field)));
  }
  const wire::OpenKeySpace open{block_bytes, 16, static_cast<uint32_t>(identity.size()), text.block_class, 0};
  std::vector<std::byte> body;
  Append(&body, BytesOf(open));
  Append(&body, identity);
  return body;
}

absl::StatusOr<OpenSpace> RawClient::Open(uint64_t block_bytes, const SpaceText& text) {
  ASSIGN_OR_RETURN(const Packet packet, Call(wire::Type::kOpenKeySpace, OpenBody(block_bytes, text)));
  ASSIGN_OR_RETURN(const wire::KeySpaceOpened opened, Fixed<wire::KeySpaceOpened>(packet));
  OpenSpace space{opened.key_space_id, block_bytes, {}};
  std::memcpy(space.digest, opened.digest, 32);
  return space;
}

absl::StatusOr<LookupResult> RawClient::Lookup(const OpenSpace& space, std::span<const kv::BlockKey> keys,
                                               uint32_t flags, uint64_t lease_id) {
  const wire::Lookup lookup{space.id, static_cast<uint32_t>(keys.size()), flags, 0, lease_id};
  std::vector<std::byte> body;
  Append(&body, BytesOf(lookup));
  Append(&body, std::as_bytes(keys));
  ASSIGN_OR_RETURN(const Packet packet, Call(wire::Type::kLookup, body));
  return ParseLookup(packet);
}

absl::StatusOr<LookupResult> RawClient::LookupOrRecompute(const OpenSpace& space,
                                                          std::span<const kv::BlockKey> keys, uint32_t flags,
                                                          uint32_t recompute) {
  const wire::Lookup lookup{space.id, static_cast<uint32_t>(keys.size()), flags, recompute, 0};
  std::vector<std::byte> body;
  Append(&body, BytesOf(lookup));
  Append(&body, std::as_bytes(keys));
  ASSIGN_OR_RETURN(const Packet packet, Call(wire::Type::kLookup, body));
  return ParseLookup(packet);
}

std::vector<std::byte> RawClient::LocateBody(const OpenSpace& space, std::span<const kv::BlockKey> keys,
                                             uint32_t timeout_us) {
  std::vector<std::byte> body;
  Append(&body, BytesOf(wire::Locate{space.id, static_cast<uint32_t>(keys.size()), timeout_us, 0}));
  Append(&body, std::as_bytes(keys));
  return body;
}

absl::StatusOr<LookupResult> RawClient::Locate(const OpenSpace& space, std::span<const kv::BlockKey> keys,
                                               uint32_t timeout_us) {
  ASSIGN_OR_RETURN(const Packet packet, Call(wire::Type::kLocate, LocateBody(space, keys, timeout_us)));
  return ParseLookup(packet);
}

std::vector<std::byte> RawClient::HintBody(const OpenSpace& space, std::span<const kv::BlockKey> keys,
                                           const wire::Retention& retention) {
  std::vector<std::byte> body;
  Append(&body, BytesOf(wire::Hint{space.id, static_cast<uint32_t>(keys.size()), retention, 0}));
  Append(&body, std::as_bytes(keys));
  return body;
}

absl::Status RawClient::Hint(const OpenSpace& space, std::span<const kv::BlockKey> keys,
                             const wire::Retention& retention) {
  return Call(wire::Type::kHint, HintBody(space, keys, retention)).status();
}

absl::StatusOr<LookupResult> RawClient::ParseLookup(const Packet& packet) {
  LookupResult result;
  if (packet.body.size() < sizeof(result.done)) return absl::InternalError("short answer");
  std::memcpy(&result.done, packet.body.data(), sizeof(result.done));
  if (packet.body.size() != sizeof(result.done) + result.done.n_refs * sizeof(wire::Ref)) {
    return absl::InternalError("n_refs is not what follows");
  }
  result.refs.resize(result.done.n_refs);
  if (result.done.n_refs > 0) {
    std::memcpy(result.refs.data(), packet.body.data() + sizeof(result.done),
                result.refs.size() * sizeof(wire::Ref));
  }
  return result;
}

absl::Status RawClient::Release(uint64_t lease_id) {
  return Call(wire::Type::kRelease, BytesOf(wire::Release{lease_id})).status();
}

absl::Status RawClient::Report(const OpenSpace& space, const kv::BlockKey& key, uint64_t generation) {
  wire::Report report{space.id, 0, generation, {}};
  std::memcpy(report.key, key.bytes.data(), 32);
  return Call(wire::Type::kReport, BytesOf(report)).status();
}

absl::Status RawClient::Ping() { return Call(wire::Type::kPing, {}).status(); }

absl::StatusOr<std::pair<Fd, Fd>> RawClient::GetSegment(uint32_t segment_id, wire::SegmentInfo* info) {
  ASSIGN_OR_RETURN(Packet packet, Call(wire::Type::kGetSegment, BytesOf(wire::GetSegment{segment_id, 0})));
  ASSIGN_OR_RETURN(*info, Fixed<wire::SegmentInfo>(packet));
  if (packet.fds.size() != 2) return absl::InternalError("not two descriptors");
  return std::pair(std::move(packet.fds[0]), std::move(packet.fds[1]));
}

Verdict RawClient::Read(const OpenSpace& space, const kv::BlockKey& key, const wire::Ref& ref,
                        std::vector<std::byte>* bytes) {
  Segment& segment = segments_[ref.segment_id];
  if (segment.payload == nullptr) {
    wire::SegmentInfo info;
    auto fds = GetSegment(ref.segment_id, &info);
    if (!fds.ok()) return Verdict::kUnmapped;
    segment.payload = std::make_unique<Mapping>(std::move(fds->first), info.payload_bytes, PROT_READ);
    segment.headers = std::make_unique<Mapping>(std::move(fds->second), info.header_bytes, PROT_READ);
  }
  if (segment.payload->data() == nullptr || segment.headers->data() == nullptr) return Verdict::kUnmapped;
  if (ref.payload_offset + space.block_bytes > segment.payload->bytes()) return Verdict::kUnmapped;
  const auto* header = reinterpret_cast<const kv::BlockHeader*>(segment.headers->data() +
                                                                ref.header_offset * kv::kHeaderUnit);
  switch (kv::CheckHeader(header, space.digest, key.bytes.data(), ref.generation, space.block_bytes)) {
    case kv::HeaderVerdict::kStale:
      return Verdict::kStale;
    case kv::HeaderVerdict::kCorrupt:
      return Verdict::kCorrupt;
    case kv::HeaderVerdict::kOk:
      break;
  }
  std::vector<uint64_t> checksums(header->checksums(), header->checksums() + ChecksumCount(space.block_bytes));
  std::vector<std::byte> copy(space.block_bytes);
  const Piece source{segment.payload->data() + ref.payload_offset, space.block_bytes};
  const Piece target{copy.data(), copy.size()};
  const bool intact =
      CopyBlock({&source, 1}, {&target, 1}, IdentitySeed(space.digest, key.bytes.data(), space.block_bytes),
                CopyCheck::kVerify, checksums, CopyStores::kCached);
  std::atomic_thread_fence(std::memory_order_acquire);
  if (kv::LoadGeneration(header) != ref.generation) return Verdict::kStale;
  if (!intact) return Verdict::kCorrupt;
  if (bytes != nullptr) *bytes = std::move(copy);
  return Verdict::kGood;
}

absl::Status RawClient::GetStaging(uint64_t bytes) {
  ASSIGN_OR_RETURN(Packet packet, Call(wire::Type::kGetStaging, BytesOf(wire::GetStaging{bytes})));
  ASSIGN_OR_RETURN(const wire::StagingInfo info, Fixed<wire::StagingInfo>(packet));
  if (packet.fds.size() != 1) return absl::InternalError("not one descriptor");
  staging_ = std::make_unique<Mapping>(std::move(packet.fds[0]), info.bytes, PROT_READ | PROT_WRITE);
  return staging_->data() == nullptr ? absl::InternalError("staging memory cannot be mapped") : absl::OkStatus();
}

std::vector<uint64_t> RawClient::Checksums(const OpenSpace& space, const kv::BlockKey& key,
                                           std::span<const std::byte> payload) {
  std::vector<uint64_t> checksums(ChecksumCount(payload.size()));
  const Piece source{const_cast<std::byte*>(payload.data()), payload.size()};
  CopyBlock({&source, 1}, {}, IdentitySeed(space.digest, key.bytes.data(), payload.size()), CopyCheck::kCompute,
            checksums, CopyStores::kCached);
  return checksums;
}

std::vector<std::byte> RawClient::PutBody(const OpenSpace& space, const kv::BlockKey& key, uint64_t staging_offset,
                                          std::span<const uint64_t> checksums,
                                          const std::optional<kv::BlockKey>& parent,
                                          const wire::Retention& retention) {
  wire::Put put{};
  put.retention = retention;
  put.key_space_id = space.id;
  put.flags = parent.has_value() ? wire::kPutHasParent : 0;
  put.staging_offset = staging_offset;
  put.payload_bytes = space.block_bytes;
  std::memcpy(put.key, key.bytes.data(), 32);
  if (parent.has_value()) std::memcpy(put.parent, parent->bytes.data(), 32);
  put.n_checksums = static_cast<uint32_t>(checksums.size());
  std::vector<std::byte> body;
  Append(&body, BytesOf(put));
  Append(&body, std::as_bytes(checksums));
  return body;
}

absl::StatusOr<Reason> RawClient::Put(const OpenSpace& space, const kv::BlockKey& key,
                                      std::span<const std::byte> payload, uint64_t offset,
                                      const std::optional<kv::BlockKey>& parent) {
  TERRACE_CHECK(staging_ != nullptr && offset + payload.size() <= staging_->bytes());
  std::memcpy(staging_->data() + offset, payload.data(), payload.size());
  ASSIGN_OR_RETURN(const Packet packet,
                   Call(wire::Type::kPut, PutBody(space, key, offset, Checksums(space, key, payload), parent)));
  ASSIGN_OR_RETURN(const wire::PutDone done, Fixed<wire::PutDone>(packet));
  return static_cast<Reason>(done.reason);
}

uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ x >> 27) * 0x94D049BB133111EBull;
  return x ^ x >> 31;
}

kv::BlockKey KeyOf(uint64_t number) {
  uint64_t words[4];
  for (uint64_t i = 0; i < 4; ++i) words[i] = Mix(number * 4 + i);
  return kv::BlockKey::FromBytes(words);
}

std::vector<kv::BlockKey> KeysOf(uint64_t first, size_t n) {
  std::vector<kv::BlockKey> keys;
  for (size_t i = 0; i < n; ++i) keys.push_back(KeyOf(first + i));
  return keys;
}

std::vector<std::byte> PayloadOf(const kv::BlockKey& key, uint64_t attempt, uint64_t bytes) {
  uint64_t seed;
  std::memcpy(&seed, key.bytes.data(), 8);
  seed = Mix(seed ^ Mix(attempt));
  std::vector<std::byte> payload(bytes);
  for (uint64_t at = 0; at < bytes; at += 8) {
    const uint64_t word = Mix(seed + at);
    std::memcpy(payload.data() + at, &word, std::min<uint64_t>(8, bytes - at));
  }
  return payload;
}

}  // namespace terrace::testing
