// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// FaultDevice: any BlockDevice, with faults. What goes wrong is said by a FaultScript, which the test
// keeps, changes while everything runs, and asks how often a fault really happened:
//
//   auto faults = std::make_shared<FaultScript>(seed);
//   auto factory = FaultyFactory(disks.Factory(), faults, &clock);   // or over OpenBlockDevice
//   const int flips = faults->Add({.kind = FaultKind::kFlipOnRead, .probability = 0.01});
//   ...
//   faults->SetOn(flips, false);
//   ASSERT_GT(faults->Fired(flips), 0u);
#pragma once

#include <cerrno>
#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/mutex.h"
#include "testing/payload.h"
#include "tiering/io/block_device.h"

namespace terrace::testing {

enum class FaultKind : uint8_t {
  kError,             // ends with `error`; nothing is transferred
  kDelay,             // ends delay_ns later than it would
  kHang,              // does not end until ReleaseHung, then is carried out
  kTornWrite,         // a run of 512-byte sectors of it reaches the disk; claims success
  kMisdirectedWrite,  // goes to another place of the disk; claims success
  kMisdirectedRead,   // brings what lies at another place
  kLostWrite,         // goes nowhere, claims success. Of a kSync: nothing is synced
  kFlipOnRead,        // one bit of what was read is wrong
  kFlipOnWrite,       // one bit of what is written is wrong
};

// Which requests a fault befalls: those for which everything holds. Those that move no data count as
// touching every offset.
struct FaultRule {
  FaultKind kind = FaultKind::kError;
  std::optional<tiering::IoOp> op;  // none: each op that the kind applies to
  uint64_t offset_begin = 0, offset_end = std::numeric_limits<uint64_t>::max();  // touches this range
  uint64_t min_bytes = 0;                                                        // 0: any size
  double probability = 1;
  uint64_t skip = 0;                                    // the first so many go unharmed
  uint64_t limit = std::numeric_limits<uint64_t>::max();  // happens so often at most
  int error = EIO;
  int64_t delay_ns = 0;
};

// The faults of one or several devices. Equal seeds and equal requests give equal faults.
// Owner: the test, shared with its devices. Threads: any.
class FaultScript {
 public:
  explicit FaultScript(uint64_t seed) : random_(seed) {}
  // On from now. Of several rules that match a request the first that fires is the one that counts.
  int Add(const FaultRule& rule);
  void SetOn(int rule, bool on);
  void AllOff();  // hung requests stay hung
  uint64_t Fired(int rule) const;
  uint64_t Fired() const;  // all rules
  // Everything that hangs now goes on. Rules of the kind that are on catch the next ones.
  void ReleaseHung();
  // While not ok, opening a device fails with it: a disk that is gone, a mount that is read-only.
  void FailOpen(absl::Status status);

 private:
  friend class FaultDevice;
  friend tiering::BlockDeviceFactory FaultyFactory(tiering::BlockDeviceFactory inner,
                                                   std::shared_ptr<FaultScript> script, const Clock* clock);
  struct State {
    FaultRule rule;
    bool is_on = true;
    uint64_t matched = 0, fired = 0;
  };
  struct Fault {
    FaultRule rule;
    uint64_t draw = 0;  // for whatever is random in it
  };
  std::optional<Fault> Draw(const tiering::IoRequest& request);
  uint64_t release_count() const;
  absl::Status open_status() const;

  mutable Mutex mu_;
  Random random_ ABSL_GUARDED_BY(mu_);
  std::deque<State> rules_ ABSL_GUARDED_BY(mu_);
  uint64_t releases_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status open_status_ ABSL_GUARDED_BY(mu_);
};

// Owner: whoever opened it. Threads: as BlockDevice. Hung and delayed requests count as in flight; the
// destructor does not wait for them (nothing touches their buffers).
class FaultDevice final : public tiering::BlockDevice {
 public:
  // clock: of the delays; the inner device's.
  FaultDevice(std::unique_ptr<tiering::BlockDevice> inner, std::shared_ptr<FaultScript> script, const Clock* clock);
  ~FaultDevice() override;
  uint64_t bytes() const override { return inner_->bytes(); }
  uint32_t depth() const override { return inner_->depth(); }
  std::string_view backend() const override { return inner_->backend(); }
  void RegisterBuffers(std::span<std::byte> memory) override { inner_->RegisterBuffers(memory); }
  bool Submit(const tiering::IoRequest& request) override;
  size_t Poll(std::span<tiering::IoResult> results, int64_t wait_ns) override;
  void Wake() override { inner_->Wake(); }

 private:
  struct AlignedBytes;
  struct Slot;
  void Begin(Slot* slot);                       // hands it, or what becomes of it, to the inner device
  void FinishAt(Slot* slot, int error, int64_t due_ns);
  void OnInner(const tiering::IoResult& result);
  void ReleaseHung();

  const std::shared_ptr<FaultScript> script_;
  const Clock* const clock_;
  std::unique_ptr<tiering::BlockDevice> inner_;
  std::vector<std::unique_ptr<Slot>> slots_;  // depth; all below are the owner's thread's
  std::vector<Slot*> free_;
  std::vector<Slot*> hung_;
  std::vector<Slot*> finished_;  // waiting for their due time
  uint64_t releases_seen_ = 0;
};

tiering::BlockDeviceFactory FaultyFactory(tiering::BlockDeviceFactory inner, std::shared_ptr<FaultScript> script,
                                          const Clock* clock);

}  // namespace terrace::testing
