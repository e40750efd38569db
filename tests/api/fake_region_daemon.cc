// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "api/fake_region_daemon.h"

#include <poll.h>

#include <algorithm>

namespace terrace::api {

void FakeRegionDaemon::Run() {
  while (!stopping_) {
    std::vector<pollfd> fds{{wake_, POLLIN, 0}, {listener_, POLLIN, 0}};
    {
      std::lock_guard lock(mu_);
      for (const auto& [fd, connection] : connections_) {
        if (!connection.half_closed) fds.push_back({fd, POLLIN, 0});
      }
    }
    poll(fds.data(), fds.size(), 50);
    if ((fds[1].revents & POLLIN) != 0) {
      const int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
      std::lock_guard lock(mu_);
      if (fd >= 0) connections_[fd];
    }
    for (size_t i = 2; i < fds.size(); ++i) {
      if (fds[i].revents != 0) Receive(fds[i].fd);
    }
  }
}

void FakeRegionDaemon::Receive(int fd) {
  std::vector<std::byte> packet(wire::kMaxPacketBytes);
  alignas(cmsghdr) char control[CMSG_SPACE(253 * sizeof(int))];
  iovec part{packet.data(), packet.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
  std::vector<int> descriptors;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); n >= 0 && c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
      int received;
      std::memcpy(&received, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
      descriptors.push_back(received);
    }
  }
  std::lock_guard lock(mu_);
  if (n <= 0) {
    Peer& peer = connections_[fd];
    peer.half_closed = true;
    // Nothing of it is under way: the end comes at once, as the daemon's does.
    const bool busy = std::any_of(requests_.begin(), requests_.end(),
                                  [&](const FakeRequest& request) { return request.fd == fd; });
    if (!busy) {
      close(fd);
      connections_.erase(fd);
    }
  } else {
    wire::Header header;
    std::memcpy(&header, packet.data(), sizeof(header));
    packet.resize(static_cast<size_t>(n));
    packet.erase(packet.begin(), packet.begin() + sizeof(header));
    HandleLocked(fd, header, packet, descriptors);
  }
  for (const int received : descriptors) close(received);
}

void FakeRegionDaemon::HandleLocked(int fd, const wire::Header& header,
                                    const std::vector<std::byte>& body,
                                    const std::vector<int>& descriptors) {
  const auto type = static_cast<wire::Type>(header.type);
  if (type != wire::Type::kHello) EXPECT_EQ(header.version, manners_.version);
  switch (type) {
    case wire::Type::kHello: {
      wire::Welcome welcome{};
      welcome.version = manners_.version;
      welcome.max_keys = 4096;
      welcome.epoch = epoch_;
      welcome.staging_bytes_default = welcome.staging_bytes_max = 64 << 20;
      return Send(fd, header, &welcome, sizeof(welcome));
    }
    case wire::Type::kOpenKeySpace: {
      wire::KeySpaceOpened opened{};
      opened.key_space_id = 7;
      opened.segment_bytes = wire::kSegmentBytes;
      return Send(fd, header, &opened, sizeof(opened));
    }
    case wire::Type::kPing:
      if (manners_.answer_pings) Send(fd, header, nullptr, 0);
      return;
    case wire::Type::kRegisterRegion:
      return RegisterLocked(fd, header, body, descriptors);
    case wire::Type::kUnregisterRegion: {
      wire::UnregisterRegion message;
      std::memcpy(&message, body.data(), sizeof(message));
      EXPECT_EQ(connections_[fd].regions.erase(message.region_id), 1u);
      return Send(fd, header, nullptr, 0);
    }
    case wire::Type::kRegionStore:
    case wire::Type::kRegionLoad:
      return RequestLocked(fd, header, body);
    default:
      if ((header.flags & wire::kFlagNoReply) == 0) SendError(fd, header, TERRACE_UNAVAILABLE);
  }
}

void FakeRegionDaemon::RegisterLocked(int fd, const wire::Header& header,
                                      const std::vector<std::byte>& body,
                                      const std::vector<int>& descriptors) {
  if (manners_.refuse_regions != TERRACE_OK) return SendError(fd, header, manners_.refuse_regions);
  auto region = std::make_shared<FakeRegion>();
  const std::byte* at = body.data();
  const auto take = [&at](void* to, size_t bytes) {
    std::memcpy(to, at, bytes);
    at += bytes;
  };
  take(&region->said, sizeof(region->said));
  region->allocations.resize(region->said.n_allocations);
  take(region->allocations.data(), region->allocations.size() * sizeof(wire::RegionAllocation));
  region->planes.resize(region->said.n_planes);
  take(region->planes.data(), region->planes.size() * sizeof(wire::RegionPlane));
  EXPECT_EQ(static_cast<size_t>(at - body.data()), body.size());
  EXPECT_EQ(descriptors.size(), region->allocations.size());
  for (size_t i = 0; i < descriptors.size(); ++i) {
    void* base = mmap(nullptr, region->allocations[i].bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                      descriptors[i], 0);
    EXPECT_NE(base, MAP_FAILED);
    region->bases.push_back(static_cast<std::byte*>(base));
  }
  region->progress_fd = memfd_create("progress", MFD_CLOEXEC);
  const size_t bytes = wire::kRegionSlots * sizeof(wire::RegionProgress);
  EXPECT_EQ(ftruncate(region->progress_fd, static_cast<off_t>(bytes)), 0);
  region->progress = static_cast<wire::RegionProgress*>(
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, region->progress_fd, 0));
  const wire::RegionRegistered registered{++next_region_, 0, 0};
  connections_[fd].regions[registered.region_id] = region;
  Send(fd, header, &registered, sizeof(registered), region->progress_fd);
}

void FakeRegionDaemon::RequestLocked(int fd, const wire::Header& header,
                                     const std::vector<std::byte>& body) {
  FakeRequest request{.fd = fd, .header = header};
  request.is_load = static_cast<wire::Type>(header.type) == wire::Type::kRegionLoad;
  const size_t head = request.is_load ? sizeof(request.load) : sizeof(request.store);
  std::memcpy(request.is_load ? static_cast<void*>(&request.load) : &request.store, body.data(),
              head);
  request.blocks.resize(request.is_load ? request.load.n_blocks : request.store.n_blocks);
  EXPECT_LE(request.blocks.size(), wire::kMaxRegionBlocks);
  EXPECT_EQ(body.size(), head + request.blocks.size() * sizeof(wire::RegionBlock));
  std::memcpy(request.blocks.data(), body.data() + head, body.size() - head);
  const auto& regions = connections_[fd].regions;
  const auto it = regions.find(request.is_load ? request.load.region_id : request.store.region_id);
  if (it == regions.end()) return SendError(fd, header, TERRACE_NOT_FOUND);
  request.region = it->second;
  if (manners_.busy_answers > 0) {
    --manners_.busy_answers;
    return SendError(fd, header, TERRACE_RESOURCE_EXHAUSTED);
  }
  if (manners_.request_error != TERRACE_OK) return SendError(fd, header, manners_.request_error);
  if (!manners_.answer_requests) {
    requests_.push_back(std::move(request));
    return;
  }
  ReplyLocked(request, CopyLocked(request));
}

std::vector<uint8_t> FakeRegionDaemon::CopyLocked(const FakeRequest& request) {
  std::vector<uint8_t> reasons;
  for (const wire::RegionBlock& block : request.blocks) {
    std::vector<std::byte>& payload = blocks_[ToKey(block.key)];
    const bool is_here = !payload.empty();
    reasons.push_back(request.is_load == is_here ? TERRACE_REASON_NONE
                      : is_here                  ? TERRACE_REASON_DUPLICATE
                                                 : TERRACE_REASON_COLD);
    if (reasons.back() != TERRACE_REASON_NONE) continue;
    payload.resize(request.region->PageBytes());
    size_t at = 0;
    for (size_t p = 0; p < request.region->planes.size(); ++p) {
      const uint64_t bytes = request.region->planes[p].bytes;
      std::byte* const piece = request.region->Piece(p, block.page);
      std::memcpy(request.is_load ? piece : payload.data() + at,
                  request.is_load ? payload.data() + at : piece, bytes);
      at += bytes;
    }
  }
  return reasons;
}

void FakeRegionDaemon::ReplyLocked(const FakeRequest& request,
                                   const std::vector<uint8_t>& reasons) {
  answered_.push_back(request);
  std::vector<std::byte> body(sizeof(wire::RegionDone) + reasons.size());
  const wire::RegionDone done{static_cast<uint32_t>(reasons.size()), 0};
  std::memcpy(body.data(), &done, sizeof(done));
  std::memcpy(body.data() + sizeof(done), reasons.data(), reasons.size());
  Send(request.fd, request.header, body.data(), body.size());
}

void FakeRegionDaemon::SendError(int fd, const wire::Header& request, terrace_status status) {
  wire::ErrorBody error{};
  constexpr char kText[] = "the test says no";
  error.text_bytes = sizeof(kText) - 1;
  std::memcpy(error.text, kText, sizeof(kText) - 1);
  Send(fd, request, &error, sizeof(error), -1, status);
}

void FakeRegionDaemon::Send(int fd, const wire::Header& request, const void* body, size_t bytes,
                            int descriptor, terrace_status status) {
  wire::Header header{wire::kMagic,
                      manners_.version,
                      request.type,
                      wire::kFlagReply,
                      static_cast<uint16_t>(status),
                      request.request_id,
                      bytes};
  iovec parts[2] = {{&header, sizeof(header)}, {const_cast<void*>(body), bytes}};
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = 2;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (descriptor >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(c), &descriptor, sizeof(int));
  }
  sendmsg(fd, &message, MSG_NOSIGNAL);
}

}  // namespace terrace::api
