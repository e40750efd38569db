// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// NvmeStore's health: how its device is opened, given up, and tried again.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/log.h"
#include "tiering/nvme/nvme_format.h"
#include "tiering/nvme/nvme_store.h"

namespace terrace::tiering {
namespace {

constexpr uint32_t kMaxReadErrors = 8;  // in a row

const char* NameOf(TierState state) {
  switch (state) {
    case TierState::kStarting: return "starting";
    case TierState::kOnline: return "online";
    case TierState::kReadOnly: return "readonly";
    case TierState::kOffline: return "offline";
  }
  return "";
}

// What recovery would format or take up, not refuse.
bool IsOurs(std::span<const std::byte> head) {
  for (const uint64_t at : {uint64_t{0}, kNvmeSuperCopy}) {
    NvmeSuperblock super{};
    if (head.size() < at + kNvmePage) continue;
    const SuperVerdict verdict = DecodeSuperblock(head.subspan(at, kNvmePage), &super);
    if (verdict != SuperVerdict::kBlank && verdict != SuperVerdict::kForeign) return true;
  }
  return std::all_of(head.begin(), head.end(), [](std::byte b) { return b == std::byte{0}; });
}

}  // namespace

void NvmeStore::SetState(TierState state, const std::string& detail) {
  const TierState old = state_.exchange(state, std::memory_order_acq_rel);
  disk_.metrics->SetState(number_, state);
  bool is_news = old != state;
  {
    MutexLock lock(&mu_);
    is_news = is_news || stats_.detail != detail;
    stats_.detail = detail;
    if (state == TierState::kOnline) stats_.recovery_ratio = 1.0;
  }
  const bool is_bad = state == TierState::kOffline || state == TierState::kReadOnly;
  // A device in trouble is tried again and again. Said is what comes of it, if that is anything new.
  const std::string trouble = is_bad ? absl::StrCat(NameOf(state), ": ", detail) : "";
  if (state == TierState::kStarting && !trouble_said_.empty()) return;
  if (!is_news || (is_bad && trouble == trouble_said_)) return;
  trouble_said_ = trouble;
  Log(is_bad ? LogLevel::kError : LogLevel::kInfo, "nvme_device_state",
      {{"device", disk_.path()}, {"state", NameOf(state)}, {"detail", detail}});
}

void NvmeStore::Open(int64_t now_ns) {
  next_try_ns_ = now_ns + disk_.options->retry_ns;
  BlockDeviceOptions device_options = *disk_.device_options;
  device_options.is_ours = IsOurs;
  auto device = (*factory_)(device_options);
  if (!device.ok()) {
    SetState(TierState::kOffline, std::string(device.status().message()));
    return;
  }
  device_ = *std::move(device);
  device_->RegisterBuffers(io_memory_);
  disk_.io.Attach(device_.get());
  disk_.read_errors = 0;
  disk_.write_error = disk_.read_error = 0;
  must_reopen_ = is_probing_ = false;
  recovery_ = std::make_unique<NvmeRecovery>(&disk_, &volumes_);
  {
    MutexLock lock(&mu_);
    wakeable_ = device_.get();
    stats_.backend = std::string(device_->backend());
    stats_.recovery_ratio = 0;
  }
  SetState(TierState::kStarting, "recovering");
}

// Everything that is on its way fails, and the index is empty until the device was recovered again.
void NvmeStore::Close() {
  disk_.log.Stop();
  reader_.FailAll(Reason::kTierOffline);
  {
    MutexLock lock(&mu_);
    wakeable_ = nullptr;
  }
  device_.reset();
  disk_.io.FailAll();
  reader_.FailAll(Reason::kTierOffline);
  writer_.GiveUp();
  recovery_.reset();
  is_recovered_ = false;
  knows_all_.store(false, std::memory_order_release);  // before the index is emptied
  if (NvmeVolume* volume = disk_.volume.load(std::memory_order_relaxed)) {
    for (uint32_t i = 0; i < volume->geometry.segments; ++i) volume->index.ResetSegment(i, 0);
  }
}

void NvmeStore::StepRecovery(int64_t now_ns) {
  recovery_->Step();
  switch (recovery_->outcome()) {
    case NvmeRecovery::Outcome::kRunning: return;
    case NvmeRecovery::Outcome::kFailed:
    case NvmeRecovery::Outcome::kRefused:
      if (!must_reopen_) GoOffline(now_ns, recovery_->detail());
      must_reopen_ = true;
      return;
    case NvmeRecovery::Outcome::kDone: break;
  }
  recovery_.reset();
  is_recovered_ = true;
  knows_all_.store(true, std::memory_order_release);
  NvmeVolume* volume = volumes_.back().get();
  writer_.Start(volume);
  {
    MutexLock lock(&mu_);
    stats_.capacity_bytes = volume->geometry.segments * volume->geometry.segment_bytes;
  }
  SetState(TierState::kOnline, "");
}

void NvmeStore::GoOffline(int64_t now_ns, const std::string& detail) {
  next_try_ns_ = now_ns + disk_.options->retry_ns;
  is_probing_ = false;
  SetState(TierState::kOffline, detail);
}

void NvmeStore::LookAtHealth(int64_t now_ns) {
  if (device_ == nullptr) return;
  const int64_t oldest = disk_.io.oldest_start_ns();
  const bool is_hung = oldest < now_ns && now_ns - oldest > 2 * disk_.options->read_deadline_ns;
  if (state() != TierState::kOffline) {
    if (is_hung) {
      GoOffline(now_ns, "a request hangs");
      return;
    }
    if (disk_.read_errors >= kMaxReadErrors) {
      GoOffline(now_ns, absl::StrCat("reads fail: ", std::strerror(disk_.read_error)));
      return;
    }
    if (now_ns >= next_look_ns_) {
      next_look_ns_ = now_ns + disk_.options->retry_ns;
      if (!device_->IsInPlace()) {
        GoOffline(now_ns, "the file was removed, replaced or unmounted while it was in use");
        must_reopen_ = true;
        return;
      }
    }
    if (is_recovered_ && disk_.write_error != 0) {
      is_probing_ = false;
      next_try_ns_ = now_ns + disk_.options->retry_ns;
      SetState(TierState::kReadOnly,
               absl::StrCat("writes fail: ", std::strerror(std::exchange(disk_.write_error, 0))));
    }
  }
  if (state() == TierState::kReadOnly && is_probing_ && writer_.state_writes() > probe_states_) {
    is_probing_ = false;
    SetState(TierState::kOnline, "");
  }
  const bool is_well = state() == TierState::kOnline || state() == TierState::kStarting;
  if (is_well || is_probing_ || is_hung || now_ns < next_try_ns_) return;
  next_try_ns_ = now_ns + disk_.options->retry_ns;
  Probe(now_ns);
}

void NvmeStore::Probe(int64_t now_ns) {
  if (state() == TierState::kReadOnly) {
    is_probing_ = true;
    probe_states_ = writer_.state_writes();
    writer_.Resume();
    writer_.RequestStateWrite();
    return;
  }
  if (must_reopen_ || !is_recovered_) {
    if (disk_.io.in_flight() > 0) return;
    Close();
    Open(now_ns);
    return;
  }
  const auto page = disk_.arena.Take(kNvmePage);
  if (page.empty()) return;
  is_probing_ = disk_.io.Submit(IoOp::kRead, 0, page, [this, page](int error) {
    disk_.arena.Give(page);
    is_probing_ = false;
    if (state() != TierState::kOffline) return;
    if (error != 0) {
      must_reopen_ = true;
      return;
    }
    disk_.read_errors = 0;
    if (writer_.is_stopped()) {
      SetState(TierState::kReadOnly, "writes failed");
    } else {
      SetState(TierState::kOnline, "");
    }
  });
  if (!is_probing_) disk_.arena.Give(page);
}

}  // namespace terrace::tiering
