// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/ctl/reason_help.h"

namespace terrace::ctl {

const char* ReasonHelp(Reason reason) {
  switch (reason) {
    case Reason::kNone: return "served or stored";
    case Reason::kCold: return "never stored here, or too long ago to remember";
    case Reason::kEvicted: return "went to make room; more host.budget would have kept it";
    case Reason::kCorrupt: return "failed its check and was dropped; ask `terracectl doctor`: disk or memory";
    case Reason::kFlushed: return "an operator flushed it";
    case Reason::kKeySpaceEmpty: return "nothing was ever stored in its key space";
    case Reason::kModelDiffers: return "other weights or another model are here; compare `terracectl ls`";
    case Reason::kLayoutDiffers: return "another layout, dtype or rank shape is here; compare `terracectl ls`";
    case Reason::kHashDiffers: return "another hash or seed is here; set the same PYTHONHASHSEED for all engines";
    case Reason::kAfterMiss: return "lies behind the first miss of its chain";
    case Reason::kPending: return "on its way from a lower tier or a peer";
    case Reason::kLeaseLimit: return "too much is under lease; raise host.max_leased_ratio or host.budget";
    case Reason::kStale: return "the lease had ended; the client was slower than host.lease_max_age";
    case Reason::kUnavailable:
      return "no daemon, or no answer in time (counted by the client); or the engine's GPU is out of service";
    case Reason::kDuplicate: return "already there, nothing was written";
    case Reason::kBudget: return "no room and nothing may go; raise host.budget, look for leases that stay";
    case Reason::kBadChecksum: return "the bytes were not what the client had announced";
    case Reason::kOverload:
      return "stores: too many at once (raise host.store_threads or host.store_queue_depth); "
             "lookups: too much is on its way from disk already, ask again; "
             "copies of GPU memory: the GPU takes no more or has no memory left (the log names it)";
    case Reason::kCancelled: return "the client went away or dropped it";
    case Reason::kRecompute: return "here, but loading it would have taken longer than computing it again";
    case Reason::kDeadline:
      return "a lower tier, or a GPU that copies it, was not in time; look at disks' queues and health, and the log";
    case Reason::kTierOffline:
      return "on a disk that is out of service, or may be on one that still recovers; see `terracectl status`";
    case Reason::kIoError: return "a disk reported an error when it was read; check the disk";
  }
  return "unknown to this terracectl; it is older than the daemon";
}

std::string CorruptHelp(uint64_t blocks, uint64_t on_disk) {
  if (on_disk == 0) return "test this machine's memory";
  const std::string disks =
      "check the disk, which the daemon's log names (event=nvme_block_bad), for instance with smartctl -a";
  if (on_disk >= blocks) return "they lay on disk: " + disks;
  return std::to_string(on_disk) + " lay on disk: " + disks + "; the others in memory: test this machine's memory";
}

}  // namespace terrace::ctl
