// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/client/lookup.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "api/client/ref.h"
#include "kvstore/base/reason.h"

namespace terrace::client {
namespace {

void ClearEntries(terrace_lookup_part* part, uint32_t begin, terrace_reason reason) {
  const size_t count = part->n_keys - begin;
  if (part->refs != nullptr) std::memset(part->refs + begin, 0, count * sizeof(terrace_ref));
  if (part->reasons != nullptr) std::memset(part->reasons + begin, reason, count);
}

void ClearCounts(terrace_lookup_part* part) {
  part->n_prefix = part->n_here = part->n_pending = 0;
  part->lease = 0;
}

// How a part looks when nothing is known.
void ClearPart(terrace_lookup_part* part) {
  ClearCounts(part);
  ClearEntries(part, 0, TERRACE_REASON_UNAVAILABLE);
}

// The keys of one message of one part, and their way into the part's arrays.
class ChunkRequest : public Request {
 public:
  // Prepares for the next keys of the part. False: the part is answered, and what lies behind the answers
  // was filled in.
  bool Next(const LookupQuestion& question, Connection* connection, uint32_t most_keys);
  Result Send(LookupFlags flags, Deadline deadline);

 private:
  Result OnReply(Reply& reply) override;

  terrace_lookup_part* part_ = nullptr;
  Connection* connection_ = nullptr;
  uint32_t key_space_id_ = 0;
  uint32_t begin_ = 0, count_ = 0;
  uint32_t answered_ = 0;  // entries of the part with an answer
  LookupFlags flags_;
};

bool ChunkRequest::Next(const LookupQuestion& question, Connection* connection,
                        uint32_t most_keys) {
  part_ = question.part;
  connection_ = connection;
  key_space_id_ = question.key_space->opened().id;
  begin_ += count_;
  const bool missed = part_->mode == TERRACE_MODE_PREFIX && part_->n_prefix < begin_;
  if (missed || begin_ == part_->n_keys) {
    count_ = 0;
    ClearEntries(part_, answered_, TERRACE_REASON_AFTER_MISS);
    answered_ = part_->n_keys;
    return false;
  }
  count_ = std::min(most_keys, part_->n_keys - begin_);
  return true;
}

Result ChunkRequest::Send(LookupFlags flags, Deadline deadline) {
  flags_ = flags;
  wire::Lookup lookup{};
  lookup.key_space_id = key_space_id_;
  lookup.n_keys = count_;
  lookup.flags = (part_->mode == TERRACE_MODE_ALL ? wire::kLookupAll : 0) |
                 (flags.lease ? 0 : wire::kLookupNoLease) |
                 (flags.may_wait ? wire::kLookupMayWait : 0);
  lookup.recompute_ns_per_token = part_->recompute_ns_per_token;
  lookup.lease_id = part_->lease;
  return connection_->Send(
      wire::Type::kLookup,
      {{&lookup, sizeof(lookup)},
       {const_cast<uint8_t*>(part_->keys + size_t{begin_} * wire::kKeyBytes),
        size_t{count_} * wire::kKeyBytes}},
      this, deadline);
}

// A reply never spans beyond this chunk's own entries, whatever it says.
Result ChunkRequest::OnReply(Reply& reply) {
  wire::LookupDone done;
  if (!reply.Read(&done) || done.n_refs > count_ || done.n_prefix > count_ ||
      done.n_here > count_ || done.n_pending > done.n_here ||
      reply.body.size() != sizeof(done) + size_t{done.n_refs} * sizeof(wire::Ref)) {
    return Fail(TERRACE_INTERNAL, "the daemon's answer to a lookup has the wrong form");
  }
  if (done.lease_id != 0) {
    connection_->NoteLeaseFromReply(done.lease_id);
    part_->lease = done.lease_id;
  }
  if (part_->n_prefix == begin_) part_->n_prefix += done.n_prefix;
  part_->n_here += done.n_here;
  part_->n_pending += done.n_pending;
  const uint64_t epoch = connection_->welcome().epoch;
  const std::byte* refs = reply.body.data() + sizeof(done);
  for (uint32_t i = 0; i < done.n_refs; ++i) {
    Ref ref;
    std::memcpy(&ref.place, refs + i * sizeof(wire::Ref), sizeof(wire::Ref));
    ref.epoch = epoch;
    const bool here = ref.place.reason == 0 || (done.n_pending > 0 && IsPending(ref));
    if (part_->reasons != nullptr) {
      part_->reasons[begin_ + i] =
          static_cast<uint8_t>(std::min<uint32_t>(ref.place.reason, UINT8_MAX));
    }
    if (part_->refs != nullptr) {
      part_->refs[begin_ + i] = here && flags_.lease ? EncodeRef(ref) : terrace_ref{};
    }
  }
  answered_ = begin_ + done.n_refs;
  return {};
}

// Rounds of one message per unfinished part, until all parts are answered.
Result Ask(Connection* connection, std::span<const LookupQuestion> questions, LookupFlags flags,
           Deadline deadline) {
  const uint32_t most_keys =
      std::clamp<uint32_t>(connection->welcome().max_keys, 1, wire::kMaxKeysPerMessage);
  // The common case (one part, one message) needs no allocation.
  ChunkRequest first;
  std::unique_ptr<ChunkRequest[]> others;
  if (questions.size() > 1) others = std::make_unique<ChunkRequest[]>(questions.size() - 1);
  std::vector<Request*> sent;
  sent.reserve(questions.size());
  for (;;) {
    sent.clear();
    Result result;
    for (size_t i = 0; i < questions.size() && result.ok(); ++i) {
      ChunkRequest* request = i == 0 ? &first : &others[i - 1];
      if (!request->Next(questions[i], connection, most_keys)) continue;
      request->Renew();
      result = request->Send(flags, deadline);
      if (result.ok()) sent.push_back(request);
    }
    if (!result.ok()) {
      for (Request* request : sent) connection->Forget(request);
      return result;
    }
    if (sent.empty()) return {};
    result = connection->Wait(sent, deadline);
    for (Request* request : sent) {
      if (result.ok()) result = request->result();
    }
    if (!result.ok()) return result;
  }
}

}  // namespace

Result RunLookup(Link* link, Stats* stats, std::span<const LookupQuestion> questions,
                 LookupFlags flags, Deadline deadline) {
  std::shared_ptr<Connection> connection;
  Result result = link->Use(&connection);
  for (const LookupQuestion& question : questions) {
    if (result.ok() && question.key_space->opened().epoch != connection->welcome().epoch) {
      result = Fail(TERRACE_UNAVAILABLE, "the key space is not open at this daemon yet");
    }
    ClearCounts(question.part);
  }
  if (result.ok()) result = Ask(connection.get(), questions, flags, deadline);
  if (!result.ok()) {
    for (const LookupQuestion& question : questions) {
      if (question.part->lease != 0) {
        const Result released = connection->Release(question.part->lease, false, deadline);
        (void)released;
      }
      ClearPart(question.part);
    }
  }
  Stats::Add(stats->lookups, 1);
  for (const LookupQuestion& question : questions) {
    const terrace_lookup_part& part = *question.part;
    Stats::Add(stats->lookup_blocks, part.n_keys);
    Stats::Add(stats->hit_blocks, part.n_here);
    if (!result.ok()) {
      stats->AddReason(Reason::kUnavailable, part.n_keys);
    } else if (part.reasons != nullptr && part.n_here < part.n_keys) {
      for (uint32_t i = 0; i < part.n_keys; ++i) {
        const auto reason = static_cast<Reason>(part.reasons[i]);
        if (part.n_pending > 0 && reason == Reason::kPending) continue;  // as good as here
        stats->AddReason(reason);
      }
    }
  }
  return result;
}

}  // namespace terrace::client
