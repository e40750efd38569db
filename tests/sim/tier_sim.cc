// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "sim/tier_sim.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "tiering/policy/eviction_policy.h"

namespace terrace::testing {

using tiering::BlockPlace;
using tiering::IoOp;
using tiering::LookupMode;
using tiering::LookupOptions;
using tiering::Session;

namespace {

constexpr uint64_t kChain = 8;  // blocks of a chain: numbers n * kChain .. n * kChain + 7
constexpr int64_t kStepNs = 500'000;

tiering::TierStackOptions RandomOptions(Random* random, const FakeClock*) {
  tiering::TierStackOptions options;
  options.process_bytes = 1 << 20;
  options.prefault = false;
  options.huge_pages = false;
  options.threads = false;
  const auto policies = tiering::EvictionPolicyNames();
  options.eviction_policy = policies[random->Below(policies.size())];
  options.admission_policy = random->OneIn(2) ? "all" : "adaptive";
  const uint64_t disks = 1 + random->Below(2);
  for (uint64_t d = 0; d < disks; ++d) {
    tiering::BlockDeviceOptions device;
    device.path = absl::StrCat("/disk", d);
    device.bytes = (16 + 8 * random->Below(4)) << 20;
    device.depth = static_cast<uint32_t>(4 + random->Below(28));
    options.nvme.devices.push_back(device);
  }
  options.nvme.segment_bytes = 1 << 20 << random->Below(2);
  options.nvme.io_memory_bytes = 4 << 20;
  options.nvme.read_deadline_ns = 20'000'000;
  options.nvme.retry_ns = 30'000'000;
  options.nvme.checkpoint_ns = 20'000'000 + static_cast<int64_t>(random->Below(200'000'000));
  options.nvme.scrub_period_ns = random->OneIn(2) ? 0 : 2'000'000'000;
  if (random->OneIn(4)) options.nvme.write_bytes_per_day = 64ull << 30;
  options.budget_bytes = options.process_bytes + disks * (options.nvme.io_memory_bytes + (2ull << 20)) + (8ull << 20);
  return options;
}

DiskCosts RandomCosts(Random* random) {
  DiskCosts costs;
  costs.latency_ns = 50'000 + static_cast<int64_t>(random->Below(300'000));
  costs.jitter_ns = static_cast<int64_t>(random->Below(400'000));
  costs.seed = random->Next();
  return costs;
}

}  // namespace

void TierSimReport::Add(const TierSimReport& other) {
  stores += other.stores;
  reads_checked += other.reads_checked;
  pending_loads += other.pending_loads;
  faults_fired += other.faults_fired;
  kills += other.kills;
  power_losses += other.power_losses;
  clean_restarts += other.clean_restarts;
  flushes += other.flushes;
  disk_blocks_before += other.disk_blocks_before;
  disk_blocks_after += other.disk_blocks_after;
}

TierSim::TierSim(uint64_t seed, int ops, bool is_traced)
    : seed_(seed),
      ops_(ops),
      is_traced_(is_traced),
      random_(seed),
      disks_(&clock_, RandomCosts(&random_)),
      faults_(std::make_shared<FaultScript>(random_.Next())),
      options_(RandomOptions(&random_, &clock_)) {
  options_.device_factory = FaultyFactory(disks_.Factory(), faults_, &clock_);
  spaces_.push_back({32 << 10, 320, false});
  spaces_.push_back({20'000, 320, random_.OneIn(2)});
  spaces_.push_back({128 << 10, 80, true});
}

TierSim::~TierSim() = default;

void TierSim::Fail(const std::string& what) {
  if (!Failed()) report_.failure = absl::StrCat("seed ", seed_, ": ", what);
}

void TierSim::Trace(const std::string& what) const {
  if (is_traced_) std::fprintf(stderr, "%10.4f s  %s\n", static_cast<double>(clock_.NowNs()) / 1e9, what.c_str());
}

void TierSim::Start() {
  metrics_ = std::make_unique<MetricRegistry>();
  auto made = tiering::TierStack::Create(options_, &clock_, metrics_.get());
  if (!made.ok()) return Fail(absl::StrCat("does not start: ", made.status().ToString()));
  stack_ = *std::move(made);
  clients_.clear();
  clients_.resize(3);
  for (Client& client : clients_) client.session = stack_->OpenSession(0);
  for (size_t s = 0; s < spaces_.size(); ++s) {
    kv::KeySpaceIdentity identity;
    identity.model = absl::StrCat("model ", s);
    identity.block_bytes = spaces_[s].block_bytes;
    identity.tokens_per_block = 16;
    identity.block_class = spaces_[s].is_shard ? 1 : 0;
    const auto opened = clients_[0].session->OpenKeySpace(identity);
    if (!opened.ok()) return Fail(opened.status().ToString());
    spaces_[s].opened = *opened;
  }
}

void TierSim::Step(int times) {
  for (int i = 0; i < times; ++i) {
    stack_->Step();
    clock_.AdvanceNs(kStepNs);
  }
}

void TierSim::Store() {
  Client& client = clients_[random_.Below(clients_.size())];
  const size_t s = random_.Below(spaces_.size());
  const Space& space = spaces_[s];
  const uint64_t first = random_.Below(space.key_count / kChain) * kChain;
  const uint64_t n = 1 + random_.Below(kChain);
  for (uint64_t number = first; number < first + n; ++number) {
    // One in a while another client offers other bytes: whatever is served must be one of them, whole.
    const uint64_t variant = random_.OneIn(8) ? next_variant_++ : 0;
    const kv::BlockKey key = KeyOf(number);
    const auto payload = PayloadOf(key, space.block_bytes, variant);
    tiering::PutRequest request;
    request.key_space = space.opened;
    request.key = key;
    if (number > first) request.parent = KeyOf(number - 1);
    request.source = payload;
    request.checksums = ChecksumsOf(space.opened->digest.data(), key, payload);
    if (random_.OneIn(16)) request.hint.done = true;
    if (random_.OneIn(16)) request.hint.pin_until_ns = clock_.NowNs() + 50'000'000;
    std::optional<Reason> answer;
    request.done = [&answer](Reason reason) { answer = reason; };
    client.session->Put(std::move(request));
    ++report_.stores;
    if (!answer.has_value()) return Fail("a store was not answered");
    Trace(absl::StrCat("store ", s, ":", number, " variant ", variant, ": ", std::string(ReasonName(*answer))));
    if (*answer == Reason::kNone) offered_[{s, number}].insert(variant);
    if (*answer != Reason::kNone && *answer != Reason::kDuplicate && *answer != Reason::kBudget) {
      return Fail(absl::StrCat("a store ended as ", std::string(ReasonName(*answer))));
    }
    if (random_.OneIn(4)) Step(1);
  }
}

void TierSim::Lookup() {
  Client& client = clients_[random_.Below(clients_.size())];
  const size_t s = random_.Below(spaces_.size());
  const Space& space = spaces_[s];
  const uint64_t first = random_.Below(space.key_count / kChain) * kChain;
  const auto keys = KeysOf(first, kChain);
  LookupOptions options;
  options.mode = random_.OneIn(4) ? LookupMode::kAll : LookupMode::kPrefix;
  options.may_wait = !random_.OneIn(6);
  if (random_.OneIn(8)) options.recompute_ns_per_token = static_cast<int64_t>(random_.Below(100'000));
  if (random_.OneIn(8)) options.lease = Session::kNoLease;
  const auto answer = client.session->Lookup(space.opened->id, keys, options);
  if (!answer.ok()) return Fail(answer.status().ToString());
  report_.pending_loads += answer->n_pending;
  if (answer->lease_id == 0) {
    if (answer->n_pending != 0) Fail("blocks are pending under no lease");
    return;
  }
  client.leases[answer->lease_id] = {s, first, answer->places};
  if (random_.OneIn(3)) return;  // read later, or never
  ReadLeased(&client, answer->lease_id);
}

// Waits for what is pending and checks every byte.
void TierSim::ReadLeased(Client* client, uint64_t lease) {
  const Client::Held& held = client->leases.at(lease);
  const Space& space = spaces_[held.space];
  std::vector<std::byte> out(space.block_bytes);
  for (size_t i = 0; i < held.places.size(); ++i) {
    BlockPlace place = held.places[i];
    const kv::BlockKey key = KeyOf(held.first + i);
    if (place.reason == Reason::kPending) {
      std::optional<std::vector<BlockPlace>> places;
      const auto asked = client->session->Locate(space.opened->id, {&key, 1}, 10'000'000'000,
                                                 [&](std::vector<BlockPlace> p) { places = std::move(p); });
      if (!asked.ok()) return Fail(asked.ToString());
      for (int n = 0; n < 2000 && !places.has_value(); ++n) Step(1);
      if (!places.has_value() || places->empty()) return Fail("a pending block was never settled");
      place = places->front();
    }
    if (place.reason != Reason::kNone) continue;
    const absl::Status read = stack_->ReadLeased(*space.opened, key, place, out);
    if (!read.ok()) {
      if (!absl::IsNotFound(read)) Fail(absl::StrCat("host memory is sound, yet: ", read.ToString()));
      continue;
    }
    Trace(absl::StrCat("read ", held.space, ":", held.first + i,
                       held.places[i].reason == Reason::kPending ? " from disk" : ""));
    const auto known = offered_.find({held.space, held.first + i});
    if (known == offered_.end()) return Fail("served what was never stored, or was flushed");
    const bool right = std::any_of(known->second.begin(), known->second.end(),
                                   [&](uint64_t variant) { return IsPayloadOf(key, out, variant); });
    if (!right) return Fail(absl::StrCat("WRONG BYTES of block ", held.first + i, " of space ", held.space));
    ++report_.reads_checked;
  }
}

void TierSim::Release() {
  Client& client = clients_[random_.Below(clients_.size())];
  if (random_.OneIn(6)) {  // the client dies
    client.leases.clear();
    client.session = stack_->OpenSession(0);
    return;
  }
  if (client.leases.empty()) return;
  auto it = client.leases.begin();
  std::advance(it, static_cast<int64_t>(random_.Below(client.leases.size())));
  if (random_.OneIn(2)) ReadLeased(&client, it->first);
  if (!client.session->Release(it->first).ok()) Fail("a lease was lost");
  client.leases.erase(it);
}

void TierSim::Hint() {
  const Space& space = spaces_[random_.Below(spaces_.size())];
  const auto keys = KeysOf(random_.Below(space.key_count / kChain) * kChain, kChain);
  tiering::RetentionHint hint;
  hint.done = random_.OneIn(2);
  hint.priority = static_cast<uint8_t>(random_.Below(8));
  if (random_.OneIn(2)) hint.reuse_at_ns = clock_.NowNs() + static_cast<int64_t>(random_.Below(1'000'000'000));
  if (!clients_[0].session->Hint(space.opened->id, keys, hint).ok()) Fail("a hint was refused");
}

void TierSim::Flush() {
  if (is_faulty_ || was_faulty_) return;  // whether a broken disk keeps a flush is not promised
  const size_t s = random_.Below(spaces_.size());
  stack_->Flush(spaces_[s].opened);
  Trace(absl::StrCat("flush of space ", s));
  Step(200);
  ++report_.flushes;
  std::erase_if(offered_, [s](const auto& entry) { return entry.first.first == s; });
}

void TierSim::ToggleFaults() {
  if (seed_ % 2 == 0) return;  // half of the histories are about healthy disks, where more is promised
  if (is_faulty_) {
    faults_->AllOff();
    faults_->ReleaseHung();
    is_faulty_ = false;
    return;
  }
  constexpr FaultKind kKinds[] = {FaultKind::kError,           FaultKind::kDelay,    FaultKind::kHang,
                                  FaultKind::kTornWrite,       FaultKind::kLostWrite, FaultKind::kMisdirectedWrite,
                                  FaultKind::kMisdirectedRead, FaultKind::kFlipOnRead, FaultKind::kFlipOnWrite};
  FaultRule rule;
  rule.kind = kKinds[random_.Below(std::size(kKinds))];
  rule.probability = random_.OneIn(3) ? 1.0 : 0.1;
  if (random_.OneIn(2)) rule.limit = 1 + random_.Below(20);
  rule.error = random_.OneIn(2) ? EIO : ENOSPC;
  rule.delay_ns = 1'000'000 + static_cast<int64_t>(random_.Below(60'000'000));
  faults_->Add(rule);
  Trace(absl::StrCat("faults of kind ", static_cast<int>(rule.kind)));
  is_faulty_ = was_faulty_ = true;
}

uint64_t TierSim::CountOnDisk() {
  uint64_t n = 0;
  for (const auto& device : stack_->Stats().nvme->devices) n += device.blocks;
  return n;
}

void TierSim::Restart(Ending how) {
  const bool healthy = !was_faulty_;
  if (healthy) Step(100);  // what is on its way arrives
  if (healthy && how == Ending::kPowerLoss) {  // and is promised by a checkpoint
    clock_.AdvanceNs(9 * options_.nvme.checkpoint_ns);
    Step(200);
  }
  const uint64_t before = CountOnDisk();
  if (how == Ending::kKill) disks_.KillProcess(random_.Next());
  if (how == Ending::kPowerLoss) disks_.LosePower(random_.Next());
  Trace(absl::StrCat("restart ", static_cast<int>(how), ", ", before, " blocks on disk"));
  clients_.clear();
  stack_ = nullptr;
  Start();
  if (Failed()) return;
  for (int i = 0; i < 4000; ++i) {
    Step(1);
    bool all = true;
    for (const auto& device : stack_->Stats().nvme->devices) {
      all &= device.state == tiering::TierState::kOnline && device.recovery_ratio >= 1;
    }
    if (all) break;
  }
  ++(how == Ending::kClean ? report_.clean_restarts : how == Ending::kKill ? report_.kills : report_.power_losses);
  if (!healthy) return;
  const uint64_t after = CountOnDisk();
  report_.disk_blocks_before += before;
  report_.disk_blocks_after += after;
  const double floor = how == Ending::kClean ? 0.99 : how == Ending::kKill ? 0.95 : 0.5;
  if (static_cast<double>(after) < floor * static_cast<double>(before)) {
    Fail(absl::StrCat(after, " of ", before, " blocks are left on healthy disks after ",
                      how == Ending::kClean ? "a clean restart" : how == Ending::kKill ? "a kill" : "a power loss"));
  }
}

void TierSim::Act() {
  const uint64_t dice = random_.Below(100);
  if (dice < 40) return Store();
  if (dice < 75) return Lookup();
  if (dice < 86) return Release();
  if (dice < 89) return Hint();
  if (dice < 90) return Flush();
  if (dice < 92) return ToggleFaults();
  if (dice < 93) return Restart(static_cast<Ending>(random_.Below(3)));
  if (dice < 94) clock_.AdvanceNs(static_cast<int64_t>(random_.Below(1'000'000'000)));
  Step(static_cast<int>(1 + random_.Below(20)));
}

// At the end: nothing is held, nobody waits, memory is accounted for.
void TierSim::CheckQuiet() {
  faults_->AllOff();
  faults_->ReleaseHung();
  for (Client& client : clients_) {
    client.leases.clear();
    client.session = nullptr;
  }
  Step(400);
  const tiering::TierStackStats stats = stack_->Stats();
  if (stats.tiers[0].pinned_bytes != 0) Fail(absl::StrCat(stats.tiers[0].pinned_bytes, " bytes are still held"));
  if (stats.leases != 0 || stats.sessions != 0) Fail("leases or sessions are left");
  if (stats.budget_used_bytes > stats.budget_bytes) Fail("more memory than the budget");
  stack_->Flush(nullptr);
  if (stack_->Stats().tiers[0].used_bytes != 0) Fail("frames are lost");
}

TierSimReport TierSim::Run() {
  Start();
  for (int i = 0; i < ops_ && !Failed(); ++i) Act();
  if (!Failed()) CheckQuiet();
  report_.faults_fired = faults_->Fired();
  clients_.clear();
  stack_ = nullptr;
  return report_;
}

}  // namespace terrace::testing
