// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// DeviceOp: a load or store of GPU pages that the library copies, through pinned memory.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "api/client/device_pages.h"
#include "api/client/op.h"

namespace terrace::client {

// Its memory is entered from Begin to the end of the last block.
// Owner: as Op. Threads: made by the caller's, all else on the copying thread.
class DeviceOp : public Op {
 public:
  struct Options {
    bool is_load = false;
    const terrace_ref* refs = nullptr;  // loads: n of them, copied
    std::optional<KeyBytes> parent;     // stores, as StoreOp
    bool independent = false;
    wire::Retention retention{};
  };
  // mark: behind what the engine's stream held at the call; taken over.
  DeviceOp(Work op_work, const Options& op_options, CUevent_st* mark)
      : Op(std::move(op_work)), options(op_options), mark_(mark), left_(n()) {
    if (options.refs != nullptr) refs_.assign(options.refs, options.refs + n());
  }

  bool is_load() const { return options.is_load; }
  DevicePages* device() const { return work.memory.pages()->device.get(); }
  CUevent_st* mark() const { return mark_; }
  const std::vector<terrace_ref>& refs() const { return refs_; }
  // False: the pages were freed; the operation has ended.
  bool Begin();
  // Gives [begin, begin + reasons.size()) their reasons. After the last one the mark is given back
  // and the memory left.
  void EndBlocks(uint32_t begin, const std::vector<Reason>& reasons);
  void NoteRead(uint32_t count);  // stores: so many more blocks have left the GPU
  void EndRest(Reason reason);    // what was not begun

  const Options options;  // refs is of no use after construction
  uint32_t next = 0;      // first block not begun

 private:
  void Count(Reason reason);
  std::vector<terrace_ref> refs_;
  CUevent_st* const mark_;
  uint32_t left_, read_ = 0;
};

}  // namespace terrace::client
