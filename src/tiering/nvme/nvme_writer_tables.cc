// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// NvmeWriter's tables and state: short writes in a fixed order, one at a time.
#include <algorithm>
#include <utility>

#include "kvstore/base/check.h"
#include "kvstore/base/kill_point.h"
#include "tiering/nvme/nvme_writer.h"

namespace terrace::tiering {

void NvmeWriter::RequestCheckpoint(bool clean, uint64_t ticket) {
  for (size_t i = 0; i < tasks_.size(); ++i) {
    Task& task = tasks_[i];
    const bool has_begun = i == 0 && (task.step > 0 || control_busy_);
    if (task.kind != Task::kCheckpoint || has_begun) continue;
    task.clean = task.clean || clean;
    task.ticket = std::max(task.ticket, ticket);
    return;
  }
  tasks_.push_back({.kind = Task::kCheckpoint, .clean = clean, .ticket = ticket});
}

void NvmeWriter::RequestStateWrite() {
  // One that has not begun will say all there is to say.
  if (tasks_.size() > 1 && tasks_.back().kind == Task::kState) return;
  tasks_.push_back({.kind = Task::kState});
}

bool NvmeWriter::wants_checkpoint(int64_t now_ns) const {
  if (is_stopped_ || volume_ == nullptr || now_ns - checkpoint_ns_ < disk_->options->checkpoint_ns) return false;
  const NvmeLog::Position open = disk_->log.position();
  if (open.sequence == 0) return false;
  const uint64_t cost = NvmeSlotBytes(volume_->index.entry_count(open.segment)) + kNvmePage;
  const uint64_t written =
      disk_->device_metrics->written_total.load(std::memory_order_relaxed) - written_at_checkpoint_;
  // At most 3 % of what is written; but what little there is does not wait for ever.
  const bool is_overdue = written > 0 && now_ns - checkpoint_ns_ >= 8 * disk_->options->checkpoint_ns;
  return is_overdue || cost * 100 <= written * 3;
}

void NvmeWriter::RunTasks() {
  while (!tasks_.empty() && !control_busy_ && !is_stopped_) {
    if (!RunStep(tasks_.front())) return;
  }
}

// Starts the next step of a task, or ends it. False: no room for a request now.
bool NvmeWriter::RunStep(Task& task) {
  switch (task.kind) {
    case Task::kOpen:
      if (task.step == 0) return WriteSlot(task.segment, false, true);
      break;
    case Task::kSeal:
      if (task.step == 0) return SubmitControl(IoOp::kSync, 0, 0);
      if (task.step == 1) return WriteSlot(task.segment, true, false);
      break;
    case Task::kCheckpoint:
      KillPoint(task.step == 0 ? "nvme_before_checkpoint" : "nvme_in_checkpoint");
      if (task.step == 0) {
        const NvmeLog::Position oldest = disk_->log.oldest_pending();
        covered_ = disk_->log.position();
        if (oldest.sequence != covered_.sequence) covered_.page = 0;
        if (oldest.sequence == covered_.sequence) covered_.page = std::min(covered_.page, oldest.page);
        return SubmitControl(IoOp::kSync, 0, 0);
      }
      if (task.step == 1 && covered_.sequence == 0) ++task.step;  // no segment is open
      if (task.step == 1) return WriteSlot(covered_, false, false);
      if (task.step == 2) return WriteState(task.clean);
      if (task.step == 3) return SubmitControl(IoOp::kSync, 0, 0);
      break;
    case Task::kState:
      if (task.step == 0) return WriteState(false);
      if (task.step == 1) return SubmitControl(IoOp::kSync, 0, 0);
      break;
  }
  FinishTask();
  return true;
}

void NvmeWriter::FinishTask() {
  const Task task = tasks_.front();
  tasks_.pop_front();
  switch (task.kind) {
    case Task::kOpen:
      disk_->log.SetPrepared(task.segment.segment, task.segment.sequence);
      is_preparing_ = false;
      RequestStateWrite();  // a crash forgets at most a segment's worth of what was spent
      return;
    case Task::kSeal: disk_->ring.push_back(task.segment.segment); return;
    case Task::kCheckpoint:
      ++checkpoints_;
      checkpoint_ticket_ = std::max(checkpoint_ticket_, task.ticket);
      checkpoint_ns_ = disk_->clock->NowNs();
      written_at_checkpoint_ = disk_->device_metrics->written_total.load(std::memory_order_relaxed);
      return;
    case Task::kState: ++state_writes_; return;
  }
}

bool NvmeWriter::SubmitControl(IoOp op, uint64_t offset, uint64_t bytes) {
  TERRACE_CHECK(!control_busy_);
  if (!disk_->io.has_room(0)) return false;
  if (op == IoOp::kSync) {
    syncing_.insert(dirty_.begin(), dirty_.end());
    dirty_.clear();
  } else {
    disk_->write_budget.Charge(bytes);
  }
  control_busy_ = disk_->io.Submit(op, offset, disk_->control_memory.first(bytes),
                                   [this, op](int error) { OnControl(op, error); });
  return control_busy_;
}

void NvmeWriter::OnControl(IoOp op, int error) {
  control_busy_ = false;
  if (error == 0) {
    ++tasks_.front().step;
    if (op == IoOp::kSync) syncing_.clear();
    return;
  }
  disk_->write_error = error;
  is_stopped_ = true;
  tasks_.front().step = 0;
  if (op != IoOp::kSync) return;
  // The kernel may have thrown away what it could not write and will not say so again: what was not
  // synced before counts as lost.
  syncing_.insert(dirty_.begin(), dirty_.end());
  dirty_.clear();
  for (const uint32_t segment : std::exchange(syncing_, {})) volume_->index.DropSegment(segment);
}

bool NvmeWriter::WriteSlot(const NvmeLog::Position& segment, bool sealed, bool empty) {
  NvmeSlotHeader header{};
  header.device_id = volume_->device_id;
  header.segment = segment.segment;
  header.sequence = segment.sequence;
  header.sealed = sealed ? 1 : 0;
  header.covered_pages = sealed ? volume_->geometry.segment_pages() : segment.page;
  std::vector<NvmeEntry> entries;
  if (!empty) entries = volume_->index.Table(segment.segment);
  std::erase_if(entries, [&](const NvmeEntry& entry) { return entry.page >= header.covered_pages; });
  if (!disk_->io.has_room(0)) return false;
  const uint64_t bytes = EncodeSlot(header, entries, disk_->control_memory);
  return SubmitControl(IoOp::kWrite, volume_->geometry.slot_offset(segment.segment), bytes);
}

bool NvmeWriter::WriteState(bool clean) {
  if (!disk_->io.has_room(0)) return false;
  uint64_t oldest = UINT64_MAX;
  for (uint32_t i = 0; i < volume_->geometry.segments; ++i) {
    if (volume_->index.sequence(i) != 0) oldest = std::min(oldest, volume_->index.sequence(i));
  }
  NvmeState& state = disk_->state;
  ++state.serial;
  state.clean = clean;
  state.blocks = static_cast<uint32_t>(volume_->index.blocks());
  state.budget_bytes = disk_->write_budget.Level(disk_->clock->NowNs());
  state.written_bytes = disk_->written_before + disk_->device_metrics->written_total.load();
  state.tombstones = volume_->tombstones.Prune(oldest);
  const uint64_t bytes = EncodeState(state, disk_->control_memory);
  return SubmitControl(IoOp::kWrite, kNvmeStateOffset + state.serial % 2 * kNvmeStateBytes, bytes);
}

}  // namespace terrace::tiering
