// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/nvme/nvme_log.h"

#include <limits>
#include <utility>

#include "kvstore/base/check.h"

namespace terrace::tiering {

NvmeLog::Record* NvmeLog::PlaceLocked(uint32_t pages, uint64_t kept_bytes) {
  const uint64_t bytes = pages * kNvmePage, size = memory_.size(), at = head_ % size;
  const uint64_t skip = at + bytes > size ? size - at : 0;  // a record lies in one piece
  if (head_ + skip + bytes + kept_bytes - tail_ > size) return nullptr;
  head_ += skip;
  Record& record = records_.emplace_back();
  record.memory = memory_.subspan(head_ % size, bytes);
  head_ += bytes;
  record.memory_end = head_;
  record.pages = pages;
  return &record;
}

NvmeLog::Reserved NvmeLog::Reserve(const NvmeIndex* index, uint64_t fingerprint, uint32_t space_tag,
                                   uint32_t pages, uint32_t replaces, int64_t now_ns) {
  MutexLock lock(&mu_);
  if (index_ == nullptr || index != index_) return {Refusal::kNoSegment};
  if (under_way_.contains(fingerprint)) return {Refusal::kUnderWay};
  const bool moves = replaces != NvmeIndex::kNone;
  const uint32_t kept_pages = moves || prepared_.sequence != 0 ? 0 : kept_pages_;
  if (open_.sequence == 0 || open_.page + pages + kept_pages > geometry_.segment_pages()) {
    if (prepared_.sequence == 0) {
      is_out_of_room_ = true;
      return {Refusal::kNoSegment};
    }
    if (open_.sequence != 0) rolled_.push_back(open_);
    open_ = std::exchange(prepared_, {});
    kept_pages_ = geometry_.segment_pages() / 2;  // until the store's thread knows what will move
  }
  Record* record = PlaceLocked(pages, moves ? 0 : kept_bytes_);
  if (record == nullptr) return {Refusal::kNoBuffer};
  record->entry_id = index_->Reserve(open_.segment);
  if (record->entry_id == NvmeIndex::kNone) {
    head_ = record->memory_end - pages * kNvmePage;
    records_.pop_back();
    return {Refusal::kNoMemory};
  }
  record->place = {.segment = open_.segment, .page = open_.page, .sequence = open_.sequence};
  open_.page += pages;
  record->replaces = replaces;
  record->fingerprint = fingerprint;
  record->space_tag = space_tag;
  record->reserved_ns = now_ns;
  under_way_.insert(fingerprint);
  return {Refusal::kNone, record};
}

bool NvmeLog::Fill(Record* record, bool intact, std::function<void(bool)> done) {
  MutexLock lock(&mu_);
  record->done = std::move(done);
  record->state = intact ? Record::kFilled : Record::kVoid;
  const uint64_t before = pending_bytes_;
  pending_bytes_ += record->memory.size();
  filled_.SignalAll();
  return before == 0 || (before < kRunBytes && pending_bytes_ >= kRunBytes);
}

NvmeLog::Position NvmeLog::position() const {
  MutexLock lock(&mu_);
  return open_;
}

NvmeLog::Position NvmeLog::FlushPosition() {
  MutexLock lock(&mu_);
  if (open_.sequence != 0) return open_;
  floor_used_ = true;
  return {.segment = 0, .sequence = floor_, .page = 0};
}

void NvmeLog::Start(const NvmeGeometry& geometry, NvmeIndex* index, uint64_t floor) {
  MutexLock lock(&mu_);
  TERRACE_CHECK(records_.empty());
  geometry_ = geometry;
  index_ = index;
  open_ = prepared_ = {};
  rolled_.clear();
  floor_ = floor;
  floor_used_ = false;
  kept_pages_ = 0;
  kept_bytes_ = 0;
}

void NvmeLog::Stop() {
  MutexLock lock(&mu_);
  index_ = nullptr;
}

bool NvmeLog::SetOpen(Position open) {
  MutexLock lock(&mu_);
  if (floor_used_) return false;
  open_ = open;
  return true;
}

void NvmeLog::SetPrepared(uint32_t segment, uint64_t sequence) {
  MutexLock lock(&mu_);
  TERRACE_CHECK(prepared_.sequence == 0);
  prepared_ = {.segment = segment, .sequence = sequence, .page = 0};
}

void NvmeLog::Keep(uint32_t pages, uint64_t bytes) {
  MutexLock lock(&mu_);
  kept_pages_ = pages;
  kept_bytes_ = bytes;
}

bool NvmeLog::TakeOutOfRoom() {
  MutexLock lock(&mu_);
  return std::exchange(is_out_of_room_, false);
}

bool NvmeLog::has_prepared() const {
  MutexLock lock(&mu_);
  return prepared_.sequence != 0;
}

bool NvmeLog::has_room(uint32_t pages) const {
  MutexLock lock(&mu_);
  return prepared_.sequence != 0 || (open_.sequence != 0 && open_.page + pages <= geometry_.segment_pages());
}

std::vector<NvmeLog::Position> NvmeLog::TakeRolled() {
  MutexLock lock(&mu_);
  return std::exchange(rolled_, {});
}

NvmeLog::Position NvmeLog::oldest_pending() const {
  MutexLock lock(&mu_);
  if (records_.empty()) return open_;
  const NvmePlace& place = records_.front().place;
  return {.segment = place.segment, .sequence = place.sequence, .page = place.page};
}

uint64_t NvmeLog::pending_bytes() const {
  MutexLock lock(&mu_);
  return pending_bytes_;
}

int64_t NvmeLog::oldest_waiting_ns() const {
  MutexLock lock(&mu_);
  const uint64_t i = next_run_ - first_number_;
  return i < records_.size() ? records_[i].reserved_ns : std::numeric_limits<int64_t>::max();
}

std::optional<NvmeLog::Run> NvmeLog::TakeRun(bool all) {
  MutexLock lock(&mu_);
  Run run{.first = next_run_};
  uint64_t bytes = 0;
  bool ended = all;  // nothing can be added to it any more
  for (uint64_t i = next_run_ - first_number_; i < records_.size(); ++i) {
    const Record& record = records_[i];
    if (record.state == Record::kFilling) break;
    if (run.count > 0) {
      const Record& last = records_[i - 1];
      if (record.place.segment != last.place.segment || record.place.page != last.place.page + last.pages ||
          last.memory.data() + last.memory.size() != record.memory.data() ||
          bytes + record.memory.size() > kMaxRunBytes) {
        ended = true;
        break;
      }
    } else {
      run.device_offset = geometry_.segment_offset(record.place.segment) + record.place.page * kNvmePage;
    }
    bytes += record.memory.size();
    ++run.count;
  }
  if (run.count == 0 || (!ended && bytes < kRunBytes)) return std::nullopt;
  run.memory = {records_[next_run_ - first_number_].memory.data(), bytes};
  next_run_ += run.count;
  pending_bytes_ -= bytes;
  runs_.push_back({run});
  return run;
}

std::vector<NvmeLog::Record> NvmeLog::TakeLocked(uint64_t first, uint64_t count) {
  std::vector<Record> taken;
  for (uint64_t i = 0; i < count; ++i) {
    Record& record = records_[first - first_number_ + i];
    under_way_.erase(record.fingerprint);
    std::function<void(bool)> done = std::exchange(record.done, nullptr);
    taken.push_back(record);
    taken.back().done = std::move(done);
  }
  return taken;
}

void NvmeLog::PopLocked() {
  while (!runs_.empty() && runs_.front().completed) {
    const uint64_t count = runs_.front().run.count;
    for (uint64_t i = 0; i < count; ++i) {
      tail_ = records_.front().memory_end;
      records_.pop_front();
    }
    first_number_ += count;
    runs_.pop_front();
  }
}

std::vector<NvmeLog::Record> NvmeLog::Complete(const Run& run) {
  MutexLock lock(&mu_);
  std::vector<Record> taken = TakeLocked(run.first, run.count);
  for (Active& active : runs_) {
    if (active.run.first == run.first) active.completed = true;
  }
  PopLocked();
  return taken;
}

std::vector<NvmeLog::Record> NvmeLog::TakeAll() {
  MutexLock lock(&mu_);
  TERRACE_CHECK(runs_.empty());
  for (uint64_t i = 0; i < records_.size(); ++i) {
    while (records_[i].state == Record::kFilling) filled_.Wait(&mu_);
  }
  const uint64_t count = records_.size();
  std::vector<Record> taken = TakeLocked(first_number_, count);
  records_.clear();
  first_number_ += count;
  next_run_ = first_number_;
  pending_bytes_ = 0;
  tail_ = head_;
  return taken;
}

}  // namespace terrace::tiering
