// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "testing/fault_device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "kvstore/base/check.h"
#include "kvstore/base/status_macros.h"

namespace terrace::testing {

using tiering::IoOp;
using tiering::IoRequest;
using tiering::IoResult;

namespace {

constexpr uint64_t kSector = 512;
constexpr int64_t kHungPollNs = 5'000'000;  // how soon a waiting Poll notices ReleaseHung

bool AppliesTo(FaultKind kind, IoOp op) {
  switch (kind) {
    case FaultKind::kError:
    case FaultKind::kDelay:
    case FaultKind::kHang:
      return true;
    case FaultKind::kTornWrite:
    case FaultKind::kMisdirectedWrite:
    case FaultKind::kFlipOnWrite:
      return op == IoOp::kWrite;
    case FaultKind::kLostWrite:
      return op != IoOp::kRead;
    case FaultKind::kMisdirectedRead:
    case FaultKind::kFlipOnRead:
      return op == IoOp::kRead;
  }
  return false;
}

bool Matches(const FaultRule& rule, const IoRequest& request) {
  // A lost write is a lost sync only where the rule says so.
  if (rule.kind == FaultKind::kLostWrite && !rule.op && request.op == IoOp::kSync) return false;
  if (!AppliesTo(rule.kind, request.op) || (rule.op && *rule.op != request.op)) return false;
  if (request.op == IoOp::kSync) return true;
  return request.buffer.size() >= rule.min_bytes && request.offset < rule.offset_end &&
         request.offset + request.buffer.size() > rule.offset_begin;
}

}  // namespace

// ---- FaultScript ----

int FaultScript::Add(const FaultRule& rule) {
  MutexLock lock(&mu_);
  rules_.push_back({.rule = rule});
  return static_cast<int>(rules_.size()) - 1;
}

void FaultScript::SetOn(int rule, bool on) {
  MutexLock lock(&mu_);
  rules_.at(static_cast<size_t>(rule)).is_on = on;
}

void FaultScript::AllOff() {
  MutexLock lock(&mu_);
  for (State& state : rules_) state.is_on = false;
}

uint64_t FaultScript::Fired(int rule) const {
  MutexLock lock(&mu_);
  return rules_.at(static_cast<size_t>(rule)).fired;
}

uint64_t FaultScript::Fired() const {
  MutexLock lock(&mu_);
  uint64_t fired = 0;
  for (const State& state : rules_) fired += state.fired;
  return fired;
}

void FaultScript::ReleaseHung() {
  MutexLock lock(&mu_);
  ++releases_;
}

uint64_t FaultScript::release_count() const {
  MutexLock lock(&mu_);
  return releases_;
}

void FaultScript::FailOpen(absl::Status status) {
  MutexLock lock(&mu_);
  open_status_ = std::move(status);
}

absl::Status FaultScript::open_status() const {
  MutexLock lock(&mu_);
  return open_status_;
}

std::optional<FaultScript::Fault> FaultScript::Draw(const IoRequest& request) {
  MutexLock lock(&mu_);
  for (State& state : rules_) {
    if (!state.is_on || state.fired >= state.rule.limit || !Matches(state.rule, request)) continue;
    if (state.matched++ < state.rule.skip) continue;
    if (static_cast<double>(random_.Next() >> 11) * 0x1p-53 >= state.rule.probability) continue;
    ++state.fired;
    return Fault{state.rule, random_.Next()};
  }
  return std::nullopt;
}

// ---- FaultDevice ----

struct FaultDevice::AlignedBytes {
  explicit AlignedBytes(size_t size)
      : bytes(static_cast<std::byte*>(std::aligned_alloc(tiering::kIoAlign, size)), size) {
    TERRACE_CHECK(bytes.data() != nullptr);
  }
  ~AlignedBytes() { std::free(bytes.data()); }
  AlignedBytes(const AlignedBytes&) = delete;
  const std::span<std::byte> bytes;
};

struct FaultDevice::Slot {
  IoRequest request;
  std::optional<FaultScript::Fault> fault;
  std::unique_ptr<AlignedBytes> altered;  // what is written instead
  bool reads_old = false;                 // kTornWrite: what lies there is being read into `altered`
  int error = 0;
  int64_t due_ns = 0;  // its result is handed out from then on
};

FaultDevice::FaultDevice(std::unique_ptr<tiering::BlockDevice> inner, std::shared_ptr<FaultScript> script,
                         const Clock* clock)
    : script_(std::move(script)), clock_(clock), inner_(std::move(inner)) {
  for (uint32_t i = 0; i < inner_->depth(); ++i) {
    slots_.push_back(std::make_unique<Slot>());
    free_.push_back(slots_.back().get());
  }
  releases_seen_ = script_->release_count();
}

FaultDevice::~FaultDevice() { inner_.reset(); }  // before the buffers that it may still use

bool FaultDevice::Submit(const IoRequest& request) {
  if (free_.empty()) return false;
  Slot* const slot = free_.back();
  free_.pop_back();
  *slot = Slot();
  slot->request = request;
  slot->fault = script_->Draw(request);
  if (slot->fault && slot->fault->rule.kind == FaultKind::kHang) hung_.push_back(slot);
  else Begin(slot);
  return true;
}

void FaultDevice::FinishAt(Slot* slot, int error, int64_t due_ns) {
  slot->error = error;
  slot->due_ns = due_ns;
  finished_.push_back(slot);
}

void FaultDevice::Begin(Slot* slot) {
  IoRequest request = slot->request;
  request.tag = reinterpret_cast<uintptr_t>(slot);
  if (slot->fault) {
    const uint64_t draw = slot->fault->draw;
    switch (slot->fault->rule.kind) {
      case FaultKind::kError: return FinishAt(slot, slot->fault->rule.error, 0);
      case FaultKind::kLostWrite: return FinishAt(slot, 0, 0);
      case FaultKind::kMisdirectedRead:
      case FaultKind::kMisdirectedWrite: {
        // Anywhere but where it belongs.
        const uint64_t places = (inner_->bytes() - request.buffer.size()) / tiering::kIoAlign + 1;
        const uint64_t place = request.offset / tiering::kIoAlign;
        request.offset = (place + 1 + draw % (places > 1 ? places - 1 : 1)) % places * tiering::kIoAlign;
        break;
      }
      case FaultKind::kFlipOnWrite:
        slot->altered = std::make_unique<AlignedBytes>(request.buffer.size());
        std::memcpy(slot->altered->bytes.data(), request.buffer.data(), request.buffer.size());
        slot->altered->bytes[draw / 8 % request.buffer.size()] ^= static_cast<std::byte>(1u << draw % 8);
        request.buffer = slot->altered->bytes;
        break;
      case FaultKind::kTornWrite:
        slot->altered = std::make_unique<AlignedBytes>(request.buffer.size());
        slot->reads_old = true;
        request.op = IoOp::kRead;
        request.buffer = slot->altered->bytes;
        break;
      case FaultKind::kDelay:
      case FaultKind::kHang:
      case FaultKind::kFlipOnRead:
        break;
    }
  }
  TERRACE_CHECK(inner_->Submit(request));  // it has as many slots as we have
}

void FaultDevice::OnInner(const IoResult& result) {
  Slot* const slot = reinterpret_cast<Slot*>(static_cast<uintptr_t>(result.tag));
  const std::span<std::byte> buffer = slot->request.buffer;
  if (slot->reads_old && result.error == 0) {
    // New sectors [first, end) over the old content; at least one is missing and, if there are two, one is new.
    slot->reads_old = false;
    const uint64_t sectors = buffer.size() / kSector, draw = slot->fault->draw;
    const uint64_t first = draw % sectors;
    const uint64_t end = first + (draw >> 32) % (first == 0 ? sectors : sectors - first + 1);
    if (end > first) {
      const size_t at = first * kSector;
      std::memcpy(slot->altered->bytes.data() + at, buffer.data() + at, (end - first) * kSector);
    }
    IoRequest write = slot->request;
    write.tag = result.tag;
    write.buffer = slot->altered->bytes;
    TERRACE_CHECK(inner_->Submit(write));
    return;
  }
  int64_t due_ns = 0;
  if (slot->fault) {
    const FaultRule& rule = slot->fault->rule;
    if (rule.kind == FaultKind::kDelay) due_ns = clock_->NowNs() + rule.delay_ns;
    if (rule.kind == FaultKind::kFlipOnRead && result.error == 0) {
      buffer[slot->fault->draw / 8 % buffer.size()] ^= static_cast<std::byte>(1u << slot->fault->draw % 8);
    }
  }
  FinishAt(slot, result.error, due_ns);
}

void FaultDevice::ReleaseHung() {
  const uint64_t releases = script_->release_count();
  if (releases == releases_seen_) return;
  releases_seen_ = releases;
  for (Slot* slot : std::exchange(hung_, {})) Begin(slot);
}

size_t FaultDevice::Poll(std::span<IoResult> results, int64_t wait_ns) {
  const int64_t deadline_ns = clock_->NowNs() + wait_ns;
  ReleaseHung();
  int64_t now_ns = clock_->NowNs();
  // The inner device is waited for at most until the first of our own is due.
  int64_t until_ns = hung_.empty() ? deadline_ns : std::min(deadline_ns, now_ns + kHungPollNs);
  for (const Slot* slot : finished_) until_ns = std::min(until_ns, slot->due_ns);
  std::vector<IoResult> inner_results(std::max<size_t>(results.size(), 1));
  const size_t n_inner = inner_->Poll(inner_results, wait_ns > 0 ? std::max<int64_t>(until_ns - now_ns, 0) : 0);
  for (size_t i = 0; i < n_inner; ++i) OnInner(inner_results[i]);
  if (n_inner > 0) inner_->Poll({}, 0);  // the second halves of torn writes are on their way
  now_ns = clock_->NowNs();
  size_t n = 0;
  for (size_t i = 0; i < finished_.size() && n < results.size();) {
    Slot* const slot = finished_[i];
    if (slot->due_ns > now_ns) {
      ++i;
      continue;
    }
    results[n++] = {slot->request.tag, slot->error};
    slot->altered.reset();
    free_.push_back(slot);
    finished_.erase(finished_.begin() + static_cast<ptrdiff_t>(i));
  }
  return n;
}

tiering::BlockDeviceFactory FaultyFactory(tiering::BlockDeviceFactory inner, std::shared_ptr<FaultScript> script,
                                          const Clock* clock) {
  return [inner = std::move(inner), script = std::move(script), clock](const tiering::BlockDeviceOptions& options)
             -> absl::StatusOr<std::unique_ptr<tiering::BlockDevice>> {
    RETURN_IF_ERROR(script->open_status());
    ASSIGN_OR_RETURN(std::unique_ptr<tiering::BlockDevice> device, inner(options));
    return std::unique_ptr<tiering::BlockDevice>(std::make_unique<FaultDevice>(std::move(device), script, clock));
  };
}

}  // namespace terrace::testing
