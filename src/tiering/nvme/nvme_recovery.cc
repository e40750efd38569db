// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/nvme/nvme_recovery.h"

#include <sys/random.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/check.h"
#include "kvstore/base/log.h"
#include "kvstore/base/kill_point.h"

namespace terrace::tiering {
namespace {

// Random where there are threads; where all is to be repeatable, a function of path and time.
void FillRandom(const NvmeDisk& disk, std::span<uint64_t> words) {
  if (disk.options->threads && getrandom(words.data(), words.size_bytes(), 0) ==
                                   static_cast<ssize_t>(words.size_bytes())) {
    return;
  }
  const std::string path = disk.path();
  uint64_t seed = static_cast<uint64_t>(disk.clock->NowNs());
  for (uint64_t& word : words) word = seed = Checksum64(path.data(), path.size(), seed);
}

bool IsZero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

}  // namespace

double NvmeRecovery::ratio() const {
  if (outcome_ == Outcome::kDone) return 1.0;
  if (phase_ != Phase::kTables || volume_ == nullptr) return 0.0;
  const double all = volume_->geometry.segments + 16.0 * walks_all_;
  return (tables_done_ + 16.0 * walks_done_) / all;
}

void NvmeRecovery::Fail(Outcome outcome, std::string detail) {
  if (outcome_ != Outcome::kRunning) return;
  outcome_ = outcome;
  detail_ = std::move(detail);
}

bool NvmeRecovery::Read(uint64_t offset, uint64_t bytes, Then then) {
  if (requests_ >= kMaxReads || !disk_->io.has_room(4)) return false;
  const auto range = disk_->arena.Take(bytes);
  if (range.empty()) return false;
  const bool submitted =
      disk_->io.Submit(IoOp::kRead, offset, range, [this, range, then = std::move(then)](int error) {
        --requests_;
        if (error != 0) {
          disk_->read_error = error;
          Fail(Outcome::kFailed, absl::StrCat("read: ", std::strerror(error)));
        } else if (outcome_ == Outcome::kRunning) {
          then(range);
        }
        disk_->arena.Give(range);
      });
  if (submitted) {
    ++requests_;
  } else {
    disk_->arena.Give(range);
  }
  return submitted;
}

bool NvmeRecovery::Write(uint64_t offset, std::span<std::byte> range, std::function<void()> then) {
  const IoOp op = range.empty() ? IoOp::kSync : IoOp::kWrite;
  const bool submitted = disk_->io.Submit(op, offset, range, [this, then = std::move(then)](int error) {
    --requests_;
    if (error != 0) {
      Fail(Outcome::kFailed, absl::StrCat("write: ", std::strerror(error)));
    } else {
      then();
    }
  });
  if (submitted) ++requests_;
  return submitted;
}

void NvmeRecovery::Step() {
  if (outcome_ != Outcome::kRunning) return;
  switch (phase_) {
    case Phase::kHead:
      if (disk_->io.device()->bytes() < kHeadBytes + kNvmeMinSegments * kNvmeMinSegment) {
        Fail(Outcome::kRefused, "too small: needs 8 MiB at least");
      } else if (Read(0, kHeadBytes, [this](std::span<std::byte> head) { OnHead(head); })) {
        phase_ = Phase::kHeadRead;
      }
      return;
    case Phase::kHeadRead: return;
    case Phase::kWrites: WriteQueued(); return;
    case Phase::kSync:
      if (Write(0, {}, [this] { phase_ = Phase::kTables; })) phase_ = Phase::kSyncing;
      return;
    case Phase::kSyncing: return;
    case Phase::kTables: StartTables(); return;
  }
}

void NvmeRecovery::OnHead(std::span<std::byte> head) {
  NvmeSuperblock super{};
  NvmeSuperblock copy{};
  SuperVerdict verdict = DecodeSuperblock(head, &super);
  const SuperVerdict second = DecodeSuperblock(head.subspan(kNvmeSuperCopy), &copy);
  if (verdict != SuperVerdict::kOk && second == SuperVerdict::kOk) {
    verdict = second;
    super = copy;
  }
  const auto either = [&](SuperVerdict v) { return verdict == v || second == v; };
  if (verdict == SuperVerdict::kOk) {
    if (super.device_bytes != disk_->io.device()->bytes()) {
      Format("its size changed", head);
    } else if (!Load(super, head)) {
      Format("its state is lost", head);
    }
  } else if (either(SuperVerdict::kOtherVersion)) {
    Format("it has another version's format", head);
  } else if (either(SuperVerdict::kDamaged)) {
    Format("both superblocks are damaged", head);
  } else if (IsZero(head)) {
    Format("", head);
  } else {
    Fail(Outcome::kRefused,
         "holds something that is not Terrace's; to let it be used, overwrite its first MiB with zeros");
  }
}

void NvmeRecovery::Format(const std::string& why, std::span<std::byte> head) {
  if (!why.empty()) {
    Log(LogLevel::kWarning, "nvme_reformatted", {{"device", disk_->path()}, {"reason", why}});
  }
  const NvmeGeometry geometry = NvmeGeometry::Make(disk_->io.device()->bytes(), disk_->options->segment_bytes);
  if (geometry.segments == 0) {
    Fail(Outcome::kRefused, "too small for four segments");
    return;
  }
  uint64_t random[3];
  FillRandom(*disk_, random);
  NvmeSuperblock super{};
  super.magic = kNvmeSuperMagic;
  super.version = kNvmeVersion;
  std::memcpy(super.device_id.data(), random, 16);
  super.fingerprint_seed = random[2];
  super.device_bytes = geometry.device_bytes;
  super.segment_bytes = geometry.segment_bytes;
  // First what makes the old content unreadable, then the new superblock.
  const std::vector<std::byte> zeros(kHeadBytes);
  if (!IsZero(head)) {
    writes_.push_back({0, zeros});
    for (uint32_t i = 0; i < geometry.segments; ++i) {
      writes_.push_back({geometry.slot_offset(i), std::vector<std::byte>(kNvmePage)});
    }
  }
  NvmeState state;
  state.device_id = super.device_id;
  state.budget_bytes = disk_->write_budget.Level(disk_->clock->NowNs());
  state.epoch = 0;
  is_new_ = true;
  Adopt(super, geometry, std::move(state));
  std::vector<std::byte> page(kNvmePage);
  EncodeSuperblock(super, page);
  writes_.push_back({0, page});
  writes_.push_back({kNvmeSuperCopy, page});
}

bool NvmeRecovery::Load(const NvmeSuperblock& super, std::span<std::byte> head) {
  const auto a = DecodeState(head.subspan(kNvmeStateOffset, kNvmeStateBytes), super.device_id);
  const auto b = DecodeState(head.subspan(kNvmeStateOffset + kNvmeStateBytes, kNvmeStateBytes), super.device_id);
  if (!a && !b) return false;
  const NvmeState& state = !b || (a && a->serial > b->serial) ? *a : *b;
  const NvmeGeometry geometry = NvmeGeometry::Make(super.device_bytes, super.segment_bytes);
  if (geometry.segments == 0) return false;
  const int64_t forgotten = state.clean ? 0 : static_cast<int64_t>(geometry.segment_bytes);
  disk_->write_budget.LowerTo(state.budget_bytes - forgotten);
  disk_->written_before = state.written_bytes;
  Adopt(super, geometry, state);
  return true;
}

// The epoch goes up and is on disk before a segment gets a sequence number of it.
void NvmeRecovery::Adopt(const NvmeSuperblock& super, const NvmeGeometry& geometry, NvmeState state) {
  NvmeVolume* last = volumes_->empty() ? nullptr : volumes_->back().get();
  const bool is_same = last != nullptr && last->device_id == super.device_id &&
                       last->fingerprint_seed == super.fingerprint_seed &&
                       last->geometry.device_bytes == geometry.device_bytes &&
                       last->geometry.segment_bytes == geometry.segment_bytes;
  if (!is_same) {
    volumes_->push_back(std::make_unique<NvmeVolume>(super.device_id, super.fingerprint_seed, geometry,
                                                     disk_->budget));
  }
  volume_ = volumes_->back().get();
  volume_->tombstones.Set(state.tombstones);
  const uint64_t most = static_cast<uint64_t>(geometry.segments) * geometry.max_entries;
  volume_->index.Expect(std::min<uint64_t>(state.blocks, most));
  ++state.epoch;
  ++state.serial;
  state.clean = false;
  disk_->state = state;
  disk_->sequence_count = 0;
  std::vector<std::byte> bytes(kNvmeStateBytes);
  bytes.resize(EncodeState(state, bytes));
  writes_.push_back({kNvmeStateOffset + state.serial % 2 * kNvmeStateBytes, std::move(bytes)});
  disk_->log.Start(volume_->geometry, &volume_->index, disk_->state.epoch << 32);
  disk_->ring.clear();
  disk_->unsealed.clear();
  disk_->volume.store(volume_, std::memory_order_release);
  phase_ = Phase::kWrites;
  detail_ = "recovering";
}

void NvmeRecovery::WriteQueued() {
  if (requests_ > 0) return;
  if (writes_.empty()) {
    phase_ = Phase::kSync;
    return;
  }
  const QueuedWrite& write = writes_.front();
  TERRACE_CHECK(write.bytes.size() <= disk_->arena.bytes());
  const auto range = disk_->arena.Take(write.bytes.size());
  if (range.empty()) return;
  std::memcpy(range.data(), write.bytes.data(), write.bytes.size());
  const bool submitted = disk_->io.Submit(IoOp::kWrite, write.offset, range, [this, range](int error) {
    --requests_;
    disk_->arena.Give(range);
    if (error != 0) Fail(Outcome::kFailed, absl::StrCat("write: ", std::strerror(error)));
  });
  if (!submitted) {
    disk_->arena.Give(range);
    return;
  }
  ++requests_;
  writes_.pop_front();
}

void NvmeRecovery::StartTables() {
  const NvmeGeometry& geometry = volume_->geometry;
  if (is_new_) {
    next_table_ = tables_done_ = geometry.segments;
  }
  while (next_table_ < geometry.segments) {
    const uint32_t segment = next_table_;
    if (!Read(geometry.slot_offset(segment), std::min(geometry.slot_bytes, kTableRead),
              [this, segment](std::span<std::byte> range) { OnTable(segment, range); })) {
      break;
    }
    ++next_table_;
  }
  while (walks_active_ < kMaxWalks && !walks_.empty()) {
    if (!StepWalk(walks_.front())) break;
    walks_.pop_front();
    ++walks_active_;
  }
  if (tables_done_ == geometry.segments && walks_done_ == walks_all_ && requests_ == 0) Finish();
}

void NvmeRecovery::OnTable(uint32_t segment, std::span<std::byte> range) {
  const NvmeGeometry& geometry = volume_->geometry;
  const auto header = DecodeSlotHeader(range, volume_->device_id, segment, geometry);
  if (!header) {
    ++tables_done_;
    if (IsZero(range.first(kNvmePage))) return;  // never used
    walks_.push_back(std::make_shared<Walk>(Walk{.segment = segment, .sequence = 0, .page = 0, .seen = {}}));
    ++walks_all_;
    return;
  }
  const uint64_t bytes = NvmeSlotBytes(header->n_entries);
  if (bytes <= range.size()) {
    UseTable(segment, *header, range);
    return;
  }
  const NvmeSlotHeader first = *header;
  if (!Read(geometry.slot_offset(segment), bytes, [this, segment, first](std::span<std::byte> whole) {
        UseTable(segment, first, whole);
      })) {
    // No room for the whole table now: its segment is walked instead.
    UseTable(segment, first, {});
  }
}

void NvmeRecovery::UseTable(uint32_t segment, const NvmeSlotHeader& header, std::span<const std::byte> table) {
  ++tables_done_;
  volume_->index.ResetSegment(segment, header.sequence);
  std::vector<NvmeEntry> entries;
  uint32_t from = static_cast<uint32_t>(header.covered_pages);
  if (table.empty() || !DecodeSlotEntries(header, table, &entries)) {
    entries.clear();
    from = 0;
  }
  for (const NvmeEntry& entry : entries) Publish(segment, header.sequence, entry);
  if (header.sealed != 0 && from > 0) return;
  walks_.push_back(std::make_shared<Walk>(
      Walk{.segment = segment, .sequence = header.sequence, .page = from, .covered = from, .seen = {}}));
  ++walks_all_;
}

void NvmeRecovery::Publish(uint32_t segment, uint64_t sequence, const NvmeEntry& entry) {
  if (entry.pages < 2 || entry.page + entry.pages > volume_->geometry.segment_pages()) return;
  const NvmePlace place = {.segment = segment, .page = entry.page, .sequence = sequence};
  if (volume_->tombstones.Covers(place, entry.space_tag)) return;
  const uint32_t id = volume_->index.Reserve(segment);
  if (id == NvmeIndex::kNone) {
    if (!no_memory_) Log(LogLevel::kWarning, "nvme_index_memory", {{"device", disk_->path()}});
    no_memory_ = true;
    return;
  }
  if (volume_->index.Publish(id, entry, NvmeIndex::kNone,
                             [&] { return !volume_->tombstones.Covers(place, entry.space_tag); })) {
    ++blocks_;
  }
}

bool NvmeRecovery::StepWalk(const std::shared_ptr<Walk>& walk) {
  KillPoint("nvme_in_recovery");
  const NvmeGeometry& geometry = volume_->geometry;
  const uint64_t bytes = std::min(kWindow, (geometry.segment_pages() - walk->page) * kNvmePage);
  if (bytes == 0) {
    EndWalk(*walk);
    --walks_active_;  // its caller counts it
    return true;
  }
  return Read(geometry.segment_offset(walk->segment) + walk->page * kNvmePage, bytes,
              [this, walk](std::span<std::byte> window) { OnWindow(walk, window); });
}

void NvmeRecovery::OnWindow(const std::shared_ptr<Walk>& walk, std::span<const std::byte> window) {
  uint64_t at = 0;
  while (at < window.size()) {
    const std::span<const std::byte> page = window.subspan(at, kNvmePage);
    const NvmePlace place = {.segment = walk->segment,
                             .page = static_cast<uint32_t>(walk->page + at / kNvmePage),
                             .sequence = walk->sequence};
    if (CheckRecordHeader(page, volume_->device_id, place) != RecordVerdict::kOk) {
      at += kNvmePage;
      continue;
    }
    const auto* header = reinterpret_cast<const NvmeRecordHeader*>(page.data());
    NvmeBlock block;
    std::memcpy(block.key_space_digest.data(), header->key_space_digest, 32);
    block.key = kv::BlockKey::FromBytes(header->key);
    block.payload_bytes = header->payload_bytes;
    const NvmeEntry entry = {.fingerprint = NvmeFingerprint(block, volume_->fingerprint_seed),
                             .space_tag = NvmeSpaceTag(block.key_space_digest, volume_->fingerprint_seed),
                             .page = static_cast<uint16_t>(place.page),
                             .pages = static_cast<uint16_t>(header->pages)};
    walk->seen.push_back({entry, header->sequence});
    at += header->pages * kNvmePage;
  }
  walk->page = std::min(walk->page + static_cast<uint32_t>(at / kNvmePage), volume_->geometry.segment_pages());
  --walks_active_;
  walks_.push_front(walk);
}

void NvmeRecovery::EndWalk(Walk& walk) {
  ++walks_done_;
  const bool is_unknown = walk.sequence == 0;
  for (const Walk::Seen& seen : walk.seen) {
    if (is_unknown) walk.sequence = std::max(walk.sequence, seen.sequence);
  }
  if (walk.sequence == 0) return;  // nothing there
  if (is_unknown) volume_->index.ResetSegment(walk.segment, walk.sequence);
  // Behind all that was ever laid down there, wanted or not: records of blocks that were flushed may still be whole.
  uint32_t end = walk.covered;
  for (const Walk::Seen& seen : walk.seen) {
    if (seen.sequence != walk.sequence) continue;
    Publish(walk.segment, walk.sequence, seen.entry);
    end = std::max<uint32_t>(end, seen.entry.page + seen.entry.pages);
  }
  for (const NvmeEntry& entry : volume_->index.Table(walk.segment)) {
    end = std::max<uint32_t>(end, entry.page + entry.pages);
  }
  open_.push_back({walk.segment, walk.sequence, end});
}

// Appending goes on in the youngest segment that is not full; the others are sealed by the writer.
void NvmeRecovery::Finish() {
  const NvmeGeometry& geometry = volume_->geometry;
  std::sort(open_.begin(), open_.end(),
            [](const Unsealed& a, const Unsealed& b) { return a.sequence > b.sequence; });
  std::vector<bool> is_busy(geometry.segments);
  NvmeLog::Position open;
  for (const Unsealed& segment : open_) {
    if (segment.end_page == 0) continue;  // free
    is_busy[segment.segment] = true;
    // Positions only grow: what is laid down before the latest flush would count as flushed, and a later flush must
    // not take back what an earlier one covers.
    const bool is_behind_flushes = !volume_->tombstones.IsBefore(segment.sequence, segment.end_page);
    if (open.sequence == 0 && is_behind_flushes && segment.end_page + 2 <= geometry.segment_pages()) {
      open = {.segment = segment.segment, .sequence = segment.sequence, .page = segment.end_page};
    } else {
      disk_->unsealed.push_back(segment.segment);
    }
  }
  for (uint32_t i = 0; i < geometry.segments; ++i) {
    if (!is_busy[i]) disk_->ring.push_back(i);
  }
  const NvmeIndex& index = volume_->index;
  std::sort(disk_->ring.begin(), disk_->ring.end(), [&](uint32_t a, uint32_t b) {
    const uint64_t sa = index.entry_count(a) == 0 ? 0 : index.sequence(a);
    const uint64_t sb = index.entry_count(b) == 0 ? 0 : index.sequence(b);
    return sa != sb ? sa < sb : a < b;
  });
  if (open.sequence != 0 && !disk_->log.SetOpen(open)) disk_->unsealed.push_back(open.segment);
  if (!is_new_) {
    Log(LogLevel::kInfo, "nvme_recovered",
        {{"device", disk_->path()}, {"blocks", blocks_}, {"segments_walked", walks_done_}});
  }
  outcome_ = Outcome::kDone;
  detail_.clear();
}

}  // namespace terrace::tiering
