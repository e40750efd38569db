// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/locate.h"

#include <algorithm>
#include <cstring>

namespace terrace::client {

Result LocateRequest::Send(Connection* connection, uint32_t key_space_id, std::span<const KeyBytes> keys,
                           int64_t wait_ns, Deadline deadline) {
  n_keys_ = static_cast<uint32_t>(keys.size());
  refs_.clear();
  wire::Locate locate{};
  locate.key_space_id = key_space_id;
  locate.n_keys = n_keys_;
  locate.timeout_us =
      static_cast<uint32_t>(std::clamp<int64_t>(wait_ns / 1000, 0, wire::kMaxLocateUs));
  return connection->Send(wire::Type::kLocate,
                          {{&locate, sizeof(locate)},
                           {const_cast<KeyBytes*>(keys.data()), keys.size_bytes()}},
                          this, deadline);
}

Result LocateRequest::OnReply(Reply& reply) {
  wire::LookupDone done;
  if (!reply.Read(&done) || done.n_refs == 0 || done.n_refs > n_keys_ ||
      reply.body.size() != sizeof(done) + size_t{done.n_refs} * sizeof(wire::Ref)) {
    return Fail(TERRACE_INTERNAL, "the daemon's answer about blocks on their way has the wrong form");
  }
  refs_.resize(done.n_refs);
  std::memcpy(refs_.data(), reply.body.data() + sizeof(done), refs_.size() * sizeof(wire::Ref));
  return {};
}

Result LocateOne(Connection* connection, uint32_t key_space_id, const uint8_t key[32], Deadline deadline,
                 wire::Ref* place) {
  KeyBytes bytes;
  std::memcpy(bytes.data(), key, bytes.size());
  LocateRequest request;
  // The daemon's "not yet" comes before our own deadline, which would count as a daemon that hangs.
  const int64_t wait_ns = deadline.LeftNs() / 4 * 3;
  Result sent = request.Send(connection, key_space_id, {&bytes, 1}, wait_ns, deadline);
  if (!sent.ok()) return sent;
  Request* const requests[] = {&request};
  if (Result waited = connection->Wait(requests, deadline); !waited.ok()) return waited;
  if (request.result().ok()) *place = request.refs().front();
  return request.result();
}

}  // namespace terrace::client
