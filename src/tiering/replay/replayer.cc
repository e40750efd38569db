// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/replay/replayer.h"

#include <algorithm>
#include <cstring>

#include "kvstore/base/check.h"
#include "kvstore/base/status_macros.h"

namespace terrace::tiering {

using kv::BlockId;
using kv::BlockKey;
using kv::kNoBlock;
using kv::PrefixIndex;

namespace {

constexpr kv::KeySpaceId kKeySpace = 1;
constexpr uint32_t kNoNumber = ~0u;
constexpr uint64_t kHashSeed = 1;  // any: what is decided does not depend on where an entry lies

uint64_t Mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ x >> 27) * 0x94D049BB133111EBull;
  return x ^ x >> 31;
}

BlockKey KeyOfNumber(uint32_t number) {
  BlockKey key;
  for (size_t i = 0; i < key.bytes.size(); i += 8) {
    const uint64_t word = Mix((uint64_t{number} + 1) * 0x9E3779B97F4A7C15ull + i);
    std::memcpy(&key.bytes[i], &word, 8);
  }
  return key;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Replayer>> Replayer::Create(const Trace& trace, const ReplayOptions& options) {
  if (options.capacity_blocks == 0 || options.capacity_blocks > 1ull << 30) {
    return absl::InvalidArgumentError("the capacity must be 1 to 2^30 blocks");
  }
  // The largest BlockId depends on the index only: made once to ask it, the tables are not touched.
  const uint64_t max_blocks = PrefixIndex(options.capacity_blocks, kHashSeed).capacity();
  // Ours as the daemon has it; the others as they are known.
  const auto make = options.policy == "terrace" ? &MakeEvictionPolicy : &MakeBarePolicy;
  ASSIGN_OR_RETURN(auto eviction, make(options.policy, max_blocks, options.capacity_blocks));
  std::unique_ptr<AdmissionPolicy> admission;
  if (options.nvme_blocks > 0) {
    const uint64_t bytes = std::max<uint64_t>(options.blocks.bytes, 1);
    ASSIGN_OR_RETURN(admission, MakeAdmissionPolicy(options.admission,
                                                    {.capacity_bytes = options.nvme_blocks * bytes,
                                                     .write_bytes_per_day = options.write_bytes_per_day,
                                                     .expected_blocks = options.nvme_blocks}));
  }
  return std::unique_ptr<Replayer>(new Replayer(trace, options, std::move(eviction), std::move(admission)));
}

Replayer::Replayer(const Trace& trace, const ReplayOptions& options, std::unique_ptr<EvictionPolicy> eviction,
                   std::unique_ptr<AdmissionPolicy> admission)
    : trace_(trace),
      options_(options),
      hints_(trace, options.hints),
      eviction_(std::move(eviction)),
      admission_(std::move(admission)),
      index_(options.capacity_blocks, kHashSeed),
      links_(index_.capacity()),
      nvme_(options.nvme_blocks, options.nvme_blocks > 0 ? trace.distinct_blocks : 0),
      used_ns_(trace.distinct_blocks, 0),
      number_of_(index_.capacity(), 0),
      parent_of_(options.nvme_blocks > 0 ? trace.distinct_blocks : 0, kNoNumber),
      last_hints_(options.nvme_blocks > 0 ? trace.distinct_blocks : 0) {
  keys_.reserve(trace.distinct_blocks);
  for (uint32_t number = 0; number < trace.distinct_blocks; ++number) {
    keys_.push_back(KeyOfNumber(number));
    fingerprints_.push_back(Mix((number + 1) * 0xD1B54A32D192ED03ull));
  }
  result_.policy = options.policy;
  result_.capacity_blocks = options.capacity_blocks;
  result_.nvme_blocks = options.nvme_blocks;
  result_.requests = trace.requests.size();
  result_.references = trace.references.size();
  result_.input_tokens = trace.input_tokens;
}

ReplayResult Replayer::Run() {
  for (uint32_t number = 0; number < trace_.requests.size(); ++number) RunRequest(number);
  result_.operations = result_.references + result_.stores;
  result_.nvme_writes = nvme_.writes();
  result_.nvme_reinsertions = nvme_.reinsertions();
  CountReachable();
  const EvictionPolicy::Stats stats = eviction_->GetStats();
  result_.decided_by = stats.name;
  result_.ghost_hits = stats.ghost_hits;
  result_.fallbacks = stats.fallbacks;
  std::vector<int64_t>& ages = eviction_ages_ns_;
  if (!ages.empty()) {
    std::sort(ages.begin(), ages.end());
    result_.eviction_age_p50_ns = ages[ages.size() / 2];
    result_.eviction_age_p90_ns = ages[ages.size() * 9 / 10];
  }
  return result_;
}

void Replayer::RunRequest(uint32_t number) {
  const Trace::Request& request = trace_.requests[number];
  const std::span<const uint32_t> chain = trace_.BlocksOf(request);
  now_ns_ = request.time_ns + 1;  // 0 would be "unknown"
  chain_keys_.clear();
  for (const uint32_t block : chain) chain_keys_.push_back(keys_[block]);
  found_.assign(chain.size(), {});
  bool refused = false;
  const uint32_t n_host = index_.FindChain(kKeySpace, chain_keys_, true, nullptr,
                                           [](uint64_t) { return true; }, found_, &refused);
  for (uint32_t i = n_host; i-- > 0;) {
    eviction_->OnAccess(found_[i].block, now_ns_);
  }
  for (uint32_t i = 0; i < n_host; ++i) {
    used_ns_[chain[i]] = now_ns_;
    const RetentionHint hint = hints_.HintOf(number, request.first + i);
    if (!hint.empty()) eviction_->OnHint(found_[i].block, hint, now_ns_);
    if (!last_hints_.empty()) last_hints_[chain[i]] = hint;
  }
  uint32_t n_nvme = 0;
  bool is_hit = options_.nvme_blocks > 0;
  BlockId parent = n_host == 0 ? kNoBlock : found_[n_host - 1].block;
  for (uint32_t i = n_host; i < chain.size(); ++i) {
    is_hit = is_hit && nvme_.Contains(chain[i]);
    if (i > 0 && !parent_of_.empty()) parent_of_[chain[i]] = chain[i - 1];
    parent = Store(number, request.first + i, parent);
    if (parent == kNoBlock) {
      result_.refused_stores += chain.size() - i;
      break;
    }
    if (is_hit) {
      nvme_.Hit(chain[i]);
      admission_->OnHit(fingerprints_[chain[i]], now_ns_);
      ++n_nvme;
    } else {
      ++result_.stores;
      if (admission_ != nullptr) admission_->OnStore(fingerprints_[chain[i]], now_ns_);
    }
  }
  // A chain on disk is used as a whole: its head in host memory, too.
  for (uint32_t i = 0; n_nvme > 0 && i < n_host; ++i) nvme_.Hit(chain[i]);
  result_.CountHits(n_host, n_nvme, request.input_tokens, options_.blocks.tokens);
}

BlockId Replayer::Store(uint32_t request, uint64_t reference, BlockId parent) {
  const uint32_t number = trace_.references[reference];
  if (n_here_ >= options_.capacity_blocks && !MakeRoom(parent)) return kNoBlock;
  BlockId block = kNoBlock;
  if (index_.Insert(kKeySpace, keys_[number], number, &block) != PrefixIndex::Inserted::kYes) return kNoBlock;
  if (parent != kNoBlock && eviction_->IsStale(parent)) {
    for (BlockId b = parent; b != kNoBlock; b = links_.Parent(b)) eviction_->OnAccess(b, now_ns_);
  }
  ++n_here_;
  links_.Add(block, parent);
  number_of_[block] = number;
  used_ns_[number] = now_ns_;
  const RetentionHint hint = hints_.HintOf(request, reference);
  if (!last_hints_.empty()) last_hints_[number] = hint;
  eviction_->OnInsert(block, {.parent = parent, .fingerprint = fingerprints_[number], .hint = hint}, now_ns_);
  return block;
}

bool Replayer::MakeRoom(BlockId parent) {
  const BlockId victim = eviction_->Victim(
      [&](BlockId block) { return block != parent && !links_.HasChildren(block); }, now_ns_);
  if (victim == kNoBlock) return false;
  const uint32_t number = number_of_[victim];
  if (options_.nvme_blocks > 0 && !nvme_.Contains(number)) Demote(victim, number);
  eviction_ages_ns_.push_back(now_ns_ - used_ns_[number]);
  ++result_.evictions;
  TERRACE_CHECK(index_.Remove(victim, number, [](kv::FrameId) { return true; }));
  eviction_->OnErase(victim, true);
  links_.Remove(victim);
  index_.FreeEntry(victim);
  --n_here_;
  return true;
}

AdmissionPolicy::Candidate Replayer::CandidateOf(BlockId block, uint32_t depth) const {
  const uint32_t number = number_of_[block];
  return {.fingerprint = fingerprints_[number],
          .bytes = std::max<uint64_t>(options_.blocks.bytes, 1),
          .uses = eviction_->Uses(block),
          .reuse_chance = eviction_->ReuseChance(block, now_ns_, admission_->StayNs(now_ns_)),
          .depth = depth,
          .hint = last_hints_[number],
          .is_room_free = nvme_.has_free_room()};
}

void Replayer::Demote(BlockId victim, uint32_t number) {
  before_.clear();
  before_numbers_.clear();
  uint32_t depth = 0;
  bool is_gap = true;
  for (BlockId b = links_.Parent(victim); b != kNoBlock; b = links_.Parent(b)) {
    depth = std::min(depth + 1, AdmissionPolicy::kMaxDepth);
    is_gap = is_gap && !nvme_.Contains(number_of_[b]) && before_.size() < AdmissionPolicy::kMaxBefore;
    if (is_gap) {
      before_.push_back(CandidateOf(b, 0));
      before_numbers_.push_back(number_of_[b]);
    } else if (depth == AdmissionPolicy::kMaxDepth) {
      break;
    }
  }
  const auto decision = admission_->Decide(CandidateOf(victim, depth), before_, now_ns_);
  if (decision != AdmissionPolicy::Decision::kAdmit) return;
  nvme_.Append(number);
  for (auto it = before_numbers_.rbegin(); it != before_numbers_.rend(); ++it) nvme_.Append(*it);
}

void Replayer::CountReachable() {
  enum : uint8_t { kUnknown, kNo, kYes };
  std::vector<uint8_t> is_reachable(parent_of_.size(), kUnknown);
  std::vector<uint32_t> path;
  for (uint32_t number = 0; number < parent_of_.size(); ++number) {
    path.clear();
    uint32_t at = number;
    for (; at != kNoNumber && is_reachable[at] == kUnknown; at = parent_of_[at]) {
      is_reachable[at] = kNo;  // also the answer to a trace whose chains bite their tails
      path.push_back(at);
    }
    bool is_whole = at == kNoNumber || is_reachable[at] == kYes;
    for (auto it = path.rbegin(); it != path.rend(); ++it) {
      is_whole = is_whole && nvme_.Contains(*it);
      is_reachable[*it] = is_whole ? kYes : kNo;
    }
    result_.nvme_blocks_at_end += nvme_.Contains(number);
    result_.nvme_reachable_at_end += is_reachable[number] == kYes;
  }
}

absl::StatusOr<ReplayResult> Replay(const Trace& trace, const ReplayOptions& options) {
  ASSIGN_OR_RETURN(const auto replayer, Replayer::Create(trace, options));
  return replayer->Run();
}

}  // namespace terrace::tiering
