// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/server/put_receiver.h"

#include <cstring>
#include <span>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "api/server/proto_convert.h"
#include "kvstore/base/block_copy.h"
#include "kvstore/base/mutex.h"
#include "kvstore/base/status_macros.h"

namespace terrace::api {
namespace {

// Where a store thread leaves the outcome for the call that waits. Shared, so that neither side has
// to know which of them is done with it last.
struct Outcome {
  Mutex mu;
  CondVar changed;
  std::optional<Reason> reason ABSL_GUARDED_BY(mu);

  void Set(Reason value) {
    MutexLock lock(&mu);
    reason = value;
    changed.SignalAll();
  }
  Reason Wait() {
    MutexLock lock(&mu);
    while (!reason.has_value()) changed.Wait(&mu);
    return *reason;
  }
};

}  // namespace

absl::StatusOr<StagingCharge> StagingCharge::Make(tiering::TierStack* stack, uint64_t bytes) {
  if (const absl::Status status = stack->ChargeStaging(bytes); !status.ok()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the memory budget has no ", bytes,
                     " bytes for this stream; try later, use fewer streams, or raise host.budget (",
                     status.message(), ")"));
  }
  return StagingCharge(stack, bytes);
}

StagingCharge::StagingCharge(StagingCharge&& other) noexcept
    : stack_(std::exchange(other.stack_, nullptr)), bytes_(other.bytes_) {}

StagingCharge::~StagingCharge() {
  if (stack_ != nullptr) stack_->ReleaseStaging(bytes_);
}

absl::StatusOr<std::unique_ptr<PutReceiver>> PutReceiver::Make(tiering::TierStack* stack,
                                                               tiering::Session* session,
                                                               const kv::KeySpace* key_space,
                                                               const Clock* clock) {
  ASSIGN_OR_RETURN(
      StagingCharge charge,
      StagingCharge::Make(stack, key_space->identity.block_bytes + kStreamOverheadBytes));
  return absl::WrapUnique(new PutReceiver(std::move(charge), session, key_space, clock));
}

PutReceiver::PutReceiver(StagingCharge charge, tiering::Session* session,
                         const kv::KeySpace* key_space, const Clock* clock)
    : charge_(std::move(charge)),
      session_(session),
      key_space_(key_space),
      clock_(clock),
      payload_(std::make_unique_for_overwrite<std::byte[]>(key_space->identity.block_bytes)) {}

absl::Status PutReceiver::OnBlock(const v1::PutBlock& block) {
  if (in_block_) {
    return absl::InvalidArgumentError(
        absl::StrCat("PutBlock before the block under way was complete: ", received_bytes_, " of ",
                     key_space_->identity.block_bytes, " bytes received"));
  }
  if (reasons_.size() >= kKeysPerCallMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("more than ", kKeysPerCallMax, " blocks in one stream; begin another"));
  }
  if (block.payload_bytes() != key_space_->identity.block_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("payload_bytes is ", block.payload_bytes(),
                                                   ", but blocks of this key space have ",
                                                   key_space_->identity.block_bytes));
  }
  ASSIGN_OR_RETURN(key_, KeyFromProto(block.key(), "key"));
  parent_.reset();
  if (!block.parent().empty()) {
    ASSIGN_OR_RETURN(parent_, KeyFromProto(block.parent(), "parent"));
  }
  ASSIGN_OR_RETURN(hint_, RetentionFromProto(block.retention(), clock_->NowNs()));
  checksum_ = block.checksum();
  received_bytes_ = 0;
  is_damaged_ = false;
  in_block_ = true;
  return absl::OkStatus();
}

absl::Status PutReceiver::OnChunk(const v1::PutChunk& chunk) {
  const std::string& data = chunk.data();
  const uint64_t total = key_space_->identity.block_bytes;
  if (!in_block_) return absl::InvalidArgumentError("PutChunk without a PutBlock before it");
  if (data.empty() || data.size() > kChunkBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("a chunk must have 1 to ", kChunkBytesMax,
                                                   " bytes, this one has ", data.size()));
  }
  if (chunk.offset() != received_bytes_ || data.size() > total - received_bytes_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "chunk at offset ", chunk.offset(), " with ", data.size(), " bytes does not follow the ",
        received_bytes_, " of ", total, " bytes received"));
  }
  if (Checksum64(data.data(), data.size(), 0) != chunk.checksum()) is_damaged_ = true;
  std::memcpy(payload_.get() + received_bytes_, data.data(), data.size());
  received_bytes_ += data.size();
  if (received_bytes_ == total) {
    in_block_ = false;
    reasons_.push_back(StoreBlock());
  }
  return absl::OkStatus();
}

absl::Status PutReceiver::Finish() const {
  if (!in_block_) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the stream ended inside a block: ", received_bytes_, " of ",
                   key_space_->identity.block_bytes, " bytes received; that block is not stored"));
}

Reason PutReceiver::StoreBlock() {
  const uint64_t total = key_space_->identity.block_bytes;
  tiering::PutRequest request;
  request.key_space = key_space_;
  request.key = key_;
  request.parent = parent_;
  request.hint = hint_;
  request.source = {payload_.get(), static_cast<size_t>(total)};
  request.checksums.resize(ChecksumCount(total));
  const Piece source{payload_.get(), static_cast<size_t>(total)};
  CopyBlock({&source, 1}, {}, IdentitySeed(key_space_->digest.data(), key_.bytes.data(), total),
            CopyCheck::kCompute, request.checksums, CopyStores::kCached);
  // After the bound checksums were taken: what the client vouches for is then exactly what they
  // cover.
  if (is_damaged_ || Checksum64(payload_.get(), total, 0) != checksum_) {
    // Refused by the store path itself, so that it is counted in one place with all others.
    for (uint64_t& checksum : request.checksums) checksum = ~checksum;
    is_damaged_ = true;
  }
  const auto outcome = std::make_shared<Outcome>();
  request.done = [outcome](Reason reason) { outcome->Set(reason); };
  session_->Put(std::move(request));
  const Reason reason = outcome->Wait();
  // The key may be resident already; what this client sent was damaged all the same.
  return is_damaged_ && reason == Reason::kDuplicate ? Reason::kBadChecksum : reason;
}

}  // namespace terrace::api
