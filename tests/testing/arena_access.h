// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// ArenaAccess: the daemon's own writable view of its shared-memory segments, for tests that flip bits in
// them as failing memory does. Segments are sealed against every new writable mapping, so the one the
// process has is looked up in /proc/self/maps.
#pragma once

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <map>
#include <span>
#include <sstream>
#include <string>

#include "tiering/tier_stack.h"

namespace terrace::testing {

// Owner: the test. Threads: one. Valid until a segment is given up (Forget).
class ArenaAccess {
 public:
  struct Segment {
    std::span<std::byte> payload, headers;
  };
  explicit ArenaAccess(const tiering::TierStack* stack) : stack_(stack) {}

  const Segment& Find(kv::TenantId tenant, uint32_t segment_id) {
    auto it = segments_.find(segment_id);
    if (it != segments_.end()) return it->second;
    const auto fds = stack_->FindSegment(tenant, segment_id);
    EXPECT_TRUE(fds.ok()) << fds.status();
    Segment segment{Writable(fds->payload_fd), Writable(fds->header_fd)};
    close(fds->payload_fd);
    close(fds->header_fd);
    return segments_[segment_id] = segment;
  }

  // The segment's memory was given up.
  void Forget(uint32_t segment_id) { segments_.erase(segment_id); }

 private:
  static std::span<std::byte> Writable(int fd) {
    struct stat file {};
    fstat(fd, &file);
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
      std::istringstream fields(line);
      uint64_t first, last, inode;
      std::string rights, offset, device;
      char dash;
      fields >> std::hex >> first >> dash >> last >> rights >> offset >> device >> std::dec >> inode;
      if (fields && inode == file.st_ino && rights == "rw-s" && line.find("memfd:terrace") != std::string::npos) {
        return {reinterpret_cast<std::byte*>(first), last - first};
      }
    }
    ADD_FAILURE() << "the process has no writable mapping of this segment";
    return {};
  }

  const tiering::TierStack* const stack_;
  std::map<uint32_t, Segment> segments_;
};

}  // namespace terrace::testing
