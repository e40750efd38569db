// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// RegionOp: a load or store that the daemon carries out on the caller's own pages; and the requests
// it becomes.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "api/client/connection.h"
#include "api/client/op.h"
#include "api/client/region.h"
#include "api/engine/wire_region.h"

namespace terrace::client {

// One request of an operation. Owner: its operation. Threads: the region thread; progress: any.
class RegionPart : public Request {
 public:
  RegionPart(uint32_t first, uint32_t block_count) : begin(first), count(block_count) {}

  const uint32_t begin, count;  // of RegionOp::asked()
  int64_t sent_at_ns = 0;       // 0: not sent yet
  int64_t retry_after_ns = 0;   // the daemon had too much to do
  uint32_t slot = 0;            // REQUIRES: sent, not ended
  bool ended() const { return state_.load(std::memory_order_relaxed) == kEnded; }
  // REQUIRES: done and result().ok(). As many as count.
  const std::vector<uint8_t>& reasons() const { return reasons_; }

 private:
  friend class RegionOp;
  Result OnReply(Reply& reply) override;
  std::vector<uint8_t> reasons_;
  enum State : uint32_t { kWaiting, kRunning, kEnded };
  std::atomic<uint32_t> state_{kWaiting};
  std::atomic<uint32_t> planes_{0};  // what was there when it ended
  uint32_t request_id_ = 0;          // before kRunning
};

// Its memory is entered from Submit to the end of the last part: whoever frees the operation or the
// pages waits until the daemon can no longer touch them. Owner: as Op. Threads: sent and ended by
// the region thread; its progress is read by any.
class RegionOp : public Op {
 public:
  struct Options {
    bool is_load = false;
    uint32_t after_event = wire::kNoRegionEvent;
    const terrace_ref* refs = nullptr;  // loads: n of them; read in the constructor only
    int64_t load_timeout_ns = 0;        // loads: for what is on its way from a lower tier
    std::optional<KeyBytes> parent;     // stores, as StoreOp
    bool independent = false;
    wire::Retention retention{};
  };
  // Blocks whose ref is none of this daemon's are stale; the others are what it is asked for.
  RegionOp(Work op_work, std::shared_ptr<OpenRegion> region, const Options& options);

  bool is_load() const { return options_.is_load; }
  OpenRegion* region() const { return region_.get(); }
  // Enters the memory, gives the stale blocks their reason. False: the pages were freed; the
  // operation has ended.
  bool Begin();
  std::vector<std::unique_ptr<RegionPart>>& parts() { return parts_; }

  // Region thread. Sends a part that has its slot; the connection has its key space open.
  Result SendPart(RegionPart* part, Connection* connection, Deadline deadline);
  // Region thread. The daemon has answered, or it is certain that it cannot touch the part's pages
  // any more.
  void EndPart(RegionPart* part, Reason otherwise);
  // Region thread. The daemon was too busy for the part: it is to be sent again.
  void Again(RegionPart* part, int64_t after_ns);
  int64_t deadline_ns() const {
    return deadline_ns_;
  }  // for loads that the daemon has no room for yet

  uint32_t PlanesDone() const override;
  int64_t PollNs() const override { return kPollNs; }

 protected:
  bool CheckSourcesRead() const override;

 private:
  // The daemon writes progress without waking anybody: who waits for it looks so often.
  static constexpr int64_t kPollNs = 50'000;
  uint32_t Progress(const RegionPart& part) const;
  void EndBlock(uint32_t i, Reason reason);

  const std::shared_ptr<OpenRegion> region_;
  const Options options_;
  const int64_t deadline_ns_;
  std::vector<uint32_t> stale_;
  std::vector<uint32_t> asked_;  // empty: all blocks, in order
  std::vector<std::unique_ptr<RegionPart>> parts_;
  uint32_t parts_left_ = 0;  // region thread
};

}  // namespace terrace::client
