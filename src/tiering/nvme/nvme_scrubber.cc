// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/nvme/nvme_scrubber.h"

namespace terrace::tiering {

void NvmeScrubber::Begin(Pass& pass) {
  pass.is_active = true;
  ++pass.number;
  pass.segment = pass.next = pass.reads = 0;
  pass.ratio = 0;
  pass.result = {};
}

void NvmeScrubber::StartVerify() { Begin(verify_); }

bool NvmeScrubber::IsThrough(const Pass& pass) const {
  return pass.segment >= volume_->geometry.segments && pass.reads == 0;
}

bool NvmeScrubber::Advance(Pass& pass) {
  NvmeIndex& index = volume_->index;
  if (pass.reads >= pass.max_reads) return false;
  while (pass.segment < volume_->geometry.segments) {
    if (pass.next >= index.entry_count(pass.segment)) {
      ++pass.segment;
      pass.next = 0;
      pass.ratio = static_cast<double>(pass.segment) / volume_->geometry.segments;
      continue;
    }
    const auto found = index.At(pass.segment, pass.next);
    if (!found) {
      ++pass.next;
      continue;
    }
    const auto checked = [this, &pass, number = pass.number, volume = volume_,
                          found = *found](std::span<std::byte> record) {
      const bool counts = pass.number == number;
      if (counts) --pass.reads;
      if (record.empty()) return;
      disk_->metrics->scrub_bytes->Add(record.size());
      const bool is_good = reader_->CheckWhole(volume, found, record);
      reader_->Return(record);
      if (!counts || volume->index.sequence(found.place.segment) != found.place.sequence) return;
      ++pass.result.blocks;
      pass.result.bytes += record.size();
      if (!is_good) ++pass.result.corrupt;
    };
    if (!reader_->ReadRecord(*found, checked)) return false;
    ++pass.next;
    ++pass.reads;
    return true;
  }
  return false;
}

void NvmeScrubber::Step(int64_t now_ns) {
  NvmeVolume* volume = disk_->volume.load(std::memory_order_relaxed);
  if (volume != volume_) {
    volume_ = volume;
    slow_.is_active = verify_.is_active = false;
    next_round_ns_ = now_ns;
  }
  if (verify_.is_active) {
    while (Advance(verify_)) {
    }
    if (IsThrough(verify_)) verify_.is_active = false;
    return;
  }
  const int64_t period = disk_->options->scrub_period_ns;
  if (period <= 0) return;
  if (!slow_.is_active) {
    if (now_ns < next_round_ns_) return;
    Begin(slow_);
    next_round_ns_ = now_ns + period;
    next_read_ns_ = now_ns;
  }
  const auto blocks = static_cast<int64_t>(volume_->index.blocks());
  if (now_ns >= next_read_ns_ && Advance(slow_)) {
    // A tenth less than the period: there is always something in the way.
    next_read_ns_ += blocks > 0 ? period / 10 * 9 / blocks : 0;
  }
  if (IsThrough(slow_)) {
    slow_.is_active = false;
    slow_.ratio = 1;
    disk_->metrics->scrub_last_completed->Set(Clock::WallSeconds());
  }
}

}  // namespace terrace::tiering
