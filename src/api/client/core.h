// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Core: what stands behind a terrace_client, and the handles of terrace.h.
#pragma once

#include <memory>

#include "api/client/block_memory.h"
#include "api/client/copy_pool.h"
#include "api/client/fork_guard.h"
#include "api/client/key_space.h"
#include "api/client/link.h"
#include "api/client/locator.h"
#include "api/client/op.h"
#include "api/client/region_link.h"
#include "api/client/stats.h"
#include "api/client/store_queue.h"
#include "api/client/stream_copier.h"
#include "api/client/terrace.h"

namespace terrace::client {

// Owner: shared by the client's handle and those of its key spaces, pages and operations, which may be
// freed after it. Threads: any. Stopped by terrace_close; refuses everything afterwards.
struct Core {
  struct Options {
    Link::Options link;
    uint32_t copy_threads = 1;
    uint64_t staging_bytes = 0;
    uint32_t load_timeout_ms = 30'000;
  };
  explicit Core(const Options& options)
      : link(options.link, stats),
        copies(options.copy_threads),
        stores(&link, options.staging_bytes),
        locator(&link, &copies, int64_t{options.load_timeout_ms} * 1'000'000),
        regions(&link),
        copier(&link, &copies, &stores, &locator),
        load_timeout_ms(options.load_timeout_ms) {}

  void Stop() {
    // Before the link, whose end would look like the daemon's; and before the copies.
    regions.Stop();
    copier.Stop();
    locator.Stop();
    link.Stop();
    stores.Stop();
    copies.Stop();
  }
  bool InForkedChild() const { return ForkGeneration() != fork_generation; }

  const uint32_t fork_generation = ForkGeneration();
  const std::shared_ptr<Stats> stats = std::make_shared<Stats>();
  Link link;
  CopyPool copies;
  StoreQueue stores;
  Locator locator;
  RegionLink regions;
  StreamCopier copier;
  const uint32_t load_timeout_ms;
};

// FAILED_PRECONDITION in a forked child.
Result CheckFork(uint32_t fork_generation);

}  // namespace terrace::client

// The handles of terrace.h. Each keeps the core alive, so that they can be freed in any order.
struct terrace_client {
  std::shared_ptr<terrace::client::Core> core;
};
struct terrace_keyspace {
  std::shared_ptr<terrace::client::Core> core;
  std::shared_ptr<terrace::client::KeySpace> key_space;
};
struct terrace_pages {
  std::shared_ptr<terrace::client::Core> core;
  std::shared_ptr<terrace::client::Pages> pages;
};
struct terrace_op {
  std::shared_ptr<terrace::client::Core> core;
  std::shared_ptr<terrace::client::Op> op;
};
