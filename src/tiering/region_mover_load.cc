// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// RegionMover: blocks go into pages of a region. What is here is copied at once; what is on its way from a lower
// tier as it comes. Each such part is one batch of a copy engine.
#include <algorithm>
#include <utility>

#include "kvstore/base/block_copy.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"
#include "tiering/region_mover.h"

namespace terrace::tiering {

using kv::BlockKey;
using kv::FrameId;
using kv::KeySpace;

// One batch and what it holds in place. Its owner fills it; then it is its batch's.
struct RegionMover::LoadPart {
  gpu::CopyBatch batch;
  std::vector<size_t> blocks;    // index of the request's key, one a page of the batch
  std::vector<FrameId> frames;   // pinned, one a page; empty: on the GPU
  std::vector<uint32_t> slots;   // of the GPU tier, one a page
  GpuTier* gpu_tier = nullptr;
  int64_t submitted_ns = 0;
  size_t number = 0;             // in LoadOperation::planes
};

struct RegionMover::LoadOperation {
  RegionLoadRequest request;
  std::shared_ptr<Share> share;  // null: not charged
  std::optional<uint32_t> device;
  uint64_t bytes = 0;
  uint32_t as_of_flushes = 0;
  int64_t deadline_ns = 0;
  // For blocks whose copies in the GPU tier were corrupt: not from there again.
  bool is_second = false;
  std::vector<std::vector<uint64_t>> expected;  // checksums, one a key: other bytes are not taken; empty: any are
  // Keep what is on its way, once it is here, until the end, lease or no lease.
  std::vector<std::shared_ptr<Promotion>> promotions;

  // Of the one thread that finds blocks at a time: BeginLoad, then each OnLocated in turn.
  std::vector<size_t> pending;  // not settled, in the order of the keys
  std::shared_ptr<LoadPart> host_part, gpu_part;  // being filled

  Mutex mu;
  std::vector<Reason> reasons ABSL_GUARDED_BY(mu);
  uint32_t open ABSL_GUARDED_BY(mu) = 1;  // parts, waits and calls that are not over
  bool is_whole ABSL_GUARDED_BY(mu) = false;   // no part is added any more
  bool has_failed ABSL_GUARDED_BY(mu) = false;  // a block does not come: no plane of all is told
  std::vector<uint32_t> planes ABSL_GUARDED_BY(mu);  // there, by part
  uint32_t planes_told ABSL_GUARDED_BY(mu) = 0;
  bool is_telling ABSL_GUARDED_BY(mu) = false;

  void Settle(size_t i, Reason reason) {
    MutexLock lock(&mu);
    reasons[i] = reason;
    has_failed |= reason != Reason::kNone;
  }
  void Enter() {
    MutexLock lock(&mu);
    ++open;
  }
};

// A load's wait for lower tiers. Whoever takes it goes on with the load: the promoter's answer, or EndFencedWaits.
struct RegionMover::Wait {
  explicit Wait(Loads the_load) : region(the_load->request.region), load(std::move(the_load)) {}
  Loads Take() { return is_taken.exchange(true) ? nullptr : std::move(load); }
  const std::shared_ptr<gpu::Region> region;
  std::atomic<bool> is_taken{false};
  Loads load;
};

absl::Status RegionMover::Load(kv::TenantId tenant, std::shared_ptr<Share> share, RegionLoadRequest request) {
  if (absl::Status status = Check(tenant, request.region, request.key_space, request.keys.size(), request.pages,
                                  request.after_event);
      !status.ok()) {
    return status;
  }
  std::vector<uint64_t> pages = request.pages;
  std::sort(pages.begin(), pages.end());
  if (std::adjacent_find(pages.begin(), pages.end()) != pages.end()) {
    return absl::InvalidArgumentError("two blocks for one page");
  }
  auto load = std::make_shared<LoadOperation>();
  load->request = std::move(request);
  load->device = DeviceOf(*load->request.region);
  const size_t n = load->request.keys.size();
  load->bytes = n * load->request.region->page_bytes();
  load->as_of_flushes = load->request.key_space->flushes.load(std::memory_order_relaxed);
  load->deadline_ns = parts_.clock->NowNs() + load->request.timeout_ns;
  const bool is_over = stopped_.load(std::memory_order_relaxed);
  {
    MutexLock lock(&load->mu);
    load->reasons.assign(n, is_over ? Reason::kCancelled : Reason::kNone);
  }
  if (!is_over) {
    RETURN_IF_ERROR(TryBegin(gpu::Direction::kLoad, share.get(), load->bytes));
    load->share = std::move(share);
    BeginBusy();
    Begin(load);
    EndBusy();
  }
  Leave(load);
  return absl::OkStatus();
}

void RegionMover::Begin(const Loads& load) {
  for (size_t i = 0; i < load->request.keys.size(); ++i) FindBlock(load.get(), i);
  SubmitParts(load);
  if (!load->pending.empty()) WaitForPending(load);
}

void RegionMover::FindBlock(LoadOperation* load, size_t i) {
  const KeySpace& key_space = *load->request.key_space;
  const BlockKey& key = load->request.keys[i];
  if (!load->is_second && FindOnGpu(load, i)) return;
  // On its way before here: what has just arrived is here.
  if (auto promotion = parts_.promoter->Join(key_space, key)) {
    load->promotions.push_back(std::move(promotion));
    load->pending.push_back(i);
    return;
  }
  if (const auto frame = parts_.catalog->PinIfHere(key_space, key)) {
    load->Settle(i, AddFrame(load, i, *frame) ? Reason::kNone : Reason::kCorrupt);
  } else if (!load->is_second) {
    load->Settle(i, parts_.catalog->WhyMissing(key_space, key));
  } else if (parts_.is_below(key_space, key)) {
    Reason why_not = Reason::kNone;
    if (auto promotion = parts_.promoter->Start(key_space, key, nullptr, &why_not)) {
      load->promotions.push_back(std::move(promotion));
      load->pending.push_back(i);
    } else {
      load->Settle(i, why_not);
    }
  } else {
    load->Settle(i, Reason::kCorrupt);
  }
}

bool RegionMover::FindOnGpu(LoadOperation* load, size_t i) {
  if (!load->device.has_value() || gpu_tiers_[*load->device] == nullptr) return false;
  GpuTier* const tier = gpu_tiers_[*load->device].get();
  const KeySpace& key_space = *load->request.key_space;
  auto found = tier->Find(key_space, load->request.keys[i]);
  if (!found.has_value()) return false;
  if (load->gpu_part == nullptr) {
    load->gpu_part = std::make_shared<LoadPart>();
    load->gpu_part->gpu_tier = tier;
    load->gpu_part->batch.frames_on_device = true;
  }
  LoadPart& part = *load->gpu_part;
  part.slots.push_back(found->slot);
  part.blocks.push_back(i);
  gpu::PageCopy page;
  page.page = load->request.pages[i];
  page.frame = found->frame;
  page.identity_seed =
      IdentitySeed(key_space.digest.data(), load->request.keys[i].bytes.data(), key_space.identity.block_bytes);
  page.checksums = std::move(found->checksums);
  part.batch.pages.push_back(std::move(page));
  return true;
}

// The frame is pinned; the part keeps it so. False: its header is not that of the block, which is dropped, or its
// bytes are others than those expected.
bool RegionMover::AddFrame(LoadOperation* load, size_t i, FrameId frame) {
  const KeySpace& key_space = *load->request.key_space;
  const BlockKey& key = load->request.keys[i];
  auto checksums = parts_.tier->CheckedChecksums(frame, key_space, key);
  if (!checksums.has_value()) {
    parts_.catalog->Drop(key_space, key, frame, Reason::kCorrupt);
    parts_.tier->Unpin(frame);
    return false;
  }
  if (!load->expected.empty() && load->expected[i] != *checksums) {
    parts_.tier->Unpin(frame);
    return false;
  }
  if (load->host_part == nullptr) load->host_part = std::make_shared<LoadPart>();
  LoadPart& part = *load->host_part;
  part.frames.push_back(frame);
  part.blocks.push_back(i);
  gpu::PageCopy page;
  page.page = load->request.pages[i];
  page.frame = parts_.tier->Payload(frame);
  page.identity_seed = IdentitySeed(key_space.digest.data(), key.bytes.data(), key_space.identity.block_bytes);
  page.checksums = *std::move(checksums);
  part.batch.pages.push_back(std::move(page));
  return true;
}

void RegionMover::SubmitParts(const Loads& load) {
  std::vector<std::shared_ptr<LoadPart>> parts;
  for (auto* part : {&load->gpu_part, &load->host_part}) {
    if (*part != nullptr) parts.push_back(std::move(*part));
    *part = nullptr;
  }
  {
    MutexLock lock(&load->mu);
    for (const auto& part : parts) {
      part->number = load->planes.size();
      load->planes.push_back(0);
      ++load->open;
    }
    load->is_whole = load->pending.empty();
  }
  for (const auto& part : parts) {
    gpu::CopyBatch& batch = part->batch;
    batch.region = load->request.region;
    batch.direction = gpu::Direction::kLoad;
    batch.after_event = load->request.after_event;
    if (load->request.planes_done) {
      batch.planes_done = [this, load, number = part->number](uint32_t n_planes) {
        SetPlanes(load, number, n_planes);
      };
    }
    batch.done = [this, load = load, part = part](gpu::CopyBatch& ended, const absl::Status& status) mutable {
      EndPart(load, part.get(), &ended, status);
      load.reset();
      part.reset();
      EndBusy();
    };
    part->submitted_ns = parts_.clock->NowNs();
    BeginBusy();
    gpu::CopyBatch submitted = std::move(batch);
    const absl::Status begun = EngineFor(load->device)->Submit(submitted);
    if (!begun.ok()) {
      SayRefused(gpu::Direction::kLoad, load->device, begun);
      EndPart(load, part.get(), &submitted, begun);
      EndBusy();
    }
  }
}

void RegionMover::EndPart(const Loads& load, LoadPart* part, gpu::CopyBatch* batch, const absl::Status& status) {
  const KeySpace& key_space = *load->request.key_space;
  const uint64_t bytes = key_space.identity.block_bytes;
  uint64_t copied_bytes = 0;
  std::vector<FrameId> unpin;
  std::vector<size_t> again;
  for (size_t p = 0; p < part->blocks.size(); ++p) {
    const size_t i = part->blocks[p];
    const bool intact = status.ok() && batch->pages[p].intact;
    if (intact) copied_bytes += bytes;
    Reason reason = intact ? Reason::kNone : status.ok() ? Reason::kCorrupt : ReasonOf(status);
    if (part->gpu_tier != nullptr) {
      if (reason == Reason::kCorrupt) {
        DropFromGpu(*load, *part, p);
        again.push_back(p);
        reason = Reason::kNone;  // not yet settled
      }
      // A frame that a lost copy still reads stays: it must not become another tenant's.
      if (!batch->frames_lost) part->gpu_tier->Unpin(part->slots[p]);
    } else {
      const FrameId frame = part->frames[p];
      if (status.ok() && !intact) {
        parts_.catalog->Drop(key_space, load->request.keys[i], frame, Reason::kCorrupt);
      }
      if (intact && load->device.has_value() && gpu_tiers_[*load->device] != nullptr) {
        OfferToGpu(*load, i, batch->pages[p], frame);
      } else if (!batch->frames_lost) {
        unpin.push_back(frame);
      }
    }
    if (reason != Reason::kNone) load->Settle(i, reason);
  }
  parts_.tier->UnpinAll(unpin);
  if (batch->frames_lost) Quarantine(part->frames.size() * bytes, status);
  metrics_.Ended(gpu::Direction::kLoad, MemoryOf(load->device),
                 part->gpu_tier == nullptr ? FrameMemory::kHost : FrameMemory::kGpuTier, status, copied_bytes,
                 parts_.clock->NowNs() - part->submitted_ns);
  if (!again.empty()) LoadAgain(load, *part, *batch, again);
  if (status.ok()) SetPlanes(load, part->number, static_cast<uint32_t>(load->request.region->layout().planes.size()));
  Leave(load);
}

void RegionMover::DropFromGpu(const LoadOperation& load, const LoadPart& part, size_t page) {
  if (!part.gpu_tier->Drop(part.slots[page])) return;  // another load has found it, too
  metrics_.gpu_tier_corrupt->Add();
  Log(LogLevel::kError, "block_corrupt",
      {{"key", load.request.keys[part.blocks[page]].ToShortHex()},
       {"tier", "gpu"},
       {"gpu", parts_.gpus->devices()[*load.device].pci_bus}});
}

// A load of its own, which the first one waits for.
void RegionMover::LoadAgain(const Loads& load, const LoadPart& part, const gpu::CopyBatch& batch,
                            std::span<const size_t> pages) {
  auto second = std::make_shared<LoadOperation>();
  second->is_second = true;
  second->request.region = load->request.region;
  second->request.key_space = load->request.key_space;
  second->device = load->device;
  second->as_of_flushes = load->as_of_flushes;
  second->deadline_ns = load->deadline_ns;
  std::vector<size_t> blocks;
  for (const size_t p : pages) {
    blocks.push_back(part.blocks[p]);
    second->request.keys.push_back(load->request.keys[blocks.back()]);
    second->request.pages.push_back(load->request.pages[blocks.back()]);
  }
  size_t number;
  {
    MutexLock lock(&load->mu);
    ++load->open;
    number = load->planes.size();
    load->planes.push_back(0);  // before the part that it was counts as whole
    // The engine may be using planes that it was told of: the same bytes are written there again, no others.
    if (load->planes[part.number] > 0) {
      for (const size_t p : pages) second->expected.push_back(batch.pages[p].checksums);
    }
  }
  {
    MutexLock lock(&second->mu);
    second->reasons.assign(blocks.size(), Reason::kCancelled);  // until they are found
  }
  if (load->request.planes_done) {
    second->request.planes_done = [this, load, number](uint32_t n_planes) { SetPlanes(load, number, n_planes); };
  }
  second->request.done = [this, load, number, blocks = std::move(blocks)](std::span<const Reason> reasons) {
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (reasons[i] != Reason::kNone) load->Settle(blocks[i], reasons[i]);
    }
    SetPlanes(load, number, static_cast<uint32_t>(load->request.region->layout().planes.size()));
    Leave(load);
  };
  BeginBusy();
  worker_->Post(
      [this, second = std::move(second)]() mutable {
        if (!stopped_.load(std::memory_order_relaxed)) Begin(second);
        Leave(second);
        second.reset();
        EndBusy();
      },
      true);
}

void RegionMover::SetPlanes(const Loads& load, size_t part, uint32_t n_planes) {
  if (!load->request.planes_done) return;
  {
    MutexLock lock(&load->mu);
    load->planes[part] = n_planes;
  }
  TellPlanes(load);
}

// The frame's pin goes over to the GPU tier, until it has read the block or wants it not.
void RegionMover::OfferToGpu(const LoadOperation& load, size_t i, const gpu::PageCopy& copied, FrameId frame) {
  const KeySpace& key_space = *load.request.key_space;
  const BlockKey& key = load.request.keys[i];
  gpu_tiers_[*load.device]->Offer(
      key_space, key, [&] { return parts_.catalog->ParentOf(key_space, key); }, parts_.tier->Payload(frame),
      copied.checksums, load.as_of_flushes, [tier = parts_.tier, frame] { tier->Unpin(frame); });
}

void RegionMover::WaitForPending(const Loads& load) {
  std::vector<BlockKey> keys;
  for (const size_t i : load->pending) keys.push_back(load->request.keys[i]);
  load->Enter();
  auto wait = std::make_shared<Wait>(load);
  {
    MutexLock lock(&waits_mu_);
    std::erase_if(waits_, [](const auto& w) { return w->is_taken.load(); });
    waits_.push_back(wait);
  }
  const int64_t left_ns = std::max<int64_t>(0, load->deadline_ns - parts_.clock->NowNs());
  const absl::Status begun = parts_.promoter->Locate(
      *load->request.key_space, keys, left_ns, [this, wait](std::vector<BlockPlace> places) {
        BeginBusy();
        worker_->Post(
            [this, wait, places = std::move(places)] {
              if (Loads waiting = wait->Take()) {
                OnLocated(waiting, places);
                Leave(waiting);
              }
              EndBusy();
            },
            true);
      });
  if (begun.ok()) return;
  wait->Take();
  for (const size_t i : load->pending) load->Settle(i, Reason::kOverload);
  Leave(load);
}

// Nobody waits any more for what a fenced region was to get.
void RegionMover::EndFencedWaits() {
  std::vector<std::shared_ptr<Wait>> fenced;
  {
    MutexLock lock(&waits_mu_);
    std::erase_if(waits_, [&fenced](const auto& wait) {
      if (wait->is_taken.load()) return true;
      if (!wait->region->fenced()) return false;
      fenced.push_back(wait);
      return true;
    });
  }
  for (const auto& wait : fenced) {
    if (Loads load = wait->Take()) {
      OnLocated(load, {});
      Leave(load);
    }
  }
}

// places: of the leading pending blocks, those that are settled.
void RegionMover::OnLocated(const Loads& load, const std::vector<BlockPlace>& places) {
  const std::vector<size_t> waited_for = std::exchange(load->pending, {});
  Reason rest = Reason::kNone;
  if (stopped_.load(std::memory_order_relaxed) || load->request.region->fenced()) {
    rest = Reason::kCancelled;
  } else if (places.empty() || places[0].reason == Reason::kPending) {
    rest = Reason::kDeadline;
  }
  for (size_t p = 0; p < waited_for.size(); ++p) {
    const size_t i = waited_for[p];
    if (rest != Reason::kNone) {
      load->Settle(i, rest);
    } else if (p >= places.size()) {
      load->pending.push_back(i);
    } else if (places[p].reason != Reason::kNone) {
      load->Settle(i, places[p].reason);
    } else {
      FindBlock(load.get(), i);
    }
  }
  SubmitParts(load);
  if (!load->pending.empty()) WaitForPending(load);
}

void RegionMover::TellPlanes(const Loads& load) {
  {
    MutexLock lock(&load->mu);
    if (load->is_telling) return;  // who tells sees what has come meanwhile
    load->is_telling = true;
    ++load->open;
  }
  while (true) {
    uint32_t n_planes;
    {
      MutexLock lock(&load->mu);
      n_planes = load->is_whole && !load->has_failed && !load->planes.empty()
                     ? *std::min_element(load->planes.begin(), load->planes.end())
                     : 0;
      if (n_planes <= load->planes_told) {
        load->is_telling = false;
        break;
      }
      load->planes_told = n_planes;
    }
    load->request.planes_done(n_planes);
  }
  Leave(load);
}

void RegionMover::Leave(const Loads& load) {
  std::vector<Reason> reasons;
  {
    MutexLock lock(&load->mu);
    if (--load->open > 0) return;
    reasons = load->reasons;
  }
  load->promotions.clear();
  if (load->share != nullptr) End(gpu::Direction::kLoad, load->share.get(), load->bytes);
  if (load->request.done) load->request.done(reasons);
}

}  // namespace terrace::tiering
