// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// RegionMover: pages of a region become blocks.
#include <utility>

#include "kvstore/base/block_copy.h"
#include "kvstore/base/kill_point.h"
#include "tiering/region_mover.h"

namespace terrace::tiering {

using kv::BlockKey;
using kv::FrameId;
using kv::KeySpace;
using kv::kNoFrame;

struct RegionMover::StoreOperation {
  RegionStoreRequest request;
  kv::TenantId tenant = 0;
  std::shared_ptr<Share> share;  // null: not charged
  bool is_counted = true;        // departures from a GPU tier are not
  std::optional<uint32_t> device;
  std::vector<std::vector<uint64_t>> expected;  // checksums, of departures: other bytes are not stored
  uint64_t bytes = 0;        // of all its blocks
  uint32_t as_of_flushes = 0;
  int64_t submitted_ns = 0;
  std::vector<Reason> reasons;         // one a key
  std::vector<FrameId> frames;         // one a key; kNoFrame: not copied
  std::vector<FrameId> parent_frames;  // held until the blocks are visible
  std::vector<size_t> in_batch;        // key's index, one a page of the batch

  std::optional<BlockKey> ParentOf(size_t i) const {
    if (request.independent) return std::nullopt;
    std::optional<BlockKey> parent = i == 0 ? request.parent : std::optional(request.keys[i - 1]);
    if (parent == request.keys[i]) parent.reset();
    return parent;
  }
};

absl::Status RegionMover::Store(kv::TenantId tenant, std::shared_ptr<Share> share, RegionStoreRequest request) {
  if (absl::Status status = Check(tenant, request.region, request.key_space, request.keys.size(), request.pages,
                                  request.after_event);
      !status.ok()) {
    return status;
  }
  if (request.independent && request.parent.has_value()) {
    return absl::InvalidArgumentError("a parent of blocks that have none");
  }
  auto store = std::make_shared<StoreOperation>();
  store->request = std::move(request);
  store->tenant = tenant;
  store->device = DeviceOf(*store->request.region);
  const size_t n = store->request.keys.size();
  store->bytes = n * store->request.region->page_bytes();
  store->as_of_flushes = store->request.key_space->flushes.load(std::memory_order_relaxed);
  store->reasons.assign(n, Reason::kNone);
  store->frames.assign(n, kNoFrame);
  if (stores_stopped_.load(std::memory_order_relaxed)) {
    store->reasons.assign(n, Reason::kCancelled);
    if (store->request.sources_read) store->request.sources_read();
    AnswerStore(store);
    return absl::OkStatus();
  }
  if (absl::Status begun = TryBegin(gpu::Direction::kStore, share.get(), store->bytes); !begun.ok()) {
    for (size_t i = 0; i < n; ++i) parts_.count_store(tenant, Reason::kOverload);
    return begun;
  }
  store->share = std::move(share);
  PostPlan(std::move(store));
  return absl::OkStatus();
}

// A block leaves a GPU's memory: stored as others are, if host memory has it no more.
void RegionMover::Demote(uint32_t device, GpuTier::Departure departure) {
  auto store = std::make_shared<StoreOperation>();
  store->request.region = std::move(departure.region);
  store->request.key_space = departure.key_space;
  store->request.keys = {departure.key};
  store->request.pages = {departure.page};
  store->request.parent = departure.parent;
  store->request.independent = !departure.parent.has_value();
  store->request.done = [done = std::move(departure.done)](std::span<const Reason>) { done(); };
  store->tenant = departure.key_space->tenant;
  store->device = device;
  store->is_counted = false;
  store->expected = {std::move(departure.checksums)};
  store->bytes = departure.key_space->identity.block_bytes;
  store->as_of_flushes = departure.as_of_flushes;
  store->reasons = {Reason::kCancelled};
  store->frames = {kNoFrame};
  if (stopped_.load(std::memory_order_relaxed)) return AnswerStore(store);
  store->reasons = {Reason::kNone};
  PostPlan(std::move(store));
}

void RegionMover::PostPlan(Stores store) {
  BeginBusy();
  worker_->Post(
      [this, store = std::move(store)]() mutable {
        PlanStore(store);
        store.reset();  // whoever waits finds nothing held
        EndBusy();
      },
      false);
}

void RegionMover::PlanStore(const Stores& store) {
  gpu::CopyBatch batch;
  batch.region = store->request.region;
  batch.direction = gpu::Direction::kStore;
  batch.after_event = store->request.after_event;
  for (size_t i = 0; i < store->request.keys.size(); ++i) PlanBlock(store.get(), i, &batch);
  if (batch.pages.empty()) {
    if (store->request.sources_read) store->request.sources_read();
    return AnswerStore(store);
  }
  SubmitStore(store, std::move(batch));
}

// As Put: a block is of use only behind its parent, which stays until the block is in; where the parent is neither
// here nor on its way, nothing is evicted for a block that no prefix would reach.
void RegionMover::PlanBlock(StoreOperation* store, size_t i, gpu::CopyBatch* batch) {
  const KeySpace& key_space = *store->request.key_space;
  const BlockKey& key = store->request.keys[i];
  if (parts_.catalog->index().Find(key_space.id, key).has_value()) {
    store->reasons[i] = Reason::kDuplicate;
    return;
  }
  bool reachable = true;
  std::optional<FrameId> parent_frame;
  if (const auto parent = store->ParentOf(i)) {
    parent_frame = parts_.catalog->PinIfHere(key_space, *parent);
    reachable = parent_frame.has_value() || parts_.is_coming(key_space, *parent);
  }
  const auto frame = parts_.catalog->Allocate(key_space, reachable);
  if (!frame.has_value()) {
    if (parent_frame.has_value()) parts_.tier->Unpin(*parent_frame);
    store->reasons[i] = Reason::kBudget;
    return;
  }
  if (parent_frame.has_value()) store->parent_frames.push_back(*parent_frame);
  const uint64_t bytes = key_space.identity.block_bytes;
  if (parts_.demoter != nullptr) parts_.demoter->OnAllocated(bytes);
  parts_.fills->Begin(key_space, key);
  store->frames[i] = *frame;
  store->in_batch.push_back(i);
  gpu::PageCopy page;
  page.page = store->request.pages[i];
  page.frame = parts_.tier->Payload(*frame);
  page.identity_seed = IdentitySeed(key_space.digest.data(), key.bytes.data(), bytes);
  page.checksums.resize(ChecksumCount(bytes));
  batch->pages.push_back(std::move(page));
}

void RegionMover::SubmitStore(const Stores& store, gpu::CopyBatch batch) {
  KillPoint("store_before_payload");
  store->submitted_ns = parts_.clock->NowNs();
  batch.done = [this, store](gpu::CopyBatch& copied, const absl::Status& status) {
    if (store->request.sources_read) store->request.sources_read();
    // Making thousands of blocks visible takes milliseconds: not on the thread that drives the copies.
    worker_->Post(
        [this, store = store, ended = std::make_shared<gpu::CopyBatch>(std::move(copied)), status]() mutable {
          FinishStore(store, *ended, status);
          ended.reset();
          store.reset();
          EndBusy();
        },
        false);
  };
  BeginBusy();
  const absl::Status begun = EngineFor(store->device)->Submit(batch);
  if (begun.ok()) return;
  SayRefused(gpu::Direction::kStore, store->device, begun);
  if (store->request.sources_read) store->request.sources_read();
  FinishStore(store, batch, begun);
  EndBusy();
}

void RegionMover::FinishStore(const Stores& store, const gpu::CopyBatch& batch, const absl::Status& status) {
  const KeySpace& key_space = *store->request.key_space;
  uint64_t copied_bytes = 0;
  const bool is_lost = batch.frames_lost;
  // What was read after the fence may be anything; who knows when that was.
  const bool is_fenced = status.ok() && store->request.region->fenced();
  for (size_t p = 0; p < batch.pages.size(); ++p) {
    const size_t i = store->in_batch[p];
    if (status.ok() && !is_fenced && batch.pages[p].intact) {
      copied_bytes += key_space.identity.block_bytes;
      store->reasons[i] = PublishBlock(store.get(), i, batch.pages[p]);
    } else {
      // A frame that is lost stays as it is, being filled for ever.
      if (!is_lost) parts_.tier->Abandon(store->frames[i]);
      store->reasons[i] = is_fenced ? Reason::kCancelled : status.ok() ? Reason::kBadChecksum : ReasonOf(status);
    }
    parts_.fills->End(key_space, store->request.keys[i]);
  }
  if (is_lost) Quarantine(batch.pages.size() * key_space.identity.block_bytes, status);
  metrics_.Ended(gpu::Direction::kStore, MemoryOf(store->device), FrameMemory::kHost, status, copied_bytes,
                 parts_.clock->NowNs() - store->submitted_ns);
  AnswerStore(store);
}

// In the order of the request, parents first.
Reason RegionMover::PublishBlock(StoreOperation* store, size_t i, const gpu::PageCopy& copied) {
  const KeySpace& key_space = *store->request.key_space;
  const BlockKey& key = store->request.keys[i];
  const FrameId frame = store->frames[i];
  if (!store->expected.empty() && store->expected[i] != copied.checksums) {
    parts_.tier->Abandon(frame);
    return Reason::kBadChecksum;
  }
  const auto parent = store->ParentOf(i);
  KillPoint("store_before_header");
  const uint64_t generation = parts_.tier->WriteHeader(frame, key_space, key, copied.checksums, parent);
  parts_.tier->pool().MakeReady(frame, generation);
  KillPoint("store_before_index");
  const Reason reason =
      parts_.catalog->Publish(key_space, key, parent, frame, store->request.hint, store->as_of_flushes);
  if (reason == Reason::kNone && parts_.demoter != nullptr) parts_.demoter->OnStored(key_space, key);
  return reason;
}

void RegionMover::AnswerStore(const Stores& store) {
  for (const FrameId frame : store->parent_frames) parts_.tier->Unpin(frame);
  if (store->share != nullptr) End(gpu::Direction::kStore, store->share.get(), store->bytes);
  if (store->is_counted) {
    for (const Reason reason : store->reasons) parts_.count_store(store->tenant, reason);
  }
  if (store->request.done) store->request.done(store->reasons);
}

}  // namespace terrace::tiering
