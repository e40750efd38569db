// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// NvmeScrubber: re-reads everything that one store holds and drops what is bad: slowly all the time, and
// at once when an operator asks.
#pragma once

#include <cstdint>

#include "tiering/nvme/nvme_reader.h"

namespace terrace::tiering {

// Owner: NvmeStore. Threads: the store's own. Limits: reads only while no load waits; spread evenly over
// the period. Failure: what cannot be read is left for whoever asks for it.
class NvmeScrubber {
 public:
  NvmeScrubber(NvmeDisk* disk, NvmeReader* reader) : disk_(disk), reader_(reader) {}

  void Step(int64_t now_ns);
  double ratio() const { return slow_.ratio; }

  // A pass over everything, as fast as it goes. One at a time.
  void StartVerify();
  void StopVerify() { verify_.is_active = false; }
  bool is_verifying() const { return verify_.is_active; }
  const NvmeTier::Verified& verified() const { return verify_.result; }

 private:
  struct Pass {
    uint32_t max_reads = 1;
    bool is_active = false;
    uint64_t number = 0;  // of the pass, so that late reads of an earlier one do not count
    uint32_t segment = 0, next = 0, reads = 0;
    double ratio = 0;
    NvmeTier::Verified result;
  };
  void Begin(Pass& pass);
  // Starts a read, or steps over what is not there. False: nothing could be begun.
  bool Advance(Pass& pass);
  bool IsThrough(const Pass& pass) const;

  NvmeDisk* const disk_;
  NvmeReader* const reader_;
  NvmeVolume* volume_ = nullptr;
  Pass slow_{.max_reads = 1}, verify_{.max_reads = 8};
  int64_t next_round_ns_ = 0, next_read_ns_ = 0;
};

}  // namespace terrace::tiering
