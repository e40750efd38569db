// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/nvme/nvme_writer.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kvstore/base/check.h"
#include "kvstore/base/kill_point.h"

namespace terrace::tiering {
namespace {

constexpr int64_t kMaxWaitNs = 50'000'000;  // what is not worth a request by then is written all the same

}  // namespace

NvmeTier::Append NvmeWriter::TryAppend(NvmeVolume* volume, const Source& source,
                                       std::function<void(bool)> done) {
  using Append = NvmeTier::Append;
  const uint64_t bytes = source.block.payload_bytes;
  if (bytes > std::min(disk_->options->io_memory_bytes / 4, kNvmeMaxPayload) || bytes == 0) {
    return Append::kTooLarge;
  }
  if (source.payload.size() != bytes || source.checksums.size() != ChecksumCount(bytes)) return Append::kCorrupt;
  const uint32_t pages = NvmeRecordPages(bytes);
  if (pages > volume->geometry.segment_pages()) return Append::kTooLarge;
  const uint64_t fingerprint = NvmeFingerprint(source.block, volume->fingerprint_seed);
  if (source.replaces == NvmeIndex::kNone && volume->index.Contains(fingerprint)) return Append::kPresent;
  const int64_t now = disk_->clock->NowNs();
  if (!disk_->write_budget.TrySpend(pages * kNvmePage, now)) return Append::kBudget;
  const NvmeLog::Reserved reserved = disk_->log.Reserve(
      &volume->index, fingerprint, NvmeSpaceTag(source.block.key_space_digest, volume->fingerprint_seed), pages,
      source.replaces, now);
  if (reserved.refusal != NvmeLog::Refusal::kNone) {
    disk_->write_budget.Refund(pages * kNvmePage);
    return reserved.refusal == NvmeLog::Refusal::kNoMemory ? Append::kBudget : Append::kBusy;
  }
  NvmeLog::Record* record = reserved.record;
  const std::span<std::byte> memory = record->memory;
  std::vector<uint64_t> checksums(source.checksums.begin(), source.checksums.end());
  const Piece from{const_cast<std::byte*>(source.payload.data()), bytes}, to{memory.data() + kNvmePage, bytes};
  const bool intact =
      CopyBlock({&from, 1}, {&to, 1},
                IdentitySeed(source.block.key_space_digest.data(), source.block.key.bytes.data(), bytes),
                CopyCheck::kVerify, checksums, CopyStores::kStreaming);
  if (intact) {
    std::memset(memory.data() + kNvmePage + bytes, 0, memory.size() - kNvmePage - bytes);
    EncodeRecordHeader(volume->device_id, record->place, source.block, source.parent, source.checksums,
                       memory.first(kNvmePage));
    disk_->metrics->in_bytes->Add(bytes);
  } else {
    std::memset(memory.data(), 0, memory.size());  // no header: recovery steps over it
  }
  if (disk_->log.Fill(record, intact, intact ? std::move(done) : nullptr)) disk_->wake();
  return intact ? Append::kAccepted : Append::kCorrupt;
}

void NvmeWriter::Start(NvmeVolume* volume) {
  TERRACE_CHECK(runs_ == 0 && !control_busy_);
  tasks_.clear();
  rolled_.clear();
  dirty_.clear();
  syncing_.clear();
  cleaner_.reset();
  is_preparing_ = false;
  kept_for_ = 0;
  is_stopped_ = false;
  volume_ = volume;
  checkpoint_ns_ = disk_->clock->NowNs();
  for (const uint32_t segment : std::exchange(disk_->unsealed, {})) {
    rolled_.push_back({.segment = segment, .sequence = volume->index.sequence(segment), .page = 0});
  }
}

void NvmeWriter::Step(int64_t now_ns, bool all) {
  if (is_stopped_) {
    GiveUp();
    return;
  }
  WriteRuns(now_ns, all);
  Seal();
  Prepare();
  if (cleaner_) Clean();
  RunTasks();
}

void NvmeWriter::WriteRuns(int64_t now_ns, bool all) {
  const int64_t waiting_since = disk_->log.oldest_waiting_ns();
  const bool is_late = waiting_since < now_ns && now_ns - waiting_since >= kMaxWaitNs;
  const uint32_t limit = reader_->has_waiting() ? kMaxRunsBesideLoads : kMaxRuns;
  while (runs_ < limit && disk_->io.has_room(1)) {
    const auto run = disk_->log.TakeRun(all || is_late);
    if (!run) return;
    ++runs_;
    KillPoint("nvme_before_payload");
    const bool submitted = disk_->io.Submit(IoOp::kWrite, run->device_offset, run->memory,
                                            [this, r = *run](int error) { OnRun(r, error); });
    TERRACE_CHECK(submitted);
    KillPoint("nvme_in_payload");
  }
}

void NvmeWriter::OnRun(const NvmeLog::Run& run, int error) {
  --runs_;
  if (error != 0) {
    disk_->write_error = error;
    is_stopped_ = true;
  }
  KillPoint("nvme_before_index");
  std::vector<NvmeLog::Record> records = disk_->log.Complete(run);
  if (error == 0) dirty_.insert(records.front().place.segment);
  for (NvmeLog::Record& record : records) Publish(record, error == 0);
}

void NvmeWriter::Publish(const NvmeLog::Record& record, bool written) {
  if (record.state == NvmeLog::Record::kVoid) return;
  bool is_here = false;
  if (written) {
    const NvmeEntry entry = {.fingerprint = record.fingerprint,
                             .space_tag = record.space_tag,
                             .page = static_cast<uint16_t>(record.place.page),
                             .pages = static_cast<uint16_t>(record.pages)};
    is_here = volume_->index.Publish(record.entry_id, entry, record.replaces, [&] {
      return !volume_->tombstones.Covers(record.place, record.space_tag);
    });
  }
  if (record.done) record.done(is_here);
}

void NvmeWriter::GiveUp() {
  if (runs_ > 0) return;
  for (const NvmeLog::Record& record : disk_->log.TakeAll()) Publish(record, false);
  if (cleaner_) {
    for (const auto& [found, range] : cleaner_->read) reader_->Return(range);
    disk_->ring.insert(disk_->ring.begin(), cleaner_->segment);
    cleaner_.reset();
  }
}

void NvmeWriter::Seal() {
  for (const NvmeLog::Position& segment : disk_->log.TakeRolled()) rolled_.push_back(segment);
  const NvmeLog::Position oldest = disk_->log.oldest_pending();
  std::erase_if(rolled_, [&](const NvmeLog::Position& segment) {
    if (oldest.sequence != 0 && oldest.sequence <= segment.sequence) return false;
    tasks_.push_back({.kind = Task::kSeal, .segment = segment});
    return true;
  });
}

uint32_t NvmeWriter::HotPages(uint32_t segment) const {
  uint32_t pages = 0;
  const uint32_t count = volume_->index.entry_count(segment);
  for (uint32_t i = 0; i < count; ++i) {
    const auto found = volume_->index.At(segment, i);
    if (found && found->was_hit) pages += found->pages;
  }
  // Not more than half of what is written may be old.
  return std::min(pages, volume_->geometry.segment_pages() / 2);
}

// What was read early in its stay and not since has rested for longer than what is new here: it is not worth
// another write. So hits count that a block has in the second half of its stay.
void NvmeWriter::ForgetOldHits() {
  const uint32_t half = volume_->geometry.segments / 2;  // uses of segments until it is this one's turn
  if (half < disk_->ring.size()) volume_->index.ForgetHits(disk_->ring[half]);
}

void NvmeWriter::Prepare() {
  if (is_ending_ || is_preparing_ || cleaner_ || disk_->ring.empty() || disk_->log.has_prepared()) return;
  const uint32_t segment = disk_->ring.front();
  const NvmeLog::Position open = disk_->log.position();
  if (open.sequence != kept_for_) {
    kept_for_ = open.sequence;
    kept_pages_ = HotPages(segment);
    disk_->log.Keep(kept_pages_, 0);
  }
  const bool is_empty = volume_->index.entry_count(segment) == 0;
  const bool is_early = open.page < (volume_->geometry.segment_pages() - kept_pages_) / 2;
  if (!disk_->log.TakeOutOfRoom() && !is_empty && open.sequence != 0 && is_early) return;
  disk_->ring.erase(disk_->ring.begin());
  ForgetOldHits();
  cleaner_.emplace(segment);
  ++cleaner_number_;
  kept_pages_ = HotPages(segment);
}

// What moves must not find that new blocks have taken all the room.
void NvmeWriter::KeepRoom() {
  const Cleaner& c = *cleaner_;
  uint32_t read_pages = 0;
  for (const auto& [found, range] : c.read) read_pages += found.pages;
  disk_->log.Keep(kept_pages_ > c.settled_pages ? kept_pages_ - c.settled_pages : 0, 2 * read_pages * kNvmePage);
}

// False: there is nothing more to begin at the moment.
bool NvmeWriter::StartMoves() {
  constexpr uint32_t kMaxMoves = 4;  // at a time
  Cleaner& c = *cleaner_;
  if (is_ending_ || c.is_full || c.reads + c.read.size() + c.appends >= kMaxMoves) return false;
  if (c.next >= volume_->index.entry_count(c.segment)) return false;
  const auto found = volume_->index.At(c.segment, c.next);
  if (!found || !found->was_hit) {
    ++c.next;
    return true;
  }
  if (c.moved_pages + found->pages > volume_->geometry.segment_pages() / 2) {
    c.is_full = true;
    return false;
  }
  const bool started = reader_->ReadRecord(
      *found, [this, found = *found, number = cleaner_number_](std::span<std::byte> record) {
        const bool is_ours = cleaner_ && cleaner_number_ == number;
        if (is_ours) --cleaner_->reads;
        if (record.empty()) return;
        if (is_ours) {
          cleaner_->read.emplace_back(found, record);
        } else {
          reader_->Return(record);
        }
      });
  if (!started) return false;
  ++c.next;
  ++c.reads;
  c.moved_pages += found->pages;
  return true;
}

void NvmeWriter::Clean() {
  Cleaner& c = *cleaner_;
  std::erase_if(c.read, [&](const auto& read) { return Move(read.first, read.second); });
  while (StartMoves()) {
  }
  KeepRoom();
  const bool is_through = c.is_full || c.next >= volume_->index.entry_count(c.segment);
  if (c.reads > 0 || !c.read.empty() || c.appends > 0) return;
  if (is_ending_) {
    disk_->ring.insert(disk_->ring.begin(), c.segment);
    cleaner_.reset();
    return;
  }
  if (!is_through) return;
  const NvmeLog::Position next = {.segment = c.segment, .sequence = disk_->NextSequence(), .page = 0};
  volume_->index.ResetSegment(c.segment, next.sequence);
  cleaner_.reset();
  disk_->log.Keep(0, 0);
  is_preparing_ = true;
  tasks_.push_back({.kind = Task::kOpen, .segment = next});
}

bool NvmeWriter::Move(const NvmeIndex::Found& found, std::span<std::byte> record) {
  const auto* header = reinterpret_cast<const NvmeRecordHeader*>(record.data());
  if (!reader_->CheckWhole(volume_, found, record)) {
    reader_->Return(record);
    return true;
  }
  Source source;
  std::memcpy(source.block.key_space_digest.data(), header->key_space_digest, 32);
  source.block.key = kv::BlockKey::FromBytes(header->key);
  source.block.payload_bytes = header->payload_bytes;
  if ((header->flags & kNvmeRecordHasParent) != 0) source.parent = kv::BlockKey::FromBytes(header->parent);
  source.payload = record.subspan(kNvmePage, header->payload_bytes);
  source.checksums = {header->checksums(), header->n_checksums};
  source.replaces = found.id;
  const auto append = TryAppend(volume_, source, [this, number = cleaner_number_](bool) {
    if (cleaner_ && cleaner_number_ == number) --cleaner_->appends;
  });
  if (append == NvmeTier::Append::kAccepted) {
    ++cleaner_->appends;
  } else if (append == NvmeTier::Append::kBusy && disk_->log.has_room(found.pages)) {
    return false;  // the buffers are full: later
  } else {
    cleaner_->is_full = true;
  }
  cleaner_->settled_pages += found.pages;
  reader_->Return(record);
  return true;
}

}  // namespace terrace::tiering
