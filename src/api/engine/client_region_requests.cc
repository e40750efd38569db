// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// What a ClientConnection does with requests about regions. Nothing in a message is believed.
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "api/engine/client_connection.h"
#include "api/engine/packet_body.h"
#include "api/engine/retention_hint.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"

namespace terrace::api {
namespace {

static_assert(wire::kNoRegionEvent == gpu::kNoEvent);

// The blocks that make up the rest of a body.
absl::Status TakeBlocks(std::span<const std::byte> body, absl::string_view message, uint32_t n_blocks,
                        std::vector<kv::BlockKey>* keys, std::vector<uint64_t>* pages) {
  if (n_blocks == 0 || n_blocks > wire::kMaxRegionBlocks || body.size() != n_blocks * sizeof(wire::RegionBlock)) {
    return Malformed(absl::StrCat(message, " of ", n_blocks, " blocks (1 to ", wire::kMaxRegionBlocks, ") in ",
                                  body.size(), " bytes"));
  }
  keys->reserve(n_blocks);
  pages->reserve(n_blocks);
  for (uint32_t i = 0; i < n_blocks; ++i) {
    wire::RegionBlock block;
    Take(&body, &block);
    keys->push_back(kv::BlockKey::FromBytes(block.key));
    pages->push_back(block.page);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<const kv::KeySpace*> ClientConnection::KeySpaceOf(uint32_t id) const {
  const kv::KeySpace* key_space = context_->stack->FindKeySpace(session().tenant(), id);
  if (key_space == nullptr) return absl::NotFoundError(absl::StrCat("no key space ", id, "; open it first"));
  return key_space;
}

absl::Status ClientConnection::OnRegisterRegion(const wire::Header& header, Bytes body, PacketFds* fds) {
  ASSIGN_OR_RETURN(std::unique_ptr<RegionOpening> parsed,
                   RegionOpening::Parse(body, fds, context_->config->region_bytes_max));
  if (context_->regions_opening->fetch_add(1, std::memory_order_relaxed) >= kMaxRegionsOpening) {
    context_->regions_opening->fetch_sub(1, std::memory_order_relaxed);
    return absl::ResourceExhaustedError(absl::StrCat(kMaxRegionsOpening, " regions are being opened; try again"));
  }
  if (absl::Status begun = regions_.BeginOpening(); !begun.ok()) {
    context_->regions_opening->fetch_sub(1, std::memory_order_relaxed);
    return begun;
  }
  const std::shared_ptr<const RegionOpening> opening = std::move(parsed);
  context_->region_opener->Post(
      [weak = weak_from_this(), header, opening, opening_count = context_->regions_opening] {
        if (const auto self = weak.lock()) self->OpenRegion(header, *opening);
        opening_count->fetch_sub(1, std::memory_order_relaxed);
      },
      false);
  return absl::OkStatus();
}

// On the opener's thread.
void ClientConnection::OpenRegion(const wire::Header& header, const RegionOpening& opening) {
  auto slots = RegionSlots::Make();
  auto region = slots.ok() ? context_->stack->OpenRegion(opening.device_uuid, opening.layout, opening.allocations,
                                                         opening.events)
                           : slots.status();
  constexpr uint32_t kHostMemory = ~0u;
  const uint32_t device = region.ok() ? context_->stack->DeviceOf(**region).value_or(kHostMemory) : kHostMemory;
  const auto id = regions_.EndOpening(region.ok() ? *region : nullptr, slots.ok() ? *slots : nullptr);
  if (!region.ok()) {
    Log(LogLevel::kWarning, "region_refused", {{"pid", pid_}, {"uid", uid_}, {"why", region.status().message()}});
    return ReplyError(header, region.status());
  }
  if (!id.ok()) return;  // closed meanwhile
  Log(LogLevel::kInfo, "region_opened",
      {{"pid", pid_},
       {"region", *id},
       {"memory", device != kHostMemory ? absl::StrCat("gpu ", device) : "host"},
       {"pages", (*region)->layout().n_pages},
       {"page_bytes", (*region)->page_bytes()},
       {"planes", (*region)->layout().planes.size()}});
  const wire::RegionRegistered registered{*id, device, 0};
  const int fds[] = {(*slots)->fd()};
  Reply(header, AsBytes(registered), fds);
}

absl::Status ClientConnection::OnUnregisterRegion(const wire::Header& header, Bytes body) {
  wire::UnregisterRegion unregister;
  if (!Take(&body, &unregister) || unregister.reserved != 0 || !body.empty()) return Malformed("UnregisterRegion");
  ASSIGN_OR_RETURN(const bool is_closed, regions_.Unregister(unregister.region_id, header));
  if (is_closed) Reply(header, {});
  return absl::OkStatus();
}

absl::Status ClientConnection::OnRegionStore(const wire::Header& header, Bytes body) {
  wire::RegionStore store;
  constexpr uint32_t kKnownFlags = wire::kRegionStoreHasParent | wire::kRegionStoreIndependent;
  if (!Take(&body, &store) || store.reserved != 0 || (store.flags & ~kKnownFlags) != 0 ||
      store.flags == kKnownFlags) {
    return Malformed("RegionStore");
  }
  tiering::RegionStoreRequest request;
  RETURN_IF_ERROR(TakeBlocks(body, "RegionStore", store.n_blocks, &request.keys, &request.pages));
  ASSIGN_OR_RETURN(request.hint, ToHint(store.retention, context_->clock->NowNs()));
  ASSIGN_OR_RETURN(request.key_space, KeySpaceOf(store.key_space_id));
  request.independent = (store.flags & wire::kRegionStoreIndependent) != 0;
  if ((store.flags & wire::kRegionStoreHasParent) != 0) request.parent = kv::BlockKey::FromBytes(store.parent);
  request.after_event = store.after_event;
  ASSIGN_OR_RETURN(const ClientRegions::Use use, regions_.Begin(store.region_id, store.slot, header.request_id));
  request.region = use.region;
  request.sources_read = [use] { use.Set(1); };
  // The operation may outlive the connection: see Close.
  request.done = [self = shared_from_this(), header, use](std::span<const Reason> reasons) {
    self->EndRegionUse(header, use, reasons);
  };
  const absl::Status begun = session().StoreRegion(std::move(request));
  if (!begun.ok()) regions_.End(use);
  return begun;
}

absl::Status ClientConnection::OnRegionLoad(const wire::Header& header, Bytes body) {
  wire::RegionLoad load;
  if (!Take(&body, &load)) return Malformed("RegionLoad");
  tiering::RegionLoadRequest request;
  RETURN_IF_ERROR(TakeBlocks(body, "RegionLoad", load.n_blocks, &request.keys, &request.pages));
  if (load.timeout_us > wire::kMaxLocateUs) {
    return absl::InvalidArgumentError(
        absl::StrCat("RegionLoad may wait ", wire::kMaxLocateUs, " us at most, not ", load.timeout_us));
  }
  ASSIGN_OR_RETURN(request.key_space, KeySpaceOf(load.key_space_id));
  request.after_event = load.after_event;
  request.timeout_ns = int64_t{load.timeout_us} * 1000;
  ASSIGN_OR_RETURN(const ClientRegions::Use use, regions_.Begin(load.region_id, load.slot, header.request_id));
  request.region = use.region;
  request.planes_done = [use](uint32_t n_planes) { use.Set(n_planes); };
  request.done = [self = shared_from_this(), header, use](std::span<const Reason> reasons) {
    self->EndRegionUse(header, use, reasons);
  };
  const absl::Status begun = session().LoadRegion(std::move(request));
  if (!begun.ok()) regions_.End(use);
  return begun;
}

// Any thread. The slot is free before the client hears of it.
void ClientConnection::EndRegionUse(const wire::Header& header, const ClientRegions::Use& use,
                                    std::span<const Reason> reasons) {
  const std::optional<wire::Header> unregister = regions_.End(use);
  const wire::RegionDone done{static_cast<uint32_t>(reasons.size()), 0};
  std::vector<std::byte> body(sizeof(done) + reasons.size());
  std::memcpy(body.data(), &done, sizeof(done));
  for (size_t i = 0; i < reasons.size(); ++i) body[sizeof(done) + i] = static_cast<std::byte>(reasons[i]);
  Reply(header, body);
  if (unregister.has_value()) Reply(*unregister, {});
}

}  // namespace terrace::api
