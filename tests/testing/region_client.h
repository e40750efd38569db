// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// RegionClient: the messages about regions, said by a RawClient over pages of a RegionMemory.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "api/engine/wire_region.h"
#include "testing/raw_client.h"
#include "testing/region_memory.h"

namespace terrace::testing {

inline void AppendBytes(std::vector<std::byte>* body, const void* data, size_t bytes) {
  const auto* first = static_cast<const std::byte*>(data);
  body->insert(body->end(), first, first + bytes);
}

// The right message for this memory.
inline std::vector<std::byte> RegisterBody(const RegionMemory& memory) {
  const gpu::RegionLayout& layout = memory.layout();
  const wire::RegisterRegion said{{}, layout.n_pages, 1, static_cast<uint32_t>(layout.planes.size()), 0, 0};
  std::vector<std::byte> body;
  AppendBytes(&body, &said, sizeof(said));
  const wire::RegionAllocation allocation{0, 0, memory.bytes(), {}};
  AppendBytes(&body, &allocation, sizeof(allocation));
  for (const gpu::Plane& plane : layout.planes) {
    const wire::RegionPlane p{plane.allocation, 0, plane.offset, plane.stride, plane.bytes};
    AppendBytes(&body, &p, sizeof(p));
  }
  return body;
}

inline void AppendBlocks(std::vector<std::byte>* body, std::span<const kv::BlockKey> keys, uint64_t first_page) {
  for (size_t i = 0; i < keys.size(); ++i) {
    wire::RegionBlock block{{}, first_page + i};
    std::memcpy(block.key, keys[i].bytes.data(), 32);
    AppendBytes(body, &block, sizeof(block));
  }
}

inline std::vector<std::byte> RegionStoreBody(uint32_t region, const OpenSpace& space,
                                              std::span<const kv::BlockKey> keys, uint64_t first_page,
                                              uint32_t slot = 0) {
  wire::RegionStore store{};
  store.region_id = region;
  store.key_space_id = space.id;
  store.n_blocks = static_cast<uint32_t>(keys.size());
  store.slot = slot;
  store.after_event = wire::kNoRegionEvent;
  std::vector<std::byte> body;
  AppendBytes(&body, &store, sizeof(store));
  AppendBlocks(&body, keys, first_page);
  return body;
}

inline std::vector<std::byte> RegionLoadBody(uint32_t region, const OpenSpace& space,
                                             std::span<const kv::BlockKey> keys, uint64_t first_page,
                                             uint32_t slot = 0, uint32_t timeout_us = 20'000'000) {
  const wire::RegionLoad load{region, space.id, static_cast<uint32_t>(keys.size()), slot, wire::kNoRegionEvent,
                              timeout_us};
  std::vector<std::byte> body;
  AppendBytes(&body, &load, sizeof(load));
  AppendBlocks(&body, keys, first_page);
  return body;
}

// Owner: the test. Threads: as RawClient.
class RegionClient {
 public:
  explicit RegionClient(RawClient* client) : client_(client) {}

  struct Registered {
    uint32_t id = 0;
    std::unique_ptr<Mapping> progress;
    uint64_t Progress(uint32_t slot) const {
      const auto* all = reinterpret_cast<const wire::RegionProgress*>(progress->data());
      return __atomic_load_n(&all[slot].value, __ATOMIC_ACQUIRE);
    }
  };
  absl::StatusOr<Registered> Register(const RegionMemory& memory) {
    const int fd = memory.fd();
    return Register(RegisterBody(memory), {&fd, 1});
  }
  absl::StatusOr<Registered> Register(std::span<const std::byte> body, std::span<const int> fds) {
    auto packet = Answer(Send(wire::Type::kRegisterRegion, body, fds));
    if (!packet.ok()) return packet.status();
    wire::RegionRegistered registered;
    if (packet->body.size() != sizeof(registered) || packet->fds.size() != 1) {
      return absl::InternalError("answer of a wrong size");
    }
    std::memcpy(&registered, packet->body.data(), sizeof(registered));
    return Registered{registered.region_id,
                      std::make_unique<Mapping>(std::move(packet->fds[0]),
                                                wire::kRegionSlots * sizeof(wire::RegionProgress), PROT_READ)};
  }
  absl::StatusOr<std::vector<Reason>> Run(wire::Type type, std::span<const std::byte> body) {
    return Reasons(Answer(Send(type, body)));
  }

  uint32_t Send(wire::Type type, std::span<const std::byte> body, std::span<const int> fds = {}) {
    const uint32_t id = client_->next_id();
    EXPECT_TRUE(client_->SendBytes(RawClient::Encode(type, id, body), fds));
    return id;
  }
  // The answer to that request; others that come before it are lost.
  absl::StatusOr<Packet> Answer(uint32_t id) {
    while (true) {
      auto packet = client_->Receive();
      if (!packet.has_value()) return absl::UnavailableError("no answer");
      if (packet->header.request_id != id || (packet->header.flags & wire::kFlagReply) == 0) continue;
      if (packet->header.status == 0) return *std::move(packet);
      wire::ErrorBody error{};
      std::memcpy(&error, packet->body.data(), std::min(sizeof(error), packet->body.size()));
      return absl::Status(static_cast<absl::StatusCode>(packet->header.status),
                          absl::string_view(error.text, std::min<size_t>(error.text_bytes, sizeof(error.text))));
    }
  }
  static absl::StatusOr<std::vector<Reason>> Reasons(const absl::StatusOr<Packet>& packet) {
    if (!packet.ok()) return packet.status();
    wire::RegionDone done;
    if (packet->body.size() < sizeof(done)) return absl::InternalError("answer of a wrong size");
    std::memcpy(&done, packet->body.data(), sizeof(done));
    if (packet->body.size() != sizeof(done) + done.n_blocks) return absl::InternalError("answer of a wrong size");
    std::vector<Reason> reasons;
    for (uint32_t i = 0; i < done.n_blocks; ++i) {
      reasons.push_back(static_cast<Reason>(packet->body[sizeof(done) + i]));
    }
    return reasons;
  }

 private:
  RawClient* const client_;
};

}  // namespace terrace::testing
