// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// RawClient: a client of the engine socket that can say anything, right or wrong. Written from wire.h
// alone, apart from libterrace, so that a mistake in one of them is seen by the other.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "api/engine/wire.h"
#include "kvstore/base/reason.h"
#include "kvstore/block_key.h"

namespace terrace::testing {

// A descriptor that closes itself.
class Fd {
 public:
  explicit Fd(int fd = -1) : fd_(fd) {}
  ~Fd();
  Fd(Fd&& other) noexcept : fd_(other.Take()) {}
  Fd& operator=(Fd&& other) noexcept;
  int get() const { return fd_; }
  int Take();

 private:
  int fd_;
};

// Shared memory of the daemon, mapped here. data is null when the kernel refused.
class Mapping {
 public:
  Mapping(Fd fd, uint64_t bytes, int protection);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  std::byte* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  int fd() const { return fd_.get(); }

 private:
  Fd fd_;
  std::byte* data_ = nullptr;
  uint64_t bytes_;
};

struct Packet {
  wire::Header header{};
  std::vector<std::byte> body;
  std::vector<Fd> fds;
};

// The key space of a client, as the daemon answered.
struct OpenSpace {
  uint32_t id = 0;
  uint64_t block_bytes = 0;
  uint8_t digest[32] = {};
};

struct SpaceText {
  std::string model = "m", model_fingerprint = "f", kv_dtype = "bf16", layout = "l", parallel = "p",
              hash = "h", group = "g", extra;
  uint32_t block_class = 0;
};

struct LookupResult {
  wire::LookupDone done{};
  std::vector<wire::Ref> refs;
};

enum class Verdict { kGood, kStale, kCorrupt, kUnmapped };

// Owner: the test. Threads: one at a time. Every wait has a time limit (kWaitMs unless given).
class RawClient {
 public:
  static constexpr int kWaitMs = 20'000;

  explicit RawClient(const std::string& socket_path);
  ~RawClient();
  RawClient(const RawClient&) = delete;

  bool is_connected() const { return fd_.get() >= 0; }
  int fd() const { return fd_.get(); }
  void Disconnect() { fd_ = Fd(); }

  // False when the kernel did not take it (closed, or would block).
  bool SendBytes(std::span<const std::byte> packet, std::span<const int> fds = {});
  // One packet; nullopt when the connection ended or the time is over.
  std::optional<Packet> Receive(int wait_ms = kWaitMs);
  // Reads until the daemon closes the connection.
  bool WaitClosed(int wait_ms = kWaitMs);

  static std::vector<std::byte> Encode(wire::Type type, uint32_t request_id, std::span<const std::byte> body,
                                       uint16_t flags = 0, uint16_t version = wire::kVersion);
  // Sends a request and waits for its answer. Unavailable: the connection ended.
  absl::StatusOr<Packet> Call(wire::Type type, std::span<const std::byte> body);
  uint32_t next_id() { return ++last_id_; }

  static wire::Hello HelloFor(const std::string& tenant, const std::string& token = "");
  absl::StatusOr<wire::Welcome> Hello(const wire::Hello& hello = HelloFor("default"));
  static std::vector<std::byte> OpenBody(uint64_t block_bytes, const SpaceText& text);
  absl::StatusOr<OpenSpace> Open(uint64_t block_bytes, const SpaceText& text = {});
  absl::StatusOr<LookupResult> Lookup(const OpenSpace& space, std::span<const kv::BlockKey> keys,
                                      uint32_t flags = 0, uint64_t lease_id = 0);
  // recompute: nanoseconds a token.
  absl::StatusOr<LookupResult> LookupOrRecompute(const OpenSpace& space, std::span<const kv::BlockKey> keys,
                                                 uint32_t flags, uint32_t recompute);
  static std::vector<std::byte> LocateBody(const OpenSpace& space, std::span<const kv::BlockKey> keys,
                                           uint32_t timeout_us);
  absl::StatusOr<LookupResult> Locate(const OpenSpace& space, std::span<const kv::BlockKey> keys,
                                      uint32_t timeout_us);
  // What a Lookup or Locate was answered.
  static absl::StatusOr<LookupResult> ParseLookup(const Packet& packet);
  static std::vector<std::byte> HintBody(const OpenSpace& space, std::span<const kv::BlockKey> keys,
                                         const wire::Retention& retention);
  absl::Status Hint(const OpenSpace& space, std::span<const kv::BlockKey> keys, const wire::Retention& retention);
  absl::Status Release(uint64_t lease_id);
  absl::Status Report(const OpenSpace& space, const kv::BlockKey& key, uint64_t generation);
  absl::Status Ping();

  // The segment's two descriptors as the daemon sent them.
  absl::StatusOr<std::pair<Fd, Fd>> GetSegment(uint32_t segment_id, wire::SegmentInfo* info);
  // Copies a leased block out and checks it as a careful client does. bytes may be null.
  Verdict Read(const OpenSpace& space, const kv::BlockKey& key, const wire::Ref& ref,
               std::vector<std::byte>* bytes);

  absl::Status GetStaging(uint64_t bytes);
  Mapping* staging() { return staging_.get(); }
  // The right checksums of a payload.
  static std::vector<uint64_t> Checksums(const OpenSpace& space, const kv::BlockKey& key,
                                         std::span<const std::byte> payload);
  static std::vector<std::byte> PutBody(const OpenSpace& space, const kv::BlockKey& key, uint64_t staging_offset,
                                        std::span<const uint64_t> checksums,
                                        const std::optional<kv::BlockKey>& parent = {},
                                        const wire::Retention& retention = {});
  // Writes the payload to offset of the staging memory and stores it.
  absl::StatusOr<Reason> Put(const OpenSpace& space, const kv::BlockKey& key, std::span<const std::byte> payload,
                             uint64_t offset = 0, const std::optional<kv::BlockKey>& parent = {});

 private:
  struct Segment {
    std::unique_ptr<Mapping> payload, headers;
  };
  Fd fd_;
  uint32_t last_id_ = 0;
  std::map<uint32_t, Segment> segments_;
  std::unique_ptr<Mapping> staging_;
};

template <typename T>
std::span<const std::byte> BytesOf(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

// Keys and payloads that follow from numbers, so that any served byte can be checked without a copy.
kv::BlockKey KeyOf(uint64_t number);
std::vector<kv::BlockKey> KeysOf(uint64_t first, size_t n);
// The payload that the given attempt stores under the key.
std::vector<std::byte> PayloadOf(const kv::BlockKey& key, uint64_t attempt, uint64_t bytes);
// Seeded, reproducible.
uint64_t Mix(uint64_t x);

}  // namespace terrace::testing
