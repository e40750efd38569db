// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What a ClientConnection does with each kind of request. Nothing in a message is believed.
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "api/engine/client_connection.h"
#include "api/engine/packet_body.h"
#include "api/engine/retention_hint.h"
#include "kvstore/base/block_copy.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"

namespace terrace::api {

using tiering::LookupAnswer;
using tiering::Session;

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
      open.identity_bytes > wire::kMaxIdentityBytes || open.reserved != 0) {
    return Malformed("OpenKeySpace");
  }
  if (open.block_class >= tiering::kBlockClasses) {
    return absl::InvalidArgumentError(
        absl::StrCat("block_class ", open.block_class, "; 0 (KV) or 1 (training shard)"));
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
  identity.block_class = static_cast<uint8_t>(open.block_class);
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
  std::span<const kv::BlockKey> keys;
  RETURN_IF_ERROR(TakeKeys(body, "Lookup", lookup.n_keys, &keys));
  const bool lease = (lookup.flags & wire::kLookupNoLease) == 0;
  if (lease && lookup.lease_id == Session::kNoLease) return Malformed("Lookup: lease id");
  tiering::LookupOptions options;
  options.mode = (lookup.flags & wire::kLookupProbe) != 0 ? tiering::LookupMode::kProbe
                 : (lookup.flags & wire::kLookupAll) != 0 ? tiering::LookupMode::kAll
                                                          : tiering::LookupMode::kPrefix;
  options.lease = lease ? lookup.lease_id : Session::kNoLease;
  options.may_wait =
      (lookup.flags & wire::kLookupMayWait) != 0 && options.mode != tiering::LookupMode::kProbe;
  options.recompute_ns_per_token = lookup.recompute_ns_per_token;
  ASSIGN_OR_RETURN(const LookupAnswer answer, session().Lookup(lookup.key_space_id, keys, options));
  const wire::LookupDone done{answer.lease_id, answer.n_prefix, answer.n_here,
                              static_cast<uint32_t>(answer.places.size()), answer.n_pending};
  ReplyPlaces(header, done, answer.places, BlockBytes(lookup.key_space_id));
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
    // Clients ask again and again; the request counter counts them all.
    const int64_t now_ns = context_->clock->NowNs();
    int64_t next_ns = context_->may_say_refused_ns->load(std::memory_order_relaxed);
    if (now_ns >= next_ns &&
        context_->may_say_refused_ns->compare_exchange_strong(next_ns, now_ns + kSayRefusedEveryNs)) {
      Log(LogLevel::kWarning, "staging_refused",
          {{"pid", pid_}, {"uid", uid_}, {"why", "this client cannot store"}, {"mend", charged.message()}});
    }
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
  ASSIGN_OR_RETURN(request.hint, ToHint(put.retention, context_->clock->NowNs()));
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

// A block that is not here has no place; of one that is on its way the length is known.
void ClientConnection::ReplyPlaces(const wire::Header& request, const wire::LookupDone& done,
                                   std::span<const tiering::BlockPlace> places, uint64_t block_bytes) {
  static thread_local std::vector<std::byte> reply;
  reply.resize(sizeof(done) + places.size() * sizeof(wire::Ref));
  std::memcpy(reply.data(), &done, sizeof(done));
  auto* refs = reinterpret_cast<wire::Ref*>(reply.data() + sizeof(done));
  for (size_t i = 0; i < places.size(); ++i) {
    const tiering::BlockPlace& p = places[i];
    refs[i] = {};
    if (p.reason == Reason::kNone) {
      refs[i] = {p.segment_id, p.header_offset, p.payload_offset, p.generation, p.payload_bytes, 0};
    } else {
      refs[i].reason = static_cast<uint32_t>(p.reason);
      if (p.reason == Reason::kPending) refs[i].payload_bytes = static_cast<uint32_t>(block_bytes);
    }
  }
  Reply(request, reply);
}

uint64_t ClientConnection::BlockBytes(kv::KeySpaceId id) const {
  const kv::KeySpace* key_space = context_->stack->FindKeySpace(session().tenant(), id);
  return key_space == nullptr ? 0 : key_space->identity.block_bytes;
}

absl::Status ClientConnection::OnLocate(const wire::Header& header, Bytes body) {
  wire::Locate locate;
  if (!Take(&body, &locate) || locate.reserved != 0) return Malformed("Locate");
  std::span<const kv::BlockKey> keys;
  RETURN_IF_ERROR(TakeKeys(body, "Locate", locate.n_keys, &keys));
  if (locate.timeout_us > wire::kMaxLocateUs) {
    return absl::InvalidArgumentError(
        absl::StrCat("Locate may wait ", wire::kMaxLocateUs, " us at most, not ", locate.timeout_us));
  }
  if (waiting_locates_.fetch_add(1, std::memory_order_relaxed) >= kMaxWaitingLocates) {
    waiting_locates_.fetch_sub(1, std::memory_order_relaxed);
    return absl::ResourceExhaustedError(
        absl::StrCat(kMaxWaitingLocates, " Locates of this connection wait already; ask for several keys in one"));
  }
  // It does not hold the connection: one that has gone must not keep its descriptor until the time is up.
  auto answer = [weak = weak_from_this(), header, block_bytes = BlockBytes(locate.key_space_id)](
                    const std::vector<tiering::BlockPlace>& places) {
    const std::shared_ptr<ClientConnection> self = weak.lock();
    if (self == nullptr) return;
    self->waiting_locates_.fetch_sub(1, std::memory_order_relaxed);
    wire::LookupDone done{};
    done.n_refs = static_cast<uint32_t>(places.size());
    for (const tiering::BlockPlace& place : places) {
      done.n_here += place.reason == Reason::kNone || place.reason == Reason::kPending;
      done.n_pending += place.reason == Reason::kPending;
    }
    while (done.n_prefix < places.size() && (places[done.n_prefix].reason == Reason::kNone ||
                                             places[done.n_prefix].reason == Reason::kPending)) {
      ++done.n_prefix;
    }
    self->ReplyPlaces(header, done, places, block_bytes);
  };
  const absl::Status begun = session().Locate(locate.key_space_id, keys, int64_t{locate.timeout_us} * 1000,
                                              std::move(answer));
  if (!begun.ok()) waiting_locates_.fetch_sub(1, std::memory_order_relaxed);
  return begun;
}

absl::Status ClientConnection::OnHint(const wire::Header& header, Bytes body) {
  wire::Hint hint;
  if (!Take(&body, &hint) || hint.reserved != 0) return Malformed("Hint");
  std::span<const kv::BlockKey> keys;
  RETURN_IF_ERROR(TakeKeys(body, "Hint", hint.n_keys, &keys));
  ASSIGN_OR_RETURN(const tiering::RetentionHint retention, ToHint(hint.retention, context_->clock->NowNs()));
  RETURN_IF_ERROR(session().Hint(hint.key_space_id, keys, retention).status());
  if ((header.flags & wire::kFlagNoReply) == 0) Reply(header, {});
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

}  // namespace terrace::api
