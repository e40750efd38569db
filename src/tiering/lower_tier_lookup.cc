// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/lower_tier_lookup.h"

#include <algorithm>
#include <utility>

namespace terrace::tiering {

using kv::BlockKey;
using kv::KeySpace;

LowerTierLookup::Where LowerTierLookup::WhereIs(const KeySpace& key_space, const BlockKey& key) const {
  // On its way before here: what has just arrived is here, and what was not yet under way is not.
  if (promoter_->IsUnderWay(key_space, key)) return Where::kUnderWay;
  if (catalog_->index().Find(key_space.id, key).has_value()) return Where::kHost;
  switch (nvme_->Find({key_space.digest, key, key_space.identity.block_bytes})) {
    case NvmeTier::Presence::kHere:
      return Where::kNvme;
    case NvmeTier::Presence::kOffline:
      return Where::kOffline;
    case NvmeTier::Presence::kUnknown:
      return Where::kUnknown;
    case NvmeTier::Presence::kAbsent:
      return Where::kNowhere;
  }
  return Where::kNowhere;
}

bool LowerTierLookup::WorthLoading(const KeySpace& key_space, uint64_t blocks,
                                   int64_t recompute_ns_per_token) const {
  const uint64_t tokens = key_space.identity.tokens_per_block;
  if (recompute_ns_per_token <= 0 || tokens == 0) return true;
  const uint64_t bytes = blocks * key_space.identity.block_bytes;
  double load_ns = static_cast<double>(nvme_->EstimateReadNs(bytes));
  if (const double rate = rates_->BytesPerSecond(key_space.id); rate > 0) {
    load_ns = std::max(load_ns, static_cast<double>(bytes) / rate * 1e9);
  }
  return load_ns <= static_cast<double>(recompute_ns_per_token) * static_cast<double>(tokens * blocks);
}

void LowerTierLookup::MarkUsed(const KeySpace& key_space, std::span<const BlockKey> keys,
                               std::span<const kv::PrefixIndex::Found> host) const {
  for (size_t i = 0; i < keys.size() && host[i].block != kv::kNoBlock; ++i) {
    nvme_->MarkUsed({key_space.digest, keys[i], key_space.identity.block_bytes});
  }
}

std::vector<LowerTierLookup::Found> LowerTierLookup::Find(const KeySpace& key_space,
                                                          std::span<const BlockKey> keys,
                                                          std::span<const kv::PrefixIndex::Found> host,
                                                          const LookupOptions& options, Reason why_not) const {
  const bool prefix = options.mode == LookupMode::kPrefix;
  std::vector<Where> where(keys.size(), Where::kNowhere);
  uint64_t to_load = 0;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (host[i].block != kv::kNoBlock) continue;
    where[i] = WhereIs(key_space, keys[i]);
    to_load += where[i] == Where::kNvme || where[i] == Where::kUnderWay;
    if (prefix && (where[i] <= Where::kUnknown || where[i] == Where::kOffline)) break;
  }
  std::vector<Found> all(keys.size());
  const bool worth = WorthLoading(key_space, to_load, options.recompute_ns_per_token);
  const uint64_t bytes = key_space.identity.block_bytes;
  std::shared_ptr<Promotion> behind;
  uint64_t pending_bytes = 0;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (host[i].block != kv::kNoBlock) {
      behind = nullptr;
      continue;
    }
    Found& found = all[i];
    switch (where[i]) {
      case Where::kNowhere:
        break;
      case Where::kUnknown:
        found.may_be_there = true;
        break;
      case Where::kOffline:
        found.reason = Reason::kTierOffline;
        break;
      case Where::kHost:
        if (why_not != Reason::kNone) {
          found.reason = why_not;
        } else if (!may_lease_(pending_bytes)) {
          found.reason = Reason::kLeaseLimit;
        } else if (const auto frame = catalog_->PinIfHere(key_space, keys[i])) {
          found.frame = *frame;
        }
        behind = nullptr;
        break;
      case Where::kUnderWay:
      case Where::kNvme:
        if (why_not != Reason::kNone) {
          found.reason = why_not;
        } else if (!worth) {
          found.reason = Reason::kRecompute;
        } else if (!may_lease_(pending_bytes + bytes)) {
          found.reason = Reason::kLeaseLimit;
        } else {
          Reason why = Reason::kNone;
          found.promotion = promoter_->Start(key_space, keys[i], prefix ? behind : nullptr, &why, true);
          if (found.promotion == nullptr) {
            found.reason = why;
          } else {
            pending_bytes += bytes;
            behind = found.promotion;
            demoter_->OnNvmeHit(key_space, keys[i]);
          }
        }
        break;
    }
    if (prefix && found.frame == kv::kNoFrame && found.promotion == nullptr) break;
  }
  if (prefix && pending_bytes > 0) MarkUsed(key_space, keys, host);
  return all;
}

}  // namespace terrace::tiering
