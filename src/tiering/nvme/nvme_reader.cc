// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/nvme/nvme_reader.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kvstore/base/log.h"

namespace terrace::tiering {
namespace {

constexpr size_t kKeptRequests = 4;  // for writes, while loads take all the rest

NvmeBad BadOf(RecordVerdict verdict) {
  switch (verdict) {
    case RecordVerdict::kTorn: return NvmeBad::kTorn;
    case RecordVerdict::kStale: return NvmeBad::kStale;
    case RecordVerdict::kIdentity: return NvmeBad::kIdentity;
    case RecordVerdict::kOk:
    case RecordVerdict::kChecksum: return NvmeBad::kChecksum;
  }
  return NvmeBad::kChecksum;
}

const NvmeRecordHeader* HeaderOf(std::span<const std::byte> record) {
  return reinterpret_cast<const NvmeRecordHeader*>(record.data());  // page-aligned
}

NvmeBlock BlockOf(const NvmeRecordHeader& header) {
  NvmeBlock block;
  std::memcpy(block.key_space_digest.data(), header.key_space_digest, 32);
  block.key = kv::BlockKey::FromBytes(header.key);
  block.payload_bytes = header.payload_bytes;
  return block;
}

uint64_t SeedOf(const NvmeBlock& block) {
  return IdentitySeed(block.key_space_digest.data(), block.key.bytes.data(), block.payload_bytes);
}

}  // namespace

NvmeReader::~NvmeReader() {
  MutexLock lock(&mu_);
  while (copies_ > 0) no_copies_.Wait(&mu_);
}

bool NvmeReader::Submit(NvmeVolume* volume, const NvmeIndex::Found& found, const NvmeBlock& block,
                        std::span<std::byte> target, Done& done) {
  auto load = std::make_shared<Load>();
  load->volume = volume;
  load->found = found;
  load->block = block;
  load->target = target;
  load->deadline_ns = disk_->clock->NowNs() + disk_->options->read_deadline_ns;
  MutexLock lock(&mu_);
  if (queued_ >= kMaxQueued) return false;
  load->done = std::move(done);
  ++queued_;
  queued_bytes_.fetch_add(target.size(), std::memory_order_relaxed);
  inbox_.push_back(std::move(load));
  return true;
}

int64_t NvmeReader::EstimateNs(uint64_t bytes) const {
  const uint64_t rate = bytes_per_second();
  if (rate == 0) return 0;
  const uint64_t queued = queued_bytes_.load(std::memory_order_relaxed) + bytes;
  return static_cast<int64_t>(static_cast<double>(queued) * 1e9 / static_cast<double>(rate));
}

void NvmeReader::TakeOver() {
  MutexLock lock(&mu_);
  for (const auto range : returned_) disk_->arena.Give(range);
  returned_.clear();
  for (LoadPtr& load : inbox_) {
    by_deadline_.push_back(load);
    waiting_.push_back(std::move(load));
  }
  inbox_.clear();
}

void NvmeReader::Step(int64_t now_ns) {
  TakeOver();
  while (!by_deadline_.empty()) {
    const LoadPtr load = by_deadline_.front();
    const bool is_settled = load->is_copying || !load->done;
    if (!is_settled && load->deadline_ns > now_ns) break;
    by_deadline_.pop_front();
    if (!is_settled) Finish(load, Reason::kDeadline);
  }
  while (!waiting_.empty()) {
    if (waiting_.front()->done && !Start(waiting_.front())) break;
    waiting_.pop_front();
  }
  Measure(now_ns);
}

bool NvmeReader::Start(const LoadPtr& load) {
  const uint64_t bytes = load->found.pages * kNvmePage;
  if (!disk_->io.has_room(kKeptRequests)) return false;
  load->buffer = disk_->arena.Take(bytes);
  if (load->buffer.empty()) return false;
  const NvmePlace& place = load->found.place;
  const uint64_t offset = load->volume->geometry.segment_offset(place.segment) + place.page * kNvmePage;
  if (!disk_->io.Submit(IoOp::kRead, offset, load->buffer, [this, load](int error) { OnRead(load, error); })) {
    disk_->arena.Give(std::exchange(load->buffer, {}));
    return false;
  }
  return true;
}

void NvmeReader::OnRead(const LoadPtr& load, int error) {
  if (error != 0) {
    ++disk_->read_errors;
    disk_->read_error = error;
  } else {
    disk_->read_errors = 0;
    busy_bytes_ += load->buffer.size();
  }
  if (load->done && error == 0) {
    Copy(load);
    return;
  }
  disk_->arena.Give(load->buffer);
  if (load->done) Finish(load, Reason::kIoError);
}

void NvmeReader::Copy(const LoadPtr& load) {
  const NvmePlace& place = load->found.place;
  RecordVerdict verdict = CheckRecordHeader(load->buffer, load->volume->device_id, place);
  if (verdict == RecordVerdict::kOk &&
      (!IsRecordOf(load->buffer, load->block) || load->target.size() != load->block.payload_bytes ||
       load->found.pages != NvmeRecordPages(load->block.payload_bytes))) {
    verdict = RecordVerdict::kIdentity;
  }
  if (verdict != RecordVerdict::kOk) {
    disk_->arena.Give(load->buffer);
    Finish(load, Bad(load->volume, load->found, BadOf(verdict)));
    return;
  }
  const NvmeRecordHeader* header = HeaderOf(load->buffer);
  gpu::CopyJob job;
  job.source = {load->buffer.data() + kNvmePage, load->target.size()};
  job.target = {load->target.data(), load->target.size()};
  job.identity_seed = SeedOf(load->block);
  job.checksums.assign(header->checksums(), header->checksums() + header->n_checksums);
  job.done = [this, load](gpu::CopyJob& copied, bool intact) {
    NvmeTier::ReadResult result;
    if (intact) {
      result.checksums = std::move(copied.checksums);
      const NvmeRecordHeader* read = HeaderOf(load->buffer);
      if ((read->flags & kNvmeRecordHasParent) != 0) result.parent = kv::BlockKey::FromBytes(read->parent);
      disk_->metrics->out_bytes->Add(load->target.size());
    } else {
      result.reason = Bad(load->volume, load->found, NvmeBad::kChecksum);
    }
    const uint64_t bytes = load->target.size();
    std::exchange(load->done, nullptr)(std::move(result));
    queued_bytes_.fetch_sub(bytes, std::memory_order_relaxed);
    MutexLock lock(&mu_);
    returned_.push_back(load->buffer);
    --queued_;
    disk_->wake();
    if (--copies_ == 0) no_copies_.SignalAll();
  };
  load->is_copying = true;
  {
    MutexLock lock(&mu_);
    ++copies_;
  }
  if (disk_->copies->Submit(job).ok()) return;
  const bool intact = CopyBlock({&job.source, 1}, {&job.target, 1}, job.identity_seed, CopyCheck::kVerify,
                                job.checksums, CopyStores::kStreaming);
  job.done(job, intact);
}

void NvmeReader::Finish(const LoadPtr& load, Reason reason) {
  Done done = std::exchange(load->done, nullptr);
  queued_bytes_.fetch_sub(load->target.size(), std::memory_order_relaxed);
  {
    MutexLock lock(&mu_);
    --queued_;
  }
  NvmeTier::ReadResult result;
  result.reason = reason;
  done(std::move(result));
}

Reason NvmeReader::Bad(NvmeVolume* volume, const NvmeIndex::Found& found, NvmeBad bad) {
  if (volume->index.sequence(found.place.segment) != found.place.sequence) return Reason::kEvicted;
  if (volume->index.Drop(found.fingerprint, found.id)) {
    disk_->metrics->Count(bad);
    Log(LogLevel::kWarning, "nvme_block_bad",
        {{"device", disk_->path()},
         {"segment", found.place.segment},
         {"page", found.place.page},
         {"reason", NvmeBadName(bad)}});
  }
  return Reason::kCorrupt;
}

void NvmeReader::FailAll(Reason reason) {
  TakeOver();
  waiting_.clear();
  for (const LoadPtr& load : std::exchange(by_deadline_, {})) {
    if (!load->is_copying && load->done) Finish(load, reason);
  }
}

bool NvmeReader::ReadRecord(const NvmeIndex::Found& found, std::function<void(std::span<std::byte>)> then) {
  const uint64_t bytes = found.pages * kNvmePage;
  if (!waiting_.empty() || !disk_->io.has_room(kKeptRequests) ||
      disk_->arena.free_bytes() < disk_->arena.bytes() / 2) return false;
  const auto range = disk_->arena.Take(bytes);
  if (range.empty()) return false;
  const NvmeGeometry& geometry = disk_->volume.load(std::memory_order_relaxed)->geometry;
  const uint64_t offset = geometry.segment_offset(found.place.segment) + found.place.page * kNvmePage;
  const bool submitted =
      disk_->io.Submit(IoOp::kRead, offset, range, [this, range, then = std::move(then)](int error) {
        if (error != 0) {
          ++disk_->read_errors;
          disk_->read_error = error;
          disk_->arena.Give(range);
        } else {
          disk_->read_errors = 0;
        }
        then(error == 0 ? range : std::span<std::byte>{});
      });
  if (!submitted) disk_->arena.Give(range);
  return submitted;
}

bool NvmeReader::CheckWhole(NvmeVolume* volume, const NvmeIndex::Found& found,
                            std::span<const std::byte> record) {
  RecordVerdict verdict = CheckRecordHeader(record, volume->device_id, found.place);
  if (verdict == RecordVerdict::kOk) {
    const NvmeRecordHeader& header = *HeaderOf(record);
    const NvmeBlock block = BlockOf(header);
    if (header.pages != found.pages ||
        NvmeFingerprint(block, volume->fingerprint_seed) != found.fingerprint) {
      verdict = RecordVerdict::kIdentity;
    } else {
      std::vector<uint64_t> checksums(header.checksums(), header.checksums() + header.n_checksums);
      const Piece payload{const_cast<std::byte*>(record.data()) + kNvmePage, header.payload_bytes};
      if (!CopyBlock({&payload, 1}, {}, SeedOf(block), CopyCheck::kVerify, checksums, CopyStores::kCached)) {
        verdict = RecordVerdict::kChecksum;
      }
    }
  }
  if (verdict == RecordVerdict::kOk) return true;
  Bad(volume, found, BadOf(verdict));
  return false;
}

void NvmeReader::Measure(int64_t now_ns) {
  constexpr int64_t kWindowNs = 50'000'000;
  if (disk_->io.reads_in_flight() == 0 && waiting_.empty() && busy_bytes_ == 0) {
    busy_since_ns_ = now_ns;
    return;
  }
  const int64_t busy_ns = now_ns - busy_since_ns_;
  const bool at_rest = disk_->io.reads_in_flight() == 0;
  if (busy_ns <= 0 || (busy_ns < kWindowNs && !at_rest)) return;
  const double now_rate = static_cast<double>(busy_bytes_) * 1e9 / static_cast<double>(busy_ns);
  const auto old = static_cast<double>(bytes_per_second());
  // Short bursts say less than long ones.
  const double weight = old == 0 ? 1.0 : std::min(0.5, static_cast<double>(busy_ns) / kWindowNs / 2);
  if (busy_bytes_ > 0) rate_.store(static_cast<uint64_t>(old + (now_rate - old) * weight));
  busy_bytes_ = 0;
  busy_since_ns_ = now_ns;
}

}  // namespace terrace::tiering
