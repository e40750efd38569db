// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// TierSim: one seeded history of the whole core (index, host memory, disks, promotion, demotion, policies,
// recovery) in virtual time, in one thread, against a model. Disks tear, lie, hang and lose what was not
// synced; the process is killed, power goes, daemons restart. What must hold:
//   - a byte that is served is the byte that was stored under that key (I1), of that key space (I3)
//   - what was never offered, and what was flushed, is not served (I2, I5)
//   - nothing is held when nobody holds it; every question is answered (I6, I7)
//   - after a restart on a healthy disk most of what lay there is found: a cache that always misses fails
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "kvstore/base/metrics.h"
#include "testing/fake_clock.h"
#include "testing/fault_device.h"
#include "testing/memory_device.h"
#include "testing/payload.h"
#include "tiering/tier_stack.h"

namespace terrace::testing {

// What a run did, so that a suite can tell that it did anything.
struct TierSimReport {
  std::string failure;  // empty: all held
  uint64_t stores = 0, reads_checked = 0, pending_loads = 0, faults_fired = 0;
  uint64_t kills = 0, power_losses = 0, clean_restarts = 0, flushes = 0;
  uint64_t disk_blocks_before = 0, disk_blocks_after = 0;  // around restarts of healthy disks
  void Add(const TierSimReport& other);
};

// Owner: whoever runs it. One thread. Equal seeds give equal histories.
class TierSim {
 public:
  // is_traced: says on standard error what it does.
  TierSim(uint64_t seed, int ops, bool is_traced);
  ~TierSim();
  TierSimReport Run();

 private:
  struct Space {
    uint64_t block_bytes, key_count;
    bool is_shard;
    const kv::KeySpace* opened = nullptr;
  };
  using Name = std::pair<size_t, uint64_t>;  // space, number
  struct Client {
    std::unique_ptr<tiering::Session> session;
    struct Held {
      size_t space;
      uint64_t first;
      std::vector<tiering::BlockPlace> places;
    };
    std::map<uint64_t, Held> leases;
  };

  void Start();
  void Step(int times);
  void Act();
  void Store();
  void Lookup();
  void ReadLeased(Client* client, uint64_t lease);
  void Release();
  void Hint();
  void Flush();
  void ToggleFaults();
  enum class Ending { kClean, kKill, kPowerLoss };
  void Restart(Ending how);
  uint64_t CountOnDisk();
  void CheckQuiet();
  void Fail(const std::string& what);
  void Trace(const std::string& what) const;
  bool Failed() const { return !report_.failure.empty(); }

  const uint64_t seed_;
  const int ops_;
  const bool is_traced_;
  Random random_;
  FakeClock clock_;
  MemoryDisks disks_;
  std::shared_ptr<FaultScript> faults_;
  bool is_faulty_ = false;   // some rule is on
  bool was_faulty_ = false;  // the disk may hold damage
  tiering::TierStackOptions options_;
  std::unique_ptr<MetricRegistry> metrics_;
  std::unique_ptr<tiering::TierStack> stack_;
  std::vector<Space> spaces_;
  std::vector<Client> clients_;
  std::map<Name, std::set<uint64_t>> offered_;  // variants that may be served
  uint64_t next_variant_ = 1;
  TierSimReport report_;
};

}  // namespace terrace::testing
